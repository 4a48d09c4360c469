"""Attack suites as the engine runs them."""

from __future__ import annotations

import pytest
import torch
from engine_tools import data, mlp, moody, seeded

import lossdsl
from lossdsl import UserError
from lossdsl.assets import attack_paths
from lossdsl.solve import ExampleStreams

TWO = (
    "attack two\nparam eps = 0.1\n"
    "run a : x' in linf(x, eps) maximize CE(f(x'), y) by pgd(steps = 2, step = 0.05, start = x + normal(0.01))\n"
    "run b : x'[j != y] in linf(x, eps) maximize f(x'[j])[j] - f(x)[y] by pgd(steps = 2, step = 0.05, start = uniform, restarts = 2)\n"
    "run c : x' in l2(x, 2 * eps) maximize hinge(f(x'), y) - f(x)[y] by pgd(steps = 2, step = 0.1, start = x, keep = best)\n"
    "count worst"
)


def attack(text: str = TWO, model: torch.nn.Module | None = None) -> object:
    return lossdsl.compile(lossdsl.parse(text) if "\n" in text else text, model or mlp(), num_classes=4)


@pytest.mark.parametrize("name", list(attack_paths()))
def test_a_shipped_suite_raises_the_loss_inside_its_set(name: str) -> None:
    model, (x, y) = mlp(), data()
    others = {other: surrogate(n) for n, other in enumerate(lossdsl.load(name).models)}
    text = attack_paths()[name].read_text()
    shorter = text.replace("steps = 100", "steps = 20").replace("queries = 5000", "queries = 100")
    suite = lossdsl.compile(lossdsl.parse(shorter), model, num_classes=4, models=others)
    victims = list(others.values()) or [model] * len(suite.settings)
    for row, victim, (point, objective) in zip(suite.settings, victims, suite.run(x, y, generator=seeded()).values(), strict=True):
        family = point if point.dim() > x.dim() else point[:, None]
        size = torch.linalg.vector_norm(family - x[:, None], {"linf": torch.inf, "l2": 2}[row["norm"]], dim=2)
        assert family.shape[2:] == x.shape[1:] and float(size.max()) <= row["radius"] + 1e-12
        (ce, gap), (ce_after, gap_after) = (losses(victim, at, y) for at in (x[:, None], family))
        raised = (ce_after.amax(1) > ce[:, 0]) | (gap_after.amax(1) > gap[:, 0])
        if row["solver"] == "fab":  # gives the clean point where nothing near enough fools
            raised = ((size == 0) | (gap_after > 0)).all(1)
        assert bool((raised | (gap[:, 0] > 0)).all()), "an example that is fooled already may stand still"
        if objective is not None and name == "pgd50x10":
            torch.testing.assert_close(objective, torch.nn.functional.cross_entropy(model(point), y, reduction="none").detach())


def surrogate(number: int) -> torch.nn.Module:
    model = mlp()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5 + number)
    return model


