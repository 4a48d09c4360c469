"""Losses whose gradients by the parameters are known already, and the backward pass that makes them known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def gradient(loss: Tensor, models: Sequence[nn.Module], *others: Tensor) -> list[Tensor]:
    """The gradient of one loss by every trained parameter, then by these tensors; its graph is used up."""
    wanted = [*trained(models), *others]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(wanted, found, strict=True)]


def carrying(value: Tensor, rows: Sequence[Tensor], models: Sequence[nn.Module]) -> Tensor:
    """A loss of this value, a scalar, whose gradient by every trained parameter is its row."""
    for p, row in zip(trained(models), rows, strict=True):
        value = value + ((p - p.detach()) * row).sum()
    return value


def trained(models: Sequence[nn.Module]) -> list[nn.Parameter]:
    """The parameters of the models that ask for a gradient."""
    return [p for model in models for p in model.parameters() if p.requires_grad]
