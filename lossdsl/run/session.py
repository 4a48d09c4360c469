"""The live parts of a training run, and their way into a checkpoint and back."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lossdsl.diagnostics import UserError
from lossdsl.run.batches import ClassSampler, Feed
from lossdsl.run.checkpoint import (
    Checkpoint,
    join_optimizer,
    pack,
    read_checkpoint,
    split_optimizer,
    write_checkpoint,
)
from lossdsl.run.examples import Split
from lossdsl.run.files import make_directory
from lossdsl.run.optim import Stepper
from lossdsl.run.protocols import Attack, Recipe, Step
from lossdsl.run.rng import Streams, global_state, load_global_state
from lossdsl.run.stored import AVERAGE, kept_epoch, load_weights
from lossdsl.run.unlabelled import PseudoLabels

LAST, BEST = "last.safetensors", "best.safetensors"
MAIN = ""
"""The name, among the steppers, of the one that trains f."""


@dataclass
class Place:
    """Where the run stands: `batch` batches of epoch `epoch` (from 1) are done; with all of them done, its validation is not. Of the next
    batch `replay` updates are done.

    `rate`: the learning rate of the last update. `sums`: for each reported value, its sum over the epoch so far and the number of
    examples in it. `best`: epoch, clean and robust accuracy of the best validation so far; `stale`: epochs since the robust one rose.
    """

    epoch: int = 1
    batch: int = 0
    replay: int = 0
    updates: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    sums: dict[str, list[float]] = field(default_factory=dict)
    best: dict[str, float] | None = None
    stale: int = 0
    done: bool = False

    def add(self, values: Mapping[str, float], weight: int) -> None:
        """Add one batch's means. Values that are not finite can only be logs, and are left out of their mean."""
        for name, value in values.items():
            entry = self.sums.setdefault(name, [0.0, 0])
            if abs(value) < float("inf"):
                entry[0] += value * weight
                entry[1] += weight

    def means(self) -> dict[str, float | None]:
        return {name: total / weight if weight else None for name, (total, weight) in self.sums.items()}


