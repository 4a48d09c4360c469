"""The smallest recipe, step and attack that the run side can drive: PGD adversarial training, by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lossdsl.lang.specs import OptimizerSpec, TrainOptions, UpperSgdOptions
from lossdsl.run.data import DataSet, from_tensors
from lossdsl.run.measure import evaluation_mode
from lossdsl.run.train import TrainRequest


@dataclass(frozen=True)
class FakeRecipe:
    train: TrainOptions = field(default_factory=lambda: TrainOptions(epochs=2, batch=32, validation=0.25))
    params: Mapping[str, float] = field(default_factory=lambda: {"eps": 0.1, "step": 0.05})
    optimizer: OptimizerSpec = field(default_factory=lambda: OptimizerSpec("sgd", UpperSgdOptions(lr=0.05, momentum=0.9)))
    domain: Any = (0.0, 1.0)
    name: str = "pgd_at"
    title: str = "PGD-AT"
    source_note: str = "Madry et al., ICLR 2018"
    text: str = "recipe pgd_at"

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def explain(self) -> str:
        return "everything filled in"


class FakeLoss(Tensor):
    terms: dict[str, Tensor]
    logs: dict[str, Tensor]


def pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, step: float, steps: int, generator: torch.Generator) -> Tensor:
    point = (x + eps * (2 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 1)).clamp(0, 1)
    with evaluation_mode(model):
        for _ in range(steps):
            point.requires_grad_(True)
            (slope,) = torch.autograd.grad(cross_entropy(model(point), y, reduction="sum"), point)
            point = torch.minimum(torch.maximum(point.detach() + step * slope.sign(), x - eps), x + eps).clamp(0, 1)
    return point


class FakeStep:
    """CE at the point of a 2-step PGD; its recipe state counts batches and feeds back into the loss."""

    def __init__(self, model: nn.Module, eps: float, poison: int | None = None) -> None:
        self.model, self.eps, self.poison = model, eps, poison
        self.batches = torch.zeros(())
        self.epochs: list[int] = []

    def __call__(self, x: Tensor, y: Tensor, *, index: Tensor, generator: torch.Generator) -> FakeLoss:
        assert len(index) == len(y)
        point = pgd(self.model, x, y, self.eps, self.eps, 2, generator)
        loss = cross_entropy(self.model(point), y) * (1 + 0.01 * torch.sin(self.batches))
        self.batches = self.batches + 1
        if self.poison is not None and int(self.batches) > self.poison:
            loss = loss * float("nan")
        made = loss.as_subclass(FakeLoss)
        made.terms = {"CE": loss.detach()}
        made.logs = {"confidence": torch.exp(-loss.detach())}
        return made

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def after_update(self) -> None: ...

    def state_dict(self) -> dict[str, Tensor]:
        return {"batches": self.batches}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.batches = state["batches"].clone()


class FakeAttack:
    count = "worst"

    def __init__(self, name: str, model: nn.Module, eps: float, steps: int) -> None:
        self.name, self.model, self.eps, self.steps = name, model, eps, steps
        row = {"solver": "pgd", "steps": steps, "restarts": 1, "step": eps / 4, "start": "uniform", "norm": "linf", "radius": eps}
        self.settings: Sequence[Mapping[str, Any]] = [{"name": "ce", **row}]

    def run(self, x: Tensor, y: Tensor, *, generator: torch.Generator, only: str | None = None) -> dict[str, tuple[Tensor, Tensor | None]]:
        return {"ce": (pgd(self.model, x, y, self.eps, self.eps / 4, self.steps, generator), None)}


def compile_attack(name: str, overrides: Mapping[str, float], model: nn.Module, num_classes: int, device: torch.device) -> FakeAttack:
    return FakeAttack(name, model, float(overrides["eps"]), {"pgd10": 2, "pgd20": 4}[name])


def tiny_data(count: int = 160, classes: int = 3, seed: int = 0) -> DataSet:
    """Blurred class templates, 1x6x6 in [0, 1]: learnt in a few batches."""
    random = torch.Generator().manual_seed(seed)
    templates = torch.rand(classes, 1, 6, 6, generator=random)
    y = torch.arange(count) % classes
    x = (0.7 * templates[y] + 0.3 * torch.rand(count, 1, 6, 6, generator=random)).clamp(0, 1)
    cut = count * 3 // 4
    return from_tensors("tiny", (x[:cut], y[:cut]), (x[cut:], y[cut:]), classes, note="made up")


def make_request(out: Path, **changes: Any) -> TrainRequest:
    recipe = changes.pop("recipe", None) or FakeRecipe()
    poison = changes.pop("poison", None)
    defaults: dict[str, Any] = {
        "recipe": recipe,
        "compile_step": lambda model, num_classes, device: FakeStep(model, recipe.params["eps"], poison),
        "compile_attack": compile_attack,
        "out": out,
        "data": tiny_data(),
        "device": "cpu",
        "command": ("lossdsl", "train", "pgd_at", "--out", str(out)),
    }
    return TrainRequest(**{**defaults, **changes})


class NoisyNet(nn.Sequential):
    """Draws from torch's global generator in every forward pass, in eval mode too."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(36, 3))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.1 * torch.rand(1)  # type: ignore[no-any-return]


class DropoutNet(nn.Sequential):
    """Batch norm and dropout: buffers and torch's global generator take part in the run."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(64, num_classes))
