"""What a first-order solver is (`Solver`: init and step), and the loop that runs it.

The examples of a batch are N problems solved side by side: no line here lets one of them see another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from lossdsl.diagnostics import UserError
from lossdsl.solve.checks import Checks
from lossdsl.solve.problem import Problem, check_finite, checked_start, fooled_at, value_and_gradient, values_at, where_rows
from lossdsl.solve.rows import largest
from lossdsl.solve.sets import SETS_TORCH

State = TypeVar("State")
Observer = Callable[[int, Tensor], None]


class Solver(Protocol[State]):
    """A first-order method. Solvers are frozen; what changes during a run is the state, made anew for every restart."""

    def init(self, problem: Problem, point: Tensor) -> State:
        """The state before the first update; `point` is x'@0."""

    def step(self, problem: Problem, point: Tensor, gradient: Tensor, state: State) -> tuple[Tensor, State]:
        """The point after one update, and the state. `gradient` is that of each example's objective at `point`.

        Neither argument may be written to: iterates are handed out without copies. Gradient tracking is off, except in a solver with
        `unrolls = True`, of which every operation must then be one that autograd follows.
        """


@runtime_checkable
class Stateless(Protocol):
    """A solver whose step depends on nothing but its arguments, so that examples may drop out of a run."""

    def restricted(self, rows: Tensor) -> Solver[Any]:
        """The solver for these rows (LongTensor) of the examples."""


@runtime_checkable
class Probing(Protocol):
    """A solver that wants the gradient somewhere else than at the iterate."""

    def query(self, problem: Problem, point: Tensor, state: Any) -> Tensor:
        """Where the gradient of the next update is taken, [N, *shape]."""


@dataclass(frozen=True)
class Solution:
    """What a level found; all tensors are constants, but for point and iterates of a differentiable run.

    point: [N, *shape].
    iterates: x'@k by k, those of the kept restart of each example.
    objective: [N], the value at `point`, or None if no choice needed it (one restart and keep = "last").
    run: [N], which restart was kept, counted from 0.
    survived: [N] float, 0..n: how many of x'@0..x'@(n-1) were classified correctly (GAIRAT's kappa, Zhang et al., ICLR 2021, alg. 1), or
        None where the problem does not say who is fooled. An example that has left (`until`) stands still where it is misclassified, so
        it survives no later check. Of the kept restart, like first_fooled.
    first_fooled: [N] float, 0..n: the number of updates before the first misclassified one among x'@0..x'@(n-1), n if there is none.
    """

    point: Tensor
    iterates: dict[int, Tensor]
    objective: Tensor | None
    run: Tensor
    survived: Tensor | None = None
    first_fooled: Tensor | None = None


@dataclass
class _Run:
    """One restart: what it hands over, and the numbers that must be finite. `value` is -inf until something is rated.

    latest: the objective of every example where it was last evaluated.
    """

    point: Tensor
    value: Tensor
    latest: Tensor
    iterates: dict[int, Tensor] = field(default_factory=dict)
    marks: list[tuple[str, int, Tensor]] = field(default_factory=list)
    checks: Checks | None = None

    def offer(self, point: Tensor, value: Tensor) -> Tensor:
        """Takes the point over where its objective is at least that of the one held; says where, [N]."""
        take = value >= self.value
        self.point, self.value = where_rows(take, point, self.point), torch.where(take, value, self.value)
        return take

    def replace_where_better(self, new: _Run) -> Tensor:
        """Becomes the new run for the examples whose point is at least as good there; says for which, [N]."""
        take = self.offer(new.point, new.value)
        self.iterates = {k: where_rows(take, new.iterates[k], old) for k, old in self.iterates.items()}
        if self.checks is not None and new.checks is not None:
            self.checks.replace(take, new.checks)
        return take


