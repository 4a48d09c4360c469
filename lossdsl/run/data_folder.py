"""Image folders, one folder per class, read when needed through torchvision.datasets.ImageFolder and a DataLoader."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from lossdsl.diagnostics import UserError
from lossdsl.run.data import (
    STATISTICS_SAMPLE,
    DataRequest,
    DataSet,
    channel_statistics,
    dataset,
    from_one_split,
)
from lossdsl.run.examples import Examples, chunks, whole

DECODE_AHEAD = 64
TEST_SHARE = 0.2
MEMORY_LIMIT = 2**30
"""Bytes of decoded images that are kept."""


class _Decoded(Dataset["Tensor | str"]):
    """Images as uint8 [3, H, W]; an unreadable one becomes its error message, which crosses process borders unharmed."""

    def __init__(self, folder: ImageFolder) -> None:
        self.folder = folder

    def __getitem__(self, position: int) -> Tensor | str:
        path = self.folder.samples[position][0]
        try:
            image: Tensor = self.folder.transform(self.folder.loader(path))
        except (OSError, SyntaxError, ValueError) as error:
            return f"{path}\n{error}"
        return image


def _as_list(items: list[Tensor | str]) -> list[Tensor | str]:
    return items


class FolderExamples(Examples):
    """The images of one folder, converted to RGB; float32 in [0, 1] (1/255 steps)."""

    def __init__(self, folder: ImageFolder, root: Path, workers: int) -> None:
        self.folder, self.root, self.workers = folder, root, workers
        self.labels = torch.tensor(folder.targets)
        self.shape = tuple(self._check(_Decoded(folder)[0]).shape)
        self.held = torch.zeros(len(self), dtype=torch.bool)
        fits = len(self) * math.prod(self.shape) <= MEMORY_LIMIT
        self.cache = torch.empty((len(self), *self.shape), dtype=torch.uint8) if fits else None

    def _check(self, item: Tensor | str, position: int = 0) -> Tensor:
        if isinstance(item, str):
            path, _, reason = item.partition("\n")
            raise UserError(f"is not a readable image ({reason})", where=path, fix="replace or remove the file")
        if hasattr(self, "shape") and tuple(item.shape) != self.shape:
            sizes = f"{item.shape[2]}x{item.shape[1]} pixels, the first image has {self.shape[2]}x{self.shape[1]}"
            raise UserError(sizes, where=self.folder.samples[position][0], fix="give --image-size N to resize and crop all images to NxN")
        return item

    def inputs(self, order: Sequence[Tensor]) -> Iterator[Tensor]:
        for images in self.images(order):
            yield images.float().div_(255)

    def images(self, order: Sequence[Tensor]) -> Iterator[Tensor]:
        """As `inputs`, but uint8. Images are decoded once and kept where all of them fit into MEMORY_LIMIT."""
        if self.cache is None:
            yield from self._decode(order)
            return
        missing = [index[~self.held[index]] for index in order]
        decoded = self._decode([absent for absent in missing if len(absent)])
        for index, absent in zip(order, missing, strict=True):
            if len(absent):
                self.cache[absent] = next(decoded)
                self.held[absent] = True
            yield self.cache[index]

    def _decode(self, order: Sequence[Tensor]) -> Iterator[Tensor]:
        positions = [index.tolist() for index in order]
        # A loader without a generator draws a seed from torch's global one, which would change the run when it is resumed.
        loader = DataLoader(
            _Decoded(self.folder), batch_sampler=positions, collate_fn=_as_list, num_workers=self.workers, generator=torch.Generator()
        )
        for at, items in zip(positions, loader, strict=True):
            yield torch.stack([self._check(item, position) for position, item in zip(at, items, strict=True)])

    def digest(self) -> str:
        """Hash of the files' names, classes and sizes (not of every pixel: the folder may be large)."""
        content = hashlib.sha256(repr(self.shape).encode())
        for path, label in self.folder.samples:
            file = Path(path)
            content.update(f"{file.relative_to(self.root).as_posix()} {label} {file.stat().st_size}\n".encode())
        return content.hexdigest()


def _open(path: Path, request: DataRequest) -> FolderExamples:
    """One folder of class folders. Raises UserError: no such folder, no images."""
    size = request.image_size
    resize = [v2.Resize(size), v2.CenterCrop(size)] if size else []
    try:
        folder = ImageFolder(str(path), transform=v2.Compose([*resize, v2.PILToTensor()]))
    except OSError as error:
        raise UserError(
            f"is not a folder with one folder of images per class ({error})",
            where=str(path),
            fix="lay images out as PATH/train/CLASS/*.jpg and PATH/test/CLASS/*.jpg, or PATH/CLASS/*.jpg",
        ) from error
    return FolderExamples(folder, path, request.workers)


def _statistics(data: DataSet, examples: FolderExamples) -> DataSet:
    """Mean and deviation of evenly spaced training images, at most STATISTICS_SAMPLE of them."""
    positions = data.train.positions
    sample = positions[:: max(1, len(positions) // STATISTICS_SAMPLE)][:STATISTICS_SAMPLE]
    images = torch.cat(list(examples.images(chunks(sample, DECODE_AHEAD))))
    mean, std = channel_statistics(images)
    return replace(data, mean=mean, std=std)


@dataset(
    "imagefolder", "imagefolder:PATH, images as PATH/train/CLASS/* and PATH/test/CLASS/* (or val), or PATH/CLASS/* with a split of our own"
)
def imagefolder(request: DataRequest) -> DataSet:
    path = Path(request.name.partition(":")[2]).resolve()
    name = f"imagefolder:{path}"
    if not path.is_dir():
        raise UserError("there is no such folder", where=str(path), fix="give the path of an image folder: --data imagefolder:PATH")
    if not (path / "train").is_dir():
        examples = _open(path, request)
        note = f"image folder without a test part: {TEST_SHARE:.0%} of each class held out"
        return _statistics(from_one_split(name, examples, tuple(examples.folder.classes), TEST_SHARE, note), examples)
    held_out = next((path / name for name in ("test", "val") if (path / name).is_dir()), None)
    if held_out is None:
        raise UserError(
            "has a folder train, but no folder test or val",
            where=str(path),
            fix="add PATH/test/CLASS/*, or give the path of train itself to have it split",
        )
    train, test = _open(path / "train", request), _open(held_out, request)
    if train.folder.classes != test.folder.classes:
        odd = sorted(set(train.folder.classes) ^ set(test.folder.classes))
        raise UserError(
            f"training and test folders have different classes: {', '.join(odd)}", where=str(path), fix="give both the same class folders"
        )
    if train.shape != test.shape:
        raise UserError(f"training images are {train.shape}, test images {test.shape}", where=str(path), fix="give --image-size N")
    data = DataSet(name, whole(train), whole(test), tuple(train.folder.classes), (0.0,) * 3, (1.0,) * 3, "image folder")
    return _statistics(data, train)
