"""`lossdsl evaluate`: a checkpoint of a run against an attack suite, counted and written down."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from lossdsl.diagnostics import UserError
from lossdsl.run.check import check_data, check_model
from lossdsl.run.checkpoint import Checkpoint, read_checkpoint
from lossdsl.run.data import DataRequest, DataSet, load_data
from lossdsl.run.examples import Split
from lossdsl.run.files import write_json
from lossdsl.run.measure import Measurement, Rate, Setting, measure
from lossdsl.run.models import ModelInput, build_model
from lossdsl.run.progress import Reporter
from lossdsl.run.protocols import CompileAttack
from lossdsl.run.request import AttackChoice
from lossdsl.run.rng import choose_device, derive, seeded
from lossdsl.run.stored import load_weights, read_manifest, weights_part


@dataclass(frozen=True)
class EvaluateRequest:
    """What `lossdsl evaluate` was asked for.

    The radius (eps) is that of the run, unless `overrides` names another. `limit` measures only the first examples. `data` replaces the
    run's own data (a transfer test, or a data set given as tensors); `data_root` says where the run's data is now.
    """

    run: Path
    compile_attack: CompileAttack
    attack: str = "pgd20"
    overrides: Mapping[str, float | int] | None = None
    which: Literal["best", "last"] = "best"
    split: Literal["test", "validation"] = "test"
    seed: int = 0
    device: str = "auto"
    batch: int = 512
    limit: int | None = None
    data: DataRequest | DataSet | None = None
    data_root: Path | None = None
    workers: int = 0
    console: Console | None = None


@dataclass(frozen=True)
class EvaluateResult:
    """What was measured, under exactly which settings. `robust` is None for `count each`: the numbers are then in `runs`."""

    file: Path
    run: Path
    checkpoint: str
    epoch: int
    data: str
    split: str
    attack: str
    count: str
    settings: tuple[Mapping[str, Any], ...]
    seed: int
    clean: Rate
    robust: Rate | None
    runs: Mapping[str, Rate]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        robust = self.robust.to_json() if self.robust else None
        plain = {name: getattr(self, name) for name in ("checkpoint", "epoch", "data", "split", "attack", "count", "seed", "seconds")}
        runs = {name: rate.to_json() for name, rate in self.runs.items()}
        return {**plain, "settings": [dict(row) for row in self.settings], "clean": self.clean.to_json(), "robust": robust, "runs": runs}


def evaluate(request: EvaluateRequest) -> EvaluateResult:
    """Measure one checkpoint and write the result beside it as evaluate-ATTACK-WHICH-HASH.json (the hash is of the settings).

    Clean errors count as broken; the suite's own count rule decides the rest. Raises UserError: not a run, damaged or foreign
    checkpoint, data that is not the run's, unknown attack.
    """
    device, reporter = choose_device(request.device), Reporter(request.console)
    about = read_manifest(request.run)
    identity = about["identity"]
    data = _data(request, identity["data"])
    path = request.run / f"{request.which}.safetensors"
    found = read_checkpoint(path)
    dtype = torch.float64 if identity["train"]["precision"] == "float64" else torch.float32
    classes = len(about["data"]["classes"])
    if classes != data.num_classes:
        raise UserError(
            f"the data has {data.num_classes} classes, the run was trained on {classes}",
            where=data.name,
            fix="evaluate on data with the same classes",
        )
    check_data(data, None)
    split = _split(request, data, float(identity["train"]["validation"]))
    with seeded(derive(request.seed, "evaluate"), device):
        model = build_model(identity["model"], ModelInput(data.shape, classes), data.mean, data.std).to(device, dtype)
        load_weights(model, found, path, weights_part(found))
        check_model(model, split, classes, identity["model"], device, dtype)
        overrides = AttackChoice(request.attack, request.overrides).resolved(identity["params"])
        attack = request.compile_attack(request.attack, overrides, model, classes, device)
        started = time.monotonic()
        with reporter.bar(attack.name, len(split)):
            got = measure(model, attack, split, Setting(device, dtype, request.seed, request.batch), advance=reporter.advance)
    settings = tuple(dict(row) for row in attack.settings)
    return _write(request, data, found, (attack.name, attack.count, settings), got, time.monotonic() - started)


def _data(request: EvaluateRequest, known: Mapping[str, Any]) -> DataSet:
    """The run's own data, which must be unchanged, or what the request puts in its place."""
    if isinstance(request.data, DataSet):
        return request.data
    if request.data is not None:
        return load_data(request.data)
    root = request.data_root or Path(known["root"])
    name = f"imagefolder:{request.data_root}" if request.data_root and known["name"].startswith("imagefolder:") else known["name"]
    data = load_data(DataRequest(name, root, known["image_size"], request.workers))
    if data.digest() != known["digest"]:
        raise UserError(
            "is not the data the run was trained on: its hash differs from the manifest's",
            where=str(root),
            fix="name the right files with --data-root",
        )
    return data


def _split(request: EvaluateRequest, data: DataSet, share: float) -> Split:
    split = data.test if request.split == "test" else data.validated(share)[1]
    if request.limit is None:
        return split
    if request.limit < 1:
        raise UserError(f"{request.limit} examples cannot be measured", where="--limit", fix="use 1 or more")
    return Split(split.examples, split.positions[: request.limit])


def _write(
    request: EvaluateRequest,
    data: DataSet,
    found: Checkpoint,
    attack: tuple[str, str, tuple[Mapping[str, Any], ...]],
    got: Measurement,
    seconds: float,
) -> EvaluateResult:
    name, count, settings = attack
    state = found.state
    epoch = int(state["best"]["epoch"]) if state.get("kind") == "best" else int(state["place"]["epoch"]) - 1
    key = json.dumps([settings, count, request.seed, request.split, request.limit, request.batch, data.name, epoch], default=str)
    short = hashlib.sha256(key.encode()).hexdigest()[:8]
    file = request.run / f"evaluate-{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)}-{request.which}-{short}.json"
    result = EvaluateResult(
        file=file, run=request.run, checkpoint=request.which, epoch=epoch, data=data.title, split=request.split, attack=name,
        count=count, settings=settings, seed=request.seed, clean=got.clean, robust=got.robust, runs=got.runs, seconds=seconds,
    )  # fmt: skip
    write_json(file, result.to_json())
    return result
