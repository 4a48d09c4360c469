"""Differentiable runs: derivatives of sets and of whole runs against finite differences, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck

from lossdsl.diagnostics import UserError
from lossdsl.solve import (
    L1,
    L2,
    WEIGHT_SETS,
    Ascent,
    Domain,
    InputSet,
    Layout,
    Linear,
    Linf,
    Momentum,
    Pgd,
    Power,
    Problem,
    Prox,
    Simplex,
    Solver,
    TorchOptimizer,
    solve,
)
from lossdsl.solve.rows import mean_normalised, unit

pytestmark = pytest.mark.slow

KINDS = [Linf, L2, L1]
UNIT = Domain(0.0, 1.0)


def drawn(seed: int, *shape: int, lo: float = 0.0, hi: float = 1.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return (lo + (hi - lo) * torch.rand(*shape, generator=g, dtype=torch.float64)).requires_grad_()


# --- sets --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), box=st.booleans(), far=st.sampled_from([0.3, 1.0, 20.0]), radius=st.sampled_from([0.1, 0.6, 2.0]))
def test_projections_have_their_derivative(kind: type[InputSet], seed: int, box: bool, far: float, radius: float) -> None:
    """In the point, the center and the radius; inside, outside, with faces of the box and coordinates at the center."""
    center, point = drawn(seed, 3, 2, 3), drawn(seed + 1, 3, 2, 3, lo=-far, hi=1 + far)
    radii = drawn(seed + 2, 3, lo=0.5 * radius, hi=1.5 * radius)

    def project(point: Tensor, center: Tensor, radii: Tensor) -> Tensor:
        return kind(center, radii, UNIT if box else None, differentiable=True).project(point)

    plain = kind(center, radii, UNIT if box else None).project(point.detach())
    assert torch.equal(project(point, center, radii), plain)
    assert gradcheck(project, (point, center, radii), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), box=st.booleans(), radius=st.sampled_from([0.1, 0.6, 2.0]), idle=st.booleans())
def test_maximisers_have_their_derivative(kind: type[InputSet], seed: int, box: bool, radius: float, idle: bool) -> None:
    """In the gradient (of its free coordinates), in `at`, the center and the radius."""
    center = drawn(seed, 3, 5)
    radii = drawn(seed + 2, 3, lo=0.5 * radius, hi=1.5 * radius)
    mask = (torch.rand(3, 5, generator=torch.Generator().manual_seed(seed)) < 0.5).double() if idle else torch.ones(3, 5).double()
    gradient = drawn(seed + 1, 3, 5, lo=-1.0)
    at = kind(center, radii, UNIT).sample(torch.Generator().manual_seed(seed)).detach().requires_grad_()

    def best(gradient: Tensor, at: Tensor, center: Tensor, radii: Tensor) -> Tensor:
        return kind(center, radii, UNIT if box else None, differentiable=True).linear_maximiser(gradient * mask, at)

    plain = kind(center, radii, UNIT if box else None).linear_maximiser((gradient * mask).detach(), at.detach())
    assert torch.equal(best(gradient, at, center, radii), plain)
    assert gradcheck(best, (gradient, at, center, radii), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_directions_have_their_derivative(scale: float) -> None:
    gradient = (scale * drawn(0, 4, 5, lo=-1.0)).detach().requires_grad_()
    assert gradcheck(unit, (gradient,), eps=1e-6 * scale)
    assert gradcheck(mean_normalised, (gradient,), eps=1e-6 * scale)
    members = L2(torch.zeros(4, 5).double(), 1.0)
    assert gradcheck(members.steepest, (gradient,), eps=1e-6 * scale)
    for kind in (Linf, L1):
        assert not kind(torch.zeros(4, 5).double(), 1.0).steepest(gradient).requires_grad


def test_a_zero_gradient_passes_no_derivative_and_no_nan() -> None:
    gradient = torch.zeros(2, 3, dtype=torch.float64)
    gradient[0, 0] = 2.0
    gradient.requires_grad_()
    for direction in (unit, mean_normalised):
        grad = torch.autograd.grad(direction(gradient).mul(torch.arange(6).view(2, 3)).sum(), gradient)[0]
        assert grad.isfinite().all()
        assert not grad[1].any()


@pytest.mark.parametrize("kind", KINDS)
def test_borders_and_centers_give_no_nan(kind: type[InputSet]) -> None:
    """Points at the center, radius 0, and centers in corners of the box."""
    center = torch.tensor([[0.0, 1.0], [0.5, 0.5], [0.0, 0.0], [0.5, 1.0]]).double().requires_grad_()
    radii = torch.tensor([0.5, 0.5, 0.0, 0.0]).double().requires_grad_()
    members = kind(center, radii, UNIT, differentiable=True)
    for point in (center, center + 3, center - 3, center * 0 + 0.5):
        for answer in (members.project(point), members.linear_maximiser(point, center), members.linear_maximiser(0 * point, center)):
            grads = torch.autograd.grad(answer.sum(), (center, radii), retain_graph=True)
            assert all(grad.isfinite().all() for grad in grads)


def test_a_point_next_to_the_center_is_inside() -> None:
    center = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    point = torch.full((1, 3), 1e-155, dtype=torch.float64, requires_grad=True)
    projected = L2(center, 1.0, differentiable=True).project(point)
    assert torch.autograd.grad(projected.sum(), (point, center))[0].eq(1).all()
    assert torch.autograd.grad(L2(center, 1.0, differentiable=True).project(point).sum(), center)[0].eq(0).all()


@pytest.mark.parametrize("kind", [L2, L1])
def test_a_coordinate_without_gradient_keeps_at_although_its_center_is_on_a_face(kind: type[InputSet]) -> None:
    center = torch.tensor([[0.0, 0.5]]).double()
    at = torch.tensor([[0.25, 0.5]]).double().requires_grad_()
    best = kind(center, 2.0, UNIT).linear_maximiser(torch.tensor([[0.0, 1.0]]).double(), at)
    assert best.tolist() == [[0.25, 1.0]]
    assert torch.autograd.grad(best.sum(), at)[0].tolist() == [[1.0, 0.0]]


# --- runs --------------------------------------------------------------------------------------------------------------

Objective = Callable[[Tensor, Tensor], Tensor]


def network(weight: Tensor, v: Tensor) -> Tensor:
    """A smooth score of [3, 4] inputs, with 4 x 2 weights and one per class."""
    hidden = torch.tanh(v @ weight[:8].view(4, 2))
    return torch.tanh(2 * hidden @ weight[8:10] + 0.3) + 0.1 * (v.square() @ weight[10:14])


SOLVERS: list[tuple[str, Callable[[Tensor], Solver[Any]]]] = [
    ("pgd", Pgd),
    ("pgd of one size", lambda size: Pgd(0.2)),
    ("ascent", lambda size: Ascent(5 * size)),
    ("momentum", lambda size: Momentum(size, 0.7)),
    ("linear", lambda size: Linear()),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "make"), SOLVERS)
@pytest.mark.parametrize("box", [False, True])
def test_runs_have_their_derivative(kind: type[InputSet], name: str, make: Callable[[Tensor], Solver[Any]], box: bool) -> None:
    """In weights, center, radius, start and steps, of the solution and an iterate of three updates."""
    weight, center = drawn(0, 14, lo=-1.0), drawn(1, 3, 4)
    radius, offset, size = drawn(2, 3, lo=0.2, hi=0.5), drawn(3, 3, 4, lo=-0.1, hi=0.1), drawn(4, 3, lo=0.05, hi=0.2)

    def run(weight: Tensor, center: Tensor, radius: Tensor, offset: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        region = kind(center, radius, UNIT if box else None, differentiable=True)
        problem = Problem(lambda v: network(weight, v), region, lambda: region.project(center + offset))
        found = solve(problem, make(size), 3, captures=frozenset({2}), differentiable=True)
        return found.point, found.iterates[2]

    inputs = (weight, center, radius, offset, size)
    assert gradcheck(run, inputs, eps=1e-7, atol=2e-5)
    region = kind(center, radius, UNIT if box else None)
    problem = Problem(lambda v: network(weight, v), region, lambda: region.project(center + offset))
    assert torch.equal(solve(problem, make(size), 3).point, run(*inputs)[0])
    if name == "ascent" and kind is not L1:
        assert torch.autograd.grad(run(*inputs)[0].sum(), weight)[0].abs().amax() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_prox_has_its_derivative(kind: type[InputSet]) -> None:
    """Also in the point it steps from, whose gradient is taken there."""
    weight, center, z = drawn(0, 14, lo=-1.0), drawn(1, 3, 4), drawn(5, 3, 4)

    def run(weight: Tensor, center: Tensor, z: Tensor) -> Tensor:
        region = kind(center, 0.4, UNIT, differentiable=True)
        return solve(Problem(lambda v: network(weight, v), region, lambda: center), Prox(z, 1.5), 1, differentiable=True).point

    assert gradcheck(run, (weight, center, z), eps=1e-7, atol=2e-5)


@pytest.mark.parametrize("restrict", [False, True])
@pytest.mark.parametrize("options", [{}, {"restarts": 2}, {"keep": "best"}, {"until": 0}, {"until": 1, "restarts": 2, "keep": "best"}])
def test_choices_and_early_stops_have_their_derivative(options: dict[str, Any], restrict: bool) -> None:
    """Each example's derivative is that of the iterate it kept; noise and restarts on top."""
    weight, center = drawn(0, 14, lo=-1.0), drawn(1, 3, 4)
    level = network(weight, center).detach() + torch.tensor([0.02, 0.2, 99.0])

    def run(weight: Tensor, center: Tensor) -> Tensor:
        g, last = torch.Generator().manual_seed(0), []

        def problem(rows: Tensor) -> Problem:
            def objective(v: Tensor) -> Tensor:
                value = network(weight, v)
                last.append(value.detach() > level[rows])
                return value

            def drawn_noise() -> Tensor:
                return 0.02 * torch.randn(3, 4, generator=g, dtype=torch.float64)

            start = lambda: center + drawn_noise()  # noqa: E731
            fooled = (lambda: last[-1]) if "until" in options else None
            return Problem(
                objective, L2(center[rows], 0.5, differentiable=True), start, g, drawn_noise, "", fooled, problem if restrict else None
            )

        return solve(problem(torch.arange(3)), Ascent(0.4), 4, differentiable=True, **options).point

    assert gradcheck(run, (weight, center), eps=1e-7, atol=2e-5)


