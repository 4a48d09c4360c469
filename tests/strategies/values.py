"""Small models, batches, and values for everything a checked recipe leaves open: lower solutions, iterates, samples."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lossdsl.check.typed import TypedFind, TypedRecipe, TypedState
from lossdsl.lang.types import Kind


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


def values_for(typed: TypedRecipe, x: Tensor, classes: int, seed: int = 0, model: nn.Module | None = None) -> dict[str, Tensor]:
    """Random points in [0, 1] for every lower variable and iterate, weights near those of the model, distributions, roots, counts of right
    iterates, states, and random numbers for every sample, by name. model: that of the recipe; without it a `small_model`."""
    generator = torch.Generator().manual_seed(2000 + seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    values = {s.name: 0.5 + rand(*_state_shape(s, x.shape[0], classes)) for s in typed.states}
    theta = torch.cat([p.detach().flatten() for p in (model or small_model(x[0].numel(), classes)).parameters()])
    for stage in typed.stages:
        if isinstance(stage, TypedFind):
            values[stage.var] = stage.low.low + (stage.high.high - stage.low.low) * rand(x.shape[0])
        elif stage.set.over == "weights":
            values[stage.var] = theta + 0.1 * (rand(*theta.shape) - 0.5)
        elif stage.set.over == "classes":
            values[stage.var] = torch.softmax(3 * rand(classes), 0)
    for level in (level for level in typed.levels if level.set.over == "input"):
        members = () if level.axis is None else (classes - (level.axis.domain.kind == "not"),)
        for key in (level.var, *(f"{level.var}@{k}" for k in range(level.solver.options.steps + 1))):
            values[key] = rand(x.shape[0], *members, *x.shape[1:])
        for count in ("survived", "first_fooled"):
            values[f"{level.var}@{count}"] = (rand(x.shape[0], *members) * (level.solver.options.steps + 1)).floor()
    shapes = {"x": tuple(x.shape), "example": (x.shape[0],), "batch": (), "classes": (x.shape[0], classes)}
    for sample in typed.samples:
        low, high = (sample.draw.low, sample.draw.high) if sample.draw.attrs[0] == "uniform" and sample.over != "x" else (-0.3, 0.7)
        values[sample.name] = low + (high - low) * rand(*shapes[sample.over])
    return values


def _state_shape(state: TypedState, examples: int, classes: int) -> tuple[int, ...]:
    return (examples,) if state.per_example else (classes,) if state.init.kind is Kind.VECTOR else ()
