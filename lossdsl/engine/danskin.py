"""`through danskin`: the min-norm convex combination of the gradients at several maximisers (DDi, Latorre et al., ICLR 2023, alg. 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lossdsl.solve import min_norm_weights


def combined(losses: Sequence[Tensor], models: Sequence[nn.Module]) -> tuple[Tensor, Tensor]:
    """A loss whose gradient is the min-norm point of the convex hull of the losses' gradients, and the weights [k] of that point.

    Its value is the weighted mean of the losses. Each loss is a scalar whose graph is used up here.
    """
    parameters = [p for model in models for p in model.parameters() if p.requires_grad]
    rows = []
    for loss in losses:
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        rows.append([torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)])
    gram = torch.stack([torch.stack([_inner(a, b) for b in rows]) for a in rows])
    weights = min_norm_weights(gram).to(losses[0])
    direction = [sum(w * row[n] for w, row in zip(weights, rows, strict=True)) for n in range(len(parameters))]
    value = sum(w * loss.detach() for w, loss in zip(weights, losses, strict=True))
    carrier = sum(((p - p.detach()) * d).sum() for p, d in zip(parameters, direction, strict=True))
    return value + carrier, weights  # type: ignore[return-value]


def _inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([(p.double() * q.double()).sum() for p, q in zip(a, b, strict=True)]).sum()
