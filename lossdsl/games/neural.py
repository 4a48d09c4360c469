"""Playing a game of models on data: `lossdsl play wgan_gp --data ring`.

result = play_models(load("wgan_gp"), PlayRequest(data="ring", options={"iterations": 1000}, out=Path("runs/gp")))
result.records[-1]["modes"]
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from lossdsl.check.game_typed import TypedGame
from lossdsl.diagnostics import UserError
from lossdsl.front import Recipe
from lossdsl.games.choice import with_solver
from lossdsl.games.neural_data import Source, load_source
from lossdsl.games.neural_game import ModelGame
from lossdsl.games.neural_measure import measured
from lossdsl.games.neural_models import build_networks, prepare
from lossdsl.games.neural_solvers import Trainer
from lossdsl.games.neural_store import LAST, MANIFEST, RESULT, load_trainer, save_trainer
from lossdsl.plan.ir import Instr
from lossdsl.run.files import run_directory, write_json
from lossdsl.run.progress import Reporter, stop_request
from lossdsl.run.rng import choose_device, derive, seeded
from lossdsl.syntax import tree as t

RECORDS = 20
"""Measurements per run, besides the one before the first iteration."""


@dataclass(frozen=True)
class PlayRequest:
    """How a game of models is played.

    data: "ring" or "digits". solver, options: in place of the declared ones, see `lossdsl.games.choice.with_solver`. network: a row of
    lossdsl.games.neural_models.NETWORKS for every model; models: networks of your own by name, in place of it. out: directory for
    checkpoint and result; None keeps nothing. resume: go on with the run there. every: iterations between measurements.
    """

    data: str = "ring"
    solver: str | None = None
    options: Mapping[str, float | int | str] = field(default_factory=dict)
    network: str = "mlp"
    models: Mapping[str, nn.Module] | None = None
    seed: int = 0
    device: str = "auto"
    out: Path | None = None
    resume: bool = False
    every: int | None = None
    console: Console | None = None


@dataclass(frozen=True)
class ModelPlay:
    """A game of models as it stands after playing. `records`: one per measurement, with the iteration it was made after."""

    recipe: Recipe
    trainer: Trainer
    records: list[dict[str, Any]] = field(default_factory=list)
    seed: int = 0
    finished: bool = True

    def table(self) -> Table:
        """The records, at most a dozen of them, as a table for a terminal."""
        rows = self.records if len(self.records) <= 12 else [*self.records[:: len(self.records) // 10], self.records[-1]]
        names = list(self.records[-1])
        table = Table(title=f"{self.recipe.title}, {self.trainer.source.name}, {self.trainer.solver.name}")
        for name in names:
            table.add_column(_HEADINGS.get(name, name), justify="right")
        for row in (row for n, row in enumerate(rows) if row not in rows[:n]):
            table.add_row(*(_shown(name, row.get(name)) for name in names))
        return table


_HEADINGS = {"gap": "critic gap", "modes": "modes of 8", "near": "near a mode", "w1": "W1 (400 samples)"}


def _shown(name: str, value: Any) -> str:
    return "" if value is None else f"{value:.0%}" if name == "near" else f"{value:.4g}" if isinstance(value, float) else str(value)


def play_models(recipe: Recipe, request: PlayRequest) -> ModelPlay:
    """Play a game of models to its last iteration, or until Ctrl-C.

    With `out` the directory gets manifest.json, last.safetensors (weights, optimizers, generators, records; taken up exactly with `resume`)
    and, at the end, result.json. On the CPU the result depends on the request alone, however often the run was stopped and resumed. Raises
    UserError (one message that says where, what and how to mend it).
    """
    recipe, device = with_solver(recipe, request.solver, request.options), choose_device(request.device)
    source = load_source(request.data)
    with seeded(derive(request.seed, "networks"), device):
        trainer = _trainer(recipe, recipe.game, source, request, device)
    run = _run_id(recipe, request)
    reporter = Reporter(request.console)
    if request.out is None:
        records: list[dict[str, Any]] = []
        finished = _loop(trainer, records, request, reporter, lambda: None)
        return ModelPlay(recipe, trainer, records, request.seed, finished)
    with run_directory(request.out) as out:
        records = _take_up(out, trainer, run, request, reporter)
        write_json(out / MANIFEST, {"kind": "game", "game": recipe.text, "data": source.name, "seed": request.seed, "run": run})
        finished = _loop(trainer, records, request, reporter, lambda: save_trainer(out / LAST, trainer, run, records))
        if finished:
            write_json(out / RESULT, {"game": recipe.name, "data": source.name, "seed": request.seed, "records": records})
    return ModelPlay(recipe, trainer, records, request.seed, finished)


def _trainer(recipe: Recipe, game: TypedGame, source: Source, request: PlayRequest, device: torch.device) -> Trainer:
    networks = build_networks(game, source.shape, source.unit, request.network) if request.models is None else dict(request.models)
    networks = {name: network.to(device).train() for name, network in networks.items()}
    missing = [name for name in game.models if name not in networks]
    if not missing:
        prepare(networks, game.keeps)

    def place(i: Instr) -> str:
        return recipe.source.where(i.span) if i.span.end > i.span.start else recipe.source.name

    return Trainer(ModelGame(game, networks, place), source, request.seed, device)


def _run_id(recipe: Recipe, request: PlayRequest) -> str:
    """What a checkpoint belongs to: the game with its params, but not how many iterations it is played for."""
    game = recipe.game
    options = game.solver.options.model_dump(exclude={"iterations"})
    items = [item for item in recipe.declaration.items if not isinstance(item, t.Solve)]
    method = [repr(recipe.shared), repr(items), sorted(game.params.items()), game.solver.name, sorted(options.items(), key=str)]
    content = json.dumps([*method, request.data, request.network, request.seed], default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def _take_up(out: Path, trainer: Trainer, run: str, request: PlayRequest, reporter: Reporter) -> list[dict[str, Any]]:
    """The records so far. Raises UserError where a run stands there and none is to be resumed."""
    if not (out / LAST).exists():
        if any(path.name not in (".lock", MANIFEST) for path in out.iterdir()):
            raise UserError("holds other files", where=str(out), fix="choose another --out")
        return []
    if not request.resume:
        raise UserError("already holds a run", where=str(out), fix="add --resume to go on with it, or choose another --out")
    records = load_trainer(out / LAST, trainer, run)
    reporter.note(f"{out}: going on after iteration {trainer.iteration}")
    return records


def _loop(
    trainer: Trainer, records: list[dict[str, Any]], request: PlayRequest, reporter: Reporter, save: Callable[[], None]
) -> bool:  # fmt: skip
    """Iterate, measure and save; False if a signal ended it before the last iteration."""
    total = trainer.solver.options.iterations
    every = request.every or max(1, total // RECORDS)
    started = time.monotonic()
    with stop_request() as stop, reporter.bar(trainer.game.game.name, total, trainer.iteration):
        if not records:
            records.append({"iteration": trainer.iteration, **measured(trainer, request.seed)})
            save()
        done = trainer.iteration >= total
        while not done and not stop():
            trainer.iterate()
            reporter.advance(1)
            done = trainer.iteration == total
            if trainer.iteration % every == 0 or done:
                records.append({"iteration": trainer.iteration, **measured(trainer, request.seed)})
                if not reporter.console.is_terminal:
                    reporter.note(_line(records[-1], total, time.monotonic() - started))
                save()
        if not done:
            save()
    return done


def _line(record: Mapping[str, Any], total: int, seconds: float) -> str:
    values = ", ".join(f"{_HEADINGS.get(name, name)} {_shown(name, value)}" for name, value in record.items() if name != "iteration")
    return f"iteration {record['iteration']}/{total}: {values}, {seconds:.0f} s"
