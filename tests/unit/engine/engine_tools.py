"""Models, batches and recipes for the tests of the engine."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

import lossdsl
from lossdsl.engine.api import Step

BY = "by sgd(lr = 0.1)"
PGD = "by pgd(steps = 3, step = 0.05, start = x + normal(0.01))"


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def step_of(body: str, model: nn.Module, classes: int = 4, **options: Any) -> Step:
    """The step of a recipe given without its first line."""
    return lossdsl.compile(lossdsl.parse(f"recipe r\n{body}"), model, num_classes=classes, **options)  # type: ignore[no-any-return]


def upper(expression: str, model: nn.Module, classes: int = 4, before: str = "", **options: Any) -> Step:
    """The step of a recipe with this upper objective."""
    return step_of(f"{before}\nupper minimize {expression} {BY}", model, classes, **options)


def data(examples: int = 6, shape: tuple[int, ...] = (5,), classes: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """x [examples, *shape] in [0.2, 0.8], y [examples]."""
    generator = seeded(7)
    x = 0.2 + 0.6 * torch.rand(examples, *shape, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.randint(0, classes, (examples,), generator=generator)


class Flat(nn.Module):
    """Inputs of any rank [N, *shape], flattened, through the given layers."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.reshape(x.shape[0], -1))  # type: ignore[no-any-return]


def mlp(shape: tuple[int, ...] = (5,), classes: int = 4, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Smooth, without modes."""
    torch.manual_seed(1)
    return Flat(nn.Linear(math.prod(shape), 8), nn.Tanh(), nn.Linear(8, classes)).to(dtype)


def moody(dtype: torch.dtype = torch.float64) -> nn.Module:
    """BatchNorm and dropout over inputs [N, 5], 4 classes."""
    torch.manual_seed(1)
    return Flat(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 4)).to(dtype)


def batchnorm(dtype: torch.dtype = torch.float64) -> nn.Module:
    """BatchNorm alone over inputs [N, 5], 4 classes."""
    torch.manual_seed(1)
    return Flat(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4)).to(dtype)


class Logits(nn.Module):
    """The identity times a parameter that is 1: inputs [N, K] are the logits. Tests choose the logits and read their gradients."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters()), retain_graph=True))
