"""Finished parts of an evaluation on disk: one file per batch and run, so that a killed evaluation goes on where it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from lossdsl.diagnostics import UserError
from lossdsl.run.files import remove_leftovers, write_atomic, write_error
from lossdsl.run.passes import Passes


@dataclass(frozen=True)
class Piece:
    """One stage (`clean`, or a run) done for some examples. index: int64 [n], places in the split; values: tensors [n, ...]; on the CPU."""

    index: Tensor
    values: Mapping[str, Tensor]
    passes: Passes
    seconds: float


class Pieces(Protocol):
    """Where finished parts are kept."""

    def load(self, stage: str) -> list[Piece]: ...
    def save(self, stage: str, piece: Piece) -> None: ...


class NoPieces:
    """Nothing is kept."""

    def load(self, stage: str) -> list[Piece]:
        return []

    def save(self, stage: str, piece: Piece) -> None: ...


class StoredPieces:
    """Files in a directory, each written whole or not at all."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def load(self, stage: str) -> list[Piece]:
        """Raises UserError for a file that cannot be read."""
        return [_read(path) for path in sorted(self.directory.glob(f"{stage}.*.safetensors"))]

    def save(self, stage: str, piece: Piece) -> None:
        about = {"passes": json.dumps(piece.passes.to_json()), "seconds": repr(piece.seconds)}
        values = {name: value.clone() for name, value in piece.values.items()}
        content = save_tensors({"index": piece.index, **values}, about)
        write_atomic(self.directory / f"{stage}.{int(piece.index[0])}.safetensors", content)


def _read(path: Path) -> Piece:
    try:
        content = path.read_bytes()
        tensors = load_tensors(content)
        about = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        return Piece(tensors.pop("index"), tensors, Passes.from_json(json.loads(about["passes"])), float(about["seconds"]))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"is no part of an evaluation ({error})", where=str(path), fix="delete its directory, then run the same command again"
        ) from error


@contextmanager
def stored_pieces(directory: Path, fresh: bool) -> Iterator[StoredPieces]:
    """The parts kept in a directory (none of an earlier evaluation if `fresh`), which is locked against other processes. It is removed
    when the body ends well: what came of it is written by then."""
    from filelock import FileLock, Timeout

    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError("another process is making this evaluation", where=str(directory), fix="wait for it") from error
    except OSError as error:
        raise write_error(directory, error) from error
    try:
        remove_leftovers(directory)
        if fresh:
            for path in directory.glob("*.safetensors"):
                path.unlink()
        yield StoredPieces(directory)
        shutil.rmtree(directory, ignore_errors=True)
    finally:
        lock.release()
