"""`lossdsl train`: from a request to a finished run in a directory, or to one that can be resumed."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from lossdsl.diagnostics import UserError
from lossdsl.run import manifest, metrics
from lossdsl.run.check import check_data, check_model
from lossdsl.run.checkpoint import read_checkpoint
from lossdsl.run.data import DataRequest, DataSet, load_data
from lossdsl.run.files import read_json, run_directory, write_json
from lossdsl.run.loop import METRICS, run_epochs
from lossdsl.run.measure import Interrupted, Rate, Setting, measure
from lossdsl.run.models import ModelInput, build_model
from lossdsl.run.optim import build_optimizer, build_schedule
from lossdsl.run.progress import Reporter, stop_request
from lossdsl.run.protocols import Attack, CompileAttack, CompileStep, Recipe
from lossdsl.run.rng import (
    Streams,
    choose_device,
    derive,
    deterministic_algorithms,
    seeded,
)
from lossdsl.run.session import BEST, LAST, Session, load_weights

MANIFEST, RESULT = "manifest.json", "result.json"
Status = Literal["finished", "interrupted", "already finished"]


@dataclass(frozen=True)
class AttackChoice:
    """A suite by name, file or text. Its radius is the recipe's own, the parameter eps where it has one, unless `overrides` says other."""

    name: str
    overrides: Mapping[str, float | int] | None = None

    def resolved(self, params: Mapping[str, float | int]) -> dict[str, float | int]:
        own = {"eps": params["eps"]} if "eps" in params else {}
        return {**own, **(self.overrides or {})}


@dataclass(frozen=True)
class TrainRequest:
    """What `lossdsl train` was asked for. `checkpoint_every` counts batches; both intervals may be None (then once per epoch).

    `command` is what the user typed, without --resume, and is repeated in every hint how to go on. A console of None is silent.
    """

    recipe: Recipe
    compile_step: CompileStep
    compile_attack: CompileAttack
    out: Path
    data: DataRequest | DataSet = field(default_factory=DataRequest)
    model: str = "smallcnn"
    seed: int = 0
    device: str = "auto"
    resume: bool = False
    deterministic: bool = False
    checkpoint_every: int | None = None
    checkpoint_seconds: float | None = 300.0
    validation_attack: AttackChoice = AttackChoice("pgd10")
    test_attack: AttackChoice = AttackChoice("pgd20")
    eval_batch: int = 512
    command: tuple[str, ...] = ()
    console: Console | None = None

    @property
    def resume_command(self) -> str:
        typed = self.command or ("lossdsl", "train", self.recipe.name, "--out", str(self.out))
        return shlex.join([*(word for word in typed if word != "--resume"), "--resume"])


