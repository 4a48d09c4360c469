"""Arithmetic by example: a tensor [N, *shape] holds N examples, and nothing here lets one see another."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def rows(values: Tensor) -> Tensor:
    """[N, *shape] as [N, d]; [N] as [N, 1]."""
    return values.reshape(values.shape[0], math.prod(values.shape[1:]))


def per_example(value: float | Tensor, like: Tensor) -> float | Tensor:
    """A number as it is; a tensor broadcastable to [N] as [N, 1, ..., 1], ready to meet `like` of shape [N, *shape]."""
    if not isinstance(value, Tensor):
        return float(value)
    return value.to(like).expand(like.shape[0]).reshape(-1, *(1,) * (like.dim() - 1))


def largest(values: Tensor) -> Tensor:
    """Largest absolute coordinate of every example, [N]; not finite as soon as one coordinate is not (vector_norm is far slower on CPU)."""
    return rows(values).abs().amax(1)


def _by_largest(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Each example's gradient divided by its largest absolute value, so that norms neither overflow nor underflow, and [N] what is 0.

    The divisor is a constant for derivatives: what follows does not see the scale. Where the gradient is 0, so is the derivative.
    """
    top = largest(gradient.detach())
    zero = top == 0
    scaled = gradient / per_example(top.masked_fill(zero, 1.0), gradient)
    return (scaled * per_example(~zero, gradient) if scaled.requires_grad else scaled), zero


def unit(gradient: Tensor) -> Tensor:
    """gradient / |gradient|_2 per example, unit(0) = 0; right for gradients of any finite size. A fresh tensor, differentiable."""
    scaled, zero = _by_largest(gradient)
    length = torch.linalg.vector_norm(rows(scaled), dim=1)
    return scaled / per_example(length.masked_fill(zero, 1.0), scaled)


def mean_normalised(gradient: Tensor) -> Tensor:
    """gradient / mean(|gradient|) per example, 0 for a zero gradient (Dong et al., CVPR 2018, eq. 6, up to the constant d)."""
    scaled, zero = _by_largest(gradient)
    mean = rows(scaled).abs().mean(1)
    return scaled / per_example(mean.masked_fill(zero, 1.0), scaled)


def taken(record: T, at: Tensor) -> T:
    """A dataclass whose tensors all have the examples in their first dimension, for the examples `at` (LongTensor)."""
    whole: Any = record
    new = {f.name: v.index_select(0, at) for f in fields(whole) if isinstance(v := getattr(whole, f.name), Tensor)}
    part: T = replace(whole, **new)
    return part
