"""Roots of functions of one number, one equation per example."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lossdsl.diagnostics import UserError


def bisection(function: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, steps: int, name: str = "find") -> Tensor:
    """A t in [low, high] with function(t) = 0 per example, [N], to within (high - low) / 2^(steps + 1); a constant.

    function: [N] -> [N], its i-th value depending on the i-th argument only; called at most steps + 2 times, without gradients.
    Each step halves the interval and keeps the half in which the sign changes; the midpoint of the last one is returned, or a point
    that hit 0 exactly.

    Without a change of sign the function is taken for a rising one that runs from "not yet" (negative) to "too far" (positive), as in
    MMA (Ding et al., ICLR 2020, AN-PGD), where it is the margin loss along an attack's direction: an example that is negative at both
    ends (never fooled) gets `high`, one that is positive at both (fooled already at `low`) gets `low`. That is also what the authors'
    code tends to, whose test is the sign of the midpoint alone; it returns max_eps only in the limit.

    Raises UserError if low > high, and if the function is not [N] or is NaN.
    """
    low, high = low.detach(), high.detach()
    if low.shape != high.shape or not bool((low <= high).all()):
        raise UserError("the interval of a root runs from the larger number to the smaller", where=name, fix="write [low, high]")

    def value(t: Tensor) -> Tensor:
        with torch.no_grad():
            found = function(t)
        if found.shape != t.shape or bool(found.isnan().any()):
            wrong = "is NaN" if found.shape == t.shape else f"has shape {tuple(found.shape)} for {t.shape[0]} examples"
            raise UserError(f"the function whose root is sought {wrong}", where=name, fix="return one number per example")
        return found.sign()

    first, last = value(low), value(high)
    end = torch.where((first > 0) | (first == 0), low, high)  # where no sign changes, or the end is a root itself
    changes = first * last < 0
    for _ in range(steps):
        middle = low + (high - low) / 2
        side = value(middle)
        low = torch.where((side == first) | (side == 0), middle, low)
        high = torch.where((side == last) | (side == 0), middle, high)
    return torch.where(changes, low + (high - low) / 2, end)