@dataclass
class Session:
    """One run in memory.

    `steppers`: the optimizers, that of f under MAIN, others by the name of their model. `models`: the other models, `trained` the names of
    those that are not frozen. `drawn`: the examples of the batch at hand, where a sampler drew them; `before`: the state of the
    augmentation's generator before that batch.
    """

    recipe: Recipe
    out: Path
    seed: int
    device: torch.device
    model: nn.Module
    step: Step
    steppers: Mapping[str, Stepper]
    streams: Streams
    feed: Feed
    validation: Split
    validation_attack: Attack
    identity: Mapping[str, Any]
    eval_batch: int
    checkpoint_every: int | None
    checkpoint_seconds: float | None
    keep_epochs: int | None = None
    alarm: Attack | None = None
    models: Mapping[str, nn.Module] = field(default_factory=dict)
    trained: tuple[str, ...] = ()
    averaged: AveragedModel | None = None
    sampler: ClassSampler | None = None
    pseudo: PseudoLabels | None = None
    drawn: Tensor | None = None
    before: Tensor | None = None
    place: Place = field(default_factory=Place)
    started: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.recipe.train.precision == "float64" else torch.float32

    @property
    def measured(self) -> nn.Module:
        """The model that is validated, kept and tested: the average of the weights where the recipe asks for one."""
        return self.model if self.averaged is None else self.averaged.module

    @property
    def per_epoch(self) -> int:
        """Batches per epoch; the last one may be smaller."""
        return self.feed.per_epoch

    @property
    def run_id(self) -> str:
        return run_id(self.identity)

    def save_last(self) -> None:
        """Write last.safetensors: everything that the rest of the run depends on."""
        self.place.seconds = time.monotonic() - self.started
        global_tensors, global_values = global_state(self.device)
        parts = {"model": self.model.state_dict(), "recipe": self.step.state_dict(), **self._trained()}
        state: dict[str, Any] = {"kind": "last", "run": self.run_id, "place": asdict(self.place), "global": global_values, "steppers": {}}
        for name, stepper in self.steppers.items():
            parts[f"optimizer.{name}" if name else "optimizer"], values = split_optimizer(stepper.optimizer.state_dict())
            state["steppers"][name] = {"optimizer": values, "schedule": stepper.schedule.state_dict()}
        parts["streams"], parts["global"] = self.streams.state_dict(), global_tensors
        if self.place.replay and self.before is not None:
            parts["streams"]["augment"] = self.before
        if self.drawn is not None:
            parts["batch"] = {"drawn": self.drawn}
        if self.averaged is not None:
            parts[AVERAGE] = self.averaged.module.state_dict()
            state["averaged"] = int(self.averaged.n_averaged)
        write_checkpoint(self.out / LAST, pack(parts), state)
        self.saved = time.monotonic()

    def _trained(self) -> dict[str, dict[str, Any]]:
        return {f"model.{name}": self.models[name].state_dict() for name in self.trained}

    def save_if_due(self) -> None:
        """Save between batches, as often as asked. When it is done changes nothing in the run."""
        every, seconds = self.checkpoint_every, self.checkpoint_seconds
        if (every and self.place.updates % every == 0) or (seconds is not None and time.monotonic() - self.saved >= seconds):
            self.save_last()

    def save_best(self) -> None:
        """Write best.safetensors: measured weights and recipe state of the epoch in `place.best`."""
        tensors = pack({"model": self.measured.state_dict(), "recipe": self.step.state_dict(), **self._trained()})
        write_checkpoint(self.out / BEST, tensors, {"kind": "best", "run": self.run_id, "best": self.place.best})

    def keep_epoch(self) -> None:
        """Write the measured weights and the recipe's state of this epoch, if it is one to be kept."""
        if self.keep_epochs is None or self.place.epoch % self.keep_epochs:
            return
        path = kept_epoch(self.out, self.place.epoch)
        make_directory(path.parent)
        tensors = pack({"model": self.measured.state_dict(), "recipe": self.step.state_dict(), **self._trained()})
        write_checkpoint(path, tensors, {"kind": "epoch", "run": self.run_id, "epoch": self.place.epoch})

    def resume(self) -> None:
        """Take up the run at last.safetensors. Raises UserError: damaged, or of another run."""
        path = self.out / LAST
        found = read_checkpoint(path)
        self.check_owner(found, path)
        state = found.state
        load_weights(self.model, found, path)
        for name in self.trained:
            load_weights(self.models[name], found, path, f"model.{name}")
        if self.averaged is not None:
            load_weights(self.averaged.module, found, path, AVERAGE)
        try:
            self.step.load_state_dict(found.part("recipe"))
            for name, stepper in self.steppers.items():
                values = state["steppers"][name]
                tensors = found.part(f"optimizer.{name}" if name else "optimizer")
                stepper.optimizer.load_state_dict(join_optimizer(tensors, values["optimizer"]))
                stepper.schedule.load_state_dict(values["schedule"])
            if self.averaged is not None:
                self.averaged.n_averaged.fill_(state["averaged"])
            self.drawn = found.part("batch").get("drawn")
            self.streams.load_state_dict(found.part("streams"))
            load_global_state(found.part("global"), state["global"], self.device)
            self.place = Place(**state["place"])
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise UserError(
                f"does not fit this run ({error})", where=str(path), fix="resume with the version of lossdsl that wrote it"
            ) from error
        self.started = time.monotonic() - self.place.seconds

    def check_owner(self, found: Checkpoint, path: Path) -> None:
        if found.state.get("run") != self.run_id:
            raise UserError(
                "belongs to another run than the manifest beside it",
                where=str(path),
                fix="put back the file of this run, or train into another directory",
            )


def run_id(identity: Mapping[str, Any]) -> str:
    """What ties the files of a run together."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
