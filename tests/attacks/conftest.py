"""A small network trained on scikit-learn's digits, and a batch of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


@dataclass(frozen=True)
class Digits:
    """x: [N, 1, 8, 8] in [0, 1], float64; a model that classifies them well and is neither robust nor broken everywhere."""

    model: nn.Module
    x: Tensor
    y: Tensor

    def some(self, count: int, first: int = 0) -> tuple[Tensor, Tensor]:
        """Examples that are classified correctly."""
        right = (self.model(self.x).argmax(1) == self.y).nonzero()[first : first + count, 0]
        return self.x[right], self.y[right]


@pytest.fixture(scope="session")
def digits() -> Digits:
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float64).unsqueeze(1) / 16
    y = torch.tensor(data.target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for k in range(60):
        at = slice(25 * (k % 40), 25 * (k % 40) + 25)
        point = (x[at] + 0.1 * gradient(model, x[at], y[at]).sign()).clamp(0, 1)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(point), y[at]).backward()
        optimizer.step()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return Digits(model, x[1000:1400], y[1000:1400])


def gradient(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(nn.functional.cross_entropy(model(x), y), x)[0]
