"""Operations as torch functions: one kernel per operation of the plan, under the same name.

Shapes: Real and Class [B, *axes], Logits, Prob (log-probabilities) and Vector [B, *axes, K], Input [B, *axes, *input],
Const []. The closures align the axes before a kernel is called; what a kernel sees broadcasts.
Derivatives are those of the formulas, finite for float32 logits up to 1e4. At a tie max and min pass the gradient to the
lowest class (of two numbers: to the first).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Kernel = Callable[..., Any]
KERNELS: dict[str, Kernel] = {}


def kernel(name: str) -> Callable[[Kernel], Kernel]:
    """Register a kernel under the name of its operation."""

    def add(function: Kernel) -> Kernel:
        KERNELS[name] = function
        return function

    return add


# --- arithmetic: arguments may be Python numbers ---

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


# --- elementwise ---

KERNELS |= {
    "exp": torch.exp,
    "log": torch.log,
    "relu": torch.relu,
    "tanh": torch.tanh,
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
    return torch.minimum(torch.maximum(v, low), high)


@kernel("max")
def maximum(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(a >= b, a, b)


@kernel("min")
def minimum(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(a <= b, a, b)


# --- probabilities, in log space ---


@kernel("log_softmax")
def log_softmax(logits: Tensor) -> Tensor:
    return functional.log_softmax(logits, dim=-1)


def _zero_log_zero(logs: Tensor) -> Tensor:
    """Log-probabilities with -inf replaced, for products with a probability that is 0 there."""
    return torch.where(logs == -math.inf, 0.0, logs)


@kernel("KL")
def kl_divergence(target: Tensor, prediction: Tensor) -> Tensor:
    """KL(target || prediction) = sum_i t_i (log t_i - log q_i), 0 log 0 = 0."""
    t = torch.exp(target)
    both = torch.where(target == -math.inf, 0.0, _zero_log_zero(target) - prediction)
    return _not_negative((t * both).sum(-1))


def _not_negative(v: Tensor) -> Tensor:
    """0 where rounding has gone below it; the gradient is that of v."""
    return torch.where(v < 0, v - v.detach(), v)


@kernel("cross_entropy")
def cross_entropy(prediction: Tensor, target: Tensor) -> Tensor:
    """-sum_i t_i log q_i, 0 log 0 = 0."""
    return -(torch.exp(target) * torch.where(target == -math.inf, 0.0, prediction)).sum(-1)


@kernel("H")
def entropy(p: Tensor) -> Tensor:
    return -(torch.exp(p) * _zero_log_zero(p)).sum(-1)


@kernel("SE")
def squared_error(p: Tensor, q: Tensor) -> Tensor:
    return (torch.exp(p) - torch.exp(q)).square().sum(-1)


@kernel("TV")
def total_variation(p: Tensor, q: Tensor) -> Tensor:
    return (torch.exp(p) - torch.exp(q)).abs().sum(-1) / 2


@kernel("mix")
def mixture(weight: Any, first: Tensor, second: Tensor) -> Tensor:
    """log((1 - a) P + a Q) for a in [0, 1]."""
    a = weight.unsqueeze(-1) if weight.dim() else weight
    tiny = torch.finfo(first.dtype).tiny
    return _log_add(torch.log((1 - a).clamp_min(tiny)) + first, torch.log(a.clamp_min(tiny)) + second)


def _log_add(a: Tensor, b: Tensor) -> Tensor:
    """logaddexp with gradient 0, not NaN, where both are -inf."""
    nothing = (a == -math.inf) & (b == -math.inf)
    return torch.where(nothing, -math.inf, torch.logaddexp(torch.where(nothing, 0.0, a), torch.where(nothing, 0.0, b)))


@kernel("JS")
def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    middle = _log_add(p, q) - math.log(2)
    return (kl_divergence(p, middle) + kl_divergence(q, middle)) / 2  # each part is not negative, so neither is the sum


@kernel("onehot")
def one_hot(y: Tensor, real: Tensor, classes: int) -> Tensor:
    hot = functional.one_hot(y, classes).to(real.dtype)
    return torch.log(hot)


@kernel("smooth")
def smoothed(y: Tensor, share: float, real: Tensor, classes: int) -> Tensor:
    hot = functional.one_hot(y, classes).to(real.dtype)
    return torch.log((1 - share) * hot + share / classes)


# --- entries and reductions over classes ---


@kernel("at")
def entry(v: Tensor, c: Tensor) -> Tensor:
    """v[c]; v [..., K] and c [...] broadcast."""
    shape = torch.broadcast_shapes(v.shape[:-1], c.shape)
    return v.expand(*shape, v.shape[-1]).gather(-1, c.expand(shape).unsqueeze(-1)).squeeze(-1)


KERNELS["log_at"] = entry


@kernel("log_not_at")
def log_all_but(logs: Tensor, c: Tensor) -> Tensor:
    """log(1 - p_c) = log sum_{i != c} p_i."""
    shape = torch.broadcast_shapes(logs.shape[:-1], c.shape)
    logs = logs.expand(*shape, logs.shape[-1])
    out = torch.zeros_like(logs, dtype=torch.bool).scatter(-1, c.expand(shape).unsqueeze(-1), True)
    return torch.logsumexp(logs.masked_fill(out, -math.inf), dim=-1)


@kernel("class_range")
def class_range(kind: str, out: Tensor | None, like: Tensor, classes: int) -> Tensor:
    """The classes of a domain in ascending order, [B, *axes, n]."""
    if out is None:
        return torch.arange(classes, device=like.device).expand(like.shape[0], classes)
    others = torch.arange(classes - 1, device=like.device)
    return others + (others >= out.unsqueeze(-1))


def _reduction(reduce: Callable[[Tensor], Tensor]) -> Kernel:
    def apply(body: Tensor, classes: Tensor) -> Tensor:
        return reduce(body.expand(torch.broadcast_shapes(body.shape, classes.shape)))

    return apply


KERNELS |= {
    "reduce_max": _reduction(lambda v: v.gather(-1, v.argmax(-1, keepdim=True)).squeeze(-1)),
    "reduce_min": _reduction(lambda v: v.gather(-1, v.argmin(-1, keepdim=True)).squeeze(-1)),
    "reduce_sum": _reduction(lambda v: v.sum(-1)),
    "reduce_mean": _reduction(lambda v: v.mean(-1)),
    "reduce_logsumexp": _reduction(lambda v: torch.logsumexp(v, dim=-1)),
    "reduce_sort": _reduction(lambda v: v.sort(dim=-1, descending=True).values),
}


def _class_of(pick: Callable[[Tensor], Tensor]) -> Kernel:
    def apply(body: Tensor, classes: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(body.shape, classes.shape)
        best = pick(body.detach().expand(shape))
        return classes.expand(shape).gather(-1, best.unsqueeze(-1)).squeeze(-1)

    return apply


KERNELS["reduce_argmax"] = _class_of(lambda v: v.argmax(-1))
KERNELS["reduce_argmin"] = _class_of(lambda v: v.argmin(-1))


@kernel("reduce_softmax")
def softmax_over_classes(body: Tensor, classes: Tensor, count: int) -> Tensor:
    """Weights over the classes of the domain, 0 elsewhere, [..., K]."""
    shape = torch.broadcast_shapes(body.shape, classes.shape)
    weights = torch.softmax(body.expand(shape), dim=-1)
    return weights.new_zeros(*shape[:-1], count).scatter(-1, classes.expand(shape), weights)


@kernel("nth")
def nth_largest(v: Tensor, n: int) -> Tensor:
    return v[..., n - 1]


@kernel("select")
def select(family: Tensor, classes: Tensor, chosen: Tensor) -> Tensor:
    """The member of a family [B, n, *input] whose class [B, n] is the chosen one [B, *axes]: [B, *axes, *input]."""
    batch, extra = family.shape[0], chosen.shape[1:]
    match = classes.reshape(batch, *([1] * len(extra)), -1) == chosen.unsqueeze(-1)
    place = match.to(torch.uint8).argmax(-1).reshape(batch, -1)
    rows = torch.arange(batch, device=family.device).unsqueeze(-1)
    return family[rows, place].reshape(batch, *extra, *family.shape[2:])


# --- losses on logits ---


def _runner_up(z: Tensor, y: Tensor) -> Tensor:
    """max_{j != y} z_j."""
    others = z.scatter(-1, y.unsqueeze(-1), -math.inf)
    return z.gather(-1, others.argmax(-1, keepdim=True)).squeeze(-1)


def _paired(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    shape = torch.broadcast_shapes(z.shape[:-1], y.shape)
    return z.expand(*shape, z.shape[-1]), y.expand(shape)


@kernel("hinge")
def hinge(z: Tensor, y: Tensor) -> Tensor:
    z, y = _paired(z, y)
    return torch.relu(1 + _runner_up(z, y) - entry(z, y))


@kernel("error")
def zero_one_error(z: Tensor, y: Tensor) -> Tensor:
    z, y = _paired(z.detach(), y)
    return _number(_runner_up(z, y) >= entry(z, y), z)


@kernel("misclassified")
def misclassified(z: Tensor, y: Tensor) -> Tensor:
    return _number(z.detach().argmax(-1) != y, z)


@kernel("DLR")
def difference_of_logits_ratio(z: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    z, y = _paired(z, y)
    ordered = z.sort(dim=-1, descending=True).values
    if target is None:
        return (_runner_up(z, y) - entry(z, y)) / (ordered[..., 0] - ordered[..., 2] + 1e-12)
    z, t = _paired(z, target)
    return (entry(z, t) - entry(z, y)) / (ordered[..., 0] - (ordered[..., 2] + ordered[..., 3]) / 2 + 1e-12)


# --- geometry; `own` is the number of trailing dimensions of one Input or Vector ---


def _flat(v: Tensor, own: int) -> Tensor:
    return v.flatten(-own) if own > 1 else v.unsqueeze(-1) if own == 0 else v


@kernel("norm")
def norm(v: Tensor, order: float, own: int) -> Tensor:
    """|v|_q with gradient 0 at 0; |.|_2 does not under- or overflow."""
    flat = _flat(v, own)
    if order == 1:
        return flat.abs().sum(-1)
    largest = flat.abs().amax(-1) if order == math.inf else flat.detach().abs().amax(-1)
    if order == math.inf:
        return largest
    scale = torch.where(largest > 0, largest, 1.0)
    zero = largest == 0
    squares = (flat / scale.unsqueeze(-1)).square().sum(-1)
    return torch.where(zero, 0.0, torch.sqrt(torch.where(zero, 1.0, squares)) * scale)


@kernel("dot")
def dot(a: Tensor, b: Tensor, own: int) -> Tensor:
    return (_flat(a, own) * _flat(b, own)).sum(-1)


def _unit(v: Tensor, own: int) -> Tensor:
    """v / |v|_2 flattened; 0 without gradient at 0."""
    flat = _flat(v, own)
    length = norm(v, 2, own).unsqueeze(-1)
    zero = length == 0
    return torch.where(zero, 0.0, flat / torch.where(zero, 1.0, length))


@kernel("unit")
def unit(v: Tensor, own: int) -> Tensor:
    return _unit(v, own).reshape(v.shape)


@kernel("cos")
def cosine(a: Tensor, b: Tensor, own: int) -> Tensor:
    zero = (norm(a.detach(), 2, own) == 0) | (norm(b.detach(), 2, own) == 0)
    return torch.where(zero, 1.0, (_unit(a, own) * _unit(b, own)).sum(-1))


# --- over the batch ---


@kernel("batch_mean")
def batch_mean(e: Tensor, condition: Tensor | None = None) -> Tensor:
    if condition is None:
        return e.mean()
    kept = (condition != 0).expand(e.shape)
    return torch.where(kept, e, 0.0).sum() / kept.sum().clamp_min(1)


@kernel("batch_sum")
def batch_sum(e: Tensor, condition: Tensor | None = None) -> Tensor:
    return e.sum() if condition is None else torch.where((condition != 0).expand(e.shape), e, 0.0).sum()
