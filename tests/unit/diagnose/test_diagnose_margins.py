"""D6 to D8 against plain PyTorch in float64; the decomposition sums exactly whatever the attack does."""

from __future__ import annotations

import pytest
import torch
from diagnose_tools import subject
from hypothesis import given, settings
from hypothesis import strategies as st

from lossdsl.diagnose.margins import decomposed, decomposition, margins, quadrants, sliced_wasserstein


@pytest.mark.parametrize(("classes", "features"), [(2, 1), (2, 6), (3, 6), (10, 6)])
def test_margins_are_those_of_plain_pytorch(classes: int, features: int) -> None:
    looked = subject(classes, features=features)
    table = margins(looked)
    looked.model.eval()
    x, y, points = looked.x, looked.y, looked.adversarial
    with torch.no_grad():
        p, q = looked.model(x).softmax(1), looked.model(points).softmax(1)
    rows = torch.arange(len(y))

    def margin(v: torch.Tensor) -> torch.Tensor:
        others = v.clone()
        others[rows, y] = -1
        return v[rows, y] - others.amax(1)

    middle = (p + q) / 2
    kl = (p * (p / q).log()).sum(1)
    js = ((p * (p / middle).log()).sum(1) + (q * (q / middle).log()).sum(1)) / 2
    expected = {"margin": margin(p), "adversarial margin": margin(q), "kl": kl, "js": js, "l2": (p - q).norm(dim=1)}
    for name, value in expected.items():
        torch.testing.assert_close(torch.tensor(table[name], dtype=torch.float64), value, rtol=1e-9, atol=1e-12)


def test_sliced_wasserstein() -> None:
    cloud = torch.rand(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    move = torch.tensor([0.3, 0.0, -0.2], dtype=torch.float64)
    assert sliced_wasserstein(cloud, cloud, 0) == 0.0
    moved = sliced_wasserstein(cloud, cloud + move, 0)  # the mean of |<move, u>| over unit vectors u of the sphere is |move| / 2
    assert moved == pytest.approx(float(move.norm()) / 2, rel=0.15)
    assert sliced_wasserstein(cloud, cloud.flip(0) + 2 * move, 0) == pytest.approx(2 * moved)


def test_the_model_and_its_mode_are_left_as_they_were() -> None:
    looked = subject()
    looked.model.train()
    before = {name: value.clone() for name, value in looked.model.state_dict().items()}
    margins(looked), quadrants(looked), decomposition(looked)
    assert looked.model.training and all(m.training for m in looked.model.modules())
    assert all(torch.equal(value, before[name]) for name, value in looked.model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in looked.model.parameters())


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
@settings(deadline=None, max_examples=200)
def test_the_robust_error_is_the_sum_of_its_parts(pairs: list[tuple[bool, bool]]) -> None:
    clean, attacked = (torch.tensor(mask) for mask in zip(*pairs, strict=True))
    counts = decomposed(clean, attacked)
    assert counts["robust"] == counts["natural"] + counts["boundary"]
    assert counts["natural"] == sum(not right for right, _ in pairs)
    assert counts["robust"] == sum(not (right and still) for right, still in pairs)  # a clean error is a robust error
    assert counts["repaired"] == sum(still and not right for right, still in pairs)


def test_quadrants_count_what_the_decomposition_counts() -> None:
    looked = subject(count=60)
    names = quadrants(looked)["quadrant"]
    counts = dict(zip(decomposition(looked)["error"], decomposition(looked)["examples"], strict=True))
    assert names.count("III") + names.count("II") == counts["R_nat"]
    assert names.count("IV") == counts["R_bdy"]
    assert counts["R_rob"] == 60 - names.count("I")


def test_a_repaired_example_is_named() -> None:
    looked = subject(count=60)
    wrong = int((~looked.clean).nonzero()[0])
    k = int(looked.y[wrong])
    tried = 9 * torch.randn(4000, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    looked.adversarial[wrong] = tried[looked.model.eval()(tried).argmax(1) == k][0]
    table = quadrants(looked)
    assert table["quadrant"][wrong] == "II"
    assert any(f"repairs: {wrong}" in note for note in table.notes)
    assert any("1 clean errors are right at x*" in note for note in decomposition(looked).notes)
