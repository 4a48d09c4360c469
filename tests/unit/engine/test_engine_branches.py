"""A branch not taken, and an example left out by `where`, give no value, no gradient and no NaN."""

from __future__ import annotations

import pytest
import torch
from engine_tools import Logits, data, gradients, mlp, seeded, upper
from torch import Tensor

from lossdsl.engine.reference import Reference

LIVE = "f(x)[0]"
"""1 in the first examples and 0, the value that breaks the branch, in the others."""

BROKEN = {
    "log(0)": f"log({LIVE})",
    "sqrt(0)": f"sqrt({LIVE})",
    "0^-1": f"1 / {LIVE}",
    "0^0.5": f"{LIVE}^0.5",
    "0^-0.5": f"{LIVE}^(-0.5)",
    "0/0": f"{LIVE} / ({LIVE} * {LIVE})",
    "log(-1)": f"log({LIVE} - 0.5)",
    "sqrt(-1)": f"sqrt({LIVE} - 0.5)",
    "overflow": f"exp(1000 * (1 - {LIVE}))",
    "inside a binder": f"sum(j: log({LIVE} * (2 + f(x)[j])) * f(x)[j])",
    "through a norm": f"norm(x / {LIVE}, 2)",
    "through a let": "bad * bad",
    "DLR of a tie": "DLR(f(x), y) / (f(x)[0] - f(x)[1])",
}


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Logits [1, 0, 0.5] in two examples and [0, 0, 0] in three; y = 0; which examples are sound."""
    x = torch.zeros(5, 3, dtype=torch.float64)
    x[:2] = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    if_ok = torch.tensor([True, True, False, False, False])
    return x, torch.zeros(5, dtype=torch.long), if_ok


def run(expression: str) -> tuple[Tensor, Tensor]:
    """Loss and gradient to the parameter, on the whole batch."""
    model = Logits()
    x, y, _ = batch()
    step = upper(expression, model, 3, f"input x in reals\nlet bad = log({LIVE})")
    loss = step(x, y)
    return loss.detach(), torch.autograd.grad(loss, model.scale)[0]


def alone(expression: str) -> tuple[Tensor, Tensor]:
    """The same on the two sound examples."""
    model = Logits()
    x, y, ok = batch()
    loss = upper(expression, model, 3, f"input x in reals\nlet bad = log({LIVE})")(x[ok], y[ok])
    return loss.detach(), torch.autograd.grad(loss, model.scale)[0]


@pytest.mark.parametrize("name", BROKEN)
def test_the_branch_not_taken_leaves_nothing(name: str) -> None:
    sound, _ = alone(BROKEN[name])
    assert bool(sound.isfinite()), "the branch is finite where it is taken"
    for taken, other in ((f"if({LIVE} > 0.5, {BROKEN[name]}, 0)", ""), (f"if({LIVE} <= 0.5, 0, {BROKEN[name]})", "")):
        loss, gradient = run(f"CE(f(x), y) + {taken}{other}")
        plain, plain_gradient = run("CE(f(x), y)")
        value, slope = alone(BROKEN[name])
        torch.testing.assert_close(loss, plain + value * 2 / 5)
        torch.testing.assert_close(gradient, plain_gradient + slope * 2 / 5)


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("over", ["batch_mean", "batch_sum"])
def test_an_example_left_out_leaves_nothing(name: str, over: str) -> None:
    loss, gradient = run(f"CE(f(x), y) + {over}({BROKEN[name]} where {LIVE} > 0.5)")
    plain, plain_gradient = run("CE(f(x), y)")
    value, slope = alone(f"{over}({BROKEN[name]})")
    torch.testing.assert_close(loss, plain + value)
    torch.testing.assert_close(gradient, plain_gradient + slope)


@pytest.mark.parametrize("name", BROKEN)
def test_branches_within_branches(name: str) -> None:
    nested = f"if({LIVE} > 0.2, if({LIVE} > 0.5, {BROKEN[name]}, 1 / (1 - {LIVE})), if({LIVE} > 0.1, {BROKEN[name]}, 2))"
    loss, gradient = run(f"CE(f(x), y) + {nested}")
    plain, plain_gradient = run("CE(f(x), y)")
    value, slope = alone(BROKEN[name])
    torch.testing.assert_close(loss, plain + value * 2 / 5 + 2 * 3 / 5)
    torch.testing.assert_close(gradient, plain_gradient + slope * 2 / 5)


def test_a_lower_level_is_not_disturbed_by_a_branch_not_taken() -> None:
    """At x' = x the distance is 0: the branch with its logarithm is not taken there, and the other one leads."""
    model, (x, y) = mlp(), data()
    text = "lower x' in linf(x, 0.1) maximize {} by ascent(steps = 3, step = 1, start = x)"
    distance = "norm(x' - x, 2)"
    guarded = upper("CE(f(x'), y)", model, before=text.format(f"if({distance} > 10, log({distance}) + 1 / {distance}, CE(f(x'), y))"))
    plain = upper("CE(f(x'), y)", model, before=text.format("CE(f(x'), y)"))
    a, b = guarded.solve(x, y)["x'"], plain.solve(x, y)["x'"]
    torch.testing.assert_close(a, b, rtol=0, atol=1e-14)
    assert bool((a != x).any())


