"""Small float64 models that show what a pass of the plan may change, and a batch for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = 4


def batch(examples: int = 6) -> tuple[Tensor, Tensor]:
    """Inputs [N, 5] well inside [0, 1], labels [N]."""
    generator = torch.Generator().manual_seed(7)
    x = 0.2 + 0.6 * torch.rand(examples, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, CLASSES, (examples,), generator=generator)


def smooth_model() -> nn.Module:
    """No modes: every pass at a point gives the same logits."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, CLASSES)).double()


def moody_model() -> nn.Module:
    """BatchNorm and dropout: the number, order and mode of the passes all show in the result."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, CLASSES)).double()
