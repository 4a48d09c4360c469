"""Entries of vectors over classes, reductions over classes, and losses on logits."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lossdsl.engine.kernels.table import KERNELS, Kernel, kernel


@kernel("at")
def entry(v: Tensor, c: Tensor) -> Tensor:
    """v[c]; v [..., K] and c [...] broadcast."""
    shape = torch.broadcast_shapes(v.shape[:-1], c.shape)
    return v.expand(*shape, v.shape[-1]).gather(-1, c.expand(shape).unsqueeze(-1)).squeeze(-1)


KERNELS["log_at"] = entry


def log_sum_exp(v: Tensor) -> Tensor:
    """log sum_i e^(v_i) over the last dimension. torch.logsumexp's derivative, e^(v - result), is coarse in float32 when |v| is large."""
    top = v.detach().amax(-1, keepdim=True)
    top = torch.where(top == -math.inf, 0.0, top)
    return torch.log(torch.exp(v - top).sum(-1)) + top.squeeze(-1)


@kernel("log_not_at")
def log_all_but(logs: Tensor, c: Tensor) -> Tensor:
    """log(1 - p_c) = log sum_{i != c} p_i."""
    shape = torch.broadcast_shapes(logs.shape[:-1], c.shape)
    logs = logs.expand(*shape, logs.shape[-1])
    out = torch.zeros_like(logs, dtype=torch.bool).scatter(-1, c.expand(shape).unsqueeze(-1), True)
    return log_sum_exp(logs.masked_fill(out, -math.inf))


@kernel("class_range")
def class_range(kind: str, out: Tensor | None, like: Tensor, classes: int) -> Tensor:
    """The classes of a domain in ascending order, [B, *axes, n]."""
    if out is None:
        return torch.arange(classes, device=like.device).expand(like.shape[0], classes)
    others = torch.arange(classes - 1, device=like.device)
    return others + (others >= out.unsqueeze(-1))


@kernel("class_top")
def highest_classes(scores: Tensor, classes: Tensor, count: int) -> Tensor:
    """The classes of the `count` largest scores (of all, if there are fewer), in descending order, the lower class first at a tie."""
    shape = torch.broadcast_shapes(scores.shape, classes.shape)
    order = scores.detach().expand(shape).sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return classes.expand(shape).gather(-1, order)


def _masked(v: Tensor, there: Tensor, instead: float) -> tuple[Tensor, Tensor, Tensor]:
    """Values with `instead` at the classes that are skipped (0 where all are), which classes are there, and whether any is."""
    some = (there != 0).expand(v.shape)
    any_one = some.any(-1)
    return torch.where(some, v, torch.where(any_one, instead, 0.0).to(v.dtype).unsqueeze(-1)), some, any_one


def _reduction(reduce: Callable[[Tensor], Tensor], instead: float = 0.0) -> Kernel:
    """`there` [..., n]: 0 for classes that are skipped; the value is 0 where all are."""

    def apply(body: Tensor, classes: Tensor, there: Tensor | None = None) -> Tensor:
        v = body.expand(torch.broadcast_shapes(body.shape, classes.shape))
        if there is None:
            return reduce(v)
        v, _, any_one = _masked(v, there, instead)
        return torch.where(any_one, reduce(v), 0.0)

    return apply


def _mean(body: Tensor, classes: Tensor, there: Tensor | None = None) -> Tensor:
    v = body.expand(torch.broadcast_shapes(body.shape, classes.shape))
    return v.mean(-1) if there is None else _masked(v, there, 0.0)[0].sum(-1) / (there != 0).sum(-1).clamp_min(1)


def _log_mean(body: Tensor, classes: Tensor, there: Tensor | None = None) -> Tensor:
    """The logarithm of the mean of numbers given by their logarithms."""
    v = body.expand(torch.broadcast_shapes(body.shape, classes.shape))
    if there is None:
        return log_sum_exp(v) - math.log(v.shape[-1])
    v, some, any_one = _masked(v, there, -math.inf)
    return torch.where(any_one, log_sum_exp(v) - torch.log(some.sum(-1).clamp_min(1).to(v.dtype)), 0.0)