def test_no_example_at_all() -> None:
    model, (x, y) = mlp(), data()
    for expression in ("batch_mean(log(p(x)[y]) where f(x)[0] > 1000)", "batch_sum(1 / (f(x)[0] - f(x)[0]) where f(x)[0] > 1000)"):
        loss = upper(f"CE(f(x), y) + {expression}", model)(x, y)
        plain = upper("CE(f(x), y)", model)(x, y)
        torch.testing.assert_close(loss.detach(), plain.detach())
        for a, b in zip(gradients(loss, model), gradients(plain, model), strict=True):
            torch.testing.assert_close(a, b)


def test_a_condition_that_is_one_number_chooses_for_the_whole_batch() -> None:
    model, (x, y) = mlp(), data()
    for bound, wanted in (("1000", "CE(f(x), y)"), ("-1000", "H(p(x))")):
        loss = upper(f"if(batch_mean(CE(f(x), y)) < {bound}, CE(f(x), y), H(p(x)))", model)(x, y)
        expected = upper(wanted, model)(x, y)
        for a, b in zip(gradients(loss, model), gradients(expected, model), strict=True):
            torch.testing.assert_close(a, b)


def test_a_chosen_point_per_example() -> None:
    model, (x, y) = mlp(), data()
    before = "lower x' in linf(x, 0.1) maximize CE(f(x'), y) by pgd(steps = 2, step = 0.05, start = corner)"
    step = upper("CE(f(if(f(x)[y] > 0, x, x')), y)", model, before=before)
    solutions = step.solve(x, y, generator=seeded())
    right = model(x)[torch.arange(len(y)), y] > 0
    assert 0 < int(right.sum()) < len(y)
    expected = torch.nn.functional.cross_entropy(model(torch.where(right[:, None], x, solutions["x'"])), y)
    torch.testing.assert_close(step.objective(x, y, solutions).detach(), expected.detach())


ACROSS = {
    "a batch mean in a branch": "if({c}, batch_mean(CE(f(x), y)) * f(x)[0], 0)",
    "a batch sum under where": "batch_mean(batch_sum(CE(f(x), y)) * f(x)[0] where {c})",
    "a batch mean with where in a branch": "if({c}, batch_mean(CE(f(x), y) where f(x)[1] > 0) * f(x)[0], H(p(x)))",
}


@pytest.mark.parametrize("name", ACROSS)
def test_a_batch_mean_inside_a_branch_has_the_gradient_of_every_example(name: str) -> None:
    model, (x, y) = mlp(), data(12)
    condition = "f(x)[0] > -0.645"
    taken = model(x)[:, 0] > -0.645
    assert 0 < int(taken.sum()) < 12
    step = upper(f"CE(f(x), y) + {ACROSS[name].format(c=condition)}", model)
    loss, expected = step(x, y), Reference(step.recipe.typed, model, 4).objective(x, y, {})
    torch.testing.assert_close(loss.detach(), expected.detach())
    for a, b in zip(gradients(loss, model), gradients(expected, model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_a_batch_mean_in_a_branch_that_no_example_takes_leaves_nothing() -> None:
    loss, gradient = run(f"CE(f(x), y) + if({LIVE} > 2, log(batch_mean(f(x)[1])), 0)")
    plain, plain_gradient = run("CE(f(x), y)")
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(gradient, plain_gradient)
