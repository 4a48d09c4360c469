from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from lossdsl.diagnostics import UserError
from lossdsl.run.augment import augment
from lossdsl.run.check import check_data
from lossdsl.run.data import DataRequest, channel_statistics, from_tensors, load_data
from lossdsl.run.examples import stratified


def test_digits_are_whole_scaled_and_split_by_class() -> None:
    data = load_data(DataRequest())
    assert (len(data.train), len(data.test), data.shape, data.num_classes) == (1437, 360, (1, 8, 8), 10)
    (batch,) = data.train.in_order(2000)
    assert (float(batch.x.min()), float(batch.x.max())) == (0.0, 1.0)
    assert torch.equal(batch.index, torch.arange(1437))
    assert data.mean[0] == pytest.approx(float(batch.x.mean()), abs=1e-6)
    assert data.std[0] == pytest.approx(float(batch.x.std(correction=0)), abs=1e-6)
    used = torch.cat([data.train.positions, data.test.positions])
    assert torch.equal(used.sort().values, torch.arange(1797))
    shares = data.test.labels.bincount() / len(data.test)
    assert torch.allclose(shares, torch.full((10,), 0.1), atol=0.01)
    assert data.digest() == load_data(DataRequest()).digest()


def test_validation_split_is_disjoint_and_always_the_same() -> None:
    data = load_data(DataRequest())
    train, validation = data.validated(0.1)
    assert (len(train), len(validation)) == (1293, 144)
    assert not set(train.positions.tolist()) & set(validation.positions.tolist())
    assert not set(validation.positions.tolist()) & set(data.test.positions.tolist())
    assert torch.equal(validation.positions, data.validated(0.1)[1].positions)


def test_batches_carry_their_own_labels_and_index() -> None:
    x = torch.arange(6).float().reshape(6, 1, 1, 1) / 10
    data = from_tensors("t", (x, torch.arange(6) % 2), (x, torch.arange(6) % 2), 2)
    _, half = stratified(data.train, 0.5, "test")
    for batch in half.batches([torch.tensor([2, 0])]):
        positions = half.positions[torch.tensor([2, 0])]
        assert torch.equal(batch.x.flatten(), positions / 10)
        assert torch.equal(batch.y, positions % 2)
        assert batch.index.tolist() == [2, 0]


def test_uint8_stands_for_the_unit_interval() -> None:
    x = torch.tensor([[[[0, 255]]], [[[51, 102]]]], dtype=torch.uint8)
    data = from_tensors("t", (x, torch.tensor([0, 1])), (x, torch.tensor([0, 1])), 2)
    (batch,) = data.test.in_order(2)
    assert torch.allclose(batch.x.flatten(), torch.tensor([0.0, 1.0, 0.2, 0.4]))
    assert data.mean == pytest.approx((0.4,))
    assert channel_statistics(torch.ones(3, 2, 2, 2)) == ((1.0, 1.0), (1.0, 1.0))


def test_other_content_has_another_digest() -> None:
    x, y = torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 0, 1])
    one = from_tensors("t", (x, y), (x, y), 2)
    assert one.digest() != from_tensors("t", (x + 0.1, y), (x, y), 2).digest()
    assert one.digest() != from_tensors("t", (x, 1 - y), (x, y), 2).digest()


