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
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from lossdsl.diagnostics import UserError
from lossdsl.run.checkpoint import (
    Checkpoint,
    join_optimizer,
    pack,
    read_checkpoint,
    split_optimizer,
    write_checkpoint,
)
from lossdsl.run.examples import Split
from lossdsl.run.protocols import Attack, Recipe, Step
from lossdsl.run.rng import Streams, global_state, load_global_state

LAST, BEST = "last.safetensors", "best.safetensors"


@dataclass
class Place:
    """Where the run stands: `batch` batches of epoch `epoch` (from 1) are done; with all of them done, its validation is not.

    `rate`: the learning rate of the last update. `sums`: for each reported value, its sum over the epoch so far and the number of
    examples in it. `best`: epoch, clean and robust accuracy of the best validation so far; `stale`: epochs since the robust one rose.
    """

    epoch: int = 1
    batch: int = 0
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
    """One run in memory."""

    recipe: Recipe
    out: Path
    seed: int
    device: torch.device
    model: nn.Module
    step: Step
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    streams: Streams
    train: Split
    validation: Split
    validation_attack: Attack
    identity: Mapping[str, Any]
    eval_batch: int
    checkpoint_every: int | None
    checkpoint_seconds: float | None
    place: Place = field(default_factory=Place)
    started: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.recipe.train.precision == "float64" else torch.float32

    @property
    def per_epoch(self) -> int:
        """Batches per epoch; the last one may be smaller."""
        return -(-len(self.train) // self.recipe.train.batch)

    @property
    def run_id(self) -> str:
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    def save_last(self) -> None:
        """Write last.safetensors: everything that the rest of the run depends on."""
        self.place.seconds = time.monotonic() - self.started
        optimizer, values = split_optimizer(self.optimizer.state_dict())
        global_tensors, global_values = global_state(self.device)
        tensors = pack(
            {
                "model": self.model.state_dict(),
                "recipe": self.step.state_dict(),
                "optimizer": optimizer,
                "streams": self.streams.state_dict(),
                "global": global_tensors,
            }
        )
        state = {
            "kind": "last",
            "run": self.run_id,
            "place": asdict(self.place),
            "optimizer": values,
            "schedule": self.schedule.state_dict(),
            "global": global_values,
        }
        write_checkpoint(self.out / LAST, tensors, state)
        self.saved = time.monotonic()

    def save_if_due(self) -> None:
        """Save between batches, as often as asked. When it is done changes nothing in the run."""
        every, seconds = self.checkpoint_every, self.checkpoint_seconds
        if (every and self.place.updates % every == 0) or (seconds is not None and time.monotonic() - self.saved >= seconds):
            self.save_last()

    def save_best(self) -> None:
        """Write best.safetensors: weights and recipe state of the epoch in `place.best`."""
        tensors = pack({"model": self.model.state_dict(), "recipe": self.step.state_dict()})
        write_checkpoint(self.out / BEST, tensors, {"kind": "best", "run": self.run_id, "best": self.place.best})

    def resume(self) -> None:
        """Take up the run at last.safetensors. Raises UserError: damaged, or of another run."""
        path = self.out / LAST
        found = read_checkpoint(path)
        self.check_owner(found, path)
        state = found.state
        load_weights(self.model, found, path)
        try:
            self.step.load_state_dict(found.part("recipe"))
            self.optimizer.load_state_dict(join_optimizer(found.part("optimizer"), state["optimizer"]))
            self.schedule.load_state_dict(state["schedule"])
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


def load_weights(model: nn.Module, found: Checkpoint, path: Path) -> None:
    """The model's parameters and buffers from a checkpoint, all of them. Raises UserError that names the file when they do not fit."""
    try:
        model.load_state_dict(found.part("model"), strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"does not fit the model ({reason})",
            where=str(path),
            fix="use the model and the version of its code that the run was started with",
        ) from error
