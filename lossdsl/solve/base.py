"""What a lower level over inputs is (`Problem`), what a solver is (`Solver`: init and step), and the only loop.

The examples of a batch are N problems solved side by side: no line here lets one of them see another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from lossdsl.diagnostics import UserError
from lossdsl.solve.sets import InputSet, largest

State = TypeVar("State")
Observer = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class Problem:
    """maximise objective(point) over point in set, one problem per example.

    objective: [N, *shape] -> [N], differentiable in its argument; example i of the result depends on example i of the point only.
    set: where the iterates live.
    start: gives x'@0, [N, *shape]; called once per restart and used as it comes (its closure projects, unless the recipe says `raw`).
    generator: the source of randomness for solvers that draw.
    noise: drawn anew in each update and added to the step before the projection.
    name: how errors call this level.
    """

    objective: Callable[[Tensor], Tensor]
    set: InputSet
    start: Callable[[], Tensor]
    generator: torch.Generator | None = None
    noise: Callable[[], Tensor] | None = None
    name: str = "lower level"

    def land(self, moved: Tensor) -> Tensor:
        """The end of an update: adds the noise of the loop to the moved point, in place, and projects."""
        return self.set.project(moved if self.noise is None else moved.add_(self.noise()))


class Solver(Protocol[State]):
    """A first-order method. Solvers are frozen; what changes during a run is the state, made anew for every restart."""

    def init(self, problem: Problem, point: Tensor) -> State:
        """The state before the first update; `point` is x'@0."""

    def step(self, problem: Problem, point: Tensor, gradient: Tensor, state: State) -> tuple[Tensor, State]:
        """The point after one update, and the state. `gradient` is that of each example's objective at `point`.

        Neither argument may be written to: iterates are handed out without copies. Gradient tracking is off.
        """


@dataclass(frozen=True)
class Solution:
    """What a level found; all tensors are constants.

    point: [N, *shape].
    iterates: x'@k by k, those of the kept restart of each example.
    objective: [N], the value at `point`, or None if no choice needed it (one restart and keep = "last").
    run: [N], which restart was kept, counted from 0.
    """

    point: Tensor
    iterates: dict[int, Tensor]
    objective: Tensor | None
    run: Tensor


@dataclass
class _Run:
    """One restart: what it hands over, and the numbers that must be finite. `value` is -inf until something is rated."""

    point: Tensor
    value: Tensor
    iterates: dict[int, Tensor] = field(default_factory=dict)
    marks: list[tuple[str, int, Tensor]] = field(default_factory=list)

    def offer(self, point: Tensor, value: Tensor) -> Tensor:
        """Takes the point over where its objective is at least that of the one held; says where, [N]."""
        take = value >= self.value
        self.point, self.value = _where(take, point, self.point), torch.where(take, value, self.value)
        return take


