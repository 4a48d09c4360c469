"""The simplex: projections by hand, vertices, uniform draws. That projections are nearest, and maximisers best, are laws: recipes/laws/sets.py."""

from __future__ import annotations

import pytest
import torch

from lossdsl.solve import Linear, Pgd, Problem, Simplex, solve


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_projection_by_hand() -> None:
    point = torch.tensor([[0.6, 0.8, -1.0], [5.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.0, 0.0, 0.0], [1e30, 1e30, -1e30]])
    expected = torch.tensor([[0.4, 0.6, 0.0], [1.0, 0.0, 0.0], [1 / 3] * 3, [1 / 3] * 3, [0.5, 0.5, 0.0]])
    assert torch.allclose(Simplex(point).project(point), expected)


def test_points_inside_come_back_bit_by_bit() -> None:
    members = Simplex(torch.zeros(50, 7))
    inside = members.project(members.sample(generator()))
    assert torch.equal(members.project(inside), inside)


def test_maximiser_is_a_vertex() -> None:
    g = torch.tensor([[1.0, 3.0, 2.0], [-1.0, -5.0, -1.0], [2.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    at = torch.tensor([[0.2, 0.3, 0.5]]).expand(4, 3)
    best = Simplex(g).linear_maximiser(g, at)
    assert torch.equal(best, torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5], [0.2, 0.3, 0.5]]))


def test_steepest_moves_along_the_simplex() -> None:
    g = torch.randn(5, 6, generator=generator(), dtype=torch.float64)
    members = Simplex(g)
    direction = members.steepest(g)
    assert torch.allclose(direction.sum(1), torch.zeros(5).double(), atol=1e-14)
    assert torch.allclose(members.norm(direction), torch.ones(5).double())
    for seed in range(20):
        other = torch.randn(5, 6, generator=generator(seed + 1), dtype=torch.float64)
        other = other - other.mean(1, keepdim=True)
        assert ((g * other).sum(1) / members.norm(other) <= (g * direction).sum(1) + 1e-12).all()
    assert torch.equal(members.steepest(torch.full((5, 6), 0.1).double()), torch.zeros(5, 6).double())
    assert torch.allclose(members.steepest(1e30 * g), direction)


def test_samples_are_uniform() -> None:
    """Dirichlet(1, ..., 1) over K = 3: means 1/3, variances (K - 1) / (K^2 (K + 1)) = 1/18."""
    members = Simplex(torch.zeros(20000, 3))
    drawn = members.sample(generator(4))
    assert members.contains(drawn).all()
    assert torch.allclose(drawn.mean(0), torch.full((3,), 1 / 3), atol=0.01)
    assert torch.allclose(drawn.var(0), torch.full((3,), 1 / 18), atol=0.003)
    corners = members.corner(generator(4))
    assert torch.equal(corners.sort(1).values, torch.tensor([0.0, 0.0, 1.0]).expand(20000, 3))
    assert torch.allclose(corners.mean(0), torch.full((3,), 1 / 3), atol=0.02)


def test_membership() -> None:
    point = torch.tensor([[0.5, 0.5, 0.0], [0.6, 0.5, 0.0], [1.1, -0.1, 0.0], [0.3, 0.3, 0.3]])
    members = Simplex(point)
    assert members.contains(point).tolist() == [True, False, False, False]
    assert members.contains(point, 0.11).tolist() == [True, True, False, True]
    assert members.interior(point)[0].tolist() == [True, True, False]
    assert torch.allclose(members.center, torch.full((4, 3), 1 / 3))
    vertex = torch.tensor([[1.0, 0.0, 0.0]]).expand(4, 3)
    assert torch.allclose(members.distance(vertex), members.radii)


@pytest.mark.parametrize("shape", [(0, 3), (2, 1)])
def test_small_shapes(shape: tuple[int, int]) -> None:
    members = Simplex(torch.zeros(shape))
    for answer in (
        members.project(torch.ones(shape)),
        members.steepest(torch.ones(shape)),
        members.linear_maximiser(torch.ones(shape), members.center),
        members.sample(),
        members.corner(),
    ):
        assert answer.shape == shape
    assert members.contains(members.sample()).all()


def test_the_worst_class_wins() -> None:
    """max over q of sum_c q_c loss_c: the vertex of the largest loss, in one linear step and by pgd."""
    losses = torch.tensor([[0.3, 2.0, 1.9]])
    for solver, steps in ((Linear(), 1), (Pgd(0.3), 60)):
        problem = Problem(lambda q: (q * losses).sum(1), Simplex(losses), lambda: torch.full((1, 3), 1 / 3))
        assert torch.allclose(solve(problem, solver, steps).point, torch.tensor([[0.0, 1.0, 0.0]]), atol=1e-6)
