"""A lower level at work: its set, its starts, its objective, handed to the solver in chunks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lossdsl.engine.closures import Closure, Frame, Values
from lossdsl.engine.modes import constant_parameters
from lossdsl.lang.types import Kind
from lossdsl.plan.ir import Instr, Solve
from lossdsl.solve import SETS_TORCH, InputSet, Problem, Solution, build_solver, solve


class LevelRunner:
    """Solves one lower level of a plan for a batch."""

    def __init__(self, plan: Solve, kinds: dict[int, Instr], place: Callable[[Instr], str], chunk: int) -> None:
        self.plan = plan
        self.name = plan.level.var
        self.before = Closure(plan.before, kinds, place)
        self.start = Closure(plan.start, kinds, place)
        self.body = Closure(plan.body, kinds, place)
        self.chunk = chunk
        self.sign = 1.0 if plan.level.sense == "maximize" else -1.0
        self.outside = [n for n in sorted({*self.start.needs, *self.body.needs})]
        self.kinds = kinds
        self.previous: Tensor | None = None
        """For `start = previous`: the last batch's solution minus its centre, [N, *input]."""

    def run(self, frame: Frame, values: Values, rated: bool = False) -> Solution:
        """The solution, its iterates and objective, [B, *input] or for a family [B, n, *input].

        `rated`: evaluate the objective at the solution even if no choice inside the level needed it.
        """
        with constant_parameters(frame.model):
            with torch.no_grad():
                self.before.run(frame, values)
            wide, wide_values, copies = self._widened(frame, values)
            solution = self._solve(wide, wide_values)
            if self.plan.level.solver.start_kind == "previous":
                self.previous = solution.point - self._set(wide, wide_values).center
            if rated and solution.objective is None:
                with torch.no_grad():
                    solution = replace(solution, objective=self._objective(wide, wide_values)(solution.point))
        if copies is None:
            return solution
        batch = frame.x.shape[0]

        def shaped(t: Tensor) -> Tensor:
            return t.unflatten(0, (batch, copies))

        iterates = {k: shaped(t) for k, t in solution.iterates.items()}
        objective = None if solution.objective is None else shaped(solution.objective)
        return Solution(shaped(solution.point), iterates, objective, shaped(solution.run))

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
        )
        return wide, wide_values, copies

    def _solve(self, frame: Frame, values: Values) -> Solution:
        """All examples at once, or in chunks where the mode lets an example be solved apart from the others."""
        count = frame.x.shape[0]
        options = self.plan.level.solver.options
        region = self._set(frame, values)
        if count <= self.chunk or self.plan.level.mode != "eval":
            return self._solve_chunk(frame, values, region, lambda: self._drawn(frame, values, region))
        starts = [self._drawn(frame, values, region) for _ in range(options.restarts)]
        parts = []
        for at in range(0, count, self.chunk):
            rows = slice(at, at + self.chunk)
            part, part_values = self._rows(frame, values, rows, count)
            cut = iter([s[rows] for s in starts])
            parts.append(self._solve_chunk(part, part_values, self._set(part, part_values), cut.__next__))
        iterates = {k: torch.cat([p.iterates[k] for p in parts]) for k in parts[0].iterates}
        objectives = [p.objective for p in parts if p.objective is not None]
        return Solution(
            torch.cat([p.point for p in parts]), iterates, torch.cat(objectives) if objectives else None, torch.cat([p.run for p in parts])
        )

    def _rows(self, frame: Frame, values: Values, rows: slice, count: int) -> tuple[Frame, Values]:
        def cut(value: Any, kind: Kind) -> Any:
            per_example = isinstance(value, Tensor) and kind is not Kind.CONST and value.dim() > 0 and value.shape[0] == count
            return value[rows] if per_example else value

        part_values = list(values)
        for n in (*self.outside, self.plan.center, self.plan.radius):
            part_values[n] = cut(values[n], self.kinds[n].kind)
        points = {k: cut(p, Kind.INPUT) for k, p in frame.points.items()}
        own = None if frame.own_class is None else frame.own_class[rows]
        return replace(frame, x=frame.x[rows], y=frame.y[rows], points=points, own_class=own), part_values

    def _set(self, frame: Frame, values: Values) -> InputSet:
        center, radius = values[self.plan.center], values[self.plan.radius]
        if not isinstance(center, Tensor):
            center = torch.zeros_like(frame.x)
        return SETS_TORCH[self.plan.level.set.name](center, radius, frame.domain if self.plan.level.set.boxed else None)

    def _drawn(self, frame: Frame, values: Values, region: InputSet) -> Tensor:
        """x'@0 for one restart."""
        solver = self.plan.level.solver
        with torch.no_grad():
            if solver.start_kind == "uniform":
                return region.sample(frame.generator)
            if solver.start_kind == "corner":
                return region.corner(frame.generator)
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

    def _solve_chunk(self, frame: Frame, values: Values, region: InputSet, start: Callable[[], Tensor]) -> Solution:
        solver = self.plan.level.solver
        problem = Problem(self._objective(frame, values), region, start, frame.generator, name=self.name)
        options = solver.options
        return solve(
            problem,
            build_solver(solver.name, options),
            options.steps,
            restarts=options.restarts,
            keep=options.keep,
            captures=frozenset(self.plan.captures),
        )
