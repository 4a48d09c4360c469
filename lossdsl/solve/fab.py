"""Fast Adaptive Boundary attack (Croce and Hein, ICML 2020): a fooling point of small norm, by projections on linearised boundaries."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lossdsl.solve.draws import Randomness
from lossdsl.solve.hyperplane import dual_norm, to_hyperplane
from lossdsl.solve.input_set import InputSet
from lossdsl.solve.problem import Problem, where_rows
from lossdsl.solve.rows import per_example, rows
from lossdsl.solve.sight import Asked, Seen

SMALLEST = 1e-8
"""Distances to the linearised boundary count as at least this where they are compared."""

LONGEST_ROUND = 4
"""Iterates are compared with one that is at most this much older, to see whether the run goes round."""


@dataclass(frozen=True)
class FabState:
    """iterate: where the boundary is linearised. proposal: the point tried next. margins, slopes: at the iterate, [n, m] and
    [n, m, *shape], where `have` says that they are known already. calm: the last proposal fooled nobody, so that the next iterate is
    likely to be the proposal itself. mark: an earlier iterate; ended: bool [n], the iterate came back to it, so that all that follows
    has been seen. trying: the proposal is asked for, not the iterate."""

    iterate: Tensor
    proposal: Tensor
    margins: Tensor
    slopes: Tensor
    have: Tensor
    calm: Tensor
    mark: Tensor
    ended: Tensor
    trying: bool
    taken: int


@dataclass(frozen=True)
class Fab:
    """x_i <- clip((1 - a)(x_i + eta d_i) + a (x_0 + eta d_0)), where d_i and d_0 lead from x_i and from the clean point x_0 to the boundary
    linearised at x_i, by the shortest way inside the box, and a = min(|d_i| / (|d_i| + |d_0|), alpha_max).

    Of the classes the one whose linearised boundary is nearest counts (in a family there is only one). Where the new point fools the
    model, x_i <- x_0 + beta (x_i - x_0). A success is a fooling point within the radius; without one the clean point is returned.
    The first run starts at x_0, others at x_0 + radius / 2 in a random direction.

    Two things save passes and change no number: where a tried point is likely to be kept, the pass that tries it also linearises there;
    and a run whose iterate comes back, bit by bit, to one of the last four is over, since it would go round for ever.
    """

    steps: int
    alpha_max: float
    eta: float
    beta: float
    several: bool = False
    """Does it look at several classes? (then gradients are taken of each)"""

    @property
    def evaluations(self) -> int:
        """Each step linearises at one point and tries another."""
        return 2 * self.steps

    def start(self, region: InputSet, source: Randomness, run: int) -> Tensor:
        """The clean point, or for later runs half the radius away from it."""
        if run == 0:
            return region.center
        return region.clip(region.center + per_example(region.radii, region.center) * region.direction(source) / 2)

    def begin(self, problem: Problem, start: Tensor) -> FabState:
        """Nothing is known yet."""
        never = torch.zeros(len(start), dtype=torch.bool, device=start.device)
        empty = start.new_zeros(len(start), 0)
        return FabState(start, start, empty, empty, never, never, start, never, False, 0)

    def ask(self, problem: Problem, state: FabState) -> Asked:
        """The iterate, unless its margins are known; or the proposal, with gradients where it is likely to be the next iterate."""
        if not state.trying:
            known = state.have | state.ended
            return Asked(state.iterate, ~known, self.several, known, counts=False, inside=False)
        gradient = state.calm if state.taken + 1 < self.steps else False
        return Asked(state.proposal, gradient, self.several, state.ended, inside=False)

    def best(self, problem: Problem, state: FabState) -> tuple[Tensor, Tensor]:
        """Without a success within the radius: the clean point."""
        center = problem.set.center
        return center, torch.full_like(problem.set.radii, -torch.inf)

    def tell(self, problem: Problem, state: FabState, seen: Seen) -> FabState:
        """Makes a proposal from what was found at the iterate, or the next iterate from who was fooled by the proposal."""
        return self._tried(problem, state, seen) if state.trying else self._linearised(problem, state, seen)

    def _linearised(self, problem: Problem, state: FabState, seen: Seen) -> FabState:
        margins, slopes = _margins_of(seen)
        if state.margins.shape[1] > 0 and margins is not None and slopes is not None:
            margins, slopes = where_rows(state.have, state.margins, margins), where_rows(state.have, state.slopes, slopes)
        elif margins is None or slopes is None:
            if state.margins.shape[1] == 0:  # every run has ended at its first step: nothing was asked
                return replace(state, proposal=state.iterate, trying=True)
            margins, slopes = state.margins, state.slopes
        proposal = self._proposal(problem.set, state.iterate, margins, slopes)
        return replace(state, proposal=proposal, trying=True)

    def _tried(self, problem: Problem, state: FabState, seen: Seen) -> FabState:
        assert seen.fooled is not None
        center = problem.set.center
        iterate = where_rows(seen.fooled, center + (state.proposal - center) * self.beta, state.proposal)
        have = state.calm & ~seen.fooled if seen.gradient is not None else torch.zeros_like(seen.fooled)
        margins, slopes = _margins_of(seen)
        if margins is None or slopes is None:
            margins, slopes = state.margins, state.slopes
        ended = state.ended | (rows(iterate) == rows(state.mark)).all(1)
        taken = state.taken + 1
        mark = iterate if taken % LONGEST_ROUND == 0 else state.mark
        return FabState(iterate, state.proposal, margins, slopes, have, ~seen.fooled, mark, ended, False, taken)

    def _proposal(self, region: InputSet, at: Tensor, margins: Tensor, slopes: Tensor) -> Tensor:
        """The step towards the nearest linearised boundary."""
        n, m = margins.shape
        steep = torch.stack([dual_norm(region, slopes[:, j]) for j in range(m)], 1)
        nearest = (margins.abs() / (steep + 1e-12)).argmin(1)
        every = torch.arange(n, device=at.device)
        margin, slope = margins[every, nearest].double(), slopes[every, nearest].double()
        back = rows(slope * (at.double() - region.center.double())).sum(1)
        near = to_hyperplane(region, at, slope, -margin)
        clean = to_hyperplane(region, region.center, slope, back - margin)
        size, other = region.norm(near).clamp_min(SMALLEST), region.norm(clean).clamp_min(SMALLEST)
        bias = per_example((size / (size + other)).clamp_max(self.alpha_max), near)
        moved = (at.double() + self.eta * near) * (1 - bias) + (region.center.double() + self.eta * clean) * bias
        return region.clip(moved.to(at.dtype))


def _margins_of(seen: Seen) -> tuple[Tensor | None, Tensor | None]:
    """Margins [n, m] and their gradients [n, m, *shape]; of one class it is the objective itself."""
    if seen.margins is not None or seen.gradient is None:
        return seen.margins, seen.gradient
    return seen.value.unsqueeze(1), seen.gradient.unsqueeze(1)
