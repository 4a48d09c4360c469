"""The table of data sets. A new one is a function with `@dataset("name", ...)` that returns a `DataSet`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lossdsl.diagnostics import UserError, did_you_mean
from lossdsl.run.examples import Examples, Split, TensorExamples, stratified, whole

STATISTICS_SAMPLE = 2000
"""How many files of an image folder are read for the mean and the deviation."""


@dataclass(frozen=True)
class DataRequest:
    """Which data, and where its files are.

    `name`: a row of `DATASETS`, or imagefolder:PATH. `root`: directory of the files (downloads go there too).
    `image_size`: resize and crop images of a folder to this many pixels; None wants them equal already. `workers`: processes that decode
    image files.
    """

    name: str = "digits"
    root: Path = Path("data")
    image_size: int | None = None
    workers: int = 0


@dataclass(frozen=True)
class DataSet:
    """Training and test examples with what a model needs to know about them.

    `mean`, `std`: per channel, of the training examples, in the units of x. `note` says what a reader must know beside every figure.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    note: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input, channels first."""
        return self.train.examples.shape

    @property
    def title(self) -> str:
        """Name and note, for reports."""
        return f"{self.name} ({self.note})" if self.note else self.name

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def digest(self) -> str:
        """Hash of the training and test examples."""
        parts = (self.train.examples,) if self.train.examples is self.test.examples else (self.train.examples, self.test.examples)
        return "-".join(part.digest()[:32] for part in parts)

    def validated(self, share: float) -> tuple[Split, Split]:
        """The training split without the validation split, and the validation split: `share` of it, class by class, always the same."""
        return stratified(self.train, share, "training and validation")


@dataclass(frozen=True)
class DataRow:
    name: str
    about: str
    load: Callable[[DataRequest], DataSet]


DATASETS: dict[str, DataRow] = {}
Loader = Callable[[DataRequest], DataSet]


def dataset(name: str, about: str) -> Callable[[Loader], Loader]:
    """Enter a loader into the table."""

    def enter(load: Loader) -> Loader:
        DATASETS[name] = DataRow(name, about, load)
        return load

    return enter


def load_data(request: DataRequest) -> DataSet:
    """The data set a request names. Raises UserError: unknown name, files missing or unreadable."""
    from lossdsl.run import data_folder, data_torchvision  # noqa: F401  (their rows enter the table on import)

    name, _, path = request.name.partition(":")
    if name not in DATASETS:
        raise UserError(f"there is no data set {request.name!r}", where="--data", fix=did_you_mean(name, DATASETS))
    if (name == "imagefolder") != bool(path):
        raise UserError("imagefolder takes a path, the other data sets take none", where="--data", fix="write imagefolder:PATH")
    return DATASETS[name].load(request)


def channel_statistics(x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of [N, C, ...], in units of x (uint8 counts as 1/255 each).

    A constant channel has deviation 0 and would divide by zero: it gets 1, which leaves it centred.
    """
    scale = 255.0 if x.dtype == torch.uint8 else 1.0
    pairs = [torch.std_mean(x[:, c].float(), correction=0) for c in range(x.shape[1])]
    mean = tuple(float(m) / scale for _, m in pairs)
    return mean, tuple(float(s) / scale or 1.0 for s, _ in pairs)


def from_tensors(
    name: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: tuple[str, ...] | int, *, note: str = ""
) -> DataSet:
    """A data set of your own from tensors: x [N, C, ...] (uint8 for [0, 1] in 255 steps, or float), y [N] in 0..K-1.

    `classes`: their names or their number. Labels, range and NaN are checked before training, not here.
    """
    names = tuple(str(k) for k in range(classes)) if isinstance(classes, int) else classes
    mean, std = channel_statistics(train[0])
    return DataSet(name, whole(TensorExamples(*train)), whole(TensorExamples(*test)), names, mean, std, note)


def from_one_split(name: str, examples: Examples, classes: tuple[str, ...], share: float, note: str) -> DataSet:
    """A data set whose source has no test part: `share` of the examples becomes one. Statistics are left at 0 and 1."""
    train, test = stratified(whole(examples), share, "training and test")
    channels = examples.shape[0]
    return DataSet(name, train, test, classes, (0.0,) * channels, (1.0,) * channels, note)


@dataset("digits", "scikit-learn's 1,797 handwritten digits, 8x8, no download")
def digits(request: DataRequest) -> DataSet:
    """sklearn.datasets.load_digits, pixels / 16 in [0, 1], split 80/20 class by class (always the same split)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().div_(16).unsqueeze(1)
    examples = TensorExamples(images, torch.from_numpy(bunch.target))
    found = from_one_split("digits", examples, tuple(str(k) for k in range(10)), 0.2, "8x8 digits of scikit-learn, 80/20 split of our own")
    mean, std = channel_statistics(images[found.train.positions])
    return replace(found, mean=mean, std=std)