def losses(model: torch.nn.Module, points: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy, and the largest other logit minus the label's, [B, n] each, of points [B, n, *input]."""
    z = model(points.flatten(0, 1)).detach().unflatten(0, points.shape[:2])
    own = torch.nn.functional.one_hot(y, z.shape[2]).bool()[:, None]
    picked = z.masked_fill(~own, -torch.inf).amax(2)
    return z.logsumexp(2) - picked, z.masked_fill(own, -torch.inf).amax(2) - picked


def test_a_suite_runs_in_eval_mode_and_leaves_the_model_alone() -> None:
    model = moody().train()
    before = [b.clone() for b in model.buffers()]
    modes: list[bool] = []
    model.register_forward_hook(lambda m, _i, _o: modes.append(any(part.training for part in m.modules())))
    attack("pgd10", model).run(*data())
    assert modes == [False] * 10 and all(m.training for m in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_every_run_of_a_suite() -> None:
    x, y = data()
    found = attack().run(x, y, generator=seeded())
    assert set(found) == {"a", "b", "c"}
    assert found["a"][0].shape == found["c"][0].shape == x.shape and found["b"][0].shape == (6, 3, 5)
    assert found["a"][1] is None and found["b"][1].shape == (6, 3) and found["c"][1].shape == (6,)
    for name, radius in (("a", 0.1), ("b", 0.1)):
        point = found[name][0]
        assert float((point - (x if name == "a" else x[:, None])).abs().max()) <= radius + 1e-12
    assert float((found["c"][0] - x).norm(dim=1).max()) <= 0.2 + 1e-12


def test_a_run_on_its_own_is_the_run_in_the_suite() -> None:
    """Later runs skip broken examples: the evaluator asks for single runs."""
    x, y = data()
    suite = attack()
    alone = suite.run(x, y, generator=seeded(), only="c")
    assert set(alone) == {"c"}
    single = lossdsl.compile(
        lossdsl.parse("attack one\n" + TWO.splitlines()[1] + "\n" + TWO.splitlines()[4] + "\ncount worst"), mlp(), num_classes=4
    )
    torch.testing.assert_close(alone["c"][0], single.run(x, y)["c"][0])


def test_the_settings_of_a_suite() -> None:
    suite = attack()
    assert suite.name == "two" and suite.count == "worst"
    a, b, c = suite.settings
    assert a["name"] == "a" and a["solver"] == "pgd" and a["steps"] == 2 and a["radius"] == 0.1 and a["norm"] == "linf"
    assert a["start"] == "x + normal(0.01)" and b["start"] == "uniform" and b["restarts"] == 2 and c["keep"] == "best"
    assert "maximize" in c["objective"] and "hinge" in c["objective"]


def test_a_bad_batch_is_explained() -> None:
    x, y = data()
    with pytest.raises(UserError, match="outside the input domain"):
        attack("pgd10").run(x + 2, y)


SETS = (
    "attack s\nparam eps = 0.1\n"
    + "\n".join(
        f"run {name} : x'{index} in {name[:-1]}(x, eps) maximize CE(f(x'{inner}), y) "
        f"by {solver} keep = best, start = {start}, restarts = 2)"
        for name, index, inner, solver, start in (
            ("linfa", "", "", "pgd(steps = 2, step = 0.05,", "x + normal(0.01)"),
            ("l2a", "[j != y]", "[j]", "adam(steps = 2, step = 0.05,", "uniform"),
            ("l1a", "", "", "pgd(steps = 2, step = 0.05,", "corner"),
            ("linfb", "[j in top(2, i != y: f(x)[i])]", "[j]", "pgd(steps = 1, step = 0.05, noise = normal(0.1),", "x + uniform(-0.1, 0.1)"),
        )
    )
    + "\ncount worst"
)


def test_with_streams_an_example_does_not_depend_on_the_others() -> None:
    """Alone, in other company, in another order or in chunks: the same numbers, also of random starts, restarts, families and noise."""
    (x, y), index = data(), torch.arange(6)
    model = mlp()
    suite = lossdsl.compile(lossdsl.parse(SETS), model, num_classes=4)
    in_chunks = lossdsl.compile(lossdsl.parse(SETS), model, num_classes=4, chunk=2)
    whole = suite.run(x, y, generator=ExampleStreams.of(0, index))
    rows = torch.tensor([4, 1, 3])
    part = suite.run(x[rows], y[rows], generator=ExampleStreams.of(0, index[rows]))
    cut = in_chunks.run(x, y, generator=ExampleStreams.of(0, index))
    for name, (point, objective) in whole.items():
        torch.testing.assert_close(part[name][0], point[rows], rtol=0, atol=1e-12)
        torch.testing.assert_close(part[name][1], objective[rows], rtol=0, atol=1e-12)
        torch.testing.assert_close(cut[name][0], point, rtol=0, atol=1e-12)
    other = suite.run(x, y, generator=ExampleStreams.of(1, index))
    assert all(not torch.equal(other[name][0], point) for name, (point, _) in whole.items())
