"""A lower level that is one problem per batch: over the weights of the model, or over a distribution on the classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lossdsl.engine.closures import Closure, Frame, Values
from lossdsl.engine.modes import constant_parameters
from lossdsl.lang.specs import SolverOptions
from lossdsl.plan.ir import Instr, Solve
from lossdsl.solve import WEIGHT_SETS, InputSet, Layout, Problem, Simplex, build_solver, solve


class BatchLevel:
    """Solves one level whose objective is averaged over the batch. Its point is one row, [1, P] or [1, K]."""

    def __init__(self, plan: Solve, kinds: dict[int, Instr], place: Callable[[Instr], str]) -> None:
        self.plan, self.name = plan, plan.level.var
        self.before, self.start, self.body = (Closure(code, kinds, place) for code in (plan.before, plan.start, plan.body))
        self.sign = 1.0 if plan.level.sense == "maximize" else -1.0

    def run(self, frame: Frame, values: Values) -> None:
        """Leave the solution in the frame: weights as a dictionary of parameters, a distribution as a vector [K]."""
        over_weights = self.plan.level.set.over == "weights"
        with constant_parameters(*frame.trained):
            with torch.no_grad():
                self.before.run(frame, values)
            named = _parameters(frame)
            layout = Layout(named) if over_weights else None
            region = self._set(frame, values, layout)
            point = self._solved(frame, values, region, layout)
        if layout is None:
            frame.shared[self.name] = point[0]
        else:
            frame.weights[self.name] = layout.views(point)

    def put(self, frame: Frame, solution: Tensor) -> None:
        """A given solution in the frame: weights [P] in the order of the model's parameters, or a distribution [K]."""
        if self.plan.level.set.over == "weights":
            frame.weights[self.name] = Layout(_parameters(frame)).views(solution.reshape(1, -1))
        else:
            frame.shared[self.name] = solution

    def _set(self, frame: Frame, values: Values, layout: Layout | None) -> InputSet:
        if layout is None:
            return Simplex(torch.empty((1, frame.num_classes), dtype=frame.x.dtype, device=frame.x.device))
        center = layout.flatten([p.detach() for _, p in _parameters(frame)])
        region = self.plan.level.set
        return WEIGHT_SETS[region.name](layout, center, float(values[self.plan.radius]), region.only)

    def _solved(self, frame: Frame, values: Values, region: InputSet, layout: Layout | None) -> Tensor:
        result = self.body.results[0]

        def objective(point: Tensor) -> Tensor:
            if layout is None:
                frame.shared[self.name] = point[0]
            else:
                frame.weights[self.name] = layout.views(point)
            self.body.run(frame, values)
            value = frame.tensor(values[result]).mean().reshape(1)
            return value if self.sign > 0 else -value

        def start() -> Tensor:
            with torch.no_grad():
                self.start.run(frame, values)
                first: Tensor = frame.tensor(values[self.start.results[0]])
            return region.project(first.reshape(1, -1) if first.dim() < 2 else first[:1])

        solver, options = self.plan.level.solver, self.plan.level.solver.options
        assert isinstance(options, SolverOptions)  # the checker lets no attack on weights or classes through
        step = None if self.plan.step is None else frame.tensor(values[self.plan.step]).reshape(-1)[:1]
        problem = Problem(objective, region, start, frame.generator, name=self.name)
        found = solve(problem, build_solver(solver.name, options, step=step), options.steps, restarts=options.restarts, keep=options.keep)
        return found.point


def _parameters(frame: Frame) -> list[tuple[str, Tensor]]:
    """The parameters that a level over weights moves: those that the caller trains."""
    return [(name, p) for name, p in frame.model.named_parameters() if name in frame.moved]


def differentiable_weights(frame: Frame) -> None:
    """From here on f{w} is taken at theta + stop(w - theta): its gradient is one of theta."""
    own = dict(frame.model.named_parameters())
    for name, at in frame.weights.items():
        frame.weights[name] = {key: own[key] + (value - own[key]).detach() for key, value in at.items()}
