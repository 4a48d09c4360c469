"""Vectors over classes that every example of a batch shares, [B, K] with equal rows, and labels that may be missing (-1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lossdsl.engine.kernels.table import kernel


def _members(y: Tensor, condition: Tensor | None, classes: int) -> Tensor:
    """bool [B, K]: which examples of the batch count for which class; none for a missing label."""
    members = y.unsqueeze(-1) == torch.arange(classes, device=y.device)
    return members if condition is None else members & (condition != 0).expand(y.shape).unsqueeze(-1)


def _sums(e: Tensor, members: Tensor) -> Tensor:
    """Examples that do not count give neither a value nor a gradient, not even an infinite one."""
    return torch.where(members, e.expand(members.shape[0]).unsqueeze(-1), 0.0).sum(0)


@kernel("class_sum")
def class_sum(e: Tensor, y: Tensor, condition: Tensor | None = None, *, classes: int) -> Tensor:
    """Sum of e [B] (or []: once per example) over the examples of each class, [B, K]; 0 for a class without any."""
    return _sums(e, _members(y, condition, classes)).expand(len(y), -1)


@kernel("class_mean")
def class_mean(e: Tensor, y: Tensor, condition: Tensor | None = None, *, classes: int) -> Tensor:
    """Mean of e over the examples of each class, [B, K]; 0 for a class without any."""
    members = _members(y, condition, classes)
    return (_sums(e, members) / members.sum(0).clamp_min(1)).expand(len(y), -1)


@kernel("present")
def present(y: Tensor, condition: Tensor | None = None, *, classes: int, real: Tensor) -> Tensor:
    """1 for the classes that some example counts for, else 0, [B, K]."""
    return _members(y, condition, classes).any(0).to(real.dtype).expand(len(y), -1)


@kernel("known")
def known(y: Tensor, real: Tensor) -> Tensor:
    """1 where the label is given, 0 where it is -1, [B]."""
    return (y >= 0).to(real.dtype)


@kernel("zeros")
def zeros(y: Tensor, real: Tensor, classes: int) -> Tensor:
    return real.new_zeros(classes).expand(len(y), -1)


@kernel("ones")
def ones(y: Tensor, real: Tensor, classes: int) -> Tensor:
    return real.new_ones(classes).expand(len(y), -1)


@kernel("no_mass")
def no_mass(logs: Tensor, condition: Tensor) -> Tensor:
    """Log-probabilities [..., K] where the condition [...] holds, else those of no mass at all."""
    return torch.where((condition != 0).unsqueeze(-1), logs, -math.inf)
