"""Checkpoints: one safetensors file of tensors with JSON beside them in its header, written whole or not at all.

Nothing in the file is code, and reading it runs none. The header holds a format tag, a version and a checksum of content and JSON.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lossdsl.diagnostics import UserError
from lossdsl.run.files import write_atomic

FORMAT = "lossdsl-checkpoint"
VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """`tensors` by flat name (part/name), `state` the JSON values."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors below `name/`, without that prefix."""
        prefix = f"{name}/"
        return {key[len(prefix) :]: value for key, value in self.tensors.items() if key.startswith(prefix)}


def pack(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Flat names part/name for the tensors of every part. Raises UserError for a value that is not a tensor."""
    packed = {}
    for part, tensors in parts.items():
        for name, value in tensors.items():
            if not isinstance(value, Tensor):
                raise UserError(
                    f"the state {name!r} of the {part} is a {type(value).__name__}: checkpoints hold tensors only",
                    where="checkpoint",
                    fix="keep it in a buffer",
                )
            packed[f"{part}/{name}"] = value
    return packed


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Replace the checkpoint at `path` in one step. Raises UserError when the disk refuses; the older file is then intact."""
    # Copies, because safetensors refuses tensors that share memory (tied weights) or are not contiguous.
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    text = json.dumps(state, allow_nan=False)
    header = {"format": FORMAT, "version": str(VERSION), "state": text, "checksum": _checksum(plain, text)}
    write_atomic(path, save(plain, metadata=header))


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`. Raises UserError that names the file: missing, damaged, of another program, of a newer version."""
    if not path.is_file():
        raise UserError("there is no checkpoint here", where=str(path), fix="name a directory that lossdsl train has written")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            # Clones, because the originals lie in a map of the file, at other alignments than torch's own.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"is damaged or not a checkpoint ({error})", where=str(path), fix=_remedy(path)) from error
    if header.get("format") != FORMAT:
        raise UserError("is a safetensors file, but not a checkpoint of lossdsl", where=str(path), fix=_remedy(path))
    if header.get("version") != str(VERSION):
        raise UserError(
            f"has format version {header.get('version')}, this lossdsl reads version {VERSION}",
            where=str(path),
            fix="use the version of lossdsl that wrote it",
        )
    text = header.get("state", "")
    if header.get("checksum") != _checksum(tensors, text):
        raise UserError("is damaged: its checksum does not fit its content", where=str(path), fix=_remedy(path))
    state: dict[str, Any] = json.loads(text)
    return Checkpoint(tensors, state)


def _remedy(path: Path) -> str:
    other = path.with_name("best.safetensors" if path.name.startswith("last") else "last.safetensors")
    known = f"; {other.name} beside it may be whole" if other.is_file() else ""
    return f"restore the file from a copy, or train again into another directory{known}"


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """CRC-32 over the JSON and every tensor's name, type, shape and bytes; finds damage, not malice."""
    value = zlib.crc32(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        value = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value) if tensor.numel() else value
    return f"{value:08x}"


def split_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state_dict as tensors (parameter number/name) and JSON (groups, and state that is not a tensor)."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for number, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{number}/{name}"] = value
            else:
                values.setdefault(str(number), {})[name] = value
    return tensors, {"groups": state["param_groups"], "values": values}


def join_optimizer(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `split_optimizer`, also after a trip through JSON."""
    state: dict[int, dict[str, Any]] = {int(number): dict(entries) for number, entries in values["values"].items()}
    for key, tensor in tensors.items():
        number, _, name = key.partition("/")
        state.setdefault(int(number), {})[name] = tensor
    return {"state": state, "param_groups": values["groups"]}
