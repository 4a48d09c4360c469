"""Games of models on disk: everything that the rest of a run depends on, in one safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lossdsl.diagnostics import UserError
from lossdsl.games.neural_solvers import Trainer
from lossdsl.run.checkpoint import Checkpoint, join_optimizer, pack, read_checkpoint, split_optimizer, write_checkpoint

LAST, MANIFEST, RESULT = "last.safetensors", "manifest.json", "result.json"


def save_trainer(path: Path, trainer: Trainer, run: str, records: list[dict[str, Any]]) -> None:
    """Write weights, optimizers, generators and records; a file that was there stays whole until the new one is."""
    parts: dict[str, Mapping[str, Any]] = {"draws": trainer.draws.state_dict()}
    parts.update({f"model.{name}": model.state_dict() for name, model in trainer.game.models.items()})
    state: dict[str, Any] = {"kind": "game", "run": run, "iteration": trainer.iteration, "records": records, "optimizers": {}}
    for name, stepper in trainer.steppers.items():
        parts[f"optimizer.{name}"], state["optimizers"][name] = split_optimizer(stepper.optimizer.state_dict())
    write_checkpoint(path, pack(parts), state)


def load_trainer(path: Path, trainer: Trainer, run: str) -> list[dict[str, Any]]:
    """Take up a run where its checkpoint stands; its records. Raises UserError: damaged, or of another game."""
    found = read_checkpoint(path)
    if found.state.get("run") != run:
        raise UserError(
            "belongs to another run than this one", where=str(path), fix="choose another --out, or give the same game, data and seed"
        )
    try:
        return _put_back(found, trainer)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"does not fit this run ({error})", where=str(path), fix="resume with the version of lossdsl that wrote it"
        ) from error


def _put_back(found: Checkpoint, trainer: Trainer) -> list[dict[str, Any]]:
    for name, model in trainer.game.models.items():
        model.load_state_dict(found.part(f"model.{name}"))
    for name, stepper in trainer.steppers.items():
        stepper.optimizer.load_state_dict(join_optimizer(found.part(f"optimizer.{name}"), found.state["optimizers"][name]))
    trainer.draws.load_state_dict(found.part("draws"))
    trainer.iteration = int(found.state["iteration"])
    return list(found.state["records"])
