"""Small models, their batches, and the comparison of two computations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Generator, Tensor, nn


class Normalise(nn.Module):
    """(x - 0.4) / 0.2: normalisation belongs to the model, radii do not see it."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.4) / 0.2


def mlp_tanh(classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, classes))


def mlp_relu_bn(classes: int) -> nn.Module:
    return nn.Sequential(Normalise(), nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, classes))


def cnn_relu_bn(classes: int) -> nn.Module:
    body = (
        nn.Conv2d(2, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, 4, 3, stride=2),
        nn.BatchNorm2d(4, momentum=0.3),
        nn.ReLU(),
    )
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(16, classes))


def cnn_smooth(classes: int) -> nn.Module:
    return nn.Sequential(Normalise(), nn.Conv2d(2, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(36, classes))


SHAPES: dict[Callable[[int], nn.Module], tuple[int, ...]] = {
    mlp_tanh: (6,),
    mlp_relu_bn: (6,),
    cnn_relu_bn: (2, 5, 5),
    cnn_smooth: (2, 5, 5),
}
SETTINGS = [
    (mlp_tanh, 2),
    (mlp_tanh, 10),
    (mlp_relu_bn, 3),
    (mlp_relu_bn, 10),
    (cnn_relu_bn, 2),
    (cnn_relu_bn, 3),
    (cnn_relu_bn, 10),
    (cnn_smooth, 3),
]


@dataclass(frozen=True)
class Setting:
    """A model with lived-in running statistics, and a batch whose values touch both ends of [0, 1]."""

    model: nn.Module
    classes: int
    x: Tensor
    y: Tensor

    def copy(self) -> nn.Module:
        """The model apart from every other copy, buffers included."""
        return copy.deepcopy(self.model)

    def to(self, dtype: torch.dtype) -> Setting:
        return Setting(self.copy().to(dtype), self.classes, self.x.to(dtype), self.y)


def make(build: Callable[[int], nn.Module], classes: int, batch: int = 7, seed: int = 0) -> Setting:
    """In float64 and train mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(classes).double()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.3 * torch.randn_like(p))
            for _ in range(3):
                model(torch.rand(16, *SHAPES[build], dtype=torch.float64))
        x = (torch.rand(batch, *SHAPES[build], dtype=torch.float64) * 1.2 - 0.1).clamp(0, 1)
        return Setting(model, classes, x, torch.randint(classes, (batch,)))


@pytest.fixture(params=SETTINGS, ids=lambda s: f"{s[0].__name__}-{s[1]}")
def setting(request: pytest.FixtureRequest) -> Setting:
    """Every model of this folder in turn."""
    return make(*request.param)


@pytest.fixture
def smooth() -> Setting:
    """No BatchNorm, four classes, inputs of rank one."""
    return make(mlp_tanh, 4)


@pytest.fixture
def normed() -> Setting:
    """Images, BatchNorm, four classes."""
    return make(cnn_relu_bn, 4)


class Table(nn.Module):
    """Logits by hand: the model at `points[i]` gives row i; the gradient in the weights is that in the logits, row by row."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(logits.clone())
        self.points = torch.eye(len(logits), dtype=logits.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.rows


@pytest.fixture
def table() -> type[Table]:
    """The model whose logits a test chooses."""
    return Table


def seeded(seed: int = 5) -> Generator:
    return Generator().manual_seed(seed)


@pytest.fixture
def draws() -> Callable[..., Generator]:
    """Makes generators that give the same numbers each time."""
    return seeded
