"""Symmetric systems by products alone, against dense solvers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import minres
from torch import Tensor

from lossdsl.diagnostics import UserError
from lossdsl.solve import solve_symmetric


def symmetric(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), generator=g, dtype=torch.float64)).Q
    return basis @ eigenvalues.double().diag() @ basis.T


def right_side(n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SPECTRA = {
    "definite": torch.linspace(0.5, 20.0, 30),
    "negative": torch.linspace(-20.0, -0.5, 30),
    "indefinite": torch.cat((torch.linspace(-7.0, -0.3, 12), torch.linspace(0.2, 9.0, 18))),
    "balanced": torch.cat((torch.linspace(-3.0, -1.0, 15), torch.linspace(1.0, 3.0, 15))),
    "identity": torch.ones(30),
    "outliers": torch.cat((torch.full((28,), 0.1), torch.tensor([-1e3, 1e4]))),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_the_solution(name: str, scale: float) -> None:
    matrix, b = scale * symmetric(SPECTRA[name]), right_side(30)
    calls: list[int] = []

    def apply(v: Tensor) -> Tensor:
        calls.append(1)
        return matrix @ v

    found, residual = solve_symmetric(apply, b, 200, 1e-11)
    expected = torch.linalg.solve(matrix, b)
    assert torch.allclose(found, expected, rtol=0, atol=1e-7 * float(expected.norm()))
    assert float(residual) <= 1e-11
    assert float((b - matrix @ found).norm() / b.norm()) <= 1e-9
    assert len(calls) <= 60


def test_zero_curvature_on_the_first_direction() -> None:
    """b'Ab = 0: conjugate gradients would divide by it."""
    matrix, b = torch.tensor([[0.0, 2.0], [2.0, 0.0]]), torch.tensor([1.0, 0.0])
    found, residual = solve_symmetric(lambda v: matrix @ v, b, 5, 1e-12)
    assert torch.allclose(found, torch.tensor([0.0, 0.5]))
    assert float(residual) <= 1e-12


@pytest.mark.parametrize("name", ["definite", "indefinite", "balanced"])
@pytest.mark.parametrize("steps", [1, 2, 5, 11])
def test_early_iterates_are_those_of_minres(name: str, steps: int) -> None:
    """scipy's MINRES after the same number of products; the residual reported is the true one and never grows."""
    matrix, b = symmetric(SPECTRA[name]), right_side(30)
    found, residual = solve_symmetric(lambda v: matrix @ v, b, steps, 0.0)
    reference, _ = minres(matrix.numpy(), b.numpy(), rtol=0.0, maxiter=steps)
    assert np.allclose(found.numpy(), reference, rtol=1e-8, atol=1e-10)
    assert float(residual) == pytest.approx(float((b - matrix @ found).norm() / b.norm()), rel=1e-6)
    _, before = solve_symmetric(lambda v: matrix @ v, b, steps - 1, 0.0)
    assert float(residual) <= float(before) <= 1.0


def test_it_stops_at_the_tolerance() -> None:
    matrix, b = symmetric(SPECTRA["definite"]), right_side(30)
    calls: list[int] = []
    _, residual = solve_symmetric(lambda v: calls.append(1) or matrix @ v, b, 200, 1e-2)  # type: ignore[func-returns-value]
    assert 1e-4 < float(residual) <= 1e-2
    _, before = solve_symmetric(lambda v: matrix @ v, b, len(calls) - 1, 0.0)
    assert float(before) > 1e-2
    assert solve_symmetric(lambda v: matrix @ v, b, 0, 1e-2)[1] == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_singular_but_consistent(dtype: torch.dtype) -> None:
    matrix = symmetric(torch.cat((torch.zeros(10), torch.linspace(-5.0, -1.0, 6), torch.linspace(1.0, 5.0, 14)))).to(dtype)
    b = matrix @ right_side(30).to(dtype)
    tolerance = 1e-10 if dtype is torch.float64 else 1e-5
    for goal in (tolerance, 0.0):  # also far past convergence
        found, residual = solve_symmetric(lambda v: matrix @ v, b, 100, goal)
        assert found.isfinite().all()
        assert float((b - matrix @ found).norm() / b.norm()) <= 100 * tolerance
        assert float(residual) <= tolerance
        assert torch.allclose(found, torch.linalg.pinv(matrix.double(), rtol=1e-5).to(dtype) @ b, atol=1e3 * tolerance)


