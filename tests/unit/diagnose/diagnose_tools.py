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
    return Subject.of(model or network(classes, **{k: v for k, v in more.items() if k == "features"}), x, y, classes, attack, eps=eps)
