"""A lower level at work: its set, its starts, its objective, handed to the solver in chunks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lossdsl.engine.closures import Closure, Frame, Values
from lossdsl.engine.modes import constant_parameters
from lossdsl.lang.search_options import SearchOptions
from lossdsl.lang.types import Kind
from lossdsl.plan.ir import Instr, Solve
from lossdsl.plan.top import CHOSEN
from lossdsl.solve import (
    SETS_TORCH,
    ExampleStreams,
    InputSet,
    Problem,
    SearchRequest,
    Solution,
    build_search,
    build_solver,
    search,
    solve,
    solve_until_fooled,
)


class LevelRunner:
    """Solves one lower level of a plan for a batch."""

    def __init__(self, plan: Solve, kinds: dict[int, Instr], place: Callable[[Instr], str], chunk: int) -> None:
        self.plan = plan
        self.name = plan.level.var
        self.before = Closure(plan.before, kinds, place)
        self.start = Closure(plan.start, kinds, place)
        self.body = Closure(plan.body, kinds, place)
        self.noise = Closure(plan.noise, kinds, place)
        self.chunk = chunk
        self.sign = 1.0 if plan.level.sense == "maximize" else -1.0
        own = [n for n in (plan.step, plan.until) if n is not None]
        self.outside = sorted({*self.start.needs, *self.body.needs, *self.noise.needs, *own})
        self.kinds = kinds
        self.previous: Tensor | None = None
        """For `start = previous`: the last batch's solution minus its centre, [N, *input]."""

    def run(self, frame: Frame, values: Values, rated: bool = False, waits: bool = False) -> Solution:
        """The solution, its iterates and objective, [B, *input] or for a family [B, n, *input].

        `rated`: evaluate the objective at the solution even if no choice inside the level needed it.
        `waits`: leave out the last update, which `finish` makes.
        """
        left = frame.points
        frame = replace(frame, points={key: point.detach() for key, point in left.items()})  # earlier solutions are constants here
        through = self.plan.through == "unrolling"
        constants: AbstractContextManager[None] = nullcontext() if through else constant_parameters(*frame.trained)
        with constants:
            with nullcontext() if through else torch.no_grad():
                self.before.run(frame, values)
            if self.plan.classes is not None and self.plan.axis is not None and self.plan.axis.domain.kind == "top":
                left[self.name, CHOSEN] = frame.points[self.name, CHOSEN] = values[self.plan.classes]
            wide, wide_values, copies = self._widened(frame, values)
            solution = self._solve(wide, wide_values, self.plan.level.solver.options.updates - waits)
            if not waits:
                self._keep(wide, wide_values, solution.point)
            if rated and solution.objective is None:
                with torch.no_grad():
                    solution = replace(solution, objective=self._objective(wide, wide_values)(solution.point))
        if copies is None:
            return solution
        batch = frame.x.shape[0]

        def shaped(t: Tensor) -> Tensor:
            return t.unflatten(0, (batch, copies))

        return _mapped(solution, shaped)

    def finish(self, frame: Frame, values: Values, point: Tensor, gradient: Tensor) -> None:
        """The last update, from `point` by the gradient of each example's objective there, [N, *input]; for `start = previous` alone."""
        region = self.region(frame, values)
        slope = self.sign * gradient
        problem = Problem(lambda v: (slope * v).flatten(1).sum(1), region, lambda: point, frame.generator, name=self.name)
        self._keep(frame, values, solve(problem, self._solver(frame, values), 1).point)

    def _keep(self, frame: Frame, values: Values, point: Tensor) -> None:
        if self.plan.level.solver.start_kind == "previous":
            self.previous = point - self.region(frame, values).center

    def branches(self, frame: Frame, values: Values) -> list[Tensor]:
        """For danskin: the points of every run, none selected."""
        with constant_parameters(*frame.trained):
            with torch.no_grad():
                self.before.run(frame, values)
            return [self._solve(frame, values, self.plan.level.solver.options.updates).point for _ in range(self.plan.runs)]

    def _widened(self, frame: Frame, values: Values) -> tuple[Frame, Values, int | None]:
        """For a family: every example once per class, so that the level is one problem per example again."""
        if self.plan.classes is None:
            return frame, values, None
        classes: Tensor = values[self.plan.classes]
        copies = classes.shape[1]
        wide_values = list(values)
        for n in (*self.outside, self.plan.center, self.plan.radius):
            if isinstance(values[n], Tensor) and self.kinds[n].kind is not Kind.CONST:
                wide_values[n] = values[n].repeat_interleave(copies, 0)
        points = {k: p.repeat_interleave(copies, 0) if p.dim() else p for k, p in frame.points.items()}
        wide = replace(
            frame,
            x=frame.x.repeat_interleave(copies, 0),
            y=frame.y.repeat_interleave(copies, 0),
            points=points,
            own_class=classes.reshape(-1),
            generator=frame.generator.branches(classes) if isinstance(frame.generator, ExampleStreams) else frame.generator,
        )
        return wide, wide_values, copies

    def _solve(self, frame: Frame, values: Values, steps: int) -> Solution:
        """All examples at once, or in chunks where the mode lets an example be solved apart from the others."""
        count = frame.x.shape[0]
        options = self.plan.level.solver.options
        region = self.region(frame, values)
        whole = self.plan.level.mode != "eval" or self.plan.through == "unrolling" or bool(self.plan.noise.instrs)
        if count <= self.chunk or whole:
            return self._solve_chunk(frame, values, region, lambda: self._drawn(frame, values, region), steps)
        apart = isinstance(frame.generator, ExampleStreams)  # then a chunk may draw its own starts
        starts = [] if apart else [self._drawn(frame, values, region) for _ in range(options.restarts)]
        parts = []
        copies = self._copies(frame, values)
        size = max(self.chunk // copies, 1) * copies  # the members of a family stay together
        for at in range(0, count, size):
            rows = torch.arange(at, min(at + size, count), device=frame.x.device)
            part, part_values = self._rows(frame, values, rows, count)
            own = self.region(part, part_values)
            start = partial(self._drawn, part, part_values, own) if apart else iter([s[rows] for s in starts]).__next__
            parts.append(self._solve_chunk(part, part_values, own, start, steps))
        return _joined(parts)

    def _copies(self, frame: Frame, values: Values) -> int:
        """How many rows belong to one example: the size of a family."""
        return 1 if self.plan.classes is None else int(values[self.plan.classes].shape[1])

    def _rows(self, frame: Frame, values: Values, rows: Tensor, count: int) -> tuple[Frame, Values]:
        def cut(value: Any, kind: Kind) -> Any:
            per_example = isinstance(value, Tensor) and kind is not Kind.CONST and value.dim() > 0 and value.shape[0] == count
            return value[rows] if per_example else value

        part_values = list(values)
        for n in (*self.outside, self.plan.center, self.plan.radius):
            part_values[n] = cut(values[n], self.kinds[n].kind)
        points = {k: cut(p, Kind.INPUT) for k, p in frame.points.items()}
        own = None if frame.own_class is None else frame.own_class[rows]
        source = frame.generator.rows(rows) if isinstance(frame.generator, ExampleStreams) else frame.generator
        return replace(frame, x=frame.x[rows], y=frame.y[rows], points=points, own_class=own, generator=source), part_values

    def region(self, frame: Frame, values: Values) -> InputSet:
        """The set of the level for these examples; `before` has run."""
        center, radius = values[self.plan.center], values[self.plan.radius]
        if not isinstance(center, Tensor):
            center = torch.zeros_like(frame.x)
        domain = frame.domain if self.plan.level.set.boxed else None
        own: dict[str, Any] = {"differentiable": True} if self.plan.through == "unrolling" else {}
        return SETS_TORCH[self.plan.level.set.name](center, radius, domain, **own)

    def _drawn(self, frame: Frame, values: Values, region: InputSet) -> Tensor:
        """x'@0 for one restart."""
        solver = self.plan.level.solver
        with nullcontext() if self.plan.through == "unrolling" else torch.no_grad():
            if solver.start_kind == "uniform":
                return region.sample(frame.generator)
            if solver.start_kind == "corner":
                return region.corner(frame.generator)
            if solver.start_kind == "sphere":
                return region.sphere(frame.generator)
            if solver.start_kind == "previous":
                return region.project(region.center + self._last_offset(region.center))
            self.start.run(frame, values)
            start = values[self.start.results[0]]
            start = start.clone() if isinstance(start, Tensor) and start.dim() else torch.zeros_like(frame.x)
            return start if solver.start_kind == "raw" else region.project(start)

    def _last_offset(self, center: Tensor) -> Tensor:
        """The last batch's perturbations for this one; 0 in the first batch, for rows it did not have, and for another input shape."""
        offset = torch.zeros_like(center)
        if self.previous is not None and self.previous.shape[1:] == center.shape[1:]:
            rows = min(len(offset), len(self.previous))
            offset[:rows] = self.previous[:rows].to(offset)
        return offset

    def _objective(self, frame: Frame, values: Values) -> Callable[[Tensor], Tensor]:
        """What the solver maximises, per example."""
        key, result = (self.name,), self.body.results[0]

        def objective(point: Tensor) -> Tensor:
            frame.points[key] = point
            self.body.run(frame, values)
            value: Tensor = values[result]
            return value if self.sign > 0 else -value

        return objective

    def _margins(self, frame: Frame, values: Values) -> Callable[[Tensor], Tensor]:
        """Of every class, for attacks that look at each."""

        def margins(point: Tensor) -> Tensor:
            frame.points[(self.name,)] = point
            self.body.run(frame, values)
            found: Tensor = values[self.body.results[2]]
            return found

        return margins

    def _problem(self, frame: Frame, values: Values, region: InputSet, start: Callable[[], Tensor]) -> Problem:
        count = frame.x.shape[0]
        apart = isinstance(frame.generator, ExampleStreams)  # then these rows may draw their own starts
        searches = isinstance(self.plan.level.solver.options, SearchOptions)

        def restrict(rows: Tensor) -> Problem:
            part, part_values = self._rows(frame, values, rows, count)
            own = self.region(part, part_values)
            if apart:
                return self._problem(part, part_values, own, partial(self._drawn, part, part_values, own))
            mine = self._problem(part, part_values, own, lambda: start()[rows])
            return mine if mine.noise is None else replace(mine, noise=lambda: noise()[rows])

        def noise() -> Tensor:
            self.noise.run(frame, values)
            added: Tensor = values[self.noise.results[0]]
            return added

        def fooled() -> Tensor:
            wrong: Tensor = values[self.body.results[1]]
            return wrong.bool()

        return Problem(
            self._objective(frame, values),
            region,
            start,
            frame.generator,
            noise=noise if self.plan.noise.instrs else None,
            name=self.name,
            fooled=fooled if self.plan.facts else None,
            margins=self._margins(frame, values) if len(self.body.results) > 2 else None,
            restrict=restrict if (self.plan.until is not None or self.plan.stops or searches) and self.plan.level.mode == "eval" else None,
        )

    def _solver(self, frame: Frame, values: Values, at: Tensor | None = None) -> Any:
        step = None if self.plan.step is None else torch.as_tensor(values[self.plan.step], dtype=frame.x.dtype, device=frame.x.device)
        solver, options = self.plan.level.solver.name, self.plan.level.solver.options
        assert not isinstance(options, SearchOptions)
        return build_solver(solver, options, step=step, at=at)

    def _solve_chunk(self, frame: Frame, values: Values, region: InputSet, start: Callable[[], Tensor], steps: int) -> Solution:
        solver, options = self.plan.level.solver, self.plan.level.solver.options
        problem, captures = self._problem(frame, values, region, start), frozenset(self.plan.captures)
        restarts = 1 if self.plan.through == "danskin" else options.restarts
        if isinstance(options, SearchOptions):
            request = SearchRequest(restarts, captures, self.plan.stops, self._copies(frame, values))
            several = self.plan.axis is None
            return search(problem, build_search(solver.name, options, region, several=several), request)
        built = self._solver(frame, values, start() if solver.name == "prox" else None)
        until = None if self.plan.until is None else values[self.plan.until]
        if self.plan.stops:
            copies = self._copies(frame, values)
            return solve_until_fooled(problem, built, steps, restarts=restarts, keep=options.keep, until=until, copies=copies)
        through = self.plan.through == "unrolling"
        return solve(problem, built, steps, restarts=restarts, keep=options.keep, captures=captures, until=until, differentiable=through)


def _mapped(solution: Solution, change: Callable[[Tensor], Tensor]) -> Solution:
    """The solution with every tensor changed."""
    values = {name: getattr(solution, name) for name in ("point", "objective", "run", "survived", "first_fooled")}
    changed: dict[str, Any] = {name: None if value is None else change(value) for name, value in values.items()}
    return replace(solution, iterates={k: change(t) for k, t in solution.iterates.items()}, **changed)


def _joined(parts: list[Solution]) -> Solution:
    """The solution of all rows from those of its chunks."""
    names = ("point", "objective", "run", "survived", "first_fooled")
    found = {name: [value for p in parts if (value := getattr(p, name)) is not None] for name in names}
    iterates = {k: torch.cat([p.iterates[k] for p in parts]) for k in parts[0].iterates}
    whole: dict[str, Any] = {name: torch.cat(v) if v else None for name, v in found.items()}
    return replace(parts[0], iterates=iterates, **whole)
