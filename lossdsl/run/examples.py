"""Labelled examples and their splits: in memory as tensors, or as image files that are read when needed."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lossdsl.diagnostics import UserError

SPLIT_SEED = 0
"""Splits do not depend on the run's seed, so that runs with different seeds hold out the same examples."""


@dataclass(frozen=True)
class Batch:
    """`x` float32 [N, *shape] in the data set's own units, `y` int64 [N], `index` int64 [N]: places in the split."""

    x: Tensor
    y: Tensor
    index: Tensor


class Examples(ABC):
    """A fixed list of labelled inputs of one shape."""

    labels: Tensor
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def inputs(self, order: Sequence[Tensor]) -> Iterator[Tensor]:
        """For each index tensor of `order`, the inputs as float32 [len(index), *shape]."""

    @abstractmethod
    def digest(self) -> str:
        """A hash of the content: the same examples in the same order give the same hash."""

    @property
    def in_memory(self) -> bool:
        return False


class TensorExamples(Examples):
    """Examples held in memory. Images of dtype uint8 stand for [0, 1] in steps of 1/255, floats for themselves."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        if len(images) != len(labels):
            raise UserError(f"{len(images)} inputs but {len(labels)} labels", where="data", fix="give one label per input")
        if len(images) == 0:
            raise UserError("there are no examples", where="data", fix="give at least one example per class")
        self.images, self.labels, self.shape = images.contiguous(), labels.long(), tuple(images.shape[1:])

    @property
    def in_memory(self) -> bool:
        return True

    def inputs(self, order: Sequence[Tensor]) -> Iterator[Tensor]:
        for index in order:
            x = self.images[index]
            yield x.float().div_(255) if x.dtype == torch.uint8 else x.float()

    def digest(self) -> str:
        content = hashlib.sha256(f"{self.images.dtype} {tuple(self.images.shape)}".encode())
        content.update(self.images.numpy().data)
        content.update(self.labels.numpy().data)
        return content.hexdigest()


@dataclass(frozen=True)
class Split:
    """Some of the examples, by position. Its own indices count from 0."""

    examples: Examples
    positions: Tensor

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def labels(self) -> Tensor:
        return self.examples.labels[self.positions]

    def batches(self, order: Sequence[Tensor]) -> Iterator[Batch]:
        """One batch per index tensor (indices of this split)."""
        positions = [self.positions[index] for index in order]
        for index, at, x in zip(order, positions, self.examples.inputs(positions), strict=True):
            yield Batch(x, self.examples.labels[at], index)

    def in_order(self, size: int) -> Iterator[Batch]:
        """All examples once, in order, in batches of at most `size`."""
        return self.batches(chunks(torch.arange(len(self)), size))


class Joined(Examples):
    """Two splits one after the other: those of the first with their own labels, those of the second with the labels given."""

    def __init__(self, first: Split, second: Split, labels: Tensor) -> None:
        self.first, self.second, self.shape = first, second, first.examples.shape
        self.labels = torch.cat([first.labels, labels])

    def inputs(self, order: Sequence[Tensor]) -> Iterator[Tensor]:
        count = len(self.first)
        own = [index[index < count] for index in order]
        others = [index[index >= count] - count for index in order]
        ours, theirs = self._inputs(self.first, own), self._inputs(self.second, others)
        for index, one, two in zip(order, own, others, strict=True):
            x = torch.empty((len(index), *self.shape))
            if len(one):
                x[index < count] = next(ours)
            if len(two):
                x[index >= count] = next(theirs)
            yield x

    @staticmethod
    def _inputs(split: Split, order: Sequence[Tensor]) -> Iterator[Tensor]:
        return split.examples.inputs([split.positions[index] for index in order if len(index)])

    def digest(self) -> str:
        content = hashlib.sha256(f"{self.first.examples.digest()} {self.second.examples.digest()}".encode())
        for part in (self.first.positions, self.second.positions, self.labels):
            content.update(part.numpy().data)
        return content.hexdigest()


def chunks(order: Tensor, size: int) -> tuple[Tensor, ...]:
    """An order cut into batches; the last one may be smaller."""
    parts: tuple[Tensor, ...] = torch.split(order, size)
    return parts


def whole(examples: Examples) -> Split:
    return Split(examples, torch.arange(len(examples)))


def stratified(split: Split, share: float, what: str) -> tuple[Split, Split]:
    """Divide a split in two, class by class; `share` of it goes to the second part. Order within the parts is kept.

    Raises UserError when a class is too small to stand in both parts.
    """
    from sklearn.model_selection import train_test_split

    try:
        first, second = train_test_split(np.arange(len(split)), test_size=share, stratify=split.labels.numpy(), random_state=SPLIT_SEED)
    except ValueError as error:
        message = f"{len(split)} examples cannot be split into {1 - share:.0%} and {share:.0%} ({what}): {error}"
        raise UserError(message, where="data", fix="use more examples per class, or another share") from error
    parts = (torch.from_numpy(np.sort(part)) for part in (first, second))
    one, two = (Split(split.examples, split.positions[part]) for part in parts)
    return one, two
