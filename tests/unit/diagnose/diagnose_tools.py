"""Small models and batches in float64, as subjects."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lossdsl.diagnose.subject import Subject


def network(classes: int, features: int = 6, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(features, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, classes)).double()


def batch(classes: int, features: int = 6, count: int = 9, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    x = torch.rand(count, features, dtype=torch.float64, generator=random)
    return x, torch.randint(classes, (count,), generator=random)


def subject(classes: int = 3, model: nn.Module | None = None, eps: float = 0.2, attack: str = "pgd10", **more: Any) -> Subject:
    x, y = batch(classes, **more)
    return Subject.of(model or network(classes, x.shape[1]), x, y, classes, attack, eps=eps)


def small(num_classes: int = 10, input_shape: tuple[int, ...] = (1, 8, 8)) -> nn.Module:
    """For --model diagnose_tools:small."""
    features = int(torch.tensor(input_shape).prod())
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, num_classes))


class Stepped(nn.Module):
    """Quantised inputs: no gradient reaches them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((x * 8).round().detach() / 8)


class Constant(nn.Module):
    """The same logits for every input."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.linspace(0, 1, classes, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


class Broken(nn.Module):
    """NaN where the first coordinate is large."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.inner(x)
        return torch.where(x[:, :1] > 0.8, torch.nan, z)
