"""Rows of the data table that read through torchvision.datasets."""

from __future__ import annotations

import gzip
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lossdsl.diagnostics import UserError
from lossdsl.run.data import DataRequest, DataSet, dataset, from_tensors

MNIST_STEMS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
T10K_TRAIN = 8000
DIGITS = tuple(str(k) for k in range(10))


def _fetch(kind: str, request: DataRequest, **options: Any) -> Any:
    """A torchvision data set, downloaded where needed and possible. Raises UserError when it is neither there nor to be had."""
    from torchvision import datasets

    try:
        return getattr(datasets, kind)(root=str(request.root), download=True, **options)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{kind} is not here and could not be downloaded ({error})",
            where=str(request.root),
            fix="put torchvision's files for it there, name the directory that has them with --data-root, or use --data digits",
        ) from error


def _channels_first(images: Any) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _cifar(kind: str, request: DataRequest) -> DataSet:
    train, test = _fetch(kind, request, train=True), _fetch(kind, request, train=False)
    parts = [(_channels_first(part.data), torch.tensor(part.targets)) for part in (train, test)]
    return from_tensors(request.name, parts[0], parts[1], tuple(train.classes))


@dataset("cifar10", "CIFAR-10 through torchvision (downloads 170 MB)")
def cifar10(request: DataRequest) -> DataSet:
    return _cifar("CIFAR10", request)


@dataset("cifar100", "CIFAR-100 through torchvision (downloads 169 MB)")
def cifar100(request: DataRequest) -> DataSet:
    return _cifar("CIFAR100", request)


@dataset("svhn", "SVHN (cropped digits) through torchvision (downloads 246 MB)")
def svhn(request: DataRequest) -> DataSet:
    parts = []
    for split in ("train", "test"):
        part = _fetch("SVHN", request, split=split)
        parts.append((torch.from_numpy(part.data), torch.from_numpy(part.labels)))
    return from_tensors("svhn", parts[0], parts[1], DIGITS)


def _find(root: Path, stem: str) -> Path | None:
    """An idx file, plain or gzipped, in `root` or where torchvision keeps it."""
    candidates = (folder / f"{stem}{end}" for folder in (root, root / "raw", root / "MNIST" / "raw") for end in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def _find_part(root: Path, part: str) -> tuple[Path, Path] | None:
    images, labels = (_find(root, stem) for stem in MNIST_STEMS[part])
    return (images, labels) if images and labels else None


def _read_idx(path: Path, images: bool) -> Tensor:
    """One idx file by torchvision's reader, which wants it uncompressed. Raises UserError that names the file."""
    from torchvision.datasets.mnist import read_image_file, read_label_file

    read: Callable[[str], Tensor] = read_image_file if images else read_label_file
    try:
        if path.suffix != ".gz":
            return read(str(path))
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / path.stem
            with gzip.open(path, "rb") as source, open(plain, "wb") as target:
                shutil.copyfileobj(source, target)
            return read(str(plain))
    except (OSError, EOFError, AssertionError, ValueError, TypeError, RuntimeError, LookupError) as error:
        raise UserError(
            f"is not a readable idx file ({error})", where=str(path), fix="fetch the file again: it is damaged or another kind"
        ) from error


def _read_part(paths: tuple[Path, Path]) -> tuple[Tensor, Tensor]:
    images, labels = _read_idx(paths[0], True), _read_idx(paths[1], False)
    if len(images) != len(labels):
        raise UserError(
            f"{len(labels)} labels for {len(images)} images", where=str(paths[1]), fix="fetch both files again: they do not belong together"
        )
    return images.unsqueeze(1), labels


@dataset("mnist", "MNIST: idx files in --data-root, or through torchvision (downloads 12 MB)")
def mnist(request: DataRequest) -> DataSet:
    train, test = (_find_part(request.root, part) for part in ("train", "test"))
    if train and test:
        return from_tensors("mnist", _read_part(train), _read_part(test), DIGITS)
    if test:
        raise UserError(
            "only the test part of MNIST (t10k) is here; " + " and ".join(MNIST_STEMS["train"]) + " are missing",
            where=str(request.root),
            fix="add them, or use --data mnist-t10k, which splits the 10,000 test images 8,000/2,000",
        )
    _fetch("MNIST", request, train=True)
    train, test = (_find_part(request.root, part) for part in ("train", "test"))
    if not (train and test):
        raise UserError(
            "torchvision reported a download, but the idx files are not there",
            where=str(request.root),
            fix="delete the folder MNIST and try again",
        )
    return from_tensors("mnist", _read_part(train), _read_part(test), DIGITS)


@dataset("mnist-t10k", "the 10,000 MNIST test images alone: the first 8,000 train, the last 2,000 test; never downloads")
def mnist_t10k(request: DataRequest) -> DataSet:
    paths = _find_part(request.root, "test")
    if paths is None:
        names = " and ".join(MNIST_STEMS["test"])
        raise UserError(
            f"{names} (plain or .gz) are not here", where=str(request.root), fix="name the directory that has them with --data-root"
        )
    images, labels = _read_part(paths)
    if len(images) <= T10K_TRAIN:
        raise UserError(f"{len(images)} images, 10,000 were expected", where=str(paths[0]), fix="fetch the file again")
    note = f"MNIST's test images only: the first {T10K_TRAIN:,} to train, the last {len(images) - T10K_TRAIN:,} to test"
    return from_tensors(
        "mnist-t10k", (images[:T10K_TRAIN], labels[:T10K_TRAIN]), (images[T10K_TRAIN:], labels[T10K_TRAIN:]), DIGITS, note=note
    )