@pytest.mark.parametrize(
    ("name", "message"), [("minst", "did you mean mnist"), ("imagefolder", "takes a path"), ("digits:x", "takes a path")]
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_data(DataRequest(name))


def test_a_class_too_small_to_split() -> None:
    x = torch.zeros(4, 1, 2, 2)
    with pytest.raises(UserError, match="cannot be split into 75% and 25%"):
        from_tensors("t", (x, torch.tensor([0, 0, 0, 1])), (x, torch.zeros(4)), 2).validated(0.25)


# --- checks before training ----------------------------------------------------------------------------------------


def bad_data(x: Any = None, y: Any = None) -> Any:
    good_x, good_y = torch.full((8, 1, 2, 2), 0.5), torch.arange(8) % 2
    return from_tensors("mine", (good_x if x is None else x, good_y if y is None else y), (good_x, good_y), 2)


def changed(value: float) -> torch.Tensor:
    x = torch.full((8, 1, 2, 2), 0.5)
    x[5, 0, 1, 1] = value
    return x


def test_good_data_passes() -> None:
    check_data(bad_data(), (0.0, 1.0))
    check_data(bad_data(x=changed(1.25)), None)
    check_data(bad_data(x=changed(1.25)), ((0.0,), (2.0,)))


@pytest.mark.parametrize("label", [2, -1])
def test_label_out_of_range(label: int) -> None:
    y = torch.arange(8) % 2
    y[3] = label
    with pytest.raises(UserError, match=rf"mine, training examples: example 3 has label {label}, the classes are 0\.\.1"):
        check_data(bad_data(y=y), None)


@pytest.mark.parametrize("domain", [(0.0, 1.0), ((0.0,), (1.0,))])
def test_input_outside_the_domain(domain: Any) -> None:
    with pytest.raises(UserError, match=r"example 5 has values from 0\.5 to 1\.25, outside the recipe's domain \[\(?0\)?, \(?1\)?\]"):
        check_data(bad_data(x=changed(1.25)), domain)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_input_not_finite(value: float) -> None:
    with pytest.raises(UserError, match="example 5 holds NaN or infinity"):
        check_data(bad_data(x=changed(value)), None)


def test_domain_with_the_wrong_number_of_channels() -> None:
    with pytest.raises(UserError, match="3 channels, the data 1"):
        check_data(bad_data(), ((0.0,) * 3, (1.0,) * 3))


# --- MNIST ---------------------------------------------------------------------------------------------------------


def write_idx(folder: Path, part: str, count: int, packed: bool, labels: int | None = None) -> None:
    random = np.random.default_rng(count)
    images, numbers = random.integers(0, 256, (count, 28, 28), dtype=np.uint8), (np.arange(labels or count) % 10).astype(np.uint8)
    files = {
        f"{part}-images-idx3-ubyte": struct.pack(">iiii", 0x803, count, 28, 28) + images.tobytes(),
        f"{part}-labels-idx1-ubyte": struct.pack(">ii", 0x801, len(numbers)) + numbers.tobytes(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / (name + ".gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("place", ["", "raw", "MNIST/raw"])
@pytest.mark.parametrize("packed", [False, True])
def test_mnist_files_are_found_where_people_put_them(tmp_path: Path, place: str, packed: bool) -> None:
    write_idx(tmp_path / place, "train", 40, packed)
    write_idx(tmp_path / place, "t10k", 20, packed)
    data = load_data(DataRequest("mnist", tmp_path))
    assert (len(data.train), len(data.test), data.shape) == (40, 20, (1, 28, 28))
    expected = np.random.default_rng(20).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    (batch,) = data.test.in_order(20)
    assert np.array_equal((batch.x[:, 0] * 255).round().byte().numpy(), expected)


def test_mnist_with_the_test_part_alone(tmp_path: Path) -> None:
    write_idx(tmp_path, "t10k", 8100, packed=False)
    with pytest.raises(UserError, match=r"only the test part of MNIST \(t10k\) is here(.|\n)*mnist-t10k"):
        load_data(DataRequest("mnist", tmp_path))
    data = load_data(DataRequest("mnist-t10k", tmp_path))
    assert (len(data.train), len(data.test)) == (8000, 100)
    assert "first 8,000" in data.note


def test_mnist_files_that_are_broken(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--data-root"):
        load_data(DataRequest("mnist-t10k", tmp_path))
    write_idx(tmp_path, "t10k", 8100, packed=True, labels=8000)
    with pytest.raises(UserError, match="8000 labels for 8100 images"):
        load_data(DataRequest("mnist-t10k", tmp_path))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte\.gz: is not a readable idx file"):
        load_data(DataRequest("mnist-t10k", tmp_path))


# --- torchvision's data sets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_cifar_goes_through_torchvision(monkeypatch: pytest.MonkeyPatch, name: str, kind: str) -> None:
    class Fake:
        def __init__(self, root: str, train: bool, download: bool) -> None:
            assert download and root == "somewhere"
            self.classes, self.targets = ["cat", "dog"], [0, 1] * (4 if train else 2)
            self.data = np.arange(len(self.targets) * 4 * 5 * 3, dtype=np.uint8).reshape(-1, 4, 5, 3)

    monkeypatch.setattr(f"torchvision.datasets.{kind}", Fake)
    data = load_data(DataRequest(name, Path("somewhere")))
    assert (data.shape, data.classes, len(data.train), len(data.test)) == ((3, 4, 5), ("cat", "dog"), 8, 4)
    (batch,) = data.test.in_order(4)
    assert float(batch.x[0, 2, 1, 3]) == pytest.approx((1 * 15 + 3 * 3 + 2) / 255)


def test_svhn_goes_through_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def __init__(self, root: str, split: str, download: bool) -> None:
            self.labels = np.array([0, 1] * (3 if split == "train" else 1))
            self.data = np.zeros((len(self.labels), 3, 4, 4), dtype=np.uint8)

    monkeypatch.setattr("torchvision.datasets.SVHN", Fake)
    data = load_data(DataRequest("svhn"))
    assert (len(data.train), len(data.test), data.num_classes) == (6, 2, 10)


def test_no_network_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(**kwargs: Any) -> Any:
        raise RuntimeError("Error downloading")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", fail)
    with pytest.raises(UserError, match=r"CIFAR10 is not here and could not be downloaded \(Error downloading\)\n  help: .*--data-root"):
        load_data(DataRequest("cifar10", tmp_path))


# --- image folders -------------------------------------------------------------------------------------------------


def write_folder(root: Path, count: int, size: int = 6, classes: tuple[str, ...] = ("ape", "bee")) -> None:
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for n in range(count):
            Image.new("RGB", (size, size), (50 * k, 10 * n, 255)).save(root / name / f"{n:03}.png")


@pytest.mark.parametrize("limit", [0, 2**20])
def test_images_are_decoded_once_where_they_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr("lossdsl.run.data_folder.MEMORY_LIMIT", limit)
    write_folder(tmp_path, 10)
    data = load_data(DataRequest(f"imagefolder:{tmp_path}"))
    orders = [[torch.tensor([5, 0]), torch.tensor([1, 2, 3])], [torch.tensor([3, 4, 0]), torch.tensor([1])]]
    first = [[batch.x for batch in data.train.batches(order)] for order in orders]
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    if limit:
        assert all(torch.equal(x, batch.x) for x, batch in zip(first[1], data.train.batches(orders[1]), strict=True))
        reds = [(data.train.positions[i] % 10 * 10).tolist() for i in orders[1]]
        assert [(x[:, 1, 0, 0] * 255).round().tolist() for x in first[1]] == reds
    else:
        with pytest.raises(UserError, match="not a readable image"):
            list(data.train.batches(orders[1]))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("held_out", ["test", "val"])
def test_image_folder_with_its_own_test_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_out: str, workers: int) -> None:
    monkeypatch.setattr("lossdsl.run.data_folder.MEMORY_LIMIT", 0)
    write_folder(tmp_path / "train", 4)
    write_folder(tmp_path / held_out, 2)
    data = load_data(DataRequest(f"imagefolder:{tmp_path}", workers=workers))
    assert (len(data.train), len(data.test), data.shape, data.classes) == (8, 4, (3, 6, 6), ("ape", "bee"))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    (batch,) = data.train.batches([torch.tensor([6, 1])])
    assert torch.equal(before, torch.get_rng_state())  # a resumed run must not differ by the loaders it opened
    assert torch.allclose(batch.x[:, :, 0, 0] * 255, torch.tensor([[50.0, 20, 255], [0, 10, 255]]))
    assert batch.y.tolist() == [1, 0]
    assert data.mean == pytest.approx((25 / 255, 15 / 255, 1.0))
    check_data(data, (0.0, 1.0))


def test_image_folder_without_a_test_part_is_split(tmp_path: Path) -> None:
    write_folder(tmp_path, 10)
    data = load_data(DataRequest(f"imagefolder:{tmp_path}"))
    assert (len(data.train), len(data.test)) == (16, 4)
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    assert "20%" in data.note


def test_image_folder_digest_sees_a_changed_file(tmp_path: Path) -> None:
    write_folder(tmp_path, 10)
    before = load_data(DataRequest(f"imagefolder:{tmp_path}")).digest()
    (tmp_path / "ape" / "000.png").rename(tmp_path / "bee" / "900.png")
    assert load_data(DataRequest(f"imagefolder:{tmp_path}")).digest() != before


def test_images_of_unequal_size(tmp_path: Path) -> None:
    write_folder(tmp_path, 10)
    Image.new("RGB", (9, 7)).save(tmp_path / "bee" / "003.png")
    with pytest.raises(UserError, match=r"bee/003\.png: 9x7 pixels, the first image has 6x6\n  help: give --image-size N"):
        list(load_data(DataRequest(f"imagefolder:{tmp_path}")).train.in_order(4))
    data = load_data(DataRequest(f"imagefolder:{tmp_path}", image_size=5))
    assert data.shape == (3, 5, 5)
    assert sum(len(batch.y) for batch in data.train.in_order(3)) == 16


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named(tmp_path: Path, workers: int) -> None:
    write_folder(tmp_path / "train", 3)
    write_folder(tmp_path / "test", 3)
    (tmp_path / "test" / "bee" / "001.png").write_bytes(b"junk")
    data = load_data(DataRequest(f"imagefolder:{tmp_path}", workers=workers))
    with pytest.raises(UserError, match=r"test/bee/001\.png: is not a readable image"):
        list(data.test.in_order(2))


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        load_data(DataRequest(f"imagefolder:{tmp_path / 'no'}"))
    with pytest.raises(UserError, match="one folder of images per class"):
        load_data(DataRequest(f"imagefolder:{tmp_path}"))
    write_folder(tmp_path / "train", 2)
    with pytest.raises(UserError, match="no folder test or val"):
        load_data(DataRequest(f"imagefolder:{tmp_path}"))
    write_folder(tmp_path / "test", 2, classes=("ape", "cow"))
    with pytest.raises(UserError, match="different classes: bee, cow"):
        load_data(DataRequest(f"imagefolder:{tmp_path}"))


# --- augmentation --------------------------------------------------------------------------------------------------


def test_augmentation_equals_torchvisions_functions() -> None:
    x = torch.rand(64, 3, 7, 5)
    got = augment(x, "crop_flip", torch.Generator().manual_seed(3))
    random = torch.Generator().manual_seed(3)
    top, left = torch.randint(9, (2, 64), generator=random).tolist()
    mirrored = (torch.rand(64, generator=random) < 0.5).tolist()
    assert len(set(top)) == len(set(left)) == 9 and 0 < sum(mirrored) < 64
    for n in range(64):
        expected = tv.crop(tv.pad(x[n], [4, 4, 4, 4]), top[n], left[n], 7, 5)
        assert torch.equal(got[n], tv.horizontal_flip(expected) if mirrored[n] else expected)


def test_augmentation_by_kind() -> None:
    x = torch.rand(8, 1, 6, 6)
    assert augment(x, "none", torch.Generator()) is x
    cropped = augment(x, "crop", torch.Generator().manual_seed(1))
    assert cropped.shape == x.shape and not torch.equal(cropped, x)
    with pytest.raises(UserError, match="augmentation works on images"):
        augment(x.flatten(1), "crop", torch.Generator())
