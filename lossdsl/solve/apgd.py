"""Auto-PGD on linf and l2 (Croce and Hein, ICML 2020, algorithm 1): momentum, and a step halved where the objective stalls."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lossdsl.solve.climb import Slope, SlopeClimber, climbed_slope
from lossdsl.solve.problem import Problem, where_rows
from lossdsl.solve.rows import per_example
from lossdsl.solve.sight import Seen

MOMENTUM = 0.75
"""alpha of eq. 2: the share of the new step; the rest is that of the last one. The first step has none of the rest."""


@dataclass(frozen=True)
class ApgdState(Slope):
    """The run of every example; the counts of the window since the last checkpoint are the same for all and are numbers.

    previous: where the last step left from. size: the length of the step. last: the objective where it was last evaluated; rises: how
    often it rose since the last checkpoint. reduced, best_then: whether the step was halved at the last checkpoint, and the best objective
    there. window, left: updates between the checkpoints, and before the next.
    """

    previous: Tensor
    size: Tensor
    last: Tensor
    rises: Tensor
    reduced: Tensor
    best_then: Tensor
    window: int
    left: int


@dataclass(frozen=True)
class Apgd(SlopeClimber):
    """u = P(v + size * steepest(gradient)), v <- P(v + alpha (u - v) + (1 - alpha)(v - v_before)), size = 2 * radius at first.

    Checkpoints come after 0.22 of the steps and then after windows shorter by 0.03 each, down to 0.06. There, per example, the step is
    halved and the run goes on from the best point if (1) the objective rose in at most rho of the window's updates, or (2) the step
    was not halved at the last checkpoint and the best objective has not grown since. P is `set.retract`: on l2 the authors draw to the
    ball and clip. As in their code, the first update counts as a rise where the objective after it is above 0 (the paper compares it
    with that of the start), "at most" includes equality, and a restart from the best point leaves the last step in the momentum.
    """

    rho: float = 0.75

    def begin(self, problem: Problem, start: Tensor) -> ApgdState:
        """Nothing is known yet; the first window has 0.22 of the steps."""
        nothing = torch.full_like(start.reshape(len(start), -1)[:, 0], -torch.inf)
        yes = torch.ones_like(nothing, dtype=torch.bool)
        window = max(int(0.22 * self.steps), 1)
        zero = torch.zeros_like(nothing)
        return ApgdState(
            start, start, nothing, torch.zeros_like(start), 0, start, 2 * problem.set.radii, zero, zero, yes, nothing, window, window
        )  # fmt: skip

    def tell(self, problem: Problem, state: ApgdState, seen: Seen) -> ApgdState:
        """Notes what was found, looks whether the step has to be halved, and takes the next step."""
        state = climbed_slope(state, seen)
        if seen.gradient is None:
            return state
        if state.taken == 0:
            return self._moved(problem, replace(state, best_then=state.best_value), state.point, seen.gradient)
        state = replace(state, rises=state.rises + (seen.value > state.last), last=seen.value, left=state.left - 1)
        if state.left > 0:
            return self._moved(problem, state, state.point, seen.gradient)
        state, halve = self._checkpoint(state)
        gradient = where_rows(halve, state.best_gradient, seen.gradient)
        return self._moved(problem, state, where_rows(halve, state.best, state.point), gradient)

    def _checkpoint(self, state: ApgdState) -> tuple[ApgdState, Tensor]:
        """The next window, and where the step is halved."""
        halve = (state.rises <= self.rho * state.window) | (~state.reduced & (state.best_then >= state.best_value))
        size = torch.where(halve, state.size / 2, state.size)
        window = max(state.window - max(int(0.03 * self.steps), 1), int(0.06 * self.steps), 1)
        rises = torch.zeros_like(state.rises)
        state = replace(state, size=size, reduced=halve, best_then=state.best_value, rises=rises, window=window, left=window)
        return state, halve

    def _moved(self, problem: Problem, state: ApgdState, at: Tensor, gradient: Tensor) -> ApgdState:
        """The step from `at`: the iterate just evaluated, or the best one."""
        region = problem.set
        alpha = MOMENTUM if state.taken else 1.0
        ahead = region.retract(at + per_example(state.size, at) * region.steepest(gradient, at))
        point = region.retract(at + alpha * (ahead - at) + (1 - alpha) * (at - state.previous))
        return replace(state, point=point, previous=at, taken=state.taken + 1)
