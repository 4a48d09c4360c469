"""Norms, inner products and directions; `own` is the number of trailing dimensions of one Input or Vector."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lossdsl.engine.kernels.table import kernel


def _flat(v: Tensor, own: int) -> Tensor:
    return v.flatten(-own) if own > 1 else v.unsqueeze(-1) if own == 0 else v


@kernel("norm")
def norm(v: Tensor, order: float, own: int) -> Tensor:
    """|v|_q with gradient 0 at 0; |.|_2 does not under- or overflow."""
    flat = _flat(v, own)
    if order == 1:
        return flat.abs().sum(-1)
    if order == math.inf:
        sizes = flat.abs()
        return sizes.gather(-1, sizes.argmax(-1, keepdim=True)).squeeze(-1)
    largest = flat.detach().abs().amax(-1)
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
