"""`find t in [lo, hi] where e == 0`: a root per example."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lossdsl.engine.closures import Closure, Frame, Values
from lossdsl.engine.modes import constant_parameters
from lossdsl.plan.ir import Find, Instr
from lossdsl.solve import bisection


class FindRunner:
    """Searches one root per example of the batch."""

    def __init__(self, plan: Find, kinds: dict[int, Instr], place: Callable[[Instr], str]) -> None:
        self.plan, self.name = plan, plan.var
        self.before, self.body = Closure(plan.before, kinds, place), Closure(plan.body, kinds, place)

    def run(self, frame: Frame, values: Values) -> None:
        """Leave the roots [B] in the frame."""
        result = self.body.results[0]

        def function(t: Tensor) -> Tensor:
            frame.points[self.name,] = t
            self.body.run(frame, values)
            value: Tensor = values[result]
            return value

        with constant_parameters(*frame.trained), torch.no_grad():
            self.before.run(frame, values)
            low, high = (frame.tensor(values[n]).expand(len(frame.y)).clone() for n in (self.plan.low, self.plan.high))
            frame.points[self.name,] = bisection(function, low, high, self.plan.steps, self.name)
