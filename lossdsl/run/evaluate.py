"""`lossdsl evaluate`: checkpoints of runs against attack suites, counted, written down, and answered from there the next time."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from rich.console import Console
from torch import nn

from lossdsl import __version__
from lossdsl.diagnostics import UserError, did_you_mean
from lossdsl.engine.api import attack_suite
from lossdsl.run.check import check_data, check_model
from lossdsl.run.checkpoint import Checkpoint, read_checkpoint
from lossdsl.run.data import DataRequest, DataSet, load_data
from lossdsl.run.examples import Split
from lossdsl.run.files import write_json
from lossdsl.run.measure import Clean, Measurement, Setting, measure, predict, units
from lossdsl.run.models import ModelInput, build_model
from lossdsl.run.others import Other, build_others, resolve_others
from lossdsl.run.pieces import stored_pieces
from lossdsl.run.progress import Reporter
from lossdsl.run.protocols import Attack, CompileAttack
from lossdsl.run.request import AttackChoice
from lossdsl.run.results import FORMAT, Evaluation, known_result, masks_path, write_result
from lossdsl.run.rng import choose_device, derive, seeded
from lossdsl.run.stored import digest, epoch_of, load_weights, precision, read_manifest, trained_data, weights_part


class SanityGate(Protocol):
    """Judges a measured model (lossdsl.sanity): a report as JSON values with the line `summary`. `name` says what it does, and is part of
    the report."""

    @property
    def name(self) -> Mapping[str, Any]: ...
    def __call__(self, model: nn.Module, attack: Attack, split: Split, setting: Setting, found: Measurement) -> dict[str, Any]: ...


@dataclass(frozen=True)
class EvaluateRequest:
    """What `lossdsl evaluate` was asked for.

    The radius (eps) is that of the run, unless `overrides` names another. `limit` measures only the first examples. `data` replaces the
    run's own data (a transfer test, or a data set given as tensors); `data_root` says where the run's data is now. `binds`: for every
    other model of the suite, the directory of a run. `fresh`: measure again, also what is known. `sanity`: what judges the model and the
    numbers before they are returned.
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
    binds: Mapping[str, str] = field(default_factory=dict)
    fresh: bool = False
    sanity: SanityGate | None = None
    console: Console | None = None


@dataclass(frozen=True)
class EvaluateResult(Evaluation):
    """An evaluation of a run. file: its JSON; the masks of broken examples lie beside it. sanity: the gate's report, None without one."""

    file: Path
    run: Path
    checkpoint: str
    epoch: int
    data: str
    split: str
    sanity: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        place = {"run": str(self.run), "checkpoint": self.checkpoint, "epoch": self.epoch, "data": self.data, "split": self.split}
        return {**place, **super().to_json(), "sanity": self.sanity, "file": str(self.file), "masks": str(masks_path(self.file))}


def evaluate(request: EvaluateRequest) -> EvaluateResult:
    """Measure one checkpoint under one suite and write the result beside it as evaluate-ATTACK-WHICH-HASH.json.

    Clean errors count as broken; the suite's own count rule decides the rest. The hash is of weights, data, suite, seed and split: what
    is known under it is not measured again, and what a killed process has finished is used. Raises UserError: not a run, damaged or
    foreign checkpoint, data that is not the run's, unknown attack, a model of the suite that is not bound.
    """
    return next(evaluate_all(request, [request.attack]))


def evaluate_all(request: EvaluateRequest, attacks: Sequence[str]) -> Iterator[EvaluateResult]:
    """The same for several suites, one after the other; the clean predictions are made once."""
    device = choose_device(request.device)
    suites = _suites(request, attacks)
    subject = open_subject(request, device)
    with seeded(derive(request.seed, "evaluate"), device):
        clean: Clean | None = None
        for name in attacks:
            result = _one(replace(request, attack=name), subject, suites[name], clean)
            clean = result.measurement.predictions
            yield result


@dataclass(frozen=True)
class Subject:
    """A checkpoint with its model and the examples it is measured on."""

    about: Mapping[str, Any]
    found: Checkpoint
    model: nn.Module
    data: DataSet
    split: Split
    device: torch.device
    dtype: torch.dtype
    digest: str

    @property
    def epoch(self) -> int:
        return epoch_of(self.found)

    @property
    def params(self) -> Mapping[str, float | int]:
        return self.about["identity"]["params"]


def open_subject(request: EvaluateRequest, device: torch.device) -> Subject:
    """The model and the examples of a request. Raises UserError as `evaluate` does."""
    about = read_manifest(request.run)
    identity = about["identity"]
    data = _data(request, identity)
    path = request.run / f"{request.which}.safetensors"
    found = read_checkpoint(path)
    dtype = precision(identity)
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
        part = weights_part(found)
        load_weights(model, found, path, part)
        check_model(model, split, classes, identity["model"], device, dtype, finite=False)
    return Subject(about, found, model, data, split, device, dtype, digest(identity["model"], found.part(part)))


