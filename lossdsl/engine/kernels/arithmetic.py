"""Arithmetic, conditions and elementwise functions. Arithmetic takes Python numbers as they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lossdsl.engine.kernels.table import KERNELS, Kernel, kernel

KERNELS |= {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
}


@kernel("pow")
def power(a: Any, b: Any) -> Any:
    """NaN, not a complex number, for a negative number to a fractional power."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a**b
    try:
        return math.pow(a, b)
    except (ValueError, OverflowError):
        return math.nan


def _number(condition: Tensor, like: Tensor) -> Tensor:
    return condition.to(like.dtype)


def _comparison(compare: Callable[[Tensor, Tensor], Tensor]) -> Kernel:
    def apply(a: Tensor, b: Tensor, real: Tensor) -> Tensor:
        return _number(compare(a, b), real)

    return apply


COMPARISONS: dict[str, Kernel] = {
    "lt": _comparison(torch.lt), "le": _comparison(torch.le), "gt": _comparison(torch.gt), "ge": _comparison(torch.ge),
    "eq": _comparison(torch.eq), "ne": _comparison(torch.ne), "and": _comparison(torch.logical_and), "or": _comparison(torch.logical_or),
    "not": lambda a, real: _number(torch.logical_not(a), real),
}  # fmt: skip
"""Conditions as 0 or 1; the last argument only tells the floating-point type."""


@kernel("if")
def choose(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Per example or element one branch; `gate` keeps the gradient of the other one out."""
    return torch.where(condition != 0, a, b)


class _Gate(torch.autograd.Function):
    """The identity, whose gradient is 0 (not 0 times infinity) where the condition does not hold."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, open: Tensor) -> Tensor:
        ctx.save_for_backward(open)
        ctx.shape = v.shape
        return v.expand(torch.broadcast_shapes(v.shape, open.shape)).clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (open,) = ctx.saved_tensors
        return torch.where(open, grads[0], 0.0).sum_to_size(ctx.shape), None


@kernel("gate")
def gate(v: Tensor, condition: Tensor) -> Tensor:
    """What a branch of `if` is computed from: an infinite derivative in a branch not taken stays inside it."""
    if not (torch.is_grad_enabled() and v.requires_grad):
        return v
    return _Gate.apply(v, condition != 0)


KERNELS |= {
    "exp": torch.exp,
    "log": torch.log,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sin": torch.sin,
    "abs": torch.abs,
    "sign": lambda v: torch.sign(v.detach()),
    "stop": lambda v: v.detach() if isinstance(v, Tensor) else v,
    "as_vector": lambda v: v,
}


@kernel("sqrt")
def square_root(v: Tensor) -> Tensor:
    """Zero gradient at zero, where the derivative is infinite."""
    positive = v > 0
    return torch.where(positive, torch.sqrt(torch.where(positive, v, 1.0)), torch.where(v < 0, math.nan, 0.0) + 0 * v.detach())


@kernel("clip")
def clip(v: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The gradient passes inside the bounds and at them."""
    raised = torch.where(v < low, low, v)
    return torch.where(raised > high, high, raised)


@kernel("max")
def maximum(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(a >= b, a, b)


@kernel("min")
def minimum(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(a <= b, a, b)


@kernel("gate_any")
def gate_any(v: Tensor, condition: Tensor) -> Tensor:
    """`gate` for a number of the whole batch: open if any example takes the branch."""
    return gate(v, (condition != 0).any().to(v.dtype))


@kernel("batch_mean")
def batch_mean(e: Tensor, condition: Tensor | None = None, batch: int | None = None) -> Tensor:
    """Mean over the batch, or over the examples where the condition holds; 0 if there are none."""
    if condition is None:
        return e.mean()
    every = e if batch is None else e.expand(batch)
    return batch_sum(every, condition) / (condition != 0).expand(every.shape).sum().clamp_min(1)


@kernel("batch_sum")
def batch_sum(e: Tensor, condition: Tensor | None = None, batch: int | None = None) -> Tensor:
    """Sum over the batch, or over the examples where the condition holds; a Const counts once per example."""
    every = e if batch is None else e.expand(batch)
    return every.sum() if condition is None else torch.where((condition != 0).expand(every.shape), every, 0.0).sum()
