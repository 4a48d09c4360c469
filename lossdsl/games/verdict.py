"""What became of a play: did it converge, go round and round, or run away?"""

from __future__ import annotations

from torch import Tensor

from lossdsl.games.field import Field
from lossdsl.games.regions import Projection

CONVERGED = 1e-7
"""Length of the natural residual z - P(z - V(z)) below which a play has arrived."""
AWAY = 100.0
"""A play whose residual still grows this many times farther out than its start has diverged."""
STEADY = 0.05
"""Relative change of the largest residual between the last two fifths of a play that still counts as none."""


def residual(field: Field, z: Tensor) -> Tensor:
    """|z - P(z - V(z))| of every row of z; |V(z)| where no player has a set. Zero at solutions only."""
    projection = Projection(field)
    length: Tensor = (z - projection(z - field(z))).norm(dim=1)
    return length


def verdict(field: Field, points: Tensor, diverged: bool) -> str:
    """Of one play [T + 1, d] without noise: "converged", "shrinking", "cycle", "growing", "diverged" or "undecided".

    shrinking and growing compare the largest residuals of the fourth and the last fifth of the play; a cycle keeps that residual and
    comes back to its last point after having been away.
    """
    if diverged:
        return "diverged"
    if float(residual(field, points[-1:])) <= CONVERGED:
        return "converged"
    fifth = len(points) // 5
    if fifth < 2:
        return "undecided"
    last, before = (float(residual(field, part).max()) for part in (points[-fifth:], points[-2 * fifth : -fifth]))
    if last < (1 - STEADY) * before:
        return "shrinking"
    if last > (1 + STEADY) * before:
        return "diverged" if float(points[-1].norm()) > AWAY * (1 + float(points[0].norm())) else "growing"
    return "cycle" if _comes_back(points[-2 * fifth :]) else "undecided"


def _comes_back(points: Tensor) -> bool:
    """Has the play been at its last point before, and away from it in between?"""
    away = (points - points[-1]).norm(dim=1)
    step = float((points[1:] - points[:-1]).norm(dim=1).max())
    far = int(away.argmax())
    return float(away[far]) > 5 * step and bool((away[:far] <= 2 * step).any())
