"""Small networks whose weights are a value like any other: one set of weights per row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lossdsl.engine.kernels.table import kernel

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "softplus": functional.softplus,
    "relu": torch.relu,
    "linear": lambda v: v,
}


@kernel("network")
def network(theta: Tensor, x: Tensor, shape: Any) -> Tensor:
    """Logits [..., K] of weights [..., P] at inputs [..., d]; theta holds W (row by row) and b of every layer."""
    activation = ACTIVATIONS[shape.activation]
    start, value = 0, x
    for n, (inputs, outputs) in enumerate(shape.layers):
        weights = theta[..., start : start + inputs * outputs].unflatten(-1, (outputs, inputs))
        start += inputs * outputs
        value = (weights * value.unsqueeze(-2)).sum(-1) + theta[..., start : start + outputs]
        start += outputs
        if n < len(shape.layers) - 1:
            value = activation(value)
    return value