def solve(  # noqa: PLR0913 - the options of a request, all but three by name
    problem: Problem,
    solver: Solver[Any],
    steps: int,
    *,
    restarts: int = 1,
    keep: Literal["last", "best"] = "last",
    captures: frozenset[int] = frozenset(),
    observe: Observer | None = None,
    until: float | Tensor | None = None,
    differentiable: bool = False,
) -> Solution:
    """Runs the solver. An update costs one forward pass of the objective and one backward pass to the point. Beyond that:

    - with restarts > 1 or keep = "best" the final point of each run is evaluated too (forward only);
    - keep = "best" takes, per example, the iterate among x'@0..x'@steps with the largest objective, ties to the later;
    - of several restarts each example keeps the one whose point has the largest objective, ties to the later.

    captures: the k of the iterates x'@k to hand over (x'@0 is the start, x'@k the point after update k).
    observe: called with (k, x'@k) for k = 0..steps of every run; k = 0 begins a new run. It must not write to the point.
    until: tau, a whole number or one per example, [N]: the early stop of friendly adversarial training (Zhang et al., ICML 2020, alg. 1).
        Before each update, an example that is misclassified and whose counter is 0 leaves: later iterates are its present one. If it is
        misclassified and the counter is above 0, the counter falls by 1 and it steps; else it steps. The counter starts at tau in every
        restart and is not reset when an example becomes correct again; the last iterate is not checked. Where the problem can be
        restricted and the solver keeps no state, those who left are not computed again (noise is still drawn for all examples); the
        numbers are the same. A run ends when all have left.
    differentiable: point and iterates keep their graph, to whatever the objective, the start and the set (built with differentiable =
        True) depend on; gradients are taken with create_graph. For the solvers pgd, ascent, linear, momentum and prox.

    Raises UserError for an objective that is not one number per example, that does not depend on the point, or that is not finite,
    be it the value or the gradient; for `until` without `problem.fooled`; and for a solver or set that cannot be differentiated.
    """
    _check_request(problem, steps, restarts, keep, captures)
    _check_modes(problem, solver, until, differentiable)
    loop = _Loop(problem, solver, steps, keep == "best", keep == "best" or restarts > 1, captures, observe, until, differentiable)
    kept = loop.run("")
    which = torch.zeros(kept.point.shape[0], dtype=torch.long, device=kept.point.device)
    for index in range(1, restarts):
        which.masked_fill_(kept.replace_where_better(loop.run(f" of restart {index + 1}")), index)
    survived, first = (None, None) if kept.checks is None else (kept.checks.survived, kept.checks.first)
    return Solution(kept.point, kept.iterates, kept.value if loop.rate else None, which, survived, first)


@dataclass(frozen=True)
class _Part:
    """The examples that still move, as a problem of their own: all of them (rows is None), or those that have not left."""

    problem: Problem
    solver: Solver[Any]
    rows: Tensor | None = None

    def of(self, full: Tensor) -> Tensor:
        return full if self.rows is None else full.index_select(0, self.rows)

    def into(self, full: Tensor, part: Tensor) -> Tensor:
        """`full` with the rows of this part replaced; a fresh tensor."""
        return part if self.rows is None else full.index_copy(0, self.rows, part)


