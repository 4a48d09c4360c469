from __future__ import annotations

import errno
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from run_fakes import DropoutNet, make_request
from safetensors.torch import save_file

from lossdsl.diagnostics import UserError
from lossdsl.run import files
from lossdsl.run.checkpoint import join_optimizer, pack, read_checkpoint, split_optimizer, write_checkpoint
from lossdsl.run.files import read_json, run_directory, write_atomic, write_json
from lossdsl.run.stored import load_weights
from lossdsl.run.train import train

TENSORS = {
    "model/w": torch.randn(3, 4).t(),
    "model/n": torch.tensor(7),
    "model/half": torch.randn(5).bfloat16(),
    "model/none": torch.zeros(0, 2),
    "rng/state": torch.get_rng_state(),
}
STATE = {"place": {"epoch": 3, "sums": {"loss": [0.1 + 0.2, 3]}}, "words": [1, 2, 3]}


def test_round_trip_is_exact(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c.safetensors", TENSORS, STATE)
    found = read_checkpoint(tmp_path / "c.safetensors")
    assert found.state == STATE
    for name, tensor in TENSORS.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)
    assert set(found.part("model")) == {"w", "n", "half", "none"}


def test_tied_weights_are_stored(tmp_path: Path) -> None:
    weight = torch.randn(2, 2)
    write_checkpoint(tmp_path / "c.safetensors", {"model/a": weight, "model/b": weight}, {})
    assert torch.equal(read_checkpoint(tmp_path / "c.safetensors").tensors["model/b"], weight)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_optimizer_state_survives(tmp_path: Path, name: str) -> None:
    def make() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        maker: Any = torch.optim.SGD if name == "sgd" else torch.optim.Adam
        return model, maker(model.parameters(), lr=0.1, **({"momentum": 0.9} if name == "sgd" else {}))

    def update(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(torch.ones(4, 3)).pow(2).sum().backward()
        optimizer.step()

    one, two = make(), make()
    for _ in range(3):
        update(*one)
    tensors, values = split_optimizer(one[1].state_dict())
    write_checkpoint(tmp_path / "c.safetensors", pack({"optimizer": tensors, "model": one[0].state_dict()}), values)
    found = read_checkpoint(tmp_path / "c.safetensors")
    load_weights(two[0], found, tmp_path / "c.safetensors")
    two[1].load_state_dict(join_optimizer(found.part("optimizer"), found.state))
    update(*one)
    update(*two)
    assert torch.equal(one[0].weight, two[0].weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("place", [0.02, 0.5, 0.99])
def test_a_flipped_bit_is_found_anywhere(tmp_path: Path, place: float) -> None:
    path = tmp_path / "last.safetensors"
    write_checkpoint(path, TENSORS, STATE)
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 4
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"last\.safetensors: is (damaged|a safetensors file)"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no checkpoint here"),
        (b"", "damaged or not a checkpoint"),
        (b"PK\x03\x04 a pickle", "damaged or not a checkpoint"),
        ("cut", "damaged"),
    ],
)
def test_what_is_not_a_checkpoint(tmp_path: Path, content: bytes | str | None, message: str) -> None:
    path = tmp_path / "last.safetensors"
    if content == "cut":
        write_checkpoint(path, TENSORS, STATE)
        path.write_bytes(path.read_bytes()[:-10])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    (tmp_path / "best.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=message) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value) and caught.value.fix


def test_a_foreign_or_newer_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "best.safetensors"
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(UserError, match=r"best\.safetensors: is a safetensors file, but not a checkpoint of lossdsl"):
        read_checkpoint(path)
    monkeypatch.setattr("lossdsl.run.checkpoint.VERSION", 2)
    write_checkpoint(path, {}, {})
    monkeypatch.undo()
    with pytest.raises(UserError, match="format version 2, this lossdsl reads version 1"):
        read_checkpoint(path)


def test_weights_that_do_not_fit_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    write_checkpoint(path, pack({"model": DropoutNet(4).state_dict()}), {})
    with pytest.raises(UserError, match=r"best\.safetensors: does not fit the model \(.*5\.weight"):
        load_weights(DropoutNet(3), read_checkpoint(path), path)


def test_state_that_is_not_a_tensor_is_refused() -> None:
    with pytest.raises(UserError, match="'extra' of the model is a dict"):
        pack({"model": {"extra": {}}})  # type: ignore[dict-item]


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_full_disk_keeps_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    path = tmp_path / "last.safetensors"
    write_checkpoint(path, TENSORS, STATE)

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    if moment == "write":
        monkeypatch.setattr("builtins.open", full)
    else:
        monkeypatch.setattr(files.os, moment, full)
    with pytest.raises(UserError, match=r"last\.safetensors: could not be written: the disk is full; the one written before it is intact"):
        write_checkpoint(path, {}, {})
    monkeypatch.undo()
    assert read_checkpoint(path).state == STATE
    assert [file.name for file in tmp_path.iterdir()] == ["last.safetensors"]


def test_a_real_refusal_of_the_system_in_the_middle_of_a_run(tmp_path: Path) -> None:
    """A file-size limit stands for the full disk: the first write of a checkpoint above it fails, after a part of it was written."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"last\.safetensors: could not be written: the file is larger than the system allows"):
            train(make_request(tmp_path / "run"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list((tmp_path / "run").glob("*.tmp")) and not list((tmp_path / "run").glob(".*.tmp"))
    assert train(make_request(tmp_path / "run", resume=True)).status == "finished"


@pytest.mark.parametrize(("code", "message"), [(errno.EROFS, "read-only"), (errno.EACCES, "no permission")])
def test_a_directory_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError(code, "refused")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=f"run: could not be written: .*{message}"):
        train(make_request(tmp_path / "run"))


def test_out_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    for out in (tmp_path / "run", tmp_path / "run" / "below"):
        with pytest.raises(UserError, match="file, not a directory"):
            train(make_request(out))
    assert (tmp_path / "run").read_text() == "mine"


def test_a_run_that_fails_its_checks_leaves_no_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model"):
        train(make_request(tmp_path / "run", model="smalcnn"))
    assert not (tmp_path / "run").exists()


def test_leftovers_of_a_killed_writer_go(tmp_path: Path) -> None:
    (tmp_path / ".last.safetensors.123.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    with run_directory(tmp_path):
        assert sorted(file.name for file in tmp_path.iterdir()) == [".lock", "notes.txt"]


def test_json_files(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1.5})
    assert read_json(tmp_path / "a.json", "thing") == {"b": 1.5}
    write_atomic(tmp_path / "a.json", b"{")
    with pytest.raises(UserError, match=r"a\.json: is not a readable thing"):
        read_json(tmp_path / "a.json", "thing")
    with pytest.raises(UserError, match=r"b\.json: there is no thing here"):
        read_json(tmp_path / "b.json", "thing")
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"b": float("nan")})
