"""A level in eval mode may be solved in parts: the solutions do not depend on how."""

from __future__ import annotations

import pytest
import torch
from engine_tools import Flat, data, mlp, seeded, step_of
from torch import Tensor, nn

import lossdsl

BY = "by sgd(lr = 0.1)"

LEVELS = {
    "one run": "lower x' in linf(x, 0.1) maximize KL(p(x) || p(x')) by pgd(steps = 3, step = 0.05, start = x + normal(0.01))",
    "restarts": "lower x' in l2(x, 0.2) maximize CE(f(x'), y) by pgd(steps = 3, step = 0.1, start = uniform, restarts = 3)",
    "best iterate": "lower x' in linf(x, 0.1) maximize CE(f(x'), y) by pgd(steps = 5, step = 0.1, start = corner, keep = best)",
    "minimised": "lower x' in linf(x, 0.1) minimize f(x')[y] by momentum(steps = 3, step = 0.05, start = raw(x + normal(0.01)))",
    "optimizer": "lower x' in linf(x, 0.1) maximize hinge(f(x'), y) by adam(steps = 3, step = 0.05, start = x)",
    "radius per example": "lower x' in linf(x, 0.2 * p(x)[y]) maximize CE(f(x'), y) by pgd(steps = 3, step = 0.05, start = uniform)",
    "perturbation": "lower d in linf(0, 0.1) maximize CE(f(x + d), y) by pgd(steps = 3, step = 0.05, start = 0 * x)",
    "family": "lower x'[j != y] in linf(x, 0.1) maximize f(x'[j])[j] - f(x)[j] * f(x'[j])[y] by pgd(steps = 3, step = 0.05, start = uniform)",
    "family over all classes": "lower x'[j] in linf(x, 0.1) maximize f(x'[j])[j] by pgd(steps = 2, step = 0.05, start = x + normal(0.01), restarts = 2)",
    "family of a minimum": "lower x'[j != y] in l1(x, 0.5) minimize f(x'[j])[y] * H(p(x)) by pgd(steps = 3, step = 0.2, start = corner, keep = best)",
}


def solutions(level: str, chunk: int) -> dict[str, Tensor]:
    step = step_of(
        f"sample e ~ normal(0.01)\nsample t ~ uniform(0, 1) over batch\n{level}\nupper minimize CE(f(x), y) {BY}", mlp(), chunk=chunk
    )
    return step.solve(*data(11), generator=seeded())


@pytest.mark.parametrize("name", LEVELS)
def test_solutions_do_not_depend_on_the_chunk(name: str) -> None:

    whole = solutions(LEVELS[name], 10**9)
    assert bool(torch.cat([v.reshape(-1) for k, v in whole.items() if k not in ("e", "t")]).isfinite().all())
    for chunk in (1, 3, 7):
        for key, value in solutions(LEVELS[name], chunk).items():
            torch.testing.assert_close(value, whole[key], rtol=0, atol=1e-12)


def test_later_levels_and_iterates_in_chunks() -> None:
    text = (
        "lower x'[j != y] in linf(x, 0.1) maximize f(x'[j])[j] by pgd(steps = 2, step = 0.05, start = uniform)\n"
        "lower z in linf(x, 0.1) maximize CE(f(z), y) - max(j != y: f(x'[j])[j] * f(z)[j]) by pgd(steps = 3, step = 0.05, start = z0 * x)\n"
        "lower v[j] in linf(z, 0.1) maximize f(v[j])[j] * f(z)[j] by pgd(steps = 2, step = 0.05, start = z)\n"
        "upper minimize CE(f(z@1), y) + sum(j: f(v[j]@1)[j]) + CE(f(z@0), y) by sgd(lr = 0.1)"
    ).replace("z0 * x", "x + e")
    x, y = data(11)
    found = [step_of(f"sample e ~ normal(0.01)\n{text}", mlp(), chunk=chunk).solve(x, y, generator=seeded()) for chunk in (10**9, 1, 3, 7)]
    assert set(found[0]) == {"e", "x'", "z", "z@0", "z@1", "v", "v@1"}
    for other in found[1:]:
        for key, value in found[0].items():
            torch.testing.assert_close(other[key], value, rtol=0, atol=1e-12)


def test_chunks_bound_the_points_that_a_pass_sees() -> None:
    model, (x, y) = mlp(), data(11)
    sizes: list[int] = []
    model.register_forward_hook(lambda _m, inputs, _o: sizes.append(len(inputs[0])))
    step_of(f"{LEVELS['family']}\nupper minimize CE(f(x), y) {BY}", model, chunk=7).solve(x, y)
    # two families of three: the members of a family stay together
    assert max(sizes[1:]) == 6 and sizes[0] == 11 and sum(sizes) == 11 + 3 * 33


@pytest.mark.parametrize("mode", ["train", "untracked"])
def test_levels_in_train_mode_are_never_split(mode: str) -> None:
    """A BatchNorm would see other statistics."""
    torch.manual_seed(1)
    model = Flat(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4)).double()
    sizes: list[int] = []
    model.register_forward_hook(lambda _m, inputs, _o: sizes.append(len(inputs[0])))
    step_of(
        f"lower x' in linf(x, 0.1) maximize CE(f(x'), y) by pgd(steps = 2, step = 0.05, start = x) with f in {mode}\nupper minimize CE(f(x), y) {BY}",
        model,
        chunk=3,
    ).solve(*data(11))
    assert sizes == [11, 11]


def test_an_attack_in_chunks_compares_restarts_per_example() -> None:
    text = "attack a\nrun r : x' in linf(x, 0.1) maximize CE(f(x'), y) by pgd(steps = 2, step = 0.05, start = uniform, restarts = 4)\ncount worst"
    x, y = data(11)
    whole, parts = (
        lossdsl.compile(lossdsl.parse(text), mlp(), num_classes=4, chunk=chunk).run(x, y, generator=seeded())["r"] for chunk in (10**9, 3)
    )
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    expected = torch.nn.functional.cross_entropy(mlp()(whole[0]), y, reduction="none")
    torch.testing.assert_close(whole[1], expected.detach())


def test_a_family_may_start_from_a_draw_over_the_batch() -> None:
    found = solutions(
        "lower x'[j != y] in linf(x, 0.3) maximize f(x'[j])[j] by pgd(steps = 1, step = 0.05, start = (1 - 0.1 * t) * x)", 10**9
    )
    assert found["x'"].shape == (11, 3, 5)


def test_a_family_may_start_from_a_draw_per_example_and_an_earlier_level() -> None:
    text = (
        "sample e ~ normal(0.01)\nsample r ~ uniform(0, 1) over example\n"
        "lower z in linf(x, 0.1) maximize CE(f(z), y) by pgd(steps = 2, step = 0.05, start = x)\n"
        "lower x'[j != y] in linf(x, 0.3) maximize f(x'[j])[j] by pgd(steps = 0, step = 0.05, start = x + r * (z + e - x))\n"
        "upper minimize CE(f(x), y) by sgd(lr = 0.1)"
    )
    x, y = data(11)
    found = step_of(text, mlp()).solve(x, y, generator=seeded())
    expected = x + found["r"][:, None] * (found["z"] + found["e"] - x)
    for i in range(3):
        torch.testing.assert_close(found["x'"][:, i], expected)