def _sorted(body: Tensor, classes: Tensor, there: Tensor | None = None) -> Tensor:
    """In descending order; places beyond the classes that are there hold 0."""
    v = body.expand(torch.broadcast_shapes(body.shape, classes.shape))
    if there is None:
        return v.sort(dim=-1, descending=True).values
    v, some, _ = _masked(v, there, -math.inf)
    place = torch.arange(v.shape[-1], device=v.device)
    return torch.where(place < some.sum(-1, keepdim=True), v.sort(dim=-1, descending=True).values, 0.0)


KERNELS |= {
    "reduce_max": _reduction(lambda v: v.gather(-1, v.argmax(-1, keepdim=True)).squeeze(-1), -math.inf),
    "reduce_min": _reduction(lambda v: v.gather(-1, v.argmin(-1, keepdim=True)).squeeze(-1), math.inf),
    "reduce_sum": _reduction(lambda v: v.sum(-1)),
    "reduce_mean": _mean,
    "reduce_logsumexp": _reduction(log_sum_exp, -math.inf),
    "reduce_logmeanexp": _log_mean,
    "reduce_sort": _sorted,
}


def _class_of(pick: Callable[[Tensor], Tensor], instead: float) -> Kernel:
    """The lowest class of the header where all classes are skipped."""

    def apply(body: Tensor, classes: Tensor, there: Tensor | None = None) -> Tensor:
        shape = torch.broadcast_shapes(body.shape, classes.shape)
        v = body.detach().expand(shape)
        best = pick(v if there is None else _masked(v, there, instead)[0])
        return classes.expand(shape).gather(-1, best.unsqueeze(-1)).squeeze(-1)

    return apply


KERNELS["reduce_argmax"] = _class_of(lambda v: v.argmax(-1), -math.inf)
KERNELS["reduce_argmin"] = _class_of(lambda v: v.argmin(-1), math.inf)


@kernel("reduce_softmax")
def softmax_over_classes(body: Tensor, classes: Tensor, count: int, there: Tensor | None = None) -> Tensor:
    """Weights over the classes of the domain, 0 elsewhere, [..., K]."""
    shape = torch.broadcast_shapes(body.shape, classes.shape)
    if there is None:
        weights = torch.softmax(body.expand(shape), dim=-1)
    else:
        v, some, _ = _masked(body.expand(shape), there, -math.inf)
        weights = torch.where(some, torch.softmax(v, dim=-1), 0.0)
    return weights.new_zeros(*shape[:-1], count).scatter(-1, classes.expand(shape), weights)


@kernel("reduce_log_softmax")
def log_softmax_over_classes(body: Tensor, classes: Tensor, count: int, there: Tensor | None = None) -> Tensor:
    """Logarithms of the weights over the classes of the domain, -inf elsewhere, [..., K]."""
    shape = torch.broadcast_shapes(body.shape, classes.shape)
    if there is None:
        logs = torch.log_softmax(body.expand(shape), dim=-1)
    else:
        v, some, _ = _masked(body.expand(shape), there, -math.inf)
        logs = torch.where(some, torch.log_softmax(v, dim=-1), -math.inf)
    return logs.new_full((*shape[:-1], count), -math.inf).scatter(-1, classes.expand(shape), logs)


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


def _runner_up(z: Tensor, y: Tensor) -> Tensor:
    """max_{j != y} z_j; -inf where all of them are (log-probabilities of a one-hot vector)."""
    others = z.scatter(-1, y.unsqueeze(-1), -math.inf)
    return others.gather(-1, others.argmax(-1, keepdim=True)).squeeze(-1)


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
    return (_runner_up(z, y) >= entry(z, y)).to(z.dtype)


@kernel("misclassified")
def misclassified(z: Tensor, y: Tensor) -> Tensor:
    """1 where another class is predicted; 0 without a label."""
    return ((z.argmax(-1) != y) & (y >= 0)).to(z.dtype)


@kernel("DLR")
def difference_of_logits_ratio(z: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    z, y = _paired(z, y)
    ordered = z.sort(dim=-1, descending=True).values
    if target is None:
        return (_runner_up(z, y) - entry(z, y)) / (ordered[..., 0] - ordered[..., 2] + 1e-12)
    z, t = _paired(z, target)
    return (entry(z, t) - entry(z, y)) / (ordered[..., 0] - (ordered[..., 2] + ordered[..., 3]) / 2 + 1e-12)
