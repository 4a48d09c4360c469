"""Small models on digits, sound ones and ones with a fault each."""

from __future__ import annotations

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout

TRAIN = 1300


@cache
def digits() -> tuple[Tensor, Tensor]:
    """x [1797, 1, 8, 8] in [0, 1], y [1797]; the first TRAIN are for training."""
    bunch = load_digits()
    return torch.from_numpy(bunch.images).float().div(16).unsqueeze(1), torch.from_numpy(bunch.target)


def held_out(classes: int = 10) -> tuple[Tensor, Tensor]:
    x, y = (values[TRAIN:] for values in digits())
    return x[y < classes], y[y < classes]


def perceptron(classes: int = 10) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, classes))


def convolutions(classes: int = 10) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, classes)
    )


def _attacked(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    point = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(4):
        point.requires_grad_(True)
        (slope,) = torch.autograd.grad(cross_entropy(model(point), y), point)
        point = torch.minimum(torch.maximum(point.detach() + eps / 2 * slope.sign(), x - eps), x + eps).clamp(0, 1)
    return point


@cache
def trained(make: str = "perceptron", seed: int = 0, eps: float = 0.0, classes: int = 10) -> nn.Module:
    """A model trained plainly (eps = 0) or against PGD, in eval mode. Shared between tests: wrap it, do not change it."""
    generator = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = {"perceptron": perceptron, "convolutions": convolutions}[make](classes)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    x, y = (values[:TRAIN] for values in digits())
    x, y = x[y < classes], y[y < classes]
    for _ in range(150):
        rows = torch.randint(len(y), (128,))
        point = x[rows] if eps == 0 else _attacked(model, x[rows], y[rows], eps)
        optimizer.zero_grad()
        cross_entropy(model(point), y[rows]).backward()
        optimizer.step()
    torch.random.set_rng_state(generator)
    return model.eval().requires_grad_(False)


class Around(nn.Module):
    """Something done to the inputs or outputs of a sound model."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.inner(x)
        return z


class Probabilities(Around):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


class DropoutOn(Around):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(dropout(x, 0.2, training=True))


class Stubborn(nn.Dropout):
    """Stays in train mode."""

    def train(self, mode: bool = True) -> Stubborn:
        super().train(True)
        return self


class Noisy(Around):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.1 * torch.randn_like(x))


class Quantised(Around):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x * 8).round() / 8)


class Detached(Around):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Constant(Around):
    """The third class wins everywhere, by a finite gap."""

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        return z.clamp(-50, 50) + 200 * torch.eye(z.shape[1])[2]


class NotANumber(Around):
    """NaN for one example in ten."""

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x).clone()
        z[::10] = torch.nan
        return z


class Scaled(Around):
    factor = 1000.0

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * super().forward(x)


class BatchStatistics(Around):
    """Normalised by the batch at hand, in eval mode too."""

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        return (z - z.mean(0)) / z.std(0).clamp(min=1e-3)


class Wavy(Around):
    """Shattered gradients: a ripple too fine to change the values, too steep to let gradients through."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.02 * torch.sin(2000 * x))


class Overflowing(Around):
    """NaN wherever a pixel leaves the values that digits have."""

    def forward(self, x: Tensor) -> Tensor:
        strange = ((x * 16 - (x * 16).round()).abs() > 1e-3).flatten(1).any(1)
        return torch.where(strange.unsqueeze(1), torch.nan, super().forward(x))
