"""`through unrolling` against finite differences of the whole composed map."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from engine_tools import Flat, data, gradients, seeded, step_of
from torch import Tensor, nn

from lossdsl.diagnostics import RecipeError

pytestmark = pytest.mark.slow

X, Y = data()
BORDER = (X * 1.6 - 0.3).clamp(0, 1)
"""A batch that touches both ends of the domain."""
UPPER = "\nupper minimize CE(f(x'), y) by sgd(lr = 0.1)"
ITERATES = "\nupper minimize CE(f(x'), y) + norm(x'@1 - x, 2)^2 + CE(f(x'@2), y) * norm(x' - x'@0, 2)^2 by sgd(lr = 0.1)"


def network(norm: bool) -> nn.Module:
    torch.manual_seed(4)
    middle = [nn.BatchNorm1d(7)] if norm else []
    model = Flat(nn.Linear(5, 7), *middle, nn.CELU(), nn.Linear(7, 4)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.0 if norm else 1.5)
        for _ in range(3):
            model(torch.rand(20, 5, dtype=torch.float64))
    return model


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def of_loss(text: str, model: nn.Module, x: Tensor) -> float:
    return float(step_of(text, copy.deepcopy(model))(x, Y, generator=seeded()).detach())


def differences(text: str, model: nn.Module, x: Tensor, directions: Tensor, h: float = 1e-5) -> Tensor:
    """Of the recipe's own value, which is the same with and without `through`: the draws are the same ones, the solver is run anew."""
    text = text.replace("through unrolling", "through nothing")
    moved, out = copy.deepcopy(model), []
    theta = nn.utils.parameters_to_vector(model.parameters()).detach()
    for direction in directions:
        values = []
        for at in (theta + h * direction, theta - h * direction):
            nn.utils.vector_to_parameters(at, moved.parameters())
            values.append(of_loss(text, moved, x))
        out.append((values[0] - values[1]) / (2 * h))
    return torch.tensor(out, dtype=torch.float64)