def test_singular_and_inconsistent_stops_where_nothing_helps() -> None:
    matrix = torch.diag(torch.tensor([2.0, -4.0, 0.0])).double()
    found, residual = solve_symmetric(lambda v: matrix @ v, torch.tensor([1.0, 2.0, 3.0]).double(), 50, 1e-12)
    assert found.isfinite().all()
    assert float(residual) == pytest.approx(3 / math.sqrt(14), rel=1e-6)
    nothing, all_of_it = solve_symmetric(torch.zeros_like, torch.ones(3), 50, 1e-12)
    assert torch.equal(nothing, torch.zeros(3))
    assert float(all_of_it) == 1.0


def test_zero_right_side() -> None:
    found, residual = solve_symmetric(lambda v: pytest.fail("nothing to do"), torch.zeros(2, 3), 5, 1e-8)
    assert torch.equal(found, torch.zeros(2, 3))
    assert float(residual) == 0.0
    empty, none = solve_symmetric(lambda v: v, torch.zeros(0, 3), 5, 1e-8, per_example=True)
    assert empty.shape == (0, 3)
    assert none.shape == (0,)


def test_any_shape_and_float32() -> None:
    matrix = symmetric(SPECTRA["indefinite"]).float()
    b = right_side(30).float().view(5, 3, 2)
    seen: list[tuple[torch.Size, torch.dtype]] = []

    def apply(v: Tensor) -> Tensor:
        seen.append((v.shape, v.dtype))
        return (matrix @ v.flatten()).view_as(v)

    found, residual = solve_symmetric(apply, b, 100, 1e-5)
    assert set(seen) == {(torch.Size((5, 3, 2)), torch.float32)}
    assert found.shape == b.shape
    assert found.dtype == residual.dtype == torch.float32
    assert torch.allclose(apply(found), b, atol=1e-4)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_right_sides_of_every_size(size: float) -> None:
    matrix, b = symmetric(SPECTRA["indefinite"]).float(), right_side(30).float()
    found, _ = solve_symmetric(lambda v: matrix @ v, size * b, 100, 1e-5)
    assert torch.allclose(found / size, torch.linalg.solve(matrix, b), atol=1e-3)


def test_examples_side_by_side() -> None:
    """Blocks of very different spectra, one of them done at once: each as if it were alone, in as many steps as the hardest needs."""
    matrices = torch.stack(
        [
            symmetric(torch.ones(6)),
            symmetric(torch.linspace(-9, 4, 6), 3),
            1e5 * symmetric(torch.linspace(1, 9, 6), 4),
            torch.zeros(6, 6).double(),
        ]
    )
    b = right_side(24).view(4, 3, 2)
    b[3] = 0.0
    calls: list[int] = []

    def apply(v: Tensor) -> Tensor:
        calls.append(1)
        return torch.einsum("nij,nj->ni", matrices, v.flatten(1)).view_as(v)

    found, residual = solve_symmetric(apply, b, 50, 1e-10, per_example=True)
    assert residual.shape == (4,)
    assert (residual <= 1e-10).all()
    assert len(calls) <= 7
    for i in range(3):
        alone, _ = solve_symmetric(lambda v, i=i: (matrices[i] @ v.flatten()).view_as(v), b[i], 50, 1e-10)
        assert torch.allclose(found[i], alone, rtol=1e-9, atol=1e-12)
        assert torch.allclose(found[i].flatten(), torch.linalg.solve(matrices[i], b[i].flatten()), rtol=1e-6, atol=1e-10)
    assert not found[3].any()


def test_the_solution_is_a_constant() -> None:
    b = torch.ones(3, requires_grad=True)
    assert not solve_symmetric(lambda v: 2 * v + 0 * b, b, 3, 1e-8)[0].requires_grad


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(UserError, match="right-hand side is not finite"):
        solve_symmetric(lambda v: v, torch.tensor([1.0, math.nan]), 3, 1e-8)
    with pytest.raises(UserError, match="product with the operator is not finite"):
        solve_symmetric(lambda v: v * math.inf, torch.ones(2), 3, 1e-8)