def test_unrolling_through_a_model_and_its_parameters() -> None:
    """d/dtheta of the loss at the solution of two ascent steps, against functional finite differences."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.rand(6, 4, dtype=torch.float64), torch.randint(3, (6,))

    def loss() -> Tensor:
        problem = Problem(lambda v: nn.functional.cross_entropy(model(v), y, reduction="none"), Linf(x, 0.3), lambda: x)
        found = solve(problem, Ascent(1.0), 2, differentiable=True).point
        return nn.functional.cross_entropy(model(found), y)

    value = loss()
    assert all(p.grad is None for p in model.parameters())
    value.backward()
    for p in model.parameters():
        assert p.grad is not None
        index = tuple(0 for _ in p.shape)
        with torch.no_grad():
            ends = []
            for step in (1e-6, -1e-6):
                p[index] += step
                with torch.enable_grad():
                    ends.append(float(loss().detach()))
                p[index] -= step
        assert float(p.grad[index]) == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-7)


def test_it_works_where_gradients_are_off() -> None:
    weight = drawn(0, 14, lo=-1.0)
    x = drawn(1, 3, 4).detach()
    with torch.no_grad():
        found = solve(Problem(lambda v: network(weight, v), Linf(x, 0.5), lambda: x), Ascent(0.1), 2, differentiable=True)
    assert found.point.requires_grad
    assert torch.autograd.grad(found.point.sum(), weight)[0].any()


def test_what_is_not_asked_for_stays_constant() -> None:
    weight, center, radius = drawn(0, 14, lo=-1.0), drawn(1, 3, 4), drawn(2, 3)
    for kind in KINDS:
        region = kind(center, radius, UNIT, differentiable=True)
        problem = Problem(lambda v: network(weight, v), region, lambda: center)
        found = solve(problem, Ascent(0.1), 2, keep="best", captures=frozenset({0, 1}))
        assert not found.point.requires_grad
        assert not any(iterate.requires_grad for iterate in found.iterates.values())
        kept = solve(problem, Ascent(0.1), 2, keep="best", differentiable=True)
        assert kept.point.requires_grad
        assert kept.objective is not None
        assert not kept.objective.requires_grad


# --- refusals ------------------------------------------------------------------------------------------------------------


def test_refusals() -> None:
    x = torch.zeros(1, 3)
    problem = Problem(lambda v: v.sum(1), Linf(x, 1.0), lambda: x)
    for solver in (TorchOptimizer(lambda p: torch.optim.SGD(p, lr=1.0)), Power(1.0)):
        with pytest.raises(UserError, match=r"cannot be differentiated\n.*pgd, ascent, linear, momentum and prox"):
            solve(problem, solver, 1, differentiable=True)
    weights = WEIGHT_SETS["adaptive"](Layout([("w", x)]), x, 1.0)
    for region in (Simplex(x), weights):
        with pytest.raises(UserError, match=r"cannot be differentiated\n.*linf, l2, l1"):
            solve(Problem(lambda v: v.sum(1), region, lambda r=region: r.center), Pgd(1.0), 1, differentiable=True)
