"""`through implicit`: the gradient that passes a lower level by its optimality conditions (Fast-BAT, theorem 1 and eq. 21)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lossdsl.engine.closures import Closure, Frame, Values
from lossdsl.engine.level import LevelRunner
from lossdsl.plan.ir import Instr
from lossdsl.solve import solve_symmetric


class Implicit:
    """The implicit term of one level.

    With g the objective as written and F the coordinates of the solution strictly inside the set, stationarity on F gives
    (d solution / d theta)' u = -d/dtheta <grad g(theta, solution)_F, v>, where v solves (hess g)_FF v = u_F. The Hessian enters through
    products with vectors; where it is a multiple of the identity (Fast-BAT's linearised problem) one product is enough.
    """

    def __init__(self, level: LevelRunner, kinds: dict[int, Instr], place: Callable[[Instr], str]) -> None:
        self.level = level
        self.code = Closure(level.plan.optimality, kinds, place)
        assert level.plan.level.through is not None
        self.options: Any = level.plan.level.through.options

    def term(self, frame: Frame, values: Values, upper: Tensor) -> Tensor:
        """A number that is 0 and whose gradient by theta is the implicit one of dU/dsolution = `upper`, [B, *input]."""
        key = (self.level.name,)
        point = frame.points[key].detach()
        region = self.level.region(frame, values)
        free = region.interior(point).to(point.dtype)
        target = upper * free
        if not bool(target.any()) or self.options.scale == 0:
            return upper.new_zeros(())
        variable = point.clone().requires_grad_()
        frame.points[key] = variable
        self.code.run(frame, values)
        frame.points[key] = point
        objective: Tensor = values[self.code.results[0]]
        slope = torch.autograd.grad(objective.sum(), variable, create_graph=True)[0]

        def product(v: Tensor) -> Tensor:
            if not slope.requires_grad:
                return torch.zeros_like(v)
            found = torch.autograd.grad(slope, variable, v * free, retain_graph=True, allow_unused=True)[0]
            return torch.zeros_like(v) if found is None else found.detach() * free

        # In eval mode examples do not meet, so that the Hessian has one block per example.
        solution, _ = solve_symmetric(
            product, target, self.options.steps, self.options.tolerance, per_example=self.level.plan.mode == "eval"
        )
        term = -self.options.scale * (slope * (solution * free).detach()).sum()
        return term - term.detach()
