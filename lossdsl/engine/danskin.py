"""`through danskin`: the min-norm convex combination of the gradients at several maximisers (DDi, Latorre et al., ICLR 2023, alg. 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lossdsl.engine.carried import carrying
from lossdsl.solve import min_norm_weights


def combined(losses: Sequence[Tensor], rows: Sequence[Sequence[Tensor]], models: Sequence[nn.Module]) -> tuple[Tensor, Tensor]:
    """A loss whose gradient is the min-norm point of the convex hull of the losses' gradients, and the weights [k] of that point, float64.

    Its value is the weighted mean of the losses, scalars. rows: their gradients.
    """
    gram = torch.stack([torch.stack([_inner(a, b) for b in rows]) for a in rows])
    weights = min_norm_weights(gram)
    combination = [mean([row[n] for row in rows], weights) for n in range(len(rows[0]))]
    return carrying(mean(losses, weights), combination, models), weights


def mean(values: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The weighted mean, without gradient, in the precision of the values."""
    total = torch.zeros_like(values[0])
    for weight, value in zip(weights, values, strict=True):
        total = total + weight.to(value.dtype) * value.detach()
    return total


def _inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([(p.double() * q.double()).sum() for p, q in zip(a, b, strict=True)]).sum()
