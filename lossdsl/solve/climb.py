"""What attacks have in common that remember the point of the largest objective: the state, and how an answer changes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from lossdsl.solve.problem import Problem, where_rows
from lossdsl.solve.sight import Asked, Seen

C = TypeVar("C", bound="Climb")
S = TypeVar("S", bound="Slope")


@dataclass(frozen=True)
class Climb:
    """point: asked for next, [n, *shape]. best, best_value: the point of the largest objective, [n, *shape], and that objective, [n]."""

    point: Tensor
    best: Tensor
    best_value: Tensor


@dataclass(frozen=True)
class Slope(Climb):
    """best_gradient: at `best`, [n, *shape]. taken: how many updates were made."""

    best_gradient: Tensor
    taken: int


def climbed(state: C, seen: Seen) -> tuple[C, Tensor]:
    """The state with the point asked for as the best one where its objective is larger, and where that is, bool [n]."""
    better = seen.value > state.best_value
    best, value = where_rows(better, state.point, state.best), torch.where(better, seen.value, state.best_value)
    return replace(state, best=best, best_value=value), better


def climbed_slope(state: S, seen: Seen) -> S:
    """The same with the gradient there, if it was asked for."""
    state, better = climbed(state, seen)
    if seen.gradient is None:
        return state
    return replace(state, best_gradient=where_rows(better, seen.gradient, state.best_gradient))


class Climber:
    """An attack that returns its best point."""

    def best(self, problem: Problem, state: Climb) -> tuple[Tensor, Tensor]:
        """The point of the largest objective so far, the first among equals."""
        return state.best, state.best_value


@dataclass(frozen=True)
class SlopeClimber(Climber):
    """An attack that makes a number of updates along gradients."""

    steps: int

    @property
    def evaluations(self) -> int:
        """The start and every update."""
        return self.steps + 1

    def ask(self, problem: Problem, state: Any) -> Asked:
        """The iterate; its gradient is wanted if an update follows."""
        return Asked(state.point, gradient=state.taken < self.steps)
