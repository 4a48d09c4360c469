"""The smallest recipe, step and attack that the run side can drive: PGD adversarial training, by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lossdsl.lang.specs import OptimizerSpec, TrainOptions, UpperSgdOptions
from lossdsl.run import metrics
from lossdsl.run.checkpoint import read_checkpoint
from lossdsl.run.data import DataSet, from_tensors
from lossdsl.run.measure import evaluation_mode
from lossdsl.run.request import TrainRequest
from lossdsl.run.train import train
from lossdsl.solve import Randomness, draws


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
    models: Mapping[str, bool] = field(default_factory=dict)
    optimizers: Mapping[str, OptimizerSpec] = field(default_factory=dict)
    needs_index: bool = False
    sampled: bool = False

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def explain(self) -> str:
        return "everything filled in"


class FakeLoss(Tensor):
    terms: dict[str, Tensor]
    logs: dict[str, Tensor]


def pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, step: float, steps: int, generator: Randomness) -> Tensor:
    point = (x + eps * (2 * draws.uniform(x, generator) - 1)).clamp(0, 1)
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

    def class_probabilities(self) -> Tensor | None:
        return None

    def state_dict(self) -> dict[str, Tensor]:
        return {"batches": self.batches}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.batches = state["batches"].clone()


class FakeAttack:
    count = "worst"
    helpers: Sequence[nn.Module] = ()

    def __init__(self, name: str, model: nn.Module, eps: float, steps: int) -> None:
        self.name, self.model, self.eps, self.steps = name, model, eps, steps
        row = {"solver": "pgd", "steps": steps, "restarts": 1, "step": eps / 4, "start": "uniform", "norm": "linf", "radius": eps}
        self.settings: Sequence[Mapping[str, Any]] = [{"name": "ce", **row}]
        self.hash = f"{name} {eps} {steps}"
        self.domain = (0.0, 1.0)

    def run(self, x: Tensor, y: Tensor, *, generator: Randomness, only: str | None = None) -> dict[str, tuple[Tensor, Tensor | None]]:
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
        "compile_step": lambda model, num_classes, device, models: FakeStep(model, recipe.params["eps"], poison),
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


# --- runs that are cut ------------------------------------------------------------------------------------------------


class Cut(BaseException):
    """Stands for the end of the process: nothing may catch it."""


class CutStep:
    """A step that ends the process without a word after some calls."""

    def __init__(self, step: Any, calls: int) -> None:
        self._step, self._left = step, calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise Cut
        return self._step(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._step, name)


def cut_after(request: TrainRequest, updates: int) -> TrainRequest:
    """The same run, ended after some updates of this process."""
    return replace(request, compile_step=lambda *args: CutStep(request.compile_step(*args), updates))


def outcome(out: Path) -> dict[str, Any]:
    """All that a run leaves, without the times."""
    found: dict[str, Any] = {}
    for name in ("last", "best"):
        checkpoint = read_checkpoint(out / f"{name}.safetensors")
        state = json.loads(json.dumps(checkpoint.state))
        state.get("place", {}).pop("seconds", None)
        found[name] = (checkpoint.tensors, state)
    found["metrics"] = [{k: v for k, v in record.items() if k != "seconds"} for record in metrics.read(out / "metrics.jsonl")]
    result = json.loads((out / "result.json").read_text())
    found["result"] = {k: v for k, v in result.items() if k not in ("seconds", "written")}
    return found


def assert_same(one: dict[str, Any], two: dict[str, Any]) -> None:
    for name in ("last", "best"):
        assert one[name][0].keys() == two[name][0].keys()
        for key, tensor in one[name][0].items():
            assert torch.equal(tensor, two[name][0][key]), (name, key)
        assert one[name][1] == two[name][1]
    assert one["metrics"] == two["metrics"]
    assert one["result"] == two["result"]


def check_cuts(folder: Path, every: int, *, checkpoint_every: int | None = None, **changes: Any) -> dict[str, Any]:
    """A run that is cut after every `every` updates and resumed ends as the same run in one piece; returns that outcome.

    `checkpoint_every`: updates between checkpoints, `every` unless given (any other number loses work that is done again)."""
    assert train(make_request(folder / "whole", **changes)).status == "finished"
    cut = make_request(folder / "cut", checkpoint_every=checkpoint_every or every, resume=True, **changes)
    for _ in range(100):
        try:
            train(cut_after(cut, every))
            break
        except Cut:
            continue
    else:
        raise AssertionError("the run makes no headway")
    assert_same(outcome(folder / "whole"), outcome(folder / "cut"))
    return outcome(folder / "whole")