def agree(text: str, norm: bool, x: Tensor, passes: bool = True) -> None:
    """`passes`: the gradient through the level is not 0."""
    model = network(norm)
    size = sum(p.numel() for p in model.parameters())
    directions = torch.randn(10, size, generator=seeded(1), dtype=torch.float64)
    wanted = differences(text, model, x, directions)
    ours, plain = copy.deepcopy(model), copy.deepcopy(model)
    loss = step_of(text, ours)(x, Y, generator=seeded())
    assert float(loss.detach()) == pytest.approx(of_loss(text.replace("through unrolling", ""), model, x), rel=1e-12)
    assert (directions @ flat(gradients(loss, ours)) - wanted).norm() < 1e-6 * wanted.norm()
    constant = step_of(text.replace("through unrolling", ""), plain)(x, Y, generator=seeded())
    apart = (directions @ flat(gradients(constant, plain)) - wanted).norm()
    assert bool(apart > 1e-4 * wanted.norm()) is passes
    for a, b in zip(ours.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def level(solver: str, region: str = "linf(x, 0.1)", mode: str = "", objective: str = "maximize CE(f(x'), y)") -> str:
    return f"lower x' in {region}\n {objective}\n by {solver}\n {mode} through unrolling"


CASES = {
    "ascent": level("ascent(steps = 3, step = 0.15, start = x)"),
    "ascent, l2": level("ascent(steps = 3, step = 0.3, start = x)", "l2(x, 0.12)"),
    "ascent, l1": level("ascent(steps = 3, step = 0.3, start = x)", "l1(x, 0.2)"),
    "pgd, l2": level("pgd(steps = 3, step = 0.06, start = x)", "l2(x, 0.12)"),
    "linear, l2": level("linear(start = x)", "l2(x, 0.12)"),
    "momentum, l2": level("momentum(steps = 3, step = 0.06, start = x)", "l2(x, 0.12)"),
    "random start": level("ascent(steps = 3, step = 0.15, start = x + uniform(linf(0, 0.1)))"),
    "uniform start": level("ascent(steps = 3, step = 0.1, start = uniform)"),
    "restarts": level("ascent(steps = 3, step = 0.1, start = uniform, restarts = 3)"),
    "best": level("ascent(steps = 3, step = 0.4, start = x, keep = best)"),
    "minimize": level("ascent(steps = 3, step = 0.15, start = x)", objective="minimize norm(x' - x, 2)^2 - CE(f(x'), y)"),
    "start through the weights": level("pgd(steps = 2, step = 0.01, start = x + 0.3 * grad(x: CE(f(x), y)))"),
    "start and steps": level("ascent(steps = 3, step = 0.15, start = raw(x + 0.1 * grad(x: CE(f(x), y))))"),
    "clean predictions": level("ascent(steps = 3, step = 0.5, start = x + uniform(linf(0, 0.1)))", objective="maximize KL(p(x) || p(x'))"),
    "a gradient in the objective": level(
        "ascent(steps = 2, step = 0.2, start = x)", objective="maximize norm(grad(x': CE(f(x'), y)), 2)^2 + f(x')[0]"
    ),
    "a gradient at x in the objective": level(
        "ascent(steps = 2, step = 0.2, start = x)", objective="maximize dot(x' - x, grad(x: CE(f(x), y))) - norm(x' - x, 2)^2"
    ),
    "set around a point": level("ascent(steps = 2, step = 0.4, start = 0)", "linf(0, 0.1)", objective="maximize CE(f(x + x'), y)"),
}


@pytest.mark.parametrize("x", [X, BORDER], ids=["inside", "border"])
@pytest.mark.parametrize("name", list(CASES))
def test_against_finite_differences(name: str, x: Tensor) -> None:
    agree(CASES[name] + UPPER, False, x)


@pytest.mark.parametrize("mode", ["", "with f in train", "with f in untracked"])
@pytest.mark.parametrize(
    "solver", ["ascent(steps = 3, step = 0.15, start = x + uniform(linf(0, 0.1)))", "momentum(steps = 2, step = 0.03, start = x)"]
)
def test_with_batchnorm(solver: str, mode: str) -> None:
    """In each mode of the level; the upper pass in train mode writes statistics before the level is differentiated."""
    agree(level(solver, "l2(x, 0.12)", mode=mode) + UPPER, True, X)


def test_iterates_keep_their_graph() -> None:
    agree(level("ascent(steps = 3, step = 0.15, start = x + uniform(linf(0, 0.1)))") + ITERATES, False, X)


def test_sign_steps_have_no_derivative_of_their_own() -> None:
    """On linf the steepest direction is a sign: only the start can pass a gradient, and only where nothing clips."""
    agree(level("pgd(steps = 3, step = 0.02, start = x)") + UPPER, False, X, passes=False)


def test_prox_is_fast_bat_by_other_means() -> None:
    """One projected step from a constant z: unrolling it is the implicit gradient of its linearised problem."""
    text = """
    lower z in linf(x, 0.1) maximize CE(f(z), y) by ascent(steps = 1, step = 0.2, start = x + uniform(linf(0, 0.1)))
    lower x' in linf(x, 0.1)
      minimize dot(x' - z, grad(v = z: -CE(f(v), y))) + 1.0 * norm(x' - z, 2)^2
      by prox(at = z, weight = 2) through {}
    upper minimize CE(f(x'), y) by sgd(lr = 0.1)"""
    found = []
    for way in ("unrolling", "implicit"):
        model = network(False)
        found.append(flat(gradients(step_of(text.format(way), model)(X, Y, generator=seeded()), model)))
    # prox takes the gradient of the objective at z, where the quadratic part has none: 2 * (v - z) is its derivative, weight 2
    assert (found[0] - found[1]).norm() < 1e-10 * found[0].norm()


def test_prox_against_finite_differences() -> None:
    """z is a constant of the level that follows, so it is held: it comes from a sample."""
    text = """
    sample e ~ uniform(linf(0, 0.05))
    let z = x + e
    lower x' in linf(x, 0.1)
      minimize -CE(f(x'), y) by prox(at = z, weight = 4) through unrolling"""
    agree(text + UPPER, False, X)


def test_an_earlier_solution_is_a_constant_of_later_levels() -> None:
    """Both are unrolled, but nothing of the first passes by the second."""
    first = "lower u in linf(x, 0.1) maximize CE(f(u), y) by ascent(steps = 2, step = 0.15, start = x) {}\n"
    second = "lower v in linf(u, 0.1) maximize CE(f(v), y) + dot(v, u) by ascent(steps = 2, step = 0.1, start = u) through unrolling\n"
    upper = "upper minimize CE(f(v), y) + 0 * norm(u, 2) by sgd(lr = 0.1)"
    found = []
    for way in ("", "through unrolling"):
        model = network(False)
        found.append(flat(gradients(step_of(first.format(way) + second + upper, model)(X, Y), model)))
    assert (found[0] - found[1]).norm() < 1e-12


def test_given_solutions_keep_their_graph() -> None:
    text = level("ascent(steps = 3, step = 0.15, start = x + uniform(linf(0, 0.1)))") + ITERATES
    model, other = network(False), network(False)
    whole = step_of(text, model)(X, Y, generator=seeded())
    parts = step_of(text, other)
    again = parts.objective(X, Y, parts.solve(X, Y, generator=seeded()))
    assert (flat(gradients(whole, model)) - flat(gradients(again, other))).norm() < 1e-12


def test_by_hand() -> None:
    """Two raw steps, written out."""
    model, hand = network(False), network(False)
    loss = step_of(level("ascent(steps = 2, step = 0.15, start = x)") + UPPER, model)(X, Y)
    v = X.clone().requires_grad_()
    for _ in range(2):
        (g,) = torch.autograd.grad(F.cross_entropy(hand(v), Y, reduction="sum"), v, create_graph=True)
        v = torch.clamp(v + 0.15 * g, (X - 0.1).clamp(min=0), (X + 0.1).clamp(max=1))
    wanted = torch.autograd.grad(F.cross_entropy(hand(v), Y), list(hand.parameters()))
    assert (flat(gradients(loss, model)) - flat(list(wanted))).norm() < 1e-12


def test_the_callers_parameters_and_flags() -> None:
    """Only the parameters that are trained; flags come back."""
    model = network(False)
    model.layers[0].bias.requires_grad_(False)
    loss = step_of(level("ascent(steps = 2, step = 0.15, start = x)") + UPPER, model)(X, Y)
    loss.backward()
    assert model.layers[0].bias.grad is None
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]


@pytest.mark.parametrize("solver", ["adam(steps = 2, step = 0.1, start = x)", "power(steps = 2, probe = 0.01, start = x)"])
def test_solvers_that_are_not_differentiated(solver: str) -> None:
    with pytest.raises(RecipeError, match="not differentiated"):
        step_of(level(solver) + UPPER, network(False))
