"""`lossdsl train`: from a request to a finished run in a directory, or to one that can be resumed."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from lossdsl.diagnostics import UserError
from lossdsl.run import manifest, metrics
from lossdsl.run.checkpoint import read_checkpoint
from lossdsl.run.data import DataRequest, DataSet, load_data
from lossdsl.run.files import read_json, run_directory, write_json
from lossdsl.run.loop import METRICS, run_epochs
from lossdsl.run.measure import Interrupted, Rate, Setting, measure, units
from lossdsl.run.progress import Reporter, stop_request
from lossdsl.run.request import TrainRequest
from lossdsl.run.rng import choose_device, derive, deterministic_algorithms, seeded
from lossdsl.run.session import BEST, LAST, Session
from lossdsl.run.setup import Parts, about, build_session, compile_choice, resolve
from lossdsl.run.stored import MANIFEST, load_weights, weights_part
from lossdsl.run.unlabelled import write_labels

RESULT = "result.json"
Status = Literal["finished", "interrupted", "already finished"]


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
        parts = resolve(request, data)
        wanted = identity_of(request, data, parts, device)
        held = examine(request, wanted)
        if (out / RESULT).exists():
            return _stored_result(out)
        with deterministic_algorithms(request.deterministic, device), seeded(request.seed, device):
            session = build_session(request, data, parts, device, held or wanted, bool(held))
            if held:
                _take_up(session, reporter)
            else:
                _begin(request, session, data, wanted, reporter)
            return _run(request, session, data, reporter)


def _begin(request: TrainRequest, session: Session, data: DataSet, identity: Mapping[str, Any], reporter: Reporter) -> None:
    """The first files of a run: the labels of its second stream, the manifest, a checkpoint before the first batch."""
    for line in about(session):
        reporter.note(line)
    sizes = {"train": session.feed.labelled, "validation": len(session.validation), "test": len(data.test)}
    if session.pseudo is not None:
        write_labels(session.out, session.pseudo, session.run_id)
        sizes["unlabelled"] = len(session.pseudo.labels)
    write_json(session.out / MANIFEST, manifest.build(session, data, identity, sizes))
    session.save_last()
    if request.resume:
        reporter.note(f"{session.out}: nothing to resume, starting from the beginning")


def identity_of(request: TrainRequest, data: DataSet, parts: Parts, device: torch.device) -> dict[str, Any]:
    """Everything that decides whether a directory holds the run of this request."""
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
        **parts.identity(),
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
    odd = manifest.differences(there["identity"], manifest.relocated(there["identity"], wanted))
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


def _take_up(session: Session, reporter: Reporter) -> None:
    """Go back to last.safetensors, or to the start of a run that was killed before it wrote one; drop metrics written after it."""
    if (session.out / LAST).exists():
        session.resume()
    else:
        session.save_last()
    place = session.place
    metrics.keep_until(session.out / METRICS, place.epoch - 1)
    reporter.note(
        f"{session.out}: resuming "
        + ("after the last epoch" if place.done else f"at epoch {place.epoch}, batch {place.batch + 1}{_replay(session)}")
    )


def _replay(session: Session) -> str:
    """The update within a batch, where a batch has several."""
    return f", replay {session.place.replay + 1}" if session.recipe.train.replays > 1 else ""


def _run(request: TrainRequest, session: Session, data: DataSet, reporter: Reporter) -> TrainResult:
    place = session.place
    with stop_request() as stop:
        try:
            run_epochs(session, reporter, stop)
        except Interrupted:
            session.save_last()
            replay = f" and {place.replay} of {session.recipe.train.replays} replays of the next" if place.replay else ""
            reporter.note(f"stopped at epoch {place.epoch}, after batch {place.batch}{replay}; go on with: {request.resume_command}")
            return _interrupted(request, session)
        try:
            return _final(request, session, data, reporter, stop)
        except Interrupted:  # last.safetensors is written; the model in memory may hold the other checkpoint by now
            reporter.note(f"stopped in the test after the last epoch; go on with: {request.resume_command}")
            return _interrupted(request, session)


def _interrupted(request: TrainRequest, session: Session) -> TrainResult:
    place = session.place
    return TrainResult("interrupted", session.out, place.epoch - 1, place.updates, place.seconds, resume_command=request.resume_command)


def _final(request: TrainRequest, session: Session, data: DataSet, reporter: Reporter, stop: Callable[[], bool]) -> TrainResult:
    """Both checkpoints on the test split, as `evaluate` with the same seed measures them, and result.json."""
    place, device, model = session.place, session.device, session.measured
    attack = compile_choice(request, request.test_attack, model, data.num_classes, device)
    reports: dict[str, CheckpointReport] = {}
    for file in (LAST, BEST):
        found = read_checkpoint(session.out / file)
        session.check_owner(found, session.out / file)
        load_weights(model, found, session.out / file, weights_part(found))
        chosen = found.state.get("best")
        epoch = int(chosen["epoch"]) if chosen else place.epoch - 1
        title = f"test, {file.partition('.')[0]} checkpoint"
        with seeded(derive(request.seed, "evaluate"), device), reporter.bar(title, units(attack, data.test)):
            setting = Setting(device, session.dtype, request.seed, session.eval_batch)
            got = measure(model, attack, data.test, setting, stop=stop, advance=reporter.advance)
        assert got.robust is not None
        reports[file] = CheckpointReport(
            file, epoch, got.clean, got.robust, {k: chosen[k] for k in ("clean", "robust")} if chosen else None
        )
    tested = {"name": attack.name, "count": attack.count, "settings": [dict(row) for row in attack.settings], "seed": request.seed}
    result = TrainResult(
        "finished", session.out, place.epoch - 1, place.updates, place.seconds, reports[BEST], reports[LAST], tested, data.title
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
