"""Symmetric linear systems given by products alone, as implicit differentiation needs them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lossdsl.diagnostics import UserError


def solve_symmetric(
    apply: Callable[[Tensor], Tensor], b: Tensor, steps: int, tolerance: float, per_example: bool = False
) -> tuple[Tensor, Tensor]:
    """x with apply(x) = b, and |b - apply(x)| / |b|, for a symmetric operator that may be indefinite.

    b and x: any shape; apply maps that shape to itself and is called once per step, in the precision of b.
    steps: at most so many. tolerance: stops once the relative residual is at most that, or cannot be told from rounding in products of
        the precision of b.
    per_example: the operator is block-diagonal over the first dimension, one block per example, and each block is solved for itself
        (far fewer steps than for their union); the residuals are then [N], otherwise a number.

    MINRES (Paige and Saunders 1975; Choi, Paige and Saunders 2011, table 2.1) from x = 0: of all points that conjugate gradients could
    reach in as many products it takes the one of smallest residual, so the residual never grows; unlike conjugate gradients it needs no
    positive curvature. The three-term recurrences run in float64, in which its short recurrence loses nothing that matters. For a
    singular operator with b in its range it finds a solution, otherwise it stops where the residual cannot fall further. Written here
    because scipy's works on numpy arrays, one system at a time.

    Raises UserError if b or a product is not finite.
    """
    count = b.shape[0] if per_example else 1
    rows = b.detach().reshape(count, math.prod(b.shape[1:]) if per_example else b.numel()).double()
    _check_finite(rows, "the right-hand side")
    start = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    lanczos = _Minres(rows, start, 8 * torch.finfo(b.dtype).eps)
    for _ in range(steps):
        going = lanczos.going & (lanczos.residual > torch.maximum(tolerance * start, lanczos.attainable()))
        if not bool(going.any()):
            break
        product = apply(lanczos.vector.to(b.dtype).view_as(b)).detach().reshape(rows.shape).double()
        _check_finite(product, "the product with the operator")
        lanczos.advance(product, going)
    relative = torch.where(start > 0, lanczos.residual / start.clamp_min(torch.finfo(start.dtype).tiny), 0.0)[:, 0].to(b.dtype)
    return lanczos.solution.to(b.dtype).view_as(b), relative if per_example else relative[0]


class _Minres:
    """Lanczos vectors, the QR factors of their tridiagonal matrix and the solution; rows are systems. Scalars are [rows, 1].

    floor: relative to the operator's size, what cannot be told from rounding in its products.
    """

    def __init__(self, b: Tensor, length: Tensor, floor: float) -> None:
        zero = torch.zeros_like(length)
        self.floor = floor
        self.going = length > 0
        self.residual = length
        self.solution = torch.zeros_like(b)
        self.vector = torch.where(self.going, b / length, 0.0)
        self._old, self._direction, self._old_direction = self.solution, self.solution, self.solution
        self._beta, self._cos, self._sin, self._dbar, self._epsilon, self._size = zero, zero - 1, zero, zero, zero, zero

    def attainable(self) -> Tensor:
        """The residual that rounding leaves anyway; steps below it would gather noise, above all along a null space."""
        return self.floor * self._size * torch.linalg.vector_norm(self.solution, dim=1, keepdim=True)

    def advance(self, product: Tensor, going: Tensor) -> None:
        """One step from the product of the operator with `vector`; only the rows that go on move their solution."""
        alpha = (self.vector * product).sum(1, keepdim=True)
        following = product - alpha * self.vector - self._beta * self._old
        beta = torch.linalg.vector_norm(following, dim=1, keepdim=True)
        self._size = torch.maximum(self._size, torch.hypot(torch.hypot(alpha, beta), self._beta))  # at most the norm of the operator
        exhausted = beta == 0
        delta, gbar = self._cos * self._dbar + self._sin * alpha, self._sin * self._dbar - self._cos * alpha
        gamma = torch.hypot(gbar, beta)
        sound = going & (gamma > self.floor * self._size)  # otherwise nothing in this direction lowers the residual
        gamma = torch.where(sound, gamma, 1.0)
        direction = (self.vector - self._epsilon * self._old_direction - delta * self._direction) / gamma
        self._epsilon, self._dbar = self._sin * beta, -self._cos * beta
        self._cos, self._sin = gbar / gamma, beta / gamma
        self.solution = torch.where(sound, self.solution + self._cos * self.residual * direction, self.solution)
        self.residual = torch.where(sound, self._sin * self.residual, self.residual)
        self._old_direction, self._direction = self._direction, direction
        self._old, self.vector = self.vector, torch.where(exhausted, 0.0, following / beta.masked_fill(exhausted, 1.0))
        self._beta, self.going = beta, sound & ~exhausted


def _check_finite(values: Tensor, what: str) -> None:
    if not bool(values.isfinite().all()):
        raise UserError(f"{what} is not finite", where="a symmetric linear system", fix="look for weights or inputs that are not finite")
