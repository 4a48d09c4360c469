"""Derivatives of what a norm ball met with a box answers, for unrolled levels.

A projection or maximiser, once known, tells which coordinates the box holds, which are at the center and which are free. Near it the
answer is a short formula in the point, the center and the radius, and the derivative of that formula is the derivative of the answer
wherever it has one (everywhere but on a null set, as answers are piecewise smooth).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


def with_derivative(value: Tensor, formula: Tensor) -> Tensor:
    """`value`, with the derivative of `formula`, which equals it up to rounding."""
    return value.detach() + (formula - formula.detach()).to(value.dtype)


def tracked(*tensors: Tensor) -> bool:
    """Is a graph being built, and does one of these belong to it?"""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


@dataclass(frozen=True)
class Ball:
    """The ball of the 1- or 2-norm met with a box, in float64, with the graphs of its center, [N, d], and radius, [N, 1].

    lo, hi: the box, [N, d], or None.
    """

    order: Literal[1, 2]
    center: Tensor
    radius: Tensor
    lo: Tensor | None
    hi: Tensor | None

    def projection(self, point: Tensor, sizes: Tensor, outside: Tensor) -> Tensor:
        """The projection of points outside, from its sizes |projection - center|; points and sizes are [N, d], outside is bool [N, 1].

        Free coordinates shrink by one factor (order 2) or one amount (order 1), the one that spends what the held ones leave.
        """
        offset = point - self.center
        faces, held = self._held(offset, sizes)
        free = ~held if self.order == 2 else ~held & (sizes > 0)
        left, spread = self._left(faces, held), torch.where(free, offset, 0.0)
        if self.order == 2:
            moved = offset * (left / _or_one(torch.linalg.vector_norm(spread, dim=1, keepdim=True), outside))
        else:
            excess = (spread.abs().sum(1, keepdim=True) - left) / free.sum(1, keepdim=True).clamp_min(1)
            moved = offset - offset.detach().sign() * excess
        return torch.where(held, faces, torch.where(free, self.center + moved, self.center))

    def maximiser(self, gradient: Tensor, at: Tensor, sizes: Tensor, unchanged: Tensor) -> Tensor:
        """The maximiser of <gradient, v> from its sizes; all [N, d]. unchanged: the coordinates without gradient that keep `at`.

        Free coordinates take what the held ones leave of the radius. If there are none, the others draw `at` towards the center by the
        factor that spends it.
        """
        faces, held = self._held(gradient, sizes)
        free, idle = ~held & (sizes > 0), gradient.detach() == 0
        left, spread = self._left(faces, held), torch.where(free, gradient, 0.0)
        length = torch.linalg.vector_norm(spread, dim=1, keepdim=True)
        direction = spread / _or_one(length, length > 0) if self.order == 2 else spread.detach().sign()
        kept = torch.where(idle, at - self.center, 0.0)
        needed = torch.linalg.vector_norm(kept, self.order, dim=1, keepdim=True)
        shrunk = torch.where(free.any(1, keepdim=True), 0.0, kept * (left / _or_one(needed, needed > 0)))
        moved = self.center + torch.where(free, direction * left, torch.where(idle, shrunk, 0.0))
        return torch.where(held, faces, torch.where(unchanged, at, moved))

    def _held(self, direction: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """The face of the box that each coordinate moves towards, [N, d], and whether it has been reached, bool [N, d]."""
        if self.lo is None or self.hi is None:
            return torch.zeros_like(sizes), torch.zeros_like(sizes, dtype=torch.bool)
        faces = torch.where(direction > 0, self.hi, self.lo)
        room = (faces - self.center).detach().abs()
        return faces, (sizes >= room * (1 - 1e-12)) & (direction.detach() != 0)

    def _left(self, faces: Tensor, held: Tensor) -> Tensor:
        """The radius that remains for coordinates that are not held, [N, 1]."""
        spent = torch.where(held, faces - self.center, 0.0)
        if self.order == 1:
            return self.radius - spent.abs().sum(1, keepdim=True)
        squared = self.radius.square() - spent.square().sum(1, keepdim=True)
        some, positive = (spent != 0).any(1, keepdim=True), squared > 0
        return torch.where(some, torch.where(some & positive, squared, 1.0).sqrt() * positive, self.radius)


def _or_one(length: Tensor, where: Tensor) -> Tensor:
    """`length` there, and elsewhere 1, so that no derivative divides by what is not used."""
    return torch.where(where & (length > 0), length, 1.0)
