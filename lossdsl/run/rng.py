"""Randomness of a run: named streams with explicit generators, and the global generators that model internals (dropout) use."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossdsl.diagnostics import UserError


def derive(seed: int, *names: str | int) -> int:
    """A seed in [0, 2^63) for one purpose; purposes do not share random numbers."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(device: torch.device | str, seed: int) -> torch.Generator:
    """A fresh generator on `device`."""
    return torch.Generator(device=device).manual_seed(seed)


@dataclass(frozen=True)
class Streams:
    """Generators that advance through a run. The order of an epoch's examples needs none: it is a function of seed and epoch."""

    augment: torch.Generator
    attack: torch.Generator
    sampler: torch.Generator

    @classmethod
    def start(cls, seed: int, device: torch.device) -> Streams:
        return cls(
            generator("cpu", derive(seed, "augment")), generator(device, derive(seed, "attack")), generator("cpu", derive(seed, "sampler"))
        )

    def state_dict(self) -> dict[str, Tensor]:
        return {"augment": self.augment.get_state(), "attack": self.attack.get_state(), "sampler": self.sampler.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.augment.set_state(state["augment"])
        self.attack.set_state(state["attack"])
        self.sampler.set_state(state["sampler"])


def seed_global(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch (every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def global_state(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """States of the global generators: tensors (torch) and JSON values (Python, NumPy)."""
    tensors = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    numpy_state: Any = np.random.get_state(legacy=False)
    inner = numpy_state["state"]
    numpy_json = {**numpy_state, "state": {"key": inner["key"].tolist(), "pos": int(inner["pos"])}}
    return tensors, {"python": random.getstate(), "numpy": numpy_json}


def load_global_state(tensors: dict[str, Tensor], values: dict[str, Any], device: torch.device) -> None:
    """Undo `global_state`, also after a trip through JSON."""
    torch.set_rng_state(tensors["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors["cuda"], device)
    version, words, gauss = values["python"]
    random.setstate((version, tuple(words), gauss))
    state = values["numpy"]
    np.random.set_state({**state, "state": {"key": np.asarray(state["state"]["key"], dtype=np.uint32), "pos": state["state"]["pos"]}})


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Global generators seeded inside, and as they were before afterwards."""
    before = global_state(device)
    seed_global(seed)
    try:
        yield
    finally:
        load_global_state(*before, device)


@contextmanager
def deterministic_algorithms(wanted: bool, device: torch.device) -> Iterator[None]:
    """torch.use_deterministic_algorithms inside, if wanted. Raises UserError where cuBLAS would need a setting made before the start."""
    import os

    if not wanted:
        yield
        return
    if device.type == "cuda" and os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in (":4096:8", ":16:8"):
        raise UserError(
            "--deterministic on CUDA needs cuBLAS with a fixed workspace, which is read when the process starts",
            fix="set the environment variable CUBLAS_WORKSPACE_CONFIG=:4096:8 before the command",
        )
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU. Raises UserError for a device that torch does not know or does not have."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"torch knows no device {name!r}", where="--device", fix="use auto, cpu, cuda or cuda:0") from error
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise UserError(f"{name} is not available on this machine", where="--device", fix="use --device cpu or --device auto")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"{device.type} is not supported: runs are tested on cpu and cuda", where="--device", fix="use --device cpu")
    return device