def solve(
    problem: Problem,
    solver: Solver[Any],
    steps: int,
    *,
    restarts: int = 1,
    keep: Literal["last", "best"] = "last",
    captures: frozenset[int] = frozenset(),
    observe: Observer | None = None,
) -> Solution:
    """Runs the solver. An update costs one forward pass of the objective and one backward pass to the point. Beyond that:

    - with restarts > 1 or keep = "best" the final point of each run is evaluated too (forward only);
    - keep = "best" takes, per example, the iterate among x'@0..x'@steps with the largest objective, ties to the later;
    - of several restarts each example keeps the one whose point has the largest objective, ties to the later.

    captures: the k of the iterates x'@k to hand over (x'@0 is the start, x'@k the point after update k).
    observe: called with (k, x'@k) for k = 0..steps of every run; k = 0 begins a new run. It must not write to the point.

    Raises UserError for an objective that is not one number per example, that does not depend on the point, or that is not finite,
    be it the value or the gradient.
    """
    _check_request(problem, steps, restarts, keep, captures)
    loop = _Loop(problem, solver, steps, keep == "best", keep == "best" or restarts > 1, captures, observe)
    kept = loop.run("")
    which = torch.zeros(kept.point.shape[0], dtype=torch.long, device=kept.point.device)
    for index in range(1, restarts):
        new = loop.run(f" of restart {index + 1}")
        take = kept.offer(new.point, new.value)
        kept.iterates = {k: _where(take, new.iterates[k], old) for k, old in kept.iterates.items()}
        which.masked_fill_(take, index)
    return Solution(kept.point, kept.iterates, kept.value if loop.rate else None, which)


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

    def run(self, which: str) -> _Run:
        """One restart. Finiteness is recorded at every update and tested once at the end, since a test makes an accelerator wait."""
        point = _started(self.problem)
        run = _Run(point, torch.full(point.shape[:1], -math.inf, dtype=point.dtype, device=point.device))
        state = self.solver.init(self.problem, point)
        self._visit(0, point, run)
        for k in range(self.steps):
            value, gradient = value_and_gradient(self.problem, point)
            run.marks += [("objective", k, value), ("size of the gradient", k, largest(gradient))]
            if self.best:
                run.offer(point, value)
            with torch.no_grad():
                point, state = self.solver.step(self.problem, point, gradient, state)
            self._visit(k + 1, point, run)
        self._finish(point, run)
        _check_finite(self.problem, run.marks, which)
        return run

    def _visit(self, k: int, point: Tensor, run: _Run) -> None:
        if k in self.captures:
            run.iterates[k] = point
        if self.observe is not None:
            self.observe(k, point)

    def _finish(self, point: Tensor, run: _Run) -> None:
        run.marks.append(("size of the point", self.steps, largest(point)))
        if self.rate:
            with torch.no_grad():
                value = _values(self.problem, point)
            run.marks.append(("objective", self.steps, value))
            if self.best:
                run.offer(point, value)
                return
            run.value = value
        run.point = point


def value_and_gradient(problem: Problem, point: Tensor) -> tuple[Tensor, Tensor]:
    """The objective of every example, [N], and its gradient in the point, [N, *shape].

    One forward pass and one backward pass to the point alone: gradients of model parameters are neither computed nor touched.
    Raises UserError if the objective is not [N] or does not depend on the point.
    """
    leaf = point.detach().requires_grad_()
    gradient = None
    with torch.enable_grad():
        values = _values(problem, leaf)
        if values.requires_grad:
            gradient = torch.autograd.grad(values.sum(), leaf, allow_unused=True)[0]
    if gradient is None:
        fix = "maximise something with a gradient: comparisons and stop(...) have none"
        raise UserError("the objective does not depend on the point, as far as gradients can see", where=problem.name, fix=fix)
    return values.detach(), gradient


def _values(problem: Problem, point: Tensor) -> Tensor:
    values = problem.objective(point)
    if values.shape != point.shape[:1]:
        wrong = f"the objective has shape {tuple(values.shape)} for {point.shape[0]} examples"
        raise UserError(wrong, where=problem.name, fix="return one number per example")
    return values


def _started(problem: Problem) -> Tensor:
    point, center = problem.start().detach(), problem.set.center
    if point.shape != center.shape or point.dtype != center.dtype:
        wrong = f"the start is {tuple(point.shape)} {point.dtype}, the center of the set {tuple(center.shape)} {center.dtype}"
        raise UserError(wrong, where=problem.name, fix="start from a point of the same shape and precision")
    return point


def _where(take: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Per example the new or the old point."""
    return torch.where(take.view(-1, *(1,) * (new.dim() - 1)), new, old)


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


def _check_finite(problem: Problem, marks: list[tuple[str, int, Tensor]], which: str) -> None:
    """Raises UserError with the first number that is not finite: its iterate and its example."""
    finite = torch.stack([values.to(marks[-1][2].dtype) for _, _, values in marks]).isfinite()
    if bool(finite.all()):
        return
    row = int((~finite).any(1).nonzero()[0])
    example = int((~finite[row]).nonzero()[0])
    what, k, values = marks[row]
    raise UserError(
        f"the {what} of example {example} is {float(values[example])} at iterate {k}{which}",
        where=problem.name,
        fix="look for a division by zero, a log or sqrt of 0, a step that is far too large, or weights that are not finite",
    )
