"""Auto-PGD on l1 (Croce and Hein, ICML 2021, "Mind the box", algorithm 1): steps as sparse as the perturbation has to be."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lossdsl.solve.climb import Slope, SlopeClimber, climbed_slope
from lossdsl.solve.problem import Problem, where_rows
from lossdsl.solve.rows import per_example, rows
from lossdsl.solve.sight import Seen

FIRST_SHARE = 0.2
"""Share of the coordinates that the first steps move."""
LESS = 1.5
"""A step moves this many times fewer coordinates than the best point has changed, and a step that stalls is divided by it."""
SPARSER = 0.95
"""The best point has become sparser if it changes less than this share of the coordinates it changed at the last checkpoint."""
SMALLEST = 10.0
"""The radius divided by this is the shortest step."""


@dataclass(frozen=True)
class SparseState(Slope):
    """size: l1 length of the step. share: of the coordinates that it moves. changed: how many the best point had changed at the last
    checkpoint. left: updates before the next one."""

    size: Tensor
    share: Tensor
    changed: Tensor
    left: int


@dataclass(frozen=True)
class SparseApgd(SlopeClimber):
    """v <- P(v + size * s / |s|_1), s the sign of the gradient on its largest coordinates, a `share` of them; P the exact projection.

    Every 0.04 of the steps, per example: the share becomes that of the coordinates the best point has changed, divided by 1.5. If these
    are fewer than 0.95 of those before, the step is the radius again and the run goes on from the best point; else the step is divided
    by 1.5, down to a tenth of the radius. The step is the radius at first, the share 0.2, wherever the run starts.
    """

    def begin(self, problem: Problem, start: Tensor) -> SparseState:
        """Nothing is known yet; all coordinates count as changed."""
        nothing = torch.full_like(problem.set.radii, -torch.inf)
        share, all_of_them = torch.full_like(nothing, FIRST_SHARE), torch.full_like(nothing, rows(start).shape[1])
        return SparseState(start, start, nothing, torch.zeros_like(start), 0, problem.set.radii, share, all_of_them, self._window)

    @property
    def _window(self) -> int:
        return max(int(0.04 * self.steps), 1)

    def tell(self, problem: Problem, state: SparseState, seen: Seen) -> SparseState:
        """Notes what was found, adapts the step, and takes the next one."""
        state = climbed_slope(state, seen)
        if seen.gradient is None:
            return state
        at, gradient = state.point, seen.gradient
        if state.taken > 0:
            state = replace(state, left=state.left - 1)
            if state.left == 0:
                state, sparser = self._checkpoint(problem, state)
                at, gradient = where_rows(sparser, state.best, at), where_rows(sparser, state.best_gradient, gradient)
        point = problem.set.project(at + per_example(state.size, at) * _sparse_direction(gradient, state.share))
        return replace(state, point=point, taken=state.taken + 1)

    def _checkpoint(self, problem: Problem, state: SparseState) -> tuple[SparseState, Tensor]:
        """The step until the next checkpoint, and where the best point has become sparser."""
        radii, d = problem.set.radii, rows(state.best).shape[1]
        changed = (rows(state.best) != rows(problem.set.center)).sum(1).to(radii)
        sparser = changed / state.changed < SPARSER
        size = torch.where(sparser, radii, torch.maximum(state.size / LESS, radii / SMALLEST))
        return replace(state, size=size, share=changed / d / LESS, changed=changed, left=self._window), sparser


def _sparse_direction(gradient: Tensor, share: Tensor) -> Tensor:
    """The signs of the largest coordinates of each example, divided by their number; ties of the smallest one are all taken."""
    flat = rows(gradient)
    d = flat.shape[1]
    place = ((1 - share) * d).clamp(0, d - 1).long()
    least = flat.abs().sort(1).values.gather(1, place.unsqueeze(1))
    signs = flat.sign() * (flat.abs() >= least)
    return (signs / signs.abs().sum(1, keepdim=True).clamp_min(1.0)).view_as(gradient)