@dataclass(frozen=True)
class _Loop:
    """One request, run once per restart."""

    problem: Problem
    solver: Solver[Any]
    steps: int
    best: bool
    rate: bool
    captures: frozenset[int]
    observe: Observer | None
    until: float | Tensor | None
    differentiable: bool

    def run(self, which: str) -> _Run:
        """One restart. Finiteness is recorded at every update and tested once at the end, since a test makes an accelerator wait."""
        point = checked_start(self.problem, self.differentiable)
        nothing = torch.full(point.shape[:1], -math.inf, dtype=point.dtype, device=point.device)
        run = _Run(point, nothing, nothing)
        if self.problem.fooled is not None:
            run.checks = Checks.begin(point, self.steps, self.until)
        part, state, all_left = _Part(self.problem, self.solver), self.solver.init(self.problem, point), False
        self._visit(0, point, run)
        for k in range(self.steps):
            if not all_left:
                gradient = self._evaluate(k, point, part, state, run)
                part, gradient, all_left = self._without_left(part, gradient, run.checks)
            if not all_left:
                with torch.set_grad_enabled(self.differentiable):
                    moved, state = part.solver.step(part.problem, part.of(point), gradient, state)
                    point = self._moved(part, point, moved, run.checks)
            self._visit(k + 1, point, run)
        self._finish(point, run)
        check_finite(self.problem, run.marks, which)
        return run

    def _evaluate(self, k: int, point: Tensor, part: _Part, state: Any, run: _Run) -> Tensor:
        """Rates and checks x'@k; the gradient for the update that follows, of the examples of the part."""
        problem, at = part.problem, part.of(point)
        asked = part.solver.query(problem, at, state) if isinstance(part.solver, Probing) else at
        judged = self.best or run.checks is not None
        apart = judged and asked is not at and not torch.equal(asked, at)
        if apart:  # the gradient is wanted elsewhere: one more forward pass to judge the iterate itself
            with torch.no_grad():
                value = values_at(problem, at)
            fooled = fooled_at(problem, at) if run.checks is not None else None
            _, gradient = value_and_gradient(problem, asked, self.differentiable)
        else:
            value, gradient = value_and_gradient(problem, asked, self.differentiable)
            fooled = fooled_at(problem, at) if run.checks is not None else None
        run.latest = value = part.into(run.latest, value)
        size = largest(gradient.detach())
        run.marks += [("objective", k, value), ("size of the gradient", k, part.into(size.new_zeros(value.shape), size))]
        if self.best:
            run.offer(point, value)
        if run.checks is not None and fooled is not None:
            run.checks.record(k, part.into(torch.ones_like(run.checks.left), fooled))
        return gradient

    def _without_left(self, part: _Part, gradient: Tensor, checks: Checks | None) -> tuple[_Part, Tensor, bool]:
        """The examples that step, their gradient, and whether there are none; waits for the accelerator only under `until`."""
        if self.until is None or checks is None:
            return part, gradient, False
        steps = part.of(~checks.left)
        count = int(steps.sum())
        if count == 0:
            return part, gradient, True
        if count == len(steps) or self.problem.restrict is None or not isinstance(self.solver, Stateless):
            return part, gradient, False
        rows = (~checks.left).nonzero()[:, 0]
        problem = replace(self.problem.restrict(rows), noise=_noise_of(self.problem.noise, rows))
        return _Part(problem, self.solver.restricted(rows), rows), gradient[steps], False

    def _moved(self, part: _Part, point: Tensor, moved: Tensor, checks: Checks | None) -> Tensor:
        if self.until is None or checks is None or part.rows is not None:
            return part.into(point, moved)
        return where_rows(checks.left, point, moved)

    def _visit(self, k: int, point: Tensor, run: _Run) -> None:
        if k in self.captures:
            run.iterates[k] = point
        if self.observe is not None:
            self.observe(k, point)

    def _finish(self, point: Tensor, run: _Run) -> None:
        run.marks.append(("size of the point", self.steps, largest(point.detach())))
        if self.rate:
            with torch.no_grad():
                value = values_at(self.problem, point)
            run.marks.append(("objective", self.steps, value))
            if self.best:
                run.offer(point, value)
                return
            run.value = value
        run.point = point


def _noise_of(noise: Callable[[], Tensor] | None, rows: Tensor) -> Callable[[], Tensor] | None:
    """Noise drawn for all examples, of which only these rows are used: the draws of the others do not depend on who has left."""
    return None if noise is None else lambda: noise().index_select(0, rows)


def _check_request(problem: Problem, steps: int, restarts: int, keep: str, captures: frozenset[int]) -> None:
    if steps < 0:
        raise UserError(f"steps = {steps}", where=problem.name, fix="steps is at least 0")
    if restarts < 1:
        raise UserError(f"restarts = {restarts}", where=problem.name, fix="restarts is at least 1")
    if keep not in ("last", "best"):
        raise UserError(f"keep = {keep}", where=problem.name, fix="keep is last or best")
    beyond = sorted(k for k in captures if not 0 <= k <= steps)
    if beyond:
        wrong = f"there is no iterate {beyond[0]} in a run of {steps} updates"
        raise UserError(wrong, where=problem.name, fix=f"iterates are 0 to {steps}")


def _check_modes(problem: Problem, solver: Solver[Any], until: float | Tensor | None, differentiable: bool) -> None:
    if until is not None and problem.fooled is None:
        raise UserError("until needs to know who is fooled", where=problem.name, fix="give the problem `fooled`")
    if until is not None and not bool((torch.as_tensor(until) >= 0).all()):
        raise UserError(f"until fooled({until})", where=problem.name, fix="the number of steps to go on after the first is at least 0")
    if differentiable and not getattr(solver, "unrolls", False):
        fix = "unrolling works for pgd, ascent, linear, momentum and prox"
        raise UserError(f"the updates of {type(solver).__name__} cannot be differentiated", where=problem.name, fix=fix)
    if differentiable and not problem.set.unrolls:
        fix = "unrolling works on " + ", ".join(name for name, kind in SETS_TORCH.items() if kind.unrolls)
        raise UserError(f"projections on {type(problem.set).__name__} cannot be differentiated", where=problem.name, fix=fix)
