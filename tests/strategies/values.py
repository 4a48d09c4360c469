"""Small models, batches, and values for everything a checked recipe leaves open: lower solutions, iterates, samples."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lossdsl.check.typed import TypedRecipe


def small_model(features: int, classes: int, seed: int = 0) -> nn.Module:
    """A network in float64 with logits of moderate size and no two examples of a batch in touch."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(features, 6), nn.Tanh(), nn.Linear(6, classes)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model


def batch(size: int, shape: tuple[int, ...], classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x [B, *shape] in [0, 1] and y [B]."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.rand((size, *shape), generator=generator, dtype=torch.float64), torch.randint(classes, (size,), generator=generator)


def values_for(typed: TypedRecipe, x: Tensor, classes: int, seed: int = 0) -> dict[str, Tensor]:
    """Random points in [0, 1] for every lower variable and iterate, random numbers for every sample, by name."""
    generator = torch.Generator().manual_seed(2000 + seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    values: dict[str, Tensor] = {}
    for level in typed.levels:
        members = () if level.axis is None else (classes - (level.axis.domain.kind == "not"),)
        for key in (level.var, *(f"{level.var}@{k}" for k in range(level.solver.options.steps + 1))):
            values[key] = rand(x.shape[0], *members, *x.shape[1:])
    shapes = {"x": tuple(x.shape), "example": (x.shape[0],), "batch": (), "classes": (x.shape[0], classes)}
    for sample in typed.samples:
        values[sample.name] = rand(*shapes[sample.over]) - 0.3
    return values
