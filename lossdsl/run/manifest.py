"""The run's manifest: what was run, with what, on what. Its `identity` decides whether a directory holds the same run."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from lossdsl.run.data import DataSet
from lossdsl.run.protocols import Recipe

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
        "optimizer": {"name": recipe.optimizer.name, **recipe.optimizer.options.model_dump()},
        "data": dict(data),
        **others,
    }
    plain: dict[str, Any] = json.loads(json.dumps(value))
    return plain


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


def build(
    recipe: Recipe, data: DataSet, model: nn.Module, device: torch.device, identity: Mapping[str, Any], sizes: Mapping[str, int]
) -> dict[str, Any]:
    """The whole manifest. `sizes`: number of examples per split."""
    return {
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
        "model": {"parameters": sum(parameter.numel() for parameter in model.parameters())},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, **{name: _version(name) for name in PACKAGES}},
        "hardware": hardware(device),
    }


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
