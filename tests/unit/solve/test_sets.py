"""Sets of inputs: projections, directions, maximisers and draws against slow references written another way. That projections are nearest and
bring no two points apart, and that maximisers are best, are laws: recipes/laws/sets.loss and sets.py."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from lossdsl.diagnostics import UserError
from lossdsl.lang.specs import SETS, SetRow
from lossdsl.solve import L1, L2, SETS_TORCH, Domain, InputSet, Linf, register_set

KINDS = [Linf, L2, L1]
UNIT = Domain(0.0, 1.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bisected(kind: type[InputSet], center: Tensor, radius: Tensor, lo: float, hi: float, point: Tensor) -> Tensor:
    """The projection from the optimality conditions, by bisection on the multiplier of the ball, one example at a time."""
    out = torch.empty_like(point)
    for i in range(point.shape[0]):
        offset, c, r = point[i] - center[i], center[i], radius[i]

        def shrunk(t: Tensor, offset: Tensor = offset, c: Tensor = c) -> Tensor:
            if kind is L2:
                return (c + offset / (1 + t)).clamp(lo, hi)
            return (c + offset.sign() * (offset.abs() - t).clamp(min=0)).clamp(lo, hi)

        order = 2 if kind is L2 else 1
        low, high = torch.tensor(0.0).double(), torch.tensor(1e18).double()
        if torch.linalg.vector_norm((shrunk(low) - c).flatten(), order) <= r:
            out[i] = shrunk(low)
            continue
        for _ in range(200):
            middle = (low + high) / 2
            if torch.linalg.vector_norm((shrunk(middle) - c).flatten(), order) > r:
                low = middle
            else:
                high = middle
        out[i] = shrunk(high)
    return out


@st.composite
def balls(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Domain | None]:
    """Centers in [0, 1] with many borders, radii per example (0 among them), points near and far, with and without a box."""
    n, d = draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 3, 7, 30]))
    g = generator(draw(st.integers(0, 10**6)))
    center = torch.rand(n, d, generator=g, dtype=torch.float64)
    center = torch.where(torch.rand(n, d, generator=g) < 0.3, center.round(), center)
    radius = torch.rand(n, generator=g, dtype=torch.float64) * draw(st.sampled_from([0.0, 0.1, 1.0, 5.0]))
    point = center + draw(st.sampled_from([0.01, 0.3, 3.0, 1e4])) * torch.randn(n, d, generator=g, dtype=torch.float64)
    point = torch.where(torch.rand(n, d, generator=g) < 0.2, center + 0.5, point)  # ties and equal distances
    return center, radius, point, draw(st.sampled_from([None, UNIT]))


@pytest.mark.parametrize("kind", [L2, L1])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=balls())
def test_projection_against_bisection(kind: type[InputSet], case: tuple[Tensor, Tensor, Tensor, Domain | None]) -> None:
    center, radius, point, domain = case
    members = kind(center, radius, domain)
    projected = members.project(point)
    assert members.contains(projected, 1e-14).all()
    lo, hi = (0.0, 1.0) if domain else (-math.inf, math.inf)
    expected = bisected(kind, center, radius, lo, hi, point)
    assert torch.allclose(projected, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("domain", [None, UNIT])
def test_projection_in_float32_on_images(kind: type[InputSet], domain: Domain | None) -> None:
    center = torch.rand(16, 1, 28, 28, generator=generator())
    center[center < 0.4] = 0.0
    radius = torch.linspace(0.0, 5.0, 16)
    point = center + torch.logspace(-3, 2, 16).view(-1, 1, 1, 1) * torch.randn(center.shape, generator=generator(1))
    members = kind(center, radius, domain)
    projected = members.project(point)
    exact = kind(center.double(), radius.double(), domain).project(point.double())
    assert projected.dtype == torch.float32
    assert torch.allclose(projected.double(), exact, rtol=0, atol=1e-6)
    assert members.contains(projected, 1e-6).all()
    assert torch.allclose(members.project(projected), projected, rtol=0, atol=3e-7)
    inside = members.project(center + 0.5 * (projected - center))
    assert torch.equal(inside, center + 0.5 * (projected - center))


@pytest.mark.parametrize("kind", [L2, L1])
def test_points_inside_come_back_bit_by_bit_and_border_points_stay(kind: type[InputSet]) -> None:
    members = kind(torch.zeros(8, 50), 1.0)
    border = members.project(torch.randn(8, 50, generator=generator()))
    assert torch.equal(members.project(border), border)
    assert (members.distance(border) <= 1.0).all()
    assert torch.allclose(members.distance(border), torch.ones(8), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e18, 1e30, 3e38])
def test_huge_and_tiny_points(kind: type[InputSet], size: float) -> None:
    direction = torch.tensor([[1.0, -0.5, 0.25, 0.0]])
    members = kind(torch.full((1, 4), 0.5), 0.3, UNIT)
    projected = members.project(torch.full((1, 4), 0.5) + size * direction)
    assert projected.isfinite().all()
    assert members.contains(projected).all()
    if size >= 1:
        assert float(members.distance(projected)) == pytest.approx(0.3, rel=1e-6)


def test_l2_projects_along_the_ray_at_every_scale() -> None:
    for size in (1e-38, 1e-20, 1.0, 1e20, 1e38):
        members = L2(torch.zeros(1, 2), size / 10)
        assert torch.allclose(members.project(size * torch.tensor([[0.6, 0.8]])) / size, torch.tensor([[0.06, 0.08]]), rtol=1e-6)


def test_l2_in_float64_where_squares_would_overflow_or_vanish() -> None:
    for size in (1e-200, 1e200):
        members = L2(torch.zeros(1, 2, dtype=torch.float64), 1.0, Domain(-2.0, 0.6))
        best = members.linear_maximiser(size * torch.tensor([[-1.0, 1.0]], dtype=torch.float64), members.center)
        assert best[0].tolist() == pytest.approx([-0.8, 0.6], rel=1e-14)


@pytest.mark.parametrize(("radius", "second"), [(2.0, 0.8), (0.9, 0.0)])
def test_l2_maximiser_with_slopes_so_unequal_that_their_squares_underflow(radius: float, second: float) -> None:
    members = L2(torch.zeros(1, 3, dtype=torch.float64), radius, Domain(torch.zeros(3).double(), torch.tensor([0.6, 0.8, 1.0]).double()))
    best = members.linear_maximiser(torch.tensor([[1.0, 1e-200, 0.0]], dtype=torch.float64), members.center)
    assert best[0].tolist() == pytest.approx([0.6, second, 0.0], abs=1e-6)


@pytest.mark.parametrize("small", [1e-7, 1e-9, 1e-38])
def test_l2_maximiser_where_one_coordinate_takes_the_whole_radius(small: float) -> None:
    """What is left for the other one is lost to rounding; the first must not stay behind for it."""
    members = L2(torch.tensor([[1.0, 0.0]]).double(), 0.4, UNIT)
    best = members.linear_maximiser(torch.tensor([[-small, 4.0]]).double(), members.center)
    assert best[0].tolist() == pytest.approx([1.0, 0.4], abs=1e-6)


def test_l1_projection_where_the_threshold_itself_would_cancel() -> None:
    members = L1(torch.zeros(2, 2), 1.0, Domain(-0.5, 10.0))
    projected = members.project(torch.tensor([[1e30, 1e30], [-1e30, 1.0]]))
    assert torch.allclose(projected, torch.tensor([[0.5, 0.5], [-0.5, 0.5]]))


def test_l2_projection_by_hand_on_a_corner_of_the_box() -> None:
    members = L2(torch.tensor([[0.9, 0.5]]), 0.3, UNIT)
    projected = members.project(torch.tensor([[2.0, 2.0]]))
    assert torch.allclose(projected, torch.tensor([[1.0, 0.5 + math.sqrt(0.3**2 - 0.1**2)]]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("domain", [None, UNIT])
def test_radius_zero_is_the_center(kind: type[InputSet], domain: Domain | None) -> None:
    center = torch.rand(3, 2, 2, generator=generator())
    members = kind(center, 0.0, domain)
    away = center + torch.randn(center.shape, generator=generator(1))
    for point in (members.project(away), members.sample(generator()), members.corner(generator()), members.linear_maximiser(away, center)):
        assert torch.equal(point, center)
    assert not members.interior(center).any()


@pytest.mark.parametrize("kind", KINDS)
def test_one_radius_per_example(kind: type[InputSet]) -> None:
    center, point = torch.rand(3, 5, generator=generator()), torch.randn(3, 5, generator=generator(1))
    radius = torch.tensor([0.0, 0.1, 0.7])
    together = kind(center, radius, UNIT)
    at = together.project(point)
    for i in range(3):
        alone = kind(center[i : i + 1], float(radius[i]), UNIT)
        assert torch.equal(alone.project(point[i : i + 1]), at[i : i + 1])
        assert torch.equal(alone.linear_maximiser(point[i : i + 1], at[i : i + 1]), together.linear_maximiser(point, at)[i : i + 1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 3, 2), (0, 3)])
def test_every_rank_works(kind: type[InputSet], shape: tuple[int, ...]) -> None:
    members = kind(torch.full(shape, 0.5), torch.full((shape[0],), 0.2), UNIT)
    gradient = torch.ones(shape)
    answers = (
        members.project(gradient),
        members.steepest(gradient, members.center),
        members.linear_maximiser(gradient, members.center),
        members.sample(),
        members.corner(),
        members.interior(members.center),
    )
    assert all(answer.shape == shape for answer in answers)
    assert members.contains(members.center).shape == members.distance(members.center).shape == (shape[0],)


@pytest.mark.parametrize("kind", KINDS)
def test_ranges_per_channel(kind: type[InputSet]) -> None:
    lo, hi = torch.tensor([-2.0, -1.0, 0.0]).view(3, 1, 1), torch.tensor([2.0, 1.0, 0.1]).view(3, 1, 1)
    members = kind(torch.zeros(2, 3, 4, 4), 50.0, Domain(lo, hi))
    projected = members.project(torch.full((2, 3, 4, 4), 9.0))
    assert torch.equal(projected, hi.expand(2, 3, 4, 4))
    assert torch.equal(members.project(torch.full((2, 3, 4, 4), -9.0)), lo.expand(2, 3, 4, 4))


# --- directions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "dual"), [(Linf, 1), (L2, 2), (L1, math.inf)])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_steepest_has_norm_one_and_reaches_the_dual_norm(kind: type[InputSet], dual: float, size: float) -> None:
    gradient = size * torch.randn(6, 3, 5, generator=generator())
    members = kind(torch.zeros_like(gradient), 1.0)
    direction = members.steepest(gradient)
    assert torch.allclose(members.norm(direction), torch.ones(6), rtol=1e-6)
    reached = (gradient.double() * direction.double()).flatten(1).sum(1)
    assert torch.allclose(reached, torch.linalg.vector_norm(gradient.double().flatten(1), dual, dim=1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_steepest_of_zero_is_zero_and_the_gradient_is_left_alone(kind: type[InputSet]) -> None:
    gradient = torch.tensor([[0.0, 0.0], [3.0, -4.0]])
    before = gradient.clone()
    direction = kind(torch.zeros(2, 2), 1.0, Domain(-1.0, 1.0)).steepest(gradient, torch.zeros(2, 2))
    assert torch.equal(direction[0], torch.zeros(2))
    assert torch.equal(gradient, before)


def test_l1_steps_where_the_box_lets_it() -> None:
    members = L1(torch.tensor([[0.0, 0.5, 1.0]]), 1.0, UNIT)
    gradient = torch.tensor([[-5.0, 1.0, 4.0]])
    assert members.steepest(gradient).tolist() == [[-1.0, 0.0, 0.0]]
    assert members.steepest(gradient, members.center).tolist() == [[0.0, 1.0, 0.0]]
    assert members.steepest(-gradient, members.center).tolist() == [[1.0, 0.0, 0.0]]
    assert members.steepest(gradient * torch.tensor([1.0, 0.0, 1.0]), members.center).tolist() == [[0.0, 0.0, 0.0]]


# --- maximisers of linear functions --------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [8 / 255, 0.3])
def test_fgsm_bit_by_bit(eps: float) -> None:
    x = torch.rand(8, 3, 16, 16, generator=generator())
    gradient = torch.randn(x.shape, generator=generator(1)).masked_fill_(torch.rand(x.shape, generator=generator(2)) < 0.2, 0.0)
    expected = torch.clamp(x + eps * gradient.sign(), 0.0, 1.0)
    assert torch.equal(Linf(x, eps, UNIT).linear_maximiser(gradient, x), expected)
    assert torch.equal(Linf(x, torch.full((8,), eps), UNIT).linear_maximiser(gradient, x), expected)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(case=balls())
def test_l1_maximiser_against_a_linear_program(case: tuple[Tensor, Tensor, Tensor, Domain | None]) -> None:
    center, radius, point, domain = case
    gradient = point - center
    found = L1(center, radius, domain).linear_maximiser(gradient, center)
    n, d = center.shape
    for i in range(n):  # v = center + up - down, up and down >= 0
        room = [(0.0, 1 - c) for c in center[i].tolist()] + [(0.0, c) for c in center[i].tolist()]
        cost = torch.cat((-gradient[i], gradient[i])).numpy()
        answer = linprog(cost, np.ones((1, 2 * d)), [float(radius[i])], bounds=room if domain else (0, None))
        best = float(gradient[i] @ center[i]) - answer.fun
        assert float(gradient[i] @ found[i]) == pytest.approx(best, rel=1e-8, abs=1e-8)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=balls())
def test_l2_maximiser_is_the_limit_of_projections(case: tuple[Tensor, Tensor, Tensor, Domain | None]) -> None:
    """max <g, v> over a compact convex set is the projection of center + t g as t grows; the reference projects by bisection."""
    center, radius, point, domain = case
    gradient = torch.randn(center.shape, generator=generator(3), dtype=torch.float64) + 0.01 * point.sign()
    found = L2(center, radius, domain).linear_maximiser(gradient, center)
    lo, hi = (0.0, 1.0) if domain else (-math.inf, math.inf)
    reference = bisected(L2, center, radius, lo, hi, center + 1e7 * gradient)
    assert L2(center, radius, domain).contains(found, 1e-14).all()
    assert torch.allclose((gradient * found).sum(1), (gradient * reference).sum(1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_coordinates_without_gradient_keep_their_place_as_far_as_there_is_room(kind: type[InputSet]) -> None:
    center = torch.tensor([[0.95, 0.5, 0.5]])
    members = kind(center, 0.2, UNIT)
    at = torch.tensor([[0.95, 0.52, 0.47]])
    best = members.linear_maximiser(torch.tensor([[2.0, 0.0, 0.0]]), at)
    assert best.tolist() == torch.tensor([[1.0, 0.52, 0.47]]).tolist()  # the box stops the first coordinate, so the rest fits
    assert torch.equal(members.linear_maximiser(torch.zeros(1, 3), at), at)


@pytest.mark.parametrize("kind", KINDS)
def test_without_any_gradient_border_points_stay_bit_by_bit(kind: type[InputSet]) -> None:
    center = torch.rand(300, 7, generator=generator())
    members = kind(center, 0.2)
    at = members.project(center + torch.randn(center.shape, generator=generator(1)))
    assert torch.equal(members.linear_maximiser(torch.zeros_like(at), at), at)


@pytest.mark.parametrize("kind", [L2, L1])
def test_idle_coordinates_go_to_the_center_when_the_ball_is_used_up(kind: type[InputSet]) -> None:
    members = kind(torch.zeros(1, 3), 0.2)
    best = members.linear_maximiser(torch.tensor([[-2.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.1, -0.05]]))
    assert torch.allclose(best, torch.tensor([[-0.2, 0.0, 0.0]]), atol=1e-7)


# --- draws ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("domain", [None, UNIT])
def test_draws_are_members_and_follow_the_generator(kind: type[InputSet], domain: Domain | None) -> None:
    center = torch.rand(64, 3, 4, 4, generator=generator())
    members = kind(center, torch.linspace(0, 2, 64), domain)
    for draw in (members.sample, members.corner):
        point = draw(generator(5))
        assert members.contains(point).all()
        assert torch.equal(point, draw(generator(5)))
        assert not torch.equal(point, draw(generator(6)))


def test_linf_sample_is_uniform_on_the_set_box_included() -> None:
    center = torch.tensor([0.05, 0.5, 1.0]).repeat(20000, 1)
    drawn = Linf(center, 0.1, UNIT).sample(generator())
    for column, (lo, hi) in enumerate([(0.0, 0.15), (0.4, 0.6), (0.9, 1.0)]):
        share = ((drawn[:, column] - lo) / (hi - lo)).sort().values
        grid = torch.arange(1, 20001) / 20000
        assert float((share - grid).abs().max()) < 2.5 / math.sqrt(20000)  # Kolmogorov-Smirnov at 1e-5


@pytest.mark.parametrize("kind", [L2, L1])
@pytest.mark.parametrize("d", [1, 3])
def test_ball_samples_fill_the_ball_uniformly(kind: type[InputSet], d: int) -> None:
    members = kind(torch.zeros(20000, d), 2.0)
    drawn = members.sample(generator())
    share = (members.norm(drawn) / 2).pow(d).sort().values  # the share of the volume inside is uniform
    assert float((share - torch.arange(1, 20001) / 20000).abs().max()) < 2.5 / math.sqrt(20000)
    assert (drawn.mean(0).abs() < 0.05).all()
    assert float((drawn[:, 0] > 0).float().mean()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("kind", "support"), [(Linf, 3), (L2, 3), (L1, 1)])
def test_corners_are_extreme_points_and_all_occur(kind: type[InputSet], support: int) -> None:
    corners = kind(torch.zeros(200, 3), 0.5).corner(generator())
    assert torch.allclose(kind(torch.zeros(200, 3), 0.5).distance(corners), torch.full((200,), 0.5), rtol=1e-6)
    assert ((corners != 0).sum(1) == support).all()
    signs = {tuple(row) for row in corners.sign().int().tolist()}
    assert len(signs) == (8 if support == 3 else 6)


# --- membership -----------------------------------------------------------------------------------------------------


def test_distance_contains_and_interior_by_hand() -> None:
    center = torch.tensor([[0.5, 0.9]])
    point = torch.tensor([[0.8, 1.0]])
    sizes = {Linf: 0.3, L2: math.sqrt(0.1), L1: 0.4}
    for kind, size in sizes.items():
        assert float(kind(center, 1.0).distance(point)) == pytest.approx(size, rel=1e-6)
        assert kind(center, size * 1.01, UNIT).contains(point).all()
        assert not kind(center, size * 0.99, UNIT).contains(point).any()
        assert kind(center, size * 0.99, UNIT).contains(point, 0.1).all()
        assert not kind(center, 1.0, Domain(0.0, 0.99)).contains(point, 0.1).any()
        assert kind(center, 1.0, UNIT).interior(point).tolist() == [[True, False]]
    assert Linf(center, 0.25).interior(torch.tensor([[0.75, 1.0]])).tolist() == [[False, True]]
    assert Linf(center, 0.25).interior(torch.tensor([[0.25, 0.7]])).tolist() == [[False, True]]
    assert L2(center, 0.25).interior(torch.tensor([[0.75, 0.9]])).tolist() == [[False, False]]
    assert L1(center, 0.26).interior(torch.tensor([[0.75, 0.9]])).tolist() == [[True, True]]


@pytest.mark.parametrize("kind", KINDS)
def test_projected_points_are_on_the_border_of_what_held_them(kind: type[InputSet]) -> None:
    center = torch.rand(5, 40, generator=generator())
    members = kind(center, 0.5, UNIT)
    projected = members.project(center + 3.0)
    assert not members.interior(projected).any()
    assert members.interior(center).all()


def test_sets_are_constants() -> None:
    center = torch.rand(2, 3).requires_grad_()
    assert not Linf(center, torch.rand(2).requires_grad_()).project(torch.rand(2, 3)).requires_grad


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("radius", [-0.1, math.nan, math.inf])
def test_radii_must_be_numbers_of_at_least_zero(kind: type[InputSet], radius: float) -> None:
    center = torch.zeros(3, 2)
    with pytest.raises(UserError, match="the radius of a set is"):
        kind(center, radius)
    with pytest.raises(UserError, match="the radius of example 1 is"):
        kind(center, torch.tensor([0.1, radius, 0.1]))
    with pytest.raises(UserError, match="for 3 examples"):
        kind(center, torch.zeros(2))
    with pytest.raises(UserError, match="for 3 examples"):
        kind(center, torch.zeros(3, 2))


def test_domains_must_fit() -> None:
    with pytest.raises(UserError, match="runs from 1"):
        Domain(1.0, 0.0)
    with pytest.raises(UserError, match="runs from"):
        Domain(0.0, math.nan)
    with pytest.raises(UserError, match=r"does not fit inputs of shape \(3, 4, 4\)"):
        Linf(torch.zeros(2, 3, 4, 4), 0.1, Domain(0.0, torch.ones(2, 1, 1)))


def test_register_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lossdsl.solve.sets.SETS_TORCH", dict(SETS_TORCH))
    monkeypatch.setattr("lossdsl.solve.sets.SETS", dict(SETS))
    with pytest.raises(UserError, match="exists already"):
        register_set("linf", Linf)
    with pytest.raises(UserError, match="has no set ball"):
        register_set("ball", L2)
    with pytest.raises(UserError, match="is no InputSet"):
        register_set("ball", int)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="describes other"):
        register_set("ball", L2, SetRow("other", ("center", "radius"), ""))
    register_set("ball", L2, SetRow("ball", ("center", "radius"), "another name of l2"))
    from lossdsl.solve import sets

    assert sets.SETS_TORCH["ball"] is L2
    assert "ball" in sets.SETS


def test_every_input_set_of_the_language_is_there() -> None:
    assert set(SETS_TORCH) == {name for name, row in SETS.items() if row.over == "input"}


def test_l1_and_l2_project_the_same_on_one_coordinate() -> None:
    for value, radius in itertools.product((-3.0, 0.1, 2.0), (0.0, 0.2, 5.0)):
        answers = {float(kind(torch.tensor([0.3]), radius, UNIT).project(torch.tensor([value]))) for kind in KINDS}
        assert max(answers) - min(answers) <= 2e-7
