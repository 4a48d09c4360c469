"""The run's manifest: what was run, with what, on what. Its `identity` decides whether a directory holds the same run."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lossdsl.lang.specs import OptimizerSpec
from lossdsl.run.data import DataSet
from lossdsl.run.protocols import Recipe

if TYPE_CHECKING:
    from lossdsl.run.session import Session

FORMAT = "lossdsl-run"
VERSION = 1
HASH_LENGTH = 60
PACKAGES = ("lossdsl", "torchvision", "numpy", "scikit-learn", "safetensors")


def identity(recipe: Recipe, data: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that changes the weights or the choice of the best checkpoint, as JSON values."""
    value = {
        "recipe": recipe.hash,
        "params": dict(recipe.params),
        "train": recipe.train.model_dump(),
        "optimizer": _optimizer(recipe.optimizer),
        "data": dict(data),
        **others,
    }
    if recipe.optimizers:
        value["optimizers"] = {name: _optimizer(spec) for name, spec in recipe.optimizers.items()}
    plain: dict[str, Any] = json.loads(json.dumps(value))
    return plain


def _optimizer(spec: OptimizerSpec) -> dict[str, Any]:
    return {"name": spec.name, **spec.options.model_dump()}


def relocated(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """`wanted`, with files named as in `there` where their hash agrees: files may move between a run and its resumption. A hash of None
    stands for files that are no longer needed."""
    same: dict[str, Any] = dict(wanted)
    for name, value in wanted.items():
        known = there.get(name)
        if isinstance(value, Mapping) and isinstance(known, Mapping):
            moved = "digest" in value and value["digest"] in (None, known.get("digest"))
            same[name] = known if moved else relocated(known, value)
    return same


def differences(there: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What two identities disagree on: "params.eps: 0.2 there, 0.3 asked"."""
    found = []
    for key in sorted(set(there) | set(asked)):
        one, two = there.get(key, "nothing"), asked.get(key, "nothing")
        if isinstance(one, Mapping) and isinstance(two, Mapping):
            found += differences(one, two, f"{prefix}{key}.")
        elif one != two:
            found.append(f"{prefix}{key}: {_short(one)} there, {_short(two)} asked")
    return found


def _short(value: Any) -> str:
    """Enough of a hash to tell two apart."""
    text = str(value)
    return text if len(text) <= HASH_LENGTH else text[:12] + "..."


def build(session: Session, data: DataSet, identity: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """The whole manifest. `sizes`: number of examples per split."""
    recipe = session.recipe
    value = {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "identity": dict(identity),
        "recipe": {
            "name": recipe.name,
            "title": recipe.title,
            "source": recipe.source_note,
            "hash": recipe.hash,
            "text": recipe.text,
            "resolved": recipe.explain(),
        },
        "data": {
            "classes": list(data.classes),
            "shape": list(data.shape),
            "mean": data.mean,
            "std": data.std,
            "note": data.note,
            "examples": dict(sizes),
        },
        "model": {"parameters": _parameters(session.model)},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, **{name: _version(name) for name in PACKAGES}},
        "hardware": hardware(session.device),
    }
    if session.models:
        value["models"] = {
            name: {"parameters": _parameters(model), "trained": name in session.trained} for name, model in session.models.items()
        }
    if session.pseudo is not None:
        value["unlabelled"] = session.pseudo.to_json()
    return value


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed as a package"


def hardware(device: torch.device) -> dict[str, Any]:
    """What the run computes on."""
    found: dict[str, Any] = {
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        found |= {"gpu": about.name, "gpu_memory_bytes": about.total_memory, "cuda": torch.version.cuda}
    return found
