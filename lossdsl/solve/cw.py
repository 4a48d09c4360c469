"""Carlini and Wagner's l2 attack (S&P 2017, section V): a fooling point of small norm, by Adam and a search for the constant."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lossdsl.solve.draws import Randomness
from lossdsl.solve.input_set import InputSet
from lossdsl.solve.problem import Problem
from lossdsl.solve.rows import per_example
from lossdsl.solve.sight import Asked, Seen

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
"""Adam's, as published."""
EDGE = 1 - 1e-6
"""The clean point is drawn this far into the box, since tanh reaches its ends nowhere."""
GROWTH = 10.0
"""The constant grows by this as long as no round has fooled the model."""


@dataclass(frozen=True)
class CwState:
    """variable: the box's coordinate by tanh, or the point itself without a box. first, second: Adam's moments. constant, low, high: the
    search for the constant; high is inf before the first success. fooling: in this round. rounds, taken: done."""

    variable: Tensor
    first: Tensor
    second: Tensor
    constant: Tensor
    low: Tensor
    high: Tensor
    fooling: Tensor
    rounds: int
    taken: int


@dataclass(frozen=True)
class Cw:
    """v = box((tanh w + 1) / 2), w <- Adam on |v - x|^2 + c * max(-margin + confidence, 0), from w of the clean point x, `searches` times.

    margin is the objective (of another class over the label's). c is `constant` at first; per example, a round that fooled the model
    halves the way to the largest c known to fail, another one the way to the smallest that is enough, or multiplies c by 10 if there is
    none. A success is a fooling point within the radius; without one the clean point is returned.
    """

    steps: int
    size: float
    searches: int
    constant: float
    confidence: float

    @property
    def evaluations(self) -> int:
        """Every step of every round looks at one point."""
        return self.searches * self.steps

    def start(self, region: InputSet, source: Randomness, run: int) -> Tensor:
        """The clean point."""
        return region.center

    def begin(self, problem: Problem, start: Tensor) -> CwState:
        """The first round."""
        variable = _variable(problem.set)
        zero, radii = torch.zeros_like(variable), problem.set.radii
        never = torch.zeros_like(radii, dtype=torch.bool)
        constant = torch.full_like(radii, self.constant)
        return CwState(variable, zero, zero, constant, torch.zeros_like(radii), torch.full_like(radii, torch.inf), never, 0, 0)

    def ask(self, problem: Problem, state: CwState) -> Asked:
        """The point of the variable."""
        return Asked(_point(problem.set, state.variable), gradient=True, inside=False)

    def best(self, problem: Problem, state: CwState) -> tuple[Tensor, Tensor]:
        """Without a success within the radius: the clean point."""
        return problem.set.center, torch.full_like(problem.set.radii, -torch.inf)

    def tell(self, problem: Problem, state: CwState, seen: Seen) -> CwState:
        """One step of Adam; after the last of a round another constant, and all over again."""
        assert seen.gradient is not None
        state = replace(state, fooling=state.fooling | (seen.value > self.confidence), taken=state.taken + 1)
        if state.taken == self.steps:
            return self._next_round(problem, state)
        point = _point(problem.set, state.variable)
        short = (seen.value < self.confidence).to(seen.value)
        slope = 2 * (point - problem.set.center) - per_example(state.constant * short, point) * seen.gradient
        slope = slope * _derivative(problem.set, state.variable)
        first = BETA1 * state.first + (1 - BETA1) * slope
        second = BETA2 * state.second + (1 - BETA2) * slope.square()
        scale = (1 - BETA2**state.taken) ** 0.5
        step = self.size / (1 - BETA1**state.taken) * first / (second.sqrt() / scale + EPS)
        return replace(state, variable=state.variable - step, first=first, second=second)

    def _next_round(self, problem: Problem, state: CwState) -> CwState:
        high = torch.where(state.fooling, torch.minimum(state.high, state.constant), state.high)
        low = torch.where(state.fooling, state.low, torch.maximum(state.low, state.constant))
        constant = torch.where(high.isfinite(), (low + high) / 2, state.constant * GROWTH)
        new = self.begin(problem, problem.set.center)
        return replace(new, constant=constant, low=low, high=high, rounds=state.rounds + 1)


def _ends(region: InputSet) -> tuple[Tensor, Tensor] | None:
    return None if region.lo is None or region.hi is None else (region.lo, region.hi)


def _variable(region: InputSet) -> Tensor:
    ends = _ends(region)
    if ends is None:
        return region.center
    low, high = ends
    share = (2 * (region.center - low) / (high - low) - 1).clamp(-1, 1)
    return torch.atanh(share * EDGE)


def _point(region: InputSet, variable: Tensor) -> Tensor:
    ends = _ends(region)
    if ends is None:
        return variable
    low, high = ends
    return region.clip(low + (high - low) * (torch.tanh(variable) + 1) / 2)


def _derivative(region: InputSet, variable: Tensor) -> Tensor:
    """Of the point by the variable, coordinate by coordinate."""
    ends = _ends(region)
    if ends is None:
        return torch.ones_like(variable)
    low, high = ends
    return (high - low) / 2 * (1 - torch.tanh(variable).square())
