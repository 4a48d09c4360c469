"""`through implicit`: the gradient that passes a lower level by its optimality conditions (Fast-BAT, theorem 1 and eq. 21)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lossdsl.engine.closures import Closure, Frame, Values
from lossdsl.engine.level import LevelRunner
from lossdsl.plan.ir import Instr
from lossdsl.solve import solve_symmetric


@dataclass(frozen=True)
class Conditions:
    """The gradient of the lower objective at its solution, [B, *input], differentiable by the weights and by `variable`, the solution;
    free: 1 where the set holds no coordinate."""

    variable: Tensor
    slope: Tensor
    free: Tensor


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
        passes = [i for i in level.plan.optimality if i.op == "forward"]
        self.apart = all(i.attrs[1] == "eval" for i in passes)
        """In eval mode examples do not meet, so that the Hessian has one block per example."""

    def conditions(self, frame: Frame, values: Values) -> Conditions | None:
        """The optimality conditions at the solution; None where nothing can pass. To be taken before the upper level writes statistics."""
        key = (self.level.name,)
        point = frame.points[key].detach()
        free = self.level.region(frame, values).interior(point).to(point.dtype)
        if not bool(free.any()) or self.options.scale == 0:
            return None
        variable = point.clone().requires_grad_()
        constants = {other: value.detach() for other, value in frame.points.items()}
        self.code.run(replace(frame, points={**constants, key: variable}), values)
        objective: Tensor = values[self.code.results[0]]
        slope = torch.autograd.grad(objective.sum(), variable, create_graph=True)[0]
        return Conditions(variable, slope, free)

    def term(self, at: Conditions, upper: Tensor) -> Tensor:
        """A number that is 0 and whose gradient by theta is the implicit one of dU/dsolution = `upper`, [B, *input]."""

        def product(v: Tensor) -> Tensor:
            if not at.slope.requires_grad:
                return torch.zeros_like(v)
            found = torch.autograd.grad(at.slope, at.variable, v * at.free, retain_graph=True, allow_unused=True)[0]
            return torch.zeros_like(v) if found is None else found.detach() * at.free

        solution, _ = solve_symmetric(product, upper * at.free, self.options.steps, self.options.tolerance, per_example=self.apart)
        term = -self.options.scale * (at.slope * (solution * at.free).detach()).sum()
        return term - term.detach()