def _suites(request: EvaluateRequest, attacks: Sequence[str]) -> dict[str, tuple[Other, ...]]:
    """The other models of every suite. Raises UserError for one that is not bound, for a bind that no suite asks for, and for a param
    that no suite has."""
    suites = {name: attack_suite(name) for name in attacks}
    params = {param for suite in suites.values() for param in suite.params}
    for name in request.overrides or ():
        if name not in params:
            raise UserError(f"no suite has a param {name}", where=f"--set {name}", fix=did_you_mean(name, params))
    models = {name: suite.models for name, suite in suites.items()}
    every = {model for found in models.values() for model in found}
    for name in request.binds:
        if name not in every:
            fix = did_you_mean(name, every) if every else "leave out --bind"
            raise UserError(f"no suite has a model {name}", where=f"--bind {name}", fix=fix)
    return {name: resolve_others(found, {k: v for k, v in request.binds.items() if k in found}) for name, found in models.items()}


def _one(request: EvaluateRequest, subject: Subject, others: tuple[Other, ...], clean: Clean | None) -> EvaluateResult:
    models = build_others(others, subject.data, request.seed, subject.device, subject.dtype)
    overrides = AttackChoice(request.attack, request.overrides).resolved(subject.params)
    overrides = {name: value for name, value in overrides.items() if name in attack_suite(request.attack).params}
    more = {"models": models} if models else {}
    attack = request.compile_attack(request.attack, overrides, subject.model, subject.data.num_classes, subject.device, **more)
    key = _key(request, subject, attack, others)
    label = re.sub(r"[^A-Za-z0-9_.-]+", "_", attack.name)
    file = request.run / f"evaluate-{label}-{request.which}-{key[:8]}.json"
    if not request.fresh and (known := known_result(file, key)):
        result = _result(request, subject, attack, file, known[1], str(known[0]["device"]), True)
        return _judged(request, subject, attack, result, known[0])
    with stored_pieces(request.run / f".evaluate-{key[:16]}", request.fresh) as pieces:
        file.unlink(missing_ok=True)
        reporter, setting = Reporter(request.console), Setting(subject.device, subject.dtype, request.seed, request.batch)
        with reporter.bar(attack.name, units(attack, subject.split)):
            clean = clean or predict(subject.model, subject.split, setting)
            got = measure(subject.model, attack, subject.split, setting, clean=clean, pieces=pieces, advance=reporter.advance)
        result = _result(request, subject, attack, file, got, str(subject.device), False)
        value = {"key": key, **result.to_json()}
        write_result(file, value, got)
    return _judged(request, subject, attack, result, value)


def _judged(request: EvaluateRequest, subject: Subject, attack: Attack, result: EvaluateResult, value: dict[str, Any]) -> EvaluateResult:
    """The result with what the sanity gate says of it, which is kept in its file (`value`)."""
    gate, known = request.sanity, value.get("sanity")
    if gate is None or (known and known.get("gate") == gate.name):
        return replace(result, sanity=known)
    setting = Setting(subject.device, subject.dtype, request.seed, request.batch)
    report = {"gate": dict(gate.name), **gate(subject.model, attack, subject.split, setting, result.measurement)}
    write_json(result.file, {**value, "sanity": report})
    return replace(result, sanity=report)


def _result(
    request: EvaluateRequest, subject: Subject, attack: Attack, file: Path, found: Measurement, device: str, cached: bool
) -> EvaluateResult:
    return EvaluateResult(
        attack=attack.name, count=attack.count, settings=tuple(dict(row) for row in attack.settings), seed=request.seed, device=device,
        cached=cached, measurement=found, file=file, run=request.run, checkpoint=request.which, epoch=subject.epoch,
        data=subject.data.title, split=request.split,
    )  # fmt: skip


def _key(request: EvaluateRequest, subject: Subject, attack: Attack, others: Sequence[Other]) -> str:
    """SHA-256 of all that the numbers depend on."""
    content = {
        "version": [__version__, FORMAT], "model": subject.digest, "suite": attack.hash, "seed": request.seed,
        "data": subject.data.digest(), "split": request.split, "validation": subject.about["identity"]["train"]["validation"],
        "limit": request.limit, "models": {other.name: other.identity().get("digest") for other in others},
    }  # fmt: skip
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _data(request: EvaluateRequest, identity: Mapping[str, Any]) -> DataSet:
    """The run's own data, which must be unchanged, or what the request puts in its place."""
    if isinstance(request.data, DataRequest):
        return load_data(request.data)
    return request.data or trained_data(request.run, identity, request.data_root, request.workers)


def _split(request: EvaluateRequest, data: DataSet, share: float) -> Split:
    split = data.test if request.split == "test" else data.validated(share)[1]
    if request.limit is None:
        return split
    if request.limit < 1:
        raise UserError(f"{request.limit} examples cannot be measured", where="--limit", fix="use 1 or more")
    return Split(split.examples, split.positions[: request.limit])
