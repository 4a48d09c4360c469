"""The first updates of a run once more, with the gradients of its terms recorded (D12)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lossdsl.diagnose.runs import OpenRun
from lossdsl.diagnose.subject import Options
from lossdsl.diagnose.table import Cell, Column, Table
from lossdsl.diagnose.terms import objective, terms, with_logs
from lossdsl.diagnostics import UserError
from lossdsl.engine.api import attack_compiler, step_compiler
from lossdsl.front import Recipe
from lossdsl.run.loop import updates_of_epoch
from lossdsl.run.measure import Interrupted
from lossdsl.run.request import TrainRequest
from lossdsl.run.rng import seeded
from lossdsl.run.session import Session
from lossdsl.run.setup import build_session, resolve

WHOLE = "objective"


def norms(run: OpenRun, options: Options) -> Table:
    """D12: |grad_theta l|_2 / |l| of every term l of the objective and of the whole, for each of the first `options.updates` updates.

    The updates are made again from the run's manifest, with the norms recorded in the mode of the upper level; on a CPU they are those
    of the run, and the note compares the mean loss of its first epoch. l is the batch mean; where it is 0 there is no quotient. Source:
    Kim et al. (Bridged AT), eq. 6 and fig. 7 (2000 batches). Raises UserError for a run with a second stream of examples.
    """
    names = [*terms(run.recipe), WHOLE]
    bodies = [*names[:-1], objective(run.recipe)]
    expressions = {f"value{n}": body for n, body in enumerate(bodies)}
    expressions |= {f"norm{n}": f"norm(grad(theta: {body}), 2)" for n, body in enumerate(bodies)}
    rows: list[tuple[Cell, ...]] = []
    replay = Replay(run, with_logs(run.recipe, expressions, mode=""), options.updates)
    for update, values in enumerate(replay, 1):
        for n, name in enumerate(names):
            value, norm = values[f"logs.value{n}"], values[f"logs.norm{n}"]
            finite = math.isfinite(value) and math.isfinite(norm)
            rows.append(
                (update, name, value if finite else None, norm if finite else None, norm / abs(value) if finite and value else None)
            )
    columns = (
        Column("update", about="update"),
        Column("term"),
        Column("value", about="batch mean of the term"),
        Column("norm", about="$\\|\\nabla_\\theta \\ell\\|_2$"),
        Column("normalised", about="$\\|\\nabla_\\theta \\ell\\|_2 / |\\ell|$"),
    )
    notes = [f"{len(rows) // len(names)} first updates, made again", *_compared(run, replay)]
    if any(row[4] is None for row in rows):
        notes.append("no quotient where the term is 0 or not finite")
    return Table("norms", "Normalised gradient norms", "Kim et al. (Bridged AT), fig. 7", columns, tuple(rows), tuple(notes))


def _compared(run: OpenRun, replay: Replay) -> Iterator[str]:
    """Whether the epochs that were made again whole have the losses that the run recorded."""
    pairs = [(here, record["loss"]) for here, record in zip(replay.losses, run.metrics(), strict=False)]
    if not pairs:
        return
    if all(here == there for here, there in pairs):
        yield f"the mean losses of the {len(pairs)} whole epochs are those of the run, to the last digit"
    else:
        worst = max(abs(here - there) for here, there in pairs if here is not None and there is not None)
        yield f"the mean losses of the {len(pairs)} whole epochs differ from the run's by up to {worst:.3g}: another device or version"


class Replay:
    """The first updates of a run, trained by `recipe` in place of its own: iterate over it once.

    Gives loss ("loss"), terms ("terms.NAME") and logs ("logs.NAME") of each update; `losses` are the mean losses of the whole epochs.
    """

    def __init__(self, run: OpenRun, recipe: Recipe, updates: int) -> None:
        self.run, self.recipe, self.updates = run, recipe, updates
        self.losses: list[float | None] = []

    def __iter__(self) -> Iterator[dict[str, float]]:
        epochs = self.recipe.train.epochs if self.recipe.train else 0
        with TemporaryDirectory() as out, seeded(int(self.run.identity["seed"]), self.run.device):
            session = _session(self.run, self.recipe, Path(out))
            place = session.place
            with suppress(Interrupted):
                while place.epoch <= epochs:
                    session.step.set_epoch(place.epoch)
                    yield from updates_of_epoch(session, lambda: place.updates >= self.updates)
                    self.losses.append(place.means()["loss"])
                    place.epoch, place.batch, place.sums = place.epoch + 1, 0, {}


def _session(run: OpenRun, recipe: Any, out: Path) -> Session:
    known = run.identity
    if "unlabelled" in known:
        raise UserError("cannot be replayed: it has a second stream of examples", where=str(run.path), fix="leave out norms (D12)")
    request = TrainRequest(
        recipe=recipe, compile_step=step_compiler(recipe), compile_attack=attack_compiler, out=out, data=run.data, model=known["model"],
        binds=_binds(known.get("models", {})), seed=int(known["seed"]), device=str(run.device), eval_batch=int(known["eval_batch"]),
    )  # fmt: skip
    return build_session(request, run.data, resolve(request, run.data), run.device, known, False)


def _binds(models: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{entry['run']}:{entry['checkpoint']}" if entry["frozen"] else entry["model"] for name, entry in models.items()}
