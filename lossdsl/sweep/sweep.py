"""A sweep from its request to its table: every wrong value refused before the first run, finished runs kept, failed ones recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rich.console import Console

from lossdsl.diagnostics import NotFiniteError, UserError
from lossdsl.engine.api import step_compiler
from lossdsl.front import Recipe
from lossdsl.run.data import DataSet, load_data
from lossdsl.run.evaluate import EvaluateRequest, SanityGate, evaluate
from lossdsl.run.files import read_json, write_json
from lossdsl.run.progress import Reporter
from lossdsl.run.request import AttackChoice, TrainRequest
from lossdsl.run.rng import choose_device, seeded
from lossdsl.run.setup import build_session, resolve
from lossdsl.run.train import examine, identity_of, train
from lossdsl.sweep.collected import Collected, Row, Run, empty_rows
from lossdsl.sweep.frontier import draw_frontier
from lossdsl.sweep.grid import Number, Point, points_of

TABLE, DIVERGED = "sweep.json", "diverged.json"


@dataclass(frozen=True)
class SweepRequest:
    """What `lossdsl sweep` was asked for.

    `template`: how every run is trained; its `out` is the directory of the sweep, its recipe and seed are replaced for each run.
    `recipe`: the template's, before values are put in. `over`: values by param. `seeds`: those of the runs. `attack`: the suite that
    measures `checkpoint` of each run; its eps is that of the run unless overridden. `sanity`: what judges each measurement.
    """

    template: TrainRequest
    recipe: Recipe
    over: Mapping[str, Sequence[Number]]
    seeds: tuple[int, ...] = (0,)
    attack: AttackChoice = AttackChoice("pgd20")
    checkpoint: Literal["best", "last"] = "best"
    sanity: SanityGate | None = None
    console: Console | None = None


class Interrupted(Exception):  # noqa: N818  (a wish, not a fault)
    """The user stopped the sweep; the same command goes on with it."""


def sweep(request: SweepRequest) -> Collected:
    """Train and measure every combination with every seed, one run after the other, each in a directory of its own below the sweep's.

    sweep.json and frontier.png/.svg are written anew after every run. A run that is finished is not trained again, one that was
    interrupted is resumed, one that diverged stays recorded as such (delete its diverged.json to try again). More values and seeds
    may be asked for later. Raises UserError before the first run for any wrong value, attack, model or data, and for directories
    that hold other runs; Interrupted after Ctrl-C.
    """
    points = points_of(request.recipe, request.over)
    data = _rehearse(request, points)
    out, reporter = request.template.out, Reporter(request.console)
    collected = Collected(
        out, request.recipe.name, request.recipe.title, {name: tuple(values) for name, values in request.over.items()}, request.seeds,
        request.attack.name, request.checkpoint, empty_rows(points, request.seeds, out), data.title,
    )  # fmt: skip
    total = len(points) * len(request.seeds)
    with reporter.bar(f"sweep of {request.recipe.name}", total):
        for number, (at, point, seed) in enumerate(_runs(request, points), 1):
            run = _one(request, point, seed)
            reporter.note(f"[{number}/{total}] {point.label}, seed {seed}: {_said(run)}")
            reporter.advance(1)
            collected = replace(collected, rows=_with_run(collected.rows, at, run))
            _write(collected)
    return collected


def _runs(request: SweepRequest, points: Sequence[Point]) -> Iterator[tuple[int, Point, int]]:
    """Seed by seed, so that an interrupted sweep has something of every value."""
    for seed in request.seeds:
        for at, point in enumerate(points):
            yield at, point, seed


def _with_run(rows: tuple[Row, ...], at: int, run: Run) -> tuple[Row, ...]:
    row = rows[at]
    runs = tuple(run if old.seed == run.seed else old for old in row.runs)
    return (*rows[:at], replace(row, runs=runs), *rows[at + 1 :])


def _write(collected: Collected) -> None:
    write_json(collected.out / TABLE, collected.to_json())
    if any(row.clean.n for row in collected.rows):
        draw_frontier(collected, collected.out / "frontier")


def _said(run: Run) -> str:
    if run.status == "diverged" or run.clean is None or run.robust is None:
        return f"diverged ({run.reason})"
    return f"clean {run.clean:.1%}, robust {run.robust:.1%}, {run.seconds:.0f} s" + (
        f", sanity {', '.join(run.findings)}" if run.findings else ""
    )


# --- before the first run ---


def _train_request(request: SweepRequest, point: Point, seed: int) -> TrainRequest:
    trainable: Any = point.recipe  # train and optimizer are there, which its type does not say
    out = request.template.out / point.folder(seed)
    return replace(request.template, recipe=trainable, compile_step=step_compiler(point.recipe), out=out, seed=seed, resume=True)


def _rehearse(request: SweepRequest, points: Sequence[Point]) -> DataSet:
    """Build every combination once without training it. Raises UserError for whatever would stop a run later."""
    template = request.template
    if len(set(request.seeds)) != len(request.seeds) or not request.seeds:
        raise UserError(f"the seeds are {request.seeds}", where="--seeds", fix="name at least one, each once")
    data = template.data if isinstance(template.data, DataSet) else load_data(template.data)
    device = choose_device(template.device)
    for point in points:
        asked = _train_request(request, point, request.seeds[0])
        try:
            parts = resolve(asked, data)
            with seeded(asked.seed, device):
                session = build_session(asked, data, parts, device, {}, False)
            overrides = request.attack.resolved(point.recipe.params)
            suite = template.compile_attack(request.attack.name, overrides, session.measured, data.num_classes, device)
        except UserError as error:
            raise UserError(error.problem, where=f"{error.where} ({point.label})" if error.where else point.label, fix=error.fix) from error
        if suite.count == "each":
            raise UserError("counts each run for itself: no robust accuracy", where=f"attack {suite.name}", fix="use count worst")
        for seed in request.seeds:
            wanted = replace(asked, out=template.out / point.folder(seed), seed=seed)
            if wanted.out.exists():
                examine(wanted, identity_of(wanted, data, parts, device))
    return data


# --- one run ---


def _one(request: SweepRequest, point: Point, seed: int) -> Run:
    asked = _train_request(request, point, seed)
    note = asked.out / DIVERGED
    if note.exists():
        return Run(seed, asked.out, "diverged", reason=str(read_json(note, "note of a diverged run").get("reason", "")))
    try:
        result = train(replace(asked, console=None))
    except NotFiniteError as error:
        reason = f"{error.where}: {error.problem}"
        write_json(note, {"reason": reason})
        return Run(seed, asked.out, "diverged", reason=reason)
    if result.status == "interrupted":
        raise Interrupted
    found = evaluate(_evaluation(request, asked))
    assert found.robust is not None
    return Run(
        seed, asked.out, "finished", found.clean.value, found.robust.value, found.epoch, result.seconds, evaluation=found.file.name,
        findings=None if found.sanity is None or request.sanity is None else tuple(found.sanity["findings"]),
    )  # fmt: skip


def _evaluation(request: SweepRequest, asked: TrainRequest) -> EvaluateRequest:
    data = asked.data if isinstance(asked.data, DataSet) else None
    return EvaluateRequest(
        run=asked.out, compile_attack=asked.compile_attack, attack=request.attack.name, overrides=request.attack.overrides,
        which=request.checkpoint, device=asked.device, batch=asked.eval_batch, data=data, sanity=request.sanity,
    )  # fmt: skip
