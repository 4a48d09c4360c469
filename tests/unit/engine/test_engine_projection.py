"""`project` and `interior` as values: the set's own projection, with the derivatives of its closed form."""

from __future__ import annotations

import pytest
import torch
from engine_tools import BY, data, gradients, mlp, seeded, step_of, upper
from torch import Tensor

from lossdsl.diagnostics import UserError
from lossdsl.engine.kernels import KERNELS
from lossdsl.engine.reference import Reference
from lossdsl.lang.specs import SETS, SetRow
from lossdsl.solve import SETS_TORCH, Domain, Linf, register_set

BOX = Domain(0.0, 1.0)
SETS_AND_BOXES = [(name, box) for name in ("linf", "l2", "l1") for box in (None, BOX)]


def points(seed: int, low: float, high: float, shape: tuple[int, ...] = (5, 7)) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=seeded(seed), dtype=torch.float64)


CENTER = points(1, 0.15, 0.85)
INSIDE_AND_OUT = CENTER + torch.tensor([0.01, 0.3, 0.6, 1.0, 2.0]).unsqueeze(1) * points(2, -1.0, 1.0)
RADIUS = torch.tensor([0.5, 0.4, 0.3, 0.6, 0.7], dtype=torch.float64)


def project(v: Tensor, center: Tensor, radius: Tensor | float, name: str, domain: Domain | None) -> Tensor:
    value: Tensor = KERNELS["project"](v, center, radius, name=name, rank=1, domain=domain)
    return value


@pytest.mark.parametrize(("name", "box"), SETS_AND_BOXES, ids=str)
def test_the_value_is_the_sets_own(name: str, box: Domain | None) -> None:
    expected = SETS_TORCH[name](CENTER, RADIUS, box).project(INSIDE_AND_OUT)
    assert torch.equal(project(INSIDE_AND_OUT, CENTER, RADIUS, name, box), expected)
    v = INSIDE_AND_OUT.clone().requires_grad_()
    assert torch.equal(project(v, CENTER, RADIUS, name, box).detach(), expected), "the derivative does not change the value"
    assert (expected != INSIDE_AND_OUT).any(1).sum() >= 3


@pytest.mark.parametrize(("name", "box"), SETS_AND_BOXES, ids=str)
def test_derivatives_by_finite_differences(name: str, box: Domain | None) -> None:
    """By the point, the centre and the radius; and once more."""
    args = tuple(t.clone().requires_grad_() for t in (INSIDE_AND_OUT, CENTER, RADIUS))

    def run(v: Tensor, c: Tensor, r: Tensor) -> Tensor:
        return project(v, c, r, name, box)

    assert torch.autograd.gradcheck(run, args, atol=1e-6)
    assert torch.autograd.gradgradcheck(lambda v: run(v, CENTER, RADIUS).square(), args[:1], atol=1e-5)


@pytest.mark.parametrize("name", ["linf", "l2", "l1"])
def test_a_held_example_passes_what_its_constraints_leave(name: str) -> None:
    """At distance 1 along one coordinate the point moves only along the others, or (linf, l1) not at all."""
    v = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    jacobian = torch.autograd.functional.jacobian(lambda u: project(u, torch.zeros(1, 3, dtype=torch.float64), 0.25, name, None), v)[
        0, :, 0
    ]
    expected = {"linf": torch.diag(torch.tensor([0.0, 1, 1])), "l2": torch.diag(torch.tensor([0, 0.25, 0.25])), "l1": torch.zeros(3, 3)}
    torch.testing.assert_close(jacobian, expected[name].double())


@pytest.mark.parametrize("name", ["linf", "l2", "l1"])
def test_radius_zero_and_the_centre_itself(name: str) -> None:
    for radius in (0.0, 0.3):
        v = CENTER.clone().requires_grad_()
        value = project(v, CENTER, radius, name, BOX)
        assert torch.equal(value.detach(), CENTER)
        value.sum().backward()
        assert v.grad is not None and torch.isfinite(v.grad).all()
        assert bool((v.grad == 1).all()) or radius == 0


def test_inputs_of_any_rank_and_axes_of_binders() -> None:
    shape = (2, 3, 4, 5)
    v, center, radius = points(3, -1, 2, (2, 6, *shape[1:])), points(4, 0.2, 0.8, (2, 1, *shape[1:])), torch.tensor([[0.3], [1.0]]).double()
    value = KERNELS["project"](v, center, radius, name="l2", rank=3, domain=BOX)
    for b in range(2):
        for n in range(6):
            one = SETS_TORCH["l2"](center[b], float(radius[b]), BOX).project(v[b, n : n + 1])
            torch.testing.assert_close(value[b, n], one[0], rtol=1e-12, atol=1e-14)
    single = KERNELS["project"](torch.tensor([3.0, -2.0]), 0, 1.0, name="l1", rank=0, domain=None)
    torch.testing.assert_close(single, torch.tensor([1.0, -1.0]))