@dataclass(frozen=True)
class CheckpointReport:
    """A checkpoint and its accuracy on the test split under the test attack; `validation` is what it was chosen by (best only)."""

    file: str
    epoch: int
    clean: Rate
    robust: Rate
    validation: Mapping[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "epoch": self.epoch,
            "clean": self.clean.to_json(),
            "robust": self.robust.to_json(),
            "validation": self.validation,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CheckpointReport:
        return cls(value["file"], value["epoch"], Rate.from_json(value["clean"]), Rate.from_json(value["robust"]), value["validation"])


@dataclass(frozen=True)
class TrainResult:
    """How a call of `train` ended. `best` and `last` are None, and `resume_command` is set, where it was interrupted.

    `attack` holds the test suite's name, count rule, settings and seed; `seconds` is all training time, over every resumption.
    """

    status: Status
    out: Path
    epochs: int
    updates: int
    seconds: float
    best: CheckpointReport | None = None
    last: CheckpointReport | None = None
    attack: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""
    resume_command: str = ""


def train(request: TrainRequest) -> TrainResult:
    """Run the request to its end, or until Ctrl-C.

    The directory gets manifest.json, metrics.jsonl, best.safetensors, last.safetensors and, at the end, result.json. On the CPU the
    weights depend on the request alone, however often the run was killed and resumed. Raises UserError (one message that says where,
    what and how to mend it) and then leaves the checkpoints that were there as they were.
    """
    reporter, device = Reporter(request.console), choose_device(request.device)
    with run_directory(request.out) as out:
        data = request.data if isinstance(request.data, DataSet) else load_data(request.data)
        wanted = _identity(request, data, device)
        held = examine(request, wanted)
        if (out / RESULT).exists():
            return _stored_result(out)
        with deterministic_algorithms(request.deterministic, device), seeded(request.seed, device):
            session = _build_session(request, data, device, held or wanted)
            if held:
                _take_up(session, reporter)
            else:
                sizes = {"train": len(session.train), "validation": len(session.validation), "test": len(data.test)}
                write_json(out / MANIFEST, manifest.build(request.recipe, data, session.model, device, wanted, sizes))
                session.save_last()
                if request.resume:
                    reporter.note(f"{out}: nothing to resume, starting from the beginning")
            return _run(request, session, data, reporter)


def _identity(request: TrainRequest, data: DataSet, device: torch.device) -> dict[str, Any]:
    source = request.data if isinstance(request.data, DataRequest) else None
    files = {"root": str(source.root.resolve()), "image_size": source.image_size} if source else {"root": "", "image_size": None}
    attack = {"name": request.validation_attack.name, "overrides": request.validation_attack.resolved(request.recipe.params)}
    others = {
        "model": request.model,
        "seed": request.seed,
        "device": device.type,
        "deterministic": request.deterministic,
        "validation_attack": attack,
        "eval_batch": request.eval_batch,
    }
    return manifest.identity(request.recipe, {"name": data.name, "digest": data.digest(), **files}, others)


def examine(request: TrainRequest, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """The identity that `out` holds, if it is this very run, to be taken up; None if it holds nothing.

    Raises UserError: another run, other files of that name, or no --resume.
    """
    out = request.out
    if not (out / MANIFEST).exists():
        found = [name for name in (LAST, BEST, METRICS, RESULT) if (out / name).exists()]
        if found:
            raise UserError(
                f"holds {', '.join(found)} but no {MANIFEST}: it is not a run that can be continued",
                where=str(out),
                fix="choose another --out",
            )
        return None
    there = read_json(out / MANIFEST, "manifest of a run")
    if there.get("format") != manifest.FORMAT or not isinstance(there.get("identity"), dict):
        raise UserError("is not a manifest of lossdsl", where=str(out / MANIFEST), fix="choose another --out")
    odd = manifest.differences(there["identity"], _same_data(there["identity"], wanted))
    if odd:
        raise UserError(
            "already holds another run; it differs in " + "; ".join(odd),
            where=str(out),
            fix="choose another --out, or ask for the run it holds",
        )
    if (out / RESULT).exists() and not request.resume:
        raise UserError(
            "already holds this run, and it is finished",
            where=str(out),
            fix=f"lossdsl evaluate {shlex.quote(str(out))}, or choose another --out to train anew",
        )
    if not request.resume:
        raise UserError("already holds this run, unfinished", where=str(out), fix=f"go on with it: {request.resume_command}")
    held: dict[str, Any] = there["identity"]
    return held


def _same_data(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """`wanted`, its data named as in `there` if the hash agrees: files may move between a run and its resumption."""
    known = there.get("data", {})
    return {**wanted, "data": known if known.get("digest") == wanted["data"]["digest"] else wanted["data"]}


def _build_session(request: TrainRequest, data: DataSet, device: torch.device, identity: Mapping[str, Any]) -> Session:
    """All parts of the run, checked. The model's initial weights come from the seeded global generators."""
    recipe, options = request.recipe, request.recipe.train
    dtype = torch.float64 if options.precision == "float64" else torch.float32
    check_data(data, recipe.domain)
    train_split, validation = data.validated(options.validation)
    model = build_model(request.model, ModelInput(data.shape, data.num_classes), data.mean, data.std).to(device, dtype)
    check_model(model, train_split, data.num_classes, request.model, device, dtype)
    step = request.compile_step(model, data.num_classes, device)
    attack = compile_choice(request, request.validation_attack, model, data.num_classes, device)
    optimizer = build_optimizer(recipe.optimizer, model.parameters())
    return Session(
        recipe=recipe, out=request.out, seed=request.seed, device=device, model=model, step=step, optimizer=optimizer,
        schedule=build_schedule(optimizer, options, -(-len(train_split) // options.batch)), streams=Streams.start(request.seed, device),
        train=train_split, validation=validation, validation_attack=attack, identity=identity, eval_batch=request.eval_batch,
        checkpoint_every=request.checkpoint_every, checkpoint_seconds=request.checkpoint_seconds,
    )  # fmt: skip


def compile_choice(request: TrainRequest, choice: AttackChoice, model: torch.nn.Module, num_classes: int, device: torch.device) -> Attack:
    """The attack of a choice, which must give one robust accuracy."""
    attack = request.compile_attack(choice.name, choice.resolved(request.recipe.params), model, num_classes, device)
    if attack.count == "each":
        raise UserError(
            "counts each run for itself, and a training run needs one robust accuracy",
            where=f"attack {attack.name}",
            fix="use a suite with count worst",
        )
    return attack


def _take_up(session: Session, reporter: Reporter) -> None:
    """Go back to last.safetensors, or to the start of a run that was killed before it wrote one; drop metrics written after it."""
    if (session.out / LAST).exists():
        session.resume()
    else:
        session.save_last()
    place = session.place
    metrics.keep_until(session.out / METRICS, place.epoch - 1)
    reporter.note(
        f"{session.out}: resuming " + ("after the last epoch" if place.done else f"at epoch {place.epoch}, batch {place.batch + 1}")
    )


def _run(request: TrainRequest, session: Session, data: DataSet, reporter: Reporter) -> TrainResult:
    place = session.place
    with stop_request() as stop:
        try:
            run_epochs(session, reporter, stop)
            result = _final(request, session, data, reporter, stop)
        except Interrupted:
            session.save_last()
            reporter.note(f"stopped at epoch {place.epoch}, after batch {place.batch}; go on with: {request.resume_command}")
            return TrainResult(
                "interrupted", session.out, place.epoch - 1, place.updates, place.seconds, resume_command=request.resume_command
            )
    return result


def _final(request: TrainRequest, session: Session, data: DataSet, reporter: Reporter, stop: Callable[[], bool]) -> TrainResult:
    """Both checkpoints on the test split, as `evaluate` with the same seed measures them, and result.json."""
    place, device = session.place, session.device
    attack = compile_choice(request, request.test_attack, session.model, data.num_classes, device)
    reports: dict[str, CheckpointReport] = {}
    for file in (LAST, BEST):
        found = read_checkpoint(session.out / file)
        session.check_owner(found, session.out / file)
        load_weights(session.model, found, session.out / file)
        chosen = found.state.get("best")
        epoch = int(chosen["epoch"]) if chosen else place.epoch - 1
        with seeded(derive(request.seed, "evaluate"), device), reporter.bar(f"test, {file.partition('.')[0]} checkpoint", len(data.test)):
            setting = Setting(device, session.dtype, request.seed, session.eval_batch)
            got = measure(session.model, attack, data.test, setting, stop=stop, advance=reporter.advance)
        assert got.robust is not None
        reports[file] = CheckpointReport(
            file, epoch, got.clean, got.robust, {k: chosen[k] for k in ("clean", "robust")} if chosen else None
        )
    about = {"name": attack.name, "count": attack.count, "settings": [dict(row) for row in attack.settings], "seed": request.seed}
    result = TrainResult(
        "finished", session.out, place.epoch - 1, place.updates, place.seconds, reports[BEST], reports[LAST], about, data.title
    )
    write_json(session.out / RESULT, _to_json(result))
    return result


def _to_json(result: TrainResult) -> dict[str, Any]:
    assert result.best and result.last
    return {
        "epochs": result.epochs,
        "updates": result.updates,
        "seconds": result.seconds,
        "best": result.best.to_json(),
        "last": result.last.to_json(),
        "attack": dict(result.attack),
        "data": result.data,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _stored_result(out: Path) -> TrainResult:
    """The result of a finished run. Raises UserError for a damaged file."""
    value = read_json(out / RESULT, "result of a run")
    try:
        best, last = (CheckpointReport.from_json(value[name]) for name in ("best", "last"))
        return TrainResult(
            "already finished", out, value["epochs"], value["updates"], value["seconds"], best, last, value["attack"], value["data"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"is not a result of lossdsl ({error})",
            where=str(out / RESULT),
            fix="delete the file and run the same command with --resume to measure again",
        ) from error
