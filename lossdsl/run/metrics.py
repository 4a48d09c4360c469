"""metrics.jsonl: one JSON object per finished epoch, appended; a half-written last line is a killed writer's and is dropped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lossdsl.diagnostics import UserError
from lossdsl.run.files import write_atomic, write_error


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line and make it durable. Raises UserError when the disk refuses."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise write_error(path, error, keeps="; the last checkpoint is intact") from error


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines, oldest first; none if the file is missing. Raises UserError for a damaged line that is not the last."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            record = json.loads(line)
            record["epoch"] += 0
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"line {number} is not an epoch's record ({error})", where=str(path), fix="restore the file from a copy, or delete the line"
            ) from error
        records.append(record)
    return records


def keep_until(path: Path, epoch: int) -> None:
    """Drop the records after `epoch`: a resumed run writes them again."""
    if not path.exists():
        return
    kept = [record for record in read(path) if record["epoch"] <= epoch]
    write_atomic(path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in kept).encode())
