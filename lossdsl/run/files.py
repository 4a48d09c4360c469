"""Files of a run: written whole or not at all, and every failure of the disk said in one message that names the file."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lossdsl.diagnostics import UserError

_REASONS = {
    errno.ENOSPC: ("the disk is full", "free some space, then run the same command with --resume"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, then run the same command with --resume"),
    errno.EFBIG: (
        "the file is larger than the system allows",
        "raise the file-size limit (ulimit -f), then run the same command with --resume",
    ),
    errno.EROFS: ("the file system is read-only", "choose another --out"),
    errno.EACCES: ("no permission to write here", "choose another --out, or change the directory's permissions"),
    errno.EPERM: ("no permission to write here", "choose another --out, or change the directory's permissions"),
    errno.ENOTDIR: ("a part of the path is a file, not a directory", "choose another --out"),
    errno.EEXIST: ("is a file, not a directory", "choose another --out"),
}


def write_error(path: Path, error: OSError, *, keeps: str = "") -> UserError:
    """The user's view of a failed write. `keeps` says what is still intact."""
    reason, fix = _REASONS.get(error.errno or 0, (error.strerror or str(error), "mend the cause, then run the same command with --resume"))
    return UserError(f"could not be written: {reason}{keeps}", where=str(path), fix=fix)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step that survives a crash: temporary file beside it, fsync, rename, fsync of the directory.

    Raises UserError (full disk, read-only directory, ...); the file that was there before is then still whole and the temporary
    file is gone.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
    except OSError as error:
        keeps = "; the one written before it is intact" if path.exists() else ""
        raise write_error(path, error, keeps=keeps) from error


def make_directory(path: Path) -> None:
    """Make a directory inside a run if it is missing. Raises UserError when the disk refuses."""
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


def sync_directory(path: Path) -> None:
    """Make a rename in `path` durable. Windows has no handle for this and needs none."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, written atomically; NaN is not JSON and raises ValueError."""
    write_atomic(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in `path`. Raises UserError that names the file when it is missing, unreadable or not an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"there is no {what} here", where=str(path), fix="name a directory that lossdsl train has written") from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"is not a readable {what} ({error})", where=str(path), fix="restore the file from a copy, or train into another directory"
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"is not a {what}: a JSON object was expected", where=str(path), fix="restore the file from a copy")
    return value


def remove_leftovers(directory: Path) -> None:
    """Delete temporary files of killed writers. Call with the directory's lock held."""
    for path in directory.glob(".*.*.tmp"):
        path.unlink(missing_ok=True)


@contextmanager
def run_directory(path: Path) -> Iterator[Path]:
    """Create `path` if need be and hold its lock, so that two processes never write into one run.

    A directory created here and still without a manifest at the end (a check failed) is removed again. The lock is the operating
    system's: it goes with the process, also after kill -9.
    """
    from filelock import FileLock, Timeout

    created = not path.exists()
    lock_path = path / ".lock"
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(lock_path)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            "another process is training into this directory", where=str(path), fix="wait for it, or choose another --out"
        ) from error
    except OSError as error:
        raise write_error(path, error) from error
    try:
        remove_leftovers(path)
        yield path
    finally:
        lock.release()
        if created and not (path / "manifest.json").exists():
            lock_path.unlink(missing_ok=True)
            if not any(path.iterdir()):
                path.rmdir()
