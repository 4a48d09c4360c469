"""The model of a run on disk: what it was built for, and the weights of one of its checkpoints."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lossdsl.diagnostics import UserError
from lossdsl.run import manifest
from lossdsl.run.checkpoint import Checkpoint, read_checkpoint
from lossdsl.run.data import DataRequest, DataSet, load_data
from lossdsl.run.files import read_json
from lossdsl.run.models import ModelInput, build_model
from lossdsl.run.rng import seeded

MANIFEST = "manifest.json"
CHECKPOINTS = ("best", "last")
EPOCHS = "epochs"
"""The directory, inside a run, of the weights that `train --keep-epochs` keeps."""
AVERAGE = "average"
"""The part of a checkpoint that holds averaged weights (`train ema`); they are the ones that are measured and used."""


def kept_epoch(run: Path, epoch: int) -> Path:
    """The file of one kept epoch."""
    return run / EPOCHS / f"epoch-{epoch:04}.safetensors"


def kept_epochs(run: Path) -> list[int]:
    """The epochs whose weights a run has kept, in order."""
    return sorted(int(path.stem.removeprefix("epoch-")) for path in (run / EPOCHS).glob("epoch-[0-9]*.safetensors"))


def weights_part(found: Checkpoint) -> str:
    """The part of a checkpoint that holds the weights to measure: the average where there is one."""
    return AVERAGE if any(name.startswith(f"{AVERAGE}/") for name in found.tensors) else "model"


def epoch_of(found: Checkpoint) -> int:
    """The epoch, counted from 1, whose weights a checkpoint "best" or "last" holds."""
    state = found.state
    return int(state["best"]["epoch"]) if state.get("kind") == "best" else int(state["place"]["epoch"]) - 1


def precision(identity: Mapping[str, Any]) -> torch.dtype:
    """What the run of a manifest's identity computes in."""
    return torch.float64 if identity["train"]["precision"] == "float64" else torch.float32


def trained_data(run: Path, identity: Mapping[str, Any], root: Path | None = None, workers: int = 0) -> DataSet:
    """The data that a run was trained on, from its files; `root`: where they are now, if they have moved.

    Raises UserError: trained on tensors, files missing, or a hash that differs from the manifest's.
    """
    known = identity["data"]
    name: str = known["name"]
    if not known["root"] and name != "digits":  # which needs no files
        raise UserError("was trained on tensors, which it does not hold", where=str(run), fix="pass data= in Python")
    if root is not None and name.startswith("imagefolder:"):
        name = f"imagefolder:{root}"
    data = load_data(DataRequest(name, root or Path(known["root"]), known["image_size"], workers))
    if data.digest() != known["digest"]:
        raise UserError(
            "is not the data the run was trained on: its hash differs from the manifest's",
            where=str(root or known["root"]),
            fix="name the right files with --data-root",
        )
    return data


def load_weights(model: nn.Module, found: Checkpoint, path: Path, part: str = "model") -> None:
    """The model's parameters and buffers from a part of a checkpoint, all of them. Raises UserError that names the file if they do not
    fit."""
    try:
        model.load_state_dict(found.part(part), strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"does not fit the model ({reason})",
            where=str(path),
            fix="use the model and the version of its code that the run was started with",
        ) from error


def read_manifest(run: Path) -> dict[str, Any]:
    """The manifest in a directory. Raises UserError: missing, damaged, of another program."""
    if run.exists() and not run.is_dir():
        raise UserError("is a file, not the directory of a run", where=str(run), fix="name a directory that lossdsl train has written")
    about = read_json(run / MANIFEST, "manifest of a run")
    if about.get("format") != manifest.FORMAT or not isinstance(about.get("identity"), dict):
        raise UserError("is not a manifest of lossdsl", where=str(run / MANIFEST), fix="name a directory that lossdsl train has written")
    return about


@dataclass(frozen=True)
class StoredModel:
    """The weights of a checkpoint, with the architecture, the shape of one input and the classes that they were trained for."""

    run: Path
    which: str
    model: str
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    weights: Checkpoint
    part: str

    @property
    def digest(self) -> str:
        """Hash of architecture and weights."""
        return digest(self.model, self.weights.part(self.part))

    def identity(self) -> dict[str, Any]:
        """For a manifest."""
        return {"run": str(self.run), "checkpoint": self.which, "model": self.model, "digest": self.digest}

    def build(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """The model in eval mode, without gradients. The global generators stay as they are."""
        with seeded(0, device):
            model = build_model(self.model, ModelInput(self.shape, len(self.classes)), *self.statistics).to(device, dtype)
        load_weights(model, self.weights, self.run / f"{self.which}.safetensors", self.part)
        return model.eval().requires_grad_(False)

    def require(self, shape: tuple[int, ...], classes: int, where: str) -> None:
        """Raise UserError unless it takes such inputs and knows that many classes."""
        if self.shape != shape:
            raise UserError(
                f"{self.run} was trained on inputs of shape {list(self.shape)}, and these have {list(shape)}",
                where=where,
                fix="train it on the same data",
            )
        if len(self.classes) != classes:
            raise UserError(
                f"{self.run} knows {len(self.classes)} classes, the data {classes}", where=where, fix="train it on the same data"
            )


def split_name(text: str) -> tuple[Path, str]:
    """DIR or DIR:last or DIR:best as directory and checkpoint; best unless said."""
    path, _, which = text.rpartition(":")
    return (Path(path), which) if path and which in CHECKPOINTS else (Path(text), "best")


def open_run(text: str) -> StoredModel:
    """The model of a run by DIR, DIR:best or DIR:last. Raises UserError: not a run, no such checkpoint, damaged."""
    run, which = split_name(text)
    about = read_manifest(run)
    path = run / f"{which}.safetensors"
    found = read_checkpoint(path)
    part = weights_part(found)
    kept = Checkpoint({name: value for name, value in found.tensors.items() if name.startswith(f"{part}/")}, {})
    try:
        data = about["data"]
        statistics = (tuple(data["mean"]), tuple(data["std"]))
        return StoredModel(run, which, about["identity"]["model"], tuple(data["shape"]), tuple(data["classes"]), statistics, kept, part)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"lacks what describes the model ({error})", where=str(run / MANIFEST), fix="use the version of lossdsl that wrote it"
        ) from error


def digest(model: str, weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over the architecture's name and every tensor's name, type, shape and bytes."""
    content = hashlib.sha256(model.encode())
    for name in sorted(weights):
        tensor = weights[name]
        content.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        content.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()
