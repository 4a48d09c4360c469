"""A run on disk, opened: its recipe, data, models at any kept checkpoint, and what it recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lossdsl.diagnose.subject import Options, Subject
from lossdsl.diagnostics import UserError
from lossdsl.front import Recipe, parse_recipe
from lossdsl.run import metrics
from lossdsl.run.checkpoint import Checkpoint, read_checkpoint
from lossdsl.run.data import DataSet
from lossdsl.run.examples import Split
from lossdsl.run.files import read_json
from lossdsl.run.loop import METRICS
from lossdsl.run.models import ModelInput, build_model
from lossdsl.run.request import AttackChoice
from lossdsl.run.rng import choose_device, seeded
from lossdsl.run.stored import (
    CHECKPOINTS,
    epoch_of,
    kept_epoch,
    kept_epochs,
    load_weights,
    open_run,
    precision,
    read_manifest,
    trained_data,
    weights_part,
)
from lossdsl.run.train import RESULT

KEEP = "train it again with: lossdsl train ... --keep-epochs"


@dataclass(frozen=True)
class Weights:
    """A checkpoint of a run: its file, its epoch, and what is in it."""

    path: Path
    epoch: int
    found: Checkpoint


class OpenRun:
    """The run in a directory. `data`: in place of its own, for runs on tensors of the caller's.

    Raises UserError: not a run. What it reads later raises UserError as well: damaged files, other data.
    """

    def __init__(self, path: Path, options: Options | None = None, data: DataSet | None = None) -> None:
        self.path, self.options = path, options or Options()
        self.about = read_manifest(path)
        self.identity: dict[str, Any] = self.about["identity"]
        self.device = choose_device(self.options.device)
        self.dtype = precision(self.identity)
        self._data = data

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.name or str(self.path)

    @property
    def params(self) -> Mapping[str, float | int]:
        """The recipe's params, overrides included."""
        values: Mapping[str, float | int] = self.identity["params"]
        return values

    @cached_property
    def recipe(self) -> Recipe:
        """The run's recipe as it was trained."""
        recipe = parse_recipe(self.about["recipe"]["text"], f"{self.path}/manifest.json")
        changed = {name: value for name, value in self.params.items() if recipe.params.get(name) != value}
        return recipe.with_params(**changed) if changed else recipe

    @cached_property
    def data(self) -> DataSet:
        """The data set it was trained on."""
        return self._data or trained_data(self.path, self.identity, self.options.data_root, self.options.workers)

    # --- checkpoints ---

    def weights(self, which: str) -> Weights:
        """The checkpoint "best", "last" or "epoch:N". Raises UserError that says what there is."""
        if which in CHECKPOINTS:
            path = self.path / f"{which}.safetensors"
            found = read_checkpoint(path)
            return Weights(path, epoch_of(found), found)
        word, _, number = which.partition(":")
        if word != "epoch" or not number.isdigit():
            raise UserError(f"there is no checkpoint {which!r}", where="--checkpoint", fix="write best, last or epoch:N")
        if int(number) not in kept_epochs(self.path):
            there = ", ".join(map(str, kept_epochs(self.path))) or "none"
            raise UserError(f"the weights of epoch {number} were not kept (kept: {there})", where=str(self.path), fix=KEEP)
        path = kept_epoch(self.path, int(number))
        return Weights(path, int(number), read_checkpoint(path))

    def epochs(self) -> list[Weights]:
        """Every kept epoch, oldest first. Raises UserError where none is kept."""
        kept = kept_epochs(self.path)
        if not kept:
            raise UserError("has kept no weights but those of the best and the last epoch", where=str(self.path), fix=KEEP)
        return [self.weights(f"epoch:{epoch}") for epoch in kept]

    def history(self) -> tuple[list[Weights], tuple[str, ...]]:
        """The kept epochs, else the best and the last epoch with a note that says how to get all."""
        if kept_epochs(self.path):
            return self.epochs(), ()
        two = {weights.epoch: weights for weights in (self.weights("best"), self.weights("last"))}
        note = f"only the best and the last epoch have weights; for a curve {KEEP}"
        return [two[epoch] for epoch in sorted(two)], (note,)

    def model(self, weights: Weights) -> nn.Module:
        """The model with the weights of a checkpoint, in eval mode: the averaged weights where the recipe averages."""
        model = self._built(self.identity["model"], weights, weights_part(weights.found))
        return model.eval()

    def others(self, weights: Weights) -> dict[str, nn.Module]:
        """The recipe's other models: the frozen ones from their own runs, the trained ones from the checkpoint."""
        found: dict[str, nn.Module] = {}
        for name, entry in self.identity.get("models", {}).items():
            if entry["frozen"]:
                found[name] = open_run(f"{entry['run']}:{entry['checkpoint']}").build(self.device, self.dtype)
            else:
                found[name] = self._built(entry["model"], weights, f"model.{name}")
        return found

    def _built(self, architecture: str, weights: Weights, part: str) -> nn.Module:
        about = self.about["data"]
        wanted = ModelInput(tuple(about["shape"]), len(about["classes"]))
        with seeded(0, self.device):
            model = build_model(architecture, wanted, tuple(about["mean"]), tuple(about["std"])).to(self.device, self.dtype)
        load_weights(model, weights.found, weights.path, part)
        return model

    # --- examples and attacks ---

    def split(self, name: str) -> Split:
        """The examples of "train" (without those for validation), "validation" or "test"."""
        if name == "test":
            return self.data.test
        train, validation = self.data.validated(float(self.identity["train"]["validation"]))
        if name not in ("train", "validation"):
            raise UserError(f"there is no split {name!r}", where="--split", fix="write test, validation or train")
        return train if name == "train" else validation

    def examples(self, split: str, limit: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x [N, *shape], y [N] and the places in the split [N] of the first examples."""
        part = self.split(split)
        count = len(part) if limit is None else min(limit, len(part))
        batch = next(part.batches([torch.arange(count)]))
        return batch.x.to(self.device, self.dtype), batch.y.to(self.device), batch.index

    def subject(
        self, weights: Weights | None = None, *, split: str | None = None, limit: int | None = None, attack: str | None = None
    ) -> Subject:  # fmt: skip
        """The model of a checkpoint with examples and an attack; the options say what is left out here."""
        options = self.options
        model = self.model(weights or self.weights(options.checkpoint))
        x, y, _ = self.examples(split or options.split, options.limit if limit is None else limit)
        overrides = AttackChoice("", options.overrides).resolved(self.params)
        return Subject(model, x, y, self.data.classes, attack or options.attack, overrides, options.seed, options.batch)

    # --- what it recorded ---

    def metrics(self) -> list[dict[str, Any]]:
        """One record per finished epoch. Raises UserError where there is none."""
        records = metrics.read(self.path / METRICS)
        if not records:
            raise UserError("has no finished epoch yet", where=str(self.path / METRICS), fix="diagnose it after its first epoch")
        return records

    def result(self) -> dict[str, Any] | None:
        """What was measured at the end; None while the run is unfinished."""
        return read_json(self.path / RESULT, "result of a run") if (self.path / RESULT).exists() else None