@pytest.mark.parametrize(("name", "box"), SETS_AND_BOXES, ids=str)
def test_interior_says_what_no_constraint_holds(name: str, box: Domain | None) -> None:
    v = SETS_TORCH[name](CENTER, RADIUS, box).project(INSIDE_AND_OUT)
    free = KERNELS["interior"](v, CENTER, RADIUS, name=name, rank=1, domain=box)
    assert set(free.unique().tolist()) == {0.0, 1.0}
    moved = v + free * 1e-9 * points(5, -1.0, 1.0)
    torch.testing.assert_close(project(moved, CENTER, RADIUS, name, box), moved, rtol=0, atol=1e-16)
    if name == "linf":
        assert torch.equal(free, ((v - CENTER).abs() < RADIUS.unsqueeze(1) - 1e-15).double() * ((v > 0) & (v < 1) if box else True))


def test_in_a_recipe_with_the_input_domain() -> None:
    """The clean point stands on the border of [0, 1]: a set around x stays inside, a set around 0 does not care."""
    model, (x, y) = mlp(), data()
    x = torch.where(x > 0.5, 1.0, x)
    text = (
        "log around_x = batch_mean(norm(project(x + 0.3, linf(x, 0.1)) - x, inf))\n"
        "log around_0 = batch_mean(norm(project(x + 0.3, l2(0, 9)) - x, inf))\n"
        "log free = batch_sum(norm(interior(x, linf(x, 0.1)), 1))\n"
    )
    loss = upper("CE(f(x), y)", model, before=text)(x, y)
    grown = (x + 0.1).clamp(max=1.0) - x
    assert float(loss.logs["around_x"]) == pytest.approx(float(grown.amax(1).mean()))
    assert float(loss.logs["around_0"]) == pytest.approx(0.3)
    assert float(loss.logs["free"]) == float((x < 1).sum())


@pytest.mark.parametrize("ball", ["linf(x, 0.05)", "l2(x, 0.05)", "l1(x, 0.05)", "l2(x, 0.1 * p(x)[y])", "linf(0, 0.3)"])
def test_a_projected_gradient_step_in_the_objective(ball: str) -> None:
    """The gradient by the model passes the projection: finite differences of the whole step."""
    model, (x, y) = mlp(), data()
    step = upper(f"CE(f(project(x + 3 * grad(x: CE(f(x), y)), {ball})), y)", model)
    weight = next(model.parameters())
    slope = gradients(step(x, y), model)[0][1, 2]
    ends = []
    for move in (1e-6, -2e-6):
        with torch.no_grad():
            weight[1, 2] += move
        ends.append(float(step(x, y).detach()))
    assert float(slope) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("name", ["linf", "l2", "l1"])
def test_values_against_the_reference(name: str) -> None:
    text = (
        f"lower x' in {name}(x, 0.2) maximize CE(f(x'), y) by pgd(steps = 2, step = 0.3, start = uniform)\n"
        f"let u = project(2 * x' - x, {name}(x, 0.1 * p(x)[y])), w = project(3 * (x' - x), {name}(0, 0.2))\n"
        f"upper minimize CE(f(x), y) + norm(stop(u - x), 2) + norm(w, 1) + norm(interior(u, {name}(x, 0.3)), 1) {BY}"
    )
    model, (x, y) = mlp(), data()
    step = step_of(text, model)
    solutions = step.solve(x, y, generator=seeded())
    with torch.no_grad():
        expected = Reference(step.recipe.typed, model, 4).objective(x, y, solutions)
    torch.testing.assert_close(step.objective(x, y, solutions).detach(), expected, rtol=1e-9, atol=1e-10)


def test_a_set_of_ones_own_has_a_value_and_says_that_it_has_no_derivative() -> None:
    class Box(Linf):
        pass

    register_set("box", Box, SetRow("box", ("center", "radius"), "max |v - center| <= radius"))
    try:
        model, (x, y) = mlp(), data()
        loss = upper("CE(f(project(x + 1, box(x, 0.1))), y)", model)(x, y)
        torch.testing.assert_close(loss.detach(), upper("CE(f(project(x + 1, linf(x, 0.1))), y)", model)(x, y).detach())
        with pytest.raises(UserError, match="the projection on box has no derivative"):
            upper("CE(f(project(x + grad(x: CE(f(x), y)), box(x, 0.1))), y)", model)(x, y)
    finally:
        del SETS["box"], SETS_TORCH["box"]
