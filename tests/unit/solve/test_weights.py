"""Sets over weights: the published perturbations, what may move, and the flat layout. That projections are nearest, and maximisers best, are laws:
recipes/laws/sets.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lossdsl.diagnostics import UserError
from lossdsl.solve import L2, WEIGHT_SETS, Layout, Linear, Pgd, Problem, WeightSet, solve

SHAPES = {"conv": (4, 3, 2), "bias": (4,), "fc": (5, 4), "scale": (1,), "dead": (2, 3)}
NAMES = ["l2", "layerwise", "adaptive"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """Tensors of very different sizes in float64; one is 0, and two coordinates of another are."""
    g = generator()
    sizes = {"conv": 1.0, "bias": 0.01, "fc": 5.0, "scale": 1.0, "dead": 0.0}
    out = {name: sizes[name] * torch.randn(shape, generator=g, dtype=torch.float64) for name, shape in SHAPES.items()}
    out["fc"][0, :2] = 0.0
    return out


def built(name: str, weights: dict[str, Tensor], radius: float, **options: Any) -> tuple[Layout, Tensor, WeightSet]:
    layout = Layout(list(weights.items()))
    center = layout.flatten(list(weights.values()))
    return layout, center, WEIGHT_SETS[name](layout, center, radius, **options)


def random_point(center: Tensor, seed: int, size: float) -> Tensor:
    return center + size * torch.randn(center.shape, generator=generator(seed), dtype=center.dtype)


# --- layout -------------------------------------------------------------------------------------------------------------


def test_layout_goes_there_and_back(weights: dict[str, Tensor]) -> None:
    layout = Layout(list(weights.items()))
    point = layout.flatten(list(weights.values()))
    assert point.shape == (1, 24 + 4 + 20 + 1 + 6)
    views = layout.views(point)
    assert list(views) == list(SHAPES)
    assert all(torch.equal(views[name], tensor) for name, tensor in weights.items())
    assert views["fc"].data_ptr() == point[0, 28:].data_ptr()


def test_layout_is_differentiable() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    named = list(model.named_parameters())
    layout = Layout(named)
    x = torch.randn(5, 3, dtype=torch.float64)
    point = layout.flatten([p for _, p in named]).detach().requires_grad_()
    torch.func.functional_call(model, layout.views(point), (x,)).square().sum().backward()
    model(x).square().sum().backward()
    assert point.grad is not None
    assert torch.allclose(point.grad, layout.flatten([p.grad for _, p in named if p.grad is not None]))
    flat = layout.flatten([p for _, p in named])
    assert torch.autograd.grad(flat.sum(), named[0][1])[0].eq(1).all()


def test_layout_refuses(weights: dict[str, Tensor]) -> None:
    layout, point, _ = built("l2", weights, 1.0)
    with pytest.raises(UserError, match="shapes of the layout"):
        layout.flatten(list(weights.values())[:-1])
    with pytest.raises(UserError, match="shapes of the layout"):
        layout.flatten([*list(weights.values())[:-1], torch.zeros(3, 2)])
    for wrong in (point[0], point[:, 1:], point.T):
        with pytest.raises(UserError, match="points have shape"):
            layout.views(wrong)
        with pytest.raises(UserError, match="points have shape"):
            WEIGHT_SETS["l2"](layout, wrong, 1.0)
    with pytest.raises(UserError, match="one precision"):
        Layout([("a", torch.zeros(1)), ("b", torch.zeros(1).double())])
    with pytest.raises(UserError, match="each name once"):
        Layout([("a", torch.zeros(1)), ("a", torch.zeros(1))])
    with pytest.raises(UserError, match="did you mean matrices"):
        WEIGHT_SETS["l2"](layout, point, 1.0, only="matrix")
    with pytest.raises(UserError, match="the radius of a set is -1"):
        WEIGHT_SETS["adaptive"](layout, point, -1)


# --- the published perturbations ----------------------------------------------------------------------------------------


def published(name: str, theta: dict[str, Tensor], g: dict[str, Tensor], radius: float, perturbed: list[str]) -> dict[str, Tensor]:
    """The formulas of the papers and their codes, tensor by tensor."""
    out = dict(theta)
    if name == "l2":
        length = torch.sqrt(sum((g[k].square().sum() for k in perturbed), torch.tensor(0.0)))
        out |= {k: theta[k] + radius * g[k] / (length + 1e-12) for k in perturbed}
    if name == "layerwise":
        out |= {k: theta[k] + radius * theta[k].norm() / (g[k].norm() + 1e-20) * g[k] for k in perturbed}
    if name == "adaptive":
        length = torch.sqrt(sum(((theta[k].abs() * g[k]).square().sum() for k in perturbed), torch.tensor(0.0)))
        out |= {k: theta[k] + theta[k].square() * g[k] * radius / (length + 1e-12) for k in perturbed}
    return out


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("only", ["all", "matrices"])
@pytest.mark.parametrize("size", [1e-5, 1.0, 1e6])
def test_one_linear_step_is_sam_awp_or_asam(name: str, only: str, size: float, weights: dict[str, Tensor]) -> None:
    layout, center, members = built(name, weights, 0.3, only=only)
    g = {k: size * torch.randn(shape, generator=generator(3), dtype=torch.float64) for k, shape in SHAPES.items()}
    perturbed = list(SHAPES) if only == "all" else ["conv", "fc", "dead"]
    expected = published(name, weights, g, 0.3, perturbed)
    found = layout.views(members.linear_maximiser(layout.flatten(list(g.values())), center))
    for k in SHAPES:
        assert torch.allclose(found[k], expected[k], rtol=1e-6, atol=1e-12), k
    assert not torch.allclose(found["fc"], weights["fc"])
    assert torch.equal(found["bias"], weights["bias"]) == (only == "matrices")


def test_sam_on_a_model_through_the_loop() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 2), torch.rand(4, 3), torch.tensor([0, 1, 0, 1])
    named = list(model.named_parameters())
    layout = Layout(named)
    center = layout.flatten([p for _, p in named])

    def objective(point: Tensor) -> Tensor:
        scores = torch.func.functional_call(model, layout.views(point), (x,))
        return nn.functional.cross_entropy(scores, y).unsqueeze(0)

    found = solve(Problem(objective, WEIGHT_SETS["l2"](layout, center, 0.05), lambda: center), Linear(), 1).point
    nn.functional.cross_entropy(model(x), y).backward()
    g = layout.flatten([p.grad for _, p in named if p.grad is not None])
    assert torch.allclose(found, center.detach() + 0.05 * g / g.norm(), atol=1e-8)
    stepped = solve(Problem(objective, WEIGHT_SETS["l2"](layout, center, 0.05), lambda: center), Pgd(0.02), 1).point
    assert torch.allclose(stepped, center.detach() + 0.02 * g / g.norm(), atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_a_zero_gradient_stays(name: str, weights: dict[str, Tensor]) -> None:
    layout, center, members = built(name, weights, 0.3)
    at = members.sample(generator(1))
    for point in (center, at):
        assert torch.equal(members.linear_maximiser(torch.zeros_like(center), point), point)
        assert torch.equal(members.steepest(torch.zeros_like(center)), torch.zeros_like(center))
    g = layout.flatten([torch.ones(shape, dtype=torch.float64) * (k != "conv") for k, shape in SHAPES.items()])
    moved = layout.views(members.linear_maximiser(g, at))
    kept = "conv" if name == "layerwise" else None
    for k in SHAPES:
        if k == kept:
            assert torch.equal(moved[k], layout.views(at)[k])
    if kept is None:
        assert torch.equal(moved["conv"], weights["conv"])


# --- what every set must satisfy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("only", ["all", "matrices"])
@pytest.mark.parametrize("radius", [0.0, 1e-3, 0.5, 3.0])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_projections_move_what_may_move(name: str, only: str, radius: float, size: float, weights: dict[str, Tensor]) -> None:
    layout, center, members = built(name, weights, radius, only=only)
    point = random_point(center, 7, size)
    projected = members.project(point)
    assert members.contains(projected, 1e-13).all()
    views = layout.views(projected)
    for k in ("bias", "scale"):
        assert only == "all" or torch.equal(views[k], weights[k])
    assert name == "l2" or torch.equal(views["dead"], weights["dead"])


def test_weights_whose_squares_are_no_numbers_count_as_zero() -> None:
    layout = Layout([("w", torch.zeros(3))])
    center = torch.tensor([[1.0, 1e-200, 1e-282]], dtype=torch.float64)
    members = WEIGHT_SETS["adaptive"](layout, center, 0.5)
    assert members.project(center + 2.0)[0].tolist() == [1.5, 1e-200, 1e-282]
    assert torch.equal(WEIGHT_SETS["adaptive"](layout, center, 1e-300).project(center + 2.0), center)


@pytest.mark.parametrize("name", NAMES)
def test_points_inside_come_back_bit_by_bit(name: str, weights: dict[str, Tensor]) -> None:
    _, _, members = built(name, weights, 0.2)
    for seed in range(5):
        inside = members.center + 0.9 * (members.sample(generator(seed)) - members.center)
        assert torch.equal(members.project(inside), inside)


def test_layerwise_projects_each_tensor_for_itself(weights: dict[str, Tensor]) -> None:
    layout, center, members = built("layerwise", weights, 0.1)
    point = center.clone()
    layout.views(point)["fc"].add_(100.0)
    layout.views(point)["conv"].add_(1e-6)
    projected = layout.views(members.project(point))
    assert torch.equal(projected["conv"], layout.views(point)["conv"])
    moved = projected["fc"] - weights["fc"]
    assert torch.allclose(moved, 0.1 * weights["fc"].norm() * torch.ones(5, 4).double() / 20**0.5)


def test_l2_is_the_ball_over_inputs(weights: dict[str, Tensor]) -> None:
    _, center, members = built("l2", weights, 0.7)
    other = L2(center, 0.7)
    for seed in range(4):
        point = random_point(center, seed, 0.1 * 4**seed)
        g = random_point(torch.zeros_like(center), seed + 9, 3.0)
        assert torch.allclose(members.project(point), other.project(point), rtol=0, atol=1e-13)
        assert torch.allclose(members.linear_maximiser(g, center), other.linear_maximiser(g, center), rtol=0, atol=1e-13)
        assert torch.allclose(members.steepest(g), other.steepest(g), rtol=0, atol=1e-14)
        assert torch.allclose(members.distance(point), other.distance(point))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("only", ["all", "matrices"])
def test_maximisers_are_at_the_radius_along_the_direction(name: str, only: str, weights: dict[str, Tensor]) -> None:
    _, center, members = built(name, weights, 0.4, only=only)
    for seed in range(10):
        g = random_point(torch.zeros_like(center), seed, 2.0)
        best, direction = members.linear_maximiser(g, center), members.steepest(g)
        assert torch.allclose(members.norm(direction), torch.ones(1).double())
        assert torch.allclose(best, center + 0.4 * direction)
        assert torch.allclose(members.distance(best), torch.tensor([0.4]).double())


@pytest.mark.parametrize("name", NAMES)
def test_membership_border_and_interior(name: str, weights: dict[str, Tensor]) -> None:
    layout, center, members = built(name, weights, 0.4, only="matrices")
    border = members.project(random_point(center, 1, 50.0))
    movable = layout.flatten([torch.full(s, k in ("conv", "fc") or (k == "dead" and name == "l2")) for k, s in SHAPES.items()])
    if name == "adaptive":
        movable = movable & (center != 0)
    assert torch.equal(members.interior(center), movable)
    assert not members.interior(border).any()
    assert members.contains(border).all()
    assert not members.contains(center + 1.01 * (border - center)).any()
    assert members.contains(center + 1.01 * (border - center), 0.1).all()
    moved = center.clone()
    layout.views(moved)["bias"].add_(1e-12)
    assert not members.contains(moved, 0.5).any()
    assert float(members.distance(moved)) == float("inf")


@pytest.mark.parametrize("name", NAMES)
def test_samples_fill_the_set(name: str) -> None:
    """In two dimensions a uniform point of the ball has mean squared relative length 1/2."""
    theta = {"a": torch.tensor([[3.0, -4.0]]), "b": torch.tensor([7.0])}
    _, center, members = built(name, theta, 0.5, only="matrices")
    g = generator(2)
    lengths = torch.cat([members.distance(members.sample(g)) for _ in range(400)]) / 0.5
    assert float(lengths.square().mean()) == pytest.approx(0.5, abs=0.05)
    assert float(lengths.max()) <= 1 + 1e-6
    corner = members.corner(g) - center
    scale = {"l2": [1.0, 1.0], "layerwise": [5.0, 5.0], "adaptive": [3.0, 4.0]}[name]
    assert torch.allclose(corner.abs(), 0.5 / 2**0.5 * torch.tensor([[*scale, 0.0]]))


@pytest.mark.parametrize("size", [1e-12, 1e12])
@pytest.mark.parametrize("name", NAMES)
def test_float32_gradients_of_every_size(name: str, size: float, weights: dict[str, Tensor]) -> None:
    _, center, members = built(name, {k: v.float() for k, v in weights.items()}, 0.3)
    g = size * torch.randn(center.shape, generator=generator(3))
    assert torch.allclose(members.linear_maximiser(g, center), members.linear_maximiser(g / size, center), rtol=1e-5, atol=1e-6)


def test_weights_of_a_set_are_constants(weights: dict[str, Tensor]) -> None:
    for name in NAMES:
        layout, center, _ = built(name, weights, 0.3)
        members = WEIGHT_SETS[name](layout, center.requires_grad_(), 0.3)
        assert not members.project(center.detach() + 1).requires_grad
