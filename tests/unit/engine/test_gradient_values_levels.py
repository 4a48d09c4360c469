"""Gradients as values in lower levels, logs, states and attacks, and beside passes in another mode."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from engine_tools import batchnorm, data, gradients, mlp, step_of, upper
from test_gradient_values import Counted, X, Y, ce, ce_slope, dot, slope, sq
from torch import Tensor, nn

import lossdsl

# --- the modes, and who has written statistics meanwhile ---------------------------------------------------------------


@pytest.mark.parametrize("stopped", [True, False])
def test_a_gradient_in_eval_mode_does_not_see_statistics_written_after_its_pass(stopped: bool) -> None:
    """The pass in eval mode comes first, then one in train mode, then the gradient of the first."""
    g = "stop(grad(x: CE(f(x), y)))" if stopped else "grad(x: CE(f(x), y))"
    before = f"let a = stop(CE(f(x), y)) with f in eval\nlet g = {g} with f in eval"
    model, hand = batchnorm(), batchnorm().eval()
    loss = upper("a * CE(f(x^2), y) + norm(g, 2) * CE(f(sqrt(x)), y)", model, before=before)(X, Y)
    a, g = ce(hand, X).detach(), ce_slope(hand, X).norm(dim=1)
    frozen = copy.deepcopy(hand)
    hand.train()
    value = (a * ce(hand, X**2)).mean()
    hand_two = (g.detach() if stopped else ce_slope(frozen, X).norm(dim=1)) * ce(hand, X.sqrt())
    total = value + hand_two.mean()
    assert float(loss.detach()) == pytest.approx(float(total.detach()), rel=1e-12)
    wanted = [
        p + q
        for p, q in zip(
            torch.autograd.grad(total, list(hand.parameters()), retain_graph=True),
            [torch.zeros_like(p) for p in hand.parameters()]
            if stopped
            else [0 if q is None else q for q in torch.autograd.grad(total, list(frozen.parameters()), allow_unused=True)],
            strict=True,
        )
    ]
    for p, q in zip(gradients(loss, model), wanted, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
    for p, q in zip(model.buffers(), hand.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=0)


# --- lower levels -----------------------------------------------------------------------------------------------------


def ascend(e: Callable[[Tensor], Tensor], start: Tensor, center: Tensor, eps: float, step: float, steps: int) -> list[Tensor]:
    """Sign steps on the box around the centre, met with [0, 1]."""
    points = [start]
    for _ in range(steps):
        v = points[-1] + step * slope(e, points[-1].detach()).detach().sign()
        points.append(torch.max(torch.min(v, center + eps), center - eps).clamp(0, 1))
    return points


@pytest.mark.parametrize("options", ["", ", keep = best", ", restarts = 2"])
@pytest.mark.parametrize("chunk", [4, 100])
def test_a_level_that_maximises_a_gradient(options: str, chunk: int) -> None:
    """The objective holds the gradient at the variable itself; final points are rated without gradient, in chunks too."""
    model = mlp()
    text = f"""
    lower x' in linf(x, 0.1)
      maximize norm(grad(x': CE(f(x'), y)), 2)^2 - norm(x' - x, 2)^2
      by pgd(steps = 3, step = 0.04, start = x{options})
    upper minimize CE(f(x'), y) + norm(x'@1 - x, 2) by sgd(lr = 0.1)"""
    found = step_of(text, model, chunk=chunk).solve(X, Y)

    def objective(v: Tensor, rows: slice = slice(None)) -> Tensor:
        losses = F.cross_entropy(model(v), Y, reduction="none")
        return sq(torch.autograd.grad(losses.sum(), v, create_graph=True)[0]) - sq(v - X)

    points = ascend(objective, X, X, 0.1, 0.04, 3)
    last = points[-1]
    if "best" in options:
        values = torch.stack([objective(v.clone().requires_grad_()).detach() for v in points])
        last = torch.stack(points)[values.argmax(0), torch.arange(6)]
    assert (found["x'"] - last).abs().max() < 1e-12
    assert (found["x'@1"] - points[1]).abs().max() < 1e-12


def test_a_level_linearised_at_an_earlier_solution() -> None:
    """The gradient at z is a constant of the level of x'; it is computed once."""
    model = Counted(mlp())
    text = """
    lower z in linf(x, 0.1) maximize CE(f(z), y) by pgd(steps = 1, step = 0.05, start = x)
    lower x' in linf(x, 0.1)
      maximize dot(x' - z, grad(v = z: CE(f(v), y))) - norm(x' - z, 2)^2
      by ascent(steps = 5, step = 0.1, start = z)
    upper minimize CE(f(x'), y) by sgd(lr = 0.1)"""
    step = step_of(text, model)
    found = step.solve(X, Y)
    assert model.passes == 2
    z = ascend(lambda v: ce(model, v), X, X, 0.1, 0.05, 1)[-1]
    slope_at_z, v = ce_slope(model, z).detach(), z
    for _ in range(5):
        v = v + 0.1 * (slope_at_z - 2 * (v - z))
        v = torch.max(torch.min(v, X + 0.1), X - 0.1).clamp(0, 1)
    assert (found["x'"] - v).abs().max() < 1e-12


def test_a_family_that_maximises_a_gradient() -> None:
    """One problem per class: the gradient is at each member."""
    model = mlp()
    text = """
    lower x'[j != y] in linf(x, 0.1)
      maximize f(x'[j])[j] - norm(grad(v = x'[j]: f(v)[j]), 2)
      by pgd(steps = 2, step = 0.04, start = x)
    upper minimize mean(j != y: norm(grad(v = x'[j]: CE(f(v), y)), 2)^2 + CE(f(x'[j]), y)) by sgd(lr = 0.1)"""
    step = step_of(text, model)
    found = step.solve(X, Y)["x'"]
    target = torch.tensor([[j for j in range(4) if j != int(k)] for k in Y]).flatten()
    wide, label = X.repeat_interleave(3, 0), Y.repeat_interleave(3)

    def score(v: Tensor) -> Tensor:
        return model(v).gather(1, target[:, None])[:, 0]

    def objective(v: Tensor) -> Tensor:
        values = score(v)
        return values - torch.autograd.grad(values.sum(), v, create_graph=True)[0].norm(dim=1)

    points = ascend(objective, wide, wide, 0.1, 0.04, 2)
    assert (found.flatten(0, 1) - points[-1]).abs().max() < 1e-12
    loss = step(X, Y)

    def wide_ce(v: Tensor) -> Tensor:
        return F.cross_entropy(model(v), label, reduction="none")

    value = (sq(slope(wide_ce, points[-1])) + wide_ce(points[-1])).mean()
    for a, b in zip(gradients(loss, model), torch.autograd.grad(value, list(model.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_level_over_weights_that_maximises_a_gradient() -> None:
    """Differentiated by the weights and by the input at once."""
    model = mlp()
    text = """
    lower w in l2(theta, 0.3) maximize CE(f{w}(x), y) + norm(grad(x: CE(f{w}(x), y)), 2)^2 by linear
    upper at w minimize CE(f(x), y) + norm(grad(x: CE(f{theta}(x), y)), 2)^2 by sgd(lr = 0.1)"""
    step = step_of(text, model)
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])
    g = torch.cat([p.flatten() for p in torch.autograd.grad((ce(model, X) + sq(ce_slope(model, X))).mean(), list(model.parameters()))])
    assert (step.solve(X, Y)["w"] - (theta + 0.3 * g / g.norm())).abs().max() < 1e-12


def test_gradients_at_solutions_and_iterates() -> None:
    """x' and x'@1 are points like others; passes at them are shared with their gradients."""
    model = Counted(mlp())
    text = """
    lower x' in linf(x, 0.1) maximize CE(f(x'), y) by pgd(steps = 2, step = 0.05, start = x)
    upper minimize CE(f(x'), y) + dot(grad(x': CE(f(x'), y)), grad(v = x'@1: CE(f(v), y))) + CE(f(x'@1), y) by sgd(lr = 0.1)"""
    step = step_of(text, model)
    loss = step(X, Y)
    assert model.passes == 2 + 2
    points = ascend(lambda v: ce(model, v), X, X, 0.1, 0.05, 2)
    last, first = (p.detach() for p in (points[2], points[1]))
    value = (ce(model, last) + dot(ce_slope(model, last), ce_slope(model, first)) + ce(model, first)).mean()
    for a, b in zip(gradients(loss, model), torch.autograd.grad(value, list(model.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


# --- what is recorded -------------------------------------------------------------------------------------------------


def parameters_slope(model: nn.Module, value: Tensor) -> Tensor:
    found = torch.autograd.grad(value, list(model.parameters()), retain_graph=True, allow_unused=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(model.parameters(), found, strict=True)])


LOGS = """
log a = norm(grad(x: CE(f(x), y)), 2)
log n = norm(grad(theta: CE(f(x), y)), 2)
log d = dot(grad(theta: CE(f(x), y)), grad(theta: f(x)[0]))
log c = cos(grad(theta: CE(f(x), y)), grad(theta: norm(grad(x: CE(f(x), y)), 2)^2))
"""


@pytest.mark.parametrize("build", [mlp, batchnorm])
def test_logs(build: Callable[[], nn.Module]) -> None:
    """Gradients per example are averaged; those by theta are of the batch mean. Nothing else of the step changes, and no pass is added."""
    model, silent = Counted(build()), Counted(build())
    body = "upper minimize CE(f(x), y) by sgd(lr = 0.1)"
    loss, quiet = step_of(body + LOGS, model)(X, Y), step_of(body, silent)(X, Y)
    hand = build().train()
    losses = ce(hand, X)
    g = parameters_slope(hand, losses.mean())
    first = parameters_slope(hand, hand(X)[:, 0].mean())
    second = parameters_slope(hand, sq(ce_slope(hand, X)).mean())
    wanted = {
        "a": ce_slope(hand, X).norm(dim=1).mean(),
        "n": g.norm(),
        "d": (g * first).sum(),
        "c": F.cosine_similarity(g, second, 0),
    }
    assert set(loss.logs) == set(wanted)
    for name, value in wanted.items():
        assert not loss.logs[name].requires_grad
        assert float(loss.logs[name]) == pytest.approx(float(value.detach()), rel=1e-9), name
    assert model.passes == silent.passes == 1
    assert float(loss.detach()) == float(quiet.detach())
    for a, b in zip(gradients(loss, model), gradients(quiet, silent), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(model.buffers(), silent.buffers(), strict=True):
        assert torch.equal(a, b)


def test_logs_speak_of_the_parameters_that_are_trained() -> None:
    model = mlp()
    model.layers[0].weight.requires_grad_(False)
    loss = step_of("upper minimize CE(f(x), y) by sgd(lr = 0.1)\nlog n = norm(grad(theta: CE(f(x), y)), 2)", model)(X, Y)
    trained = [p for p in model.parameters() if p.requires_grad]
    g = torch.cat([p.flatten() for p in torch.autograd.grad(loss, trained)])
    assert float(loss.logs["n"]) == pytest.approx(float(g.norm()), rel=1e-12)


def test_a_state_of_a_gradient() -> None:
    """States are computed without gradient, what is inside grad is not."""
    text = """
    let g = batch_mean(norm(grad(x: CE(f(x), y)), 2))
    state s = 0 then s + g
    upper minimize CE(f(x), y) * (1 + s) by sgd(lr = 0.1)"""
    model = mlp()
    step = step_of(text, model)
    for n in range(3):
        loss = step(X, Y)
        step.after_update()
        size = float(ce_slope(model, X).norm(dim=1).mean().detach())
        assert float(loss.detach()) == pytest.approx(float(ce(model, X).mean().detach()) * (1 + n * size), rel=1e-12)


# --- an attack; other precisions --------------------------------------------------------------------------------------


def test_an_attack_suite_may_follow_a_gradient() -> None:
    text = """attack a
    run g : x' in linf(x, 0.1) maximize norm(grad(x': CE(f(x'), y)), 2)^2 by pgd(steps = 1, step = 0.05, start = x)
    count worst"""
    model = mlp()
    found = lossdsl.compile(lossdsl.parse(text), model, num_classes=4).run(X, Y)
    assert found is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_is_that_of_the_batch(dtype: torch.dtype) -> None:
    x, y = data(dtype=dtype)
    loss = upper("CE(f(x), y) + norm(grad(x: CE(f(x), y)), 2)^2", mlp(dtype=dtype))(x, y)
    assert loss.dtype == dtype
    value = ce(mlp(dtype=dtype), x) + sq(ce_slope(mlp(dtype=dtype), x))
    assert float(loss.detach()) == pytest.approx(float(value.mean().detach()), rel=1e-5)


def test_a_point_beside_its_variable_is_a_constant() -> None:
    """The two forms of the same text differ by the derivative of the second factor."""
    model = mlp()
    apart = upper("norm(grad(v = x: CE(f(v), y) * CE(f(x), y)), 2)^2", model)(X, Y)
    joined = upper("norm(grad(x: CE(f(x), y) * CE(f(x), y)), 2)^2", model)(X, Y)
    assert float(joined.detach()) == pytest.approx(4 * float(apart.detach()), rel=1e-9)
