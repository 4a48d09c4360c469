"""What is measured of a game of models: the critic's gap, and on the ring how the samples lie."""

from __future__ import annotations

from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lossdsl.check.game_typed import TypedGame
from lossdsl.diagnostics import UserError
from lossdsl.engine.modes import kept_modes
from lossdsl.games.neural_data import MODES, STD, ring_means
from lossdsl.games.neural_game import GameBatch
from lossdsl.games.neural_models import latent_size
from lossdsl.games.neural_solvers import Trainer
from lossdsl.run.rng import derive, generator

EXAMPLES, MATCHED = 2000, 400
"""Examples per measurement, and those of them that are matched one by one for the transport cost."""


def generators(game: TypedGame) -> list[str]:
    """The models that make inputs from latent vectors."""
    return [name for name, signature in game.models.items() if signature == ("Latent", "Input")]


def critics(game: TypedGame) -> list[str]:
    """The models that give a number for an input."""
    return [name for name, signature in game.models.items() if signature == ("Input", "Real")]


def samples(trainer: Trainer, name: str, batch: GameBatch) -> Tensor:
    """What a generator makes of the first sample of the game that has its size."""
    game = trainer.game.game
    size = latent_size(game, name)
    z = next(batch.draws[d.name] for d in game.samples if d.over == "latent" and d.size == size)
    return _applied(trainer, name, z)


def _applied(trainer: Trainer, name: str, at: Tensor) -> Tensor:
    model = trainer.game.models[name]
    with torch.no_grad(), kept_modes(model) as modes:
        modes.ensure("eval")
        found: Tensor = model(at)
    return found


def scores(trainer: Trainer, critic: str, at: Tensor) -> Tensor:
    """A critic's numbers [N]."""
    return _applied(trainer, critic, at).reshape(len(at))


def held_batch(trainer: Trainer, seed: int) -> GameBatch:
    """The batch that measurements are made on: always the same for a seed, none of a run's own draws."""
    return trainer.fresh(generator("cpu", derive(seed, "measure")), EXAMPLES)


def measured(trainer: Trainer, seed: int) -> dict[str, Any]:
    """Numbers of the game as it stands.

    gap: mean critic(x) - mean critic(h(z)), for a 1-Lipschitz critic a lower bound of the Wasserstein-1 distance (Kantorovich and
    Rubinstein); where the critic is not 1-Lipschitz, that distance times an unknown constant. On the ring: modes, near, w1 (see `ring`).
    Of games with one generator and one critic; of others the `log` statements alone.
    """
    batch, game = held_batch(trainer, seed), trainer.game.game
    found: dict[str, Any] = {}
    makers, judges = generators(game), critics(game)
    if len(makers) == 1 and any(d.over == "latent" for d in game.samples):
        made = samples(trainer, makers[0], batch)
        if not bool(made.isfinite().all()):
            fix = "lower the learning rate or the step, or hold the weights: keep NAME in clip(0.01)"
            raise UserError(f"{makers[0]} makes numbers that are not finite", where=f"{game.name}, iteration {trainer.iteration}", fix=fix)
        if len(judges) == 1:
            found["gap"] = float(scores(trainer, judges[0], batch.x).mean() - scores(trainer, judges[0], made).mean())
        if trainer.source.name == "ring":
            found |= ring(made, batch.x)
    return found | trainer.game.logs(batch)


def ring(made: Tensor, data: Tensor) -> dict[str, Any]:
    """modes: means of the ring with at least a tenth of their share of the samples within 3 standard deviations; near: the share of the
    samples that lie so near to some mean; w1: the exact Wasserstein-1 distance of 400 samples and 400 examples (0.13 to
    0.33 for 400 and 400 examples of the data)."""
    nearest = torch.cdist(made.cpu().double(), ring_means().double()).min(dim=1)
    inside = nearest.values <= 3 * STD
    counts = torch.bincount(nearest.indices[inside], minlength=MODES)
    costs = torch.cdist(made[:MATCHED].cpu().double(), data[:MATCHED].cpu().double()).numpy()
    rows, columns = linear_sum_assignment(costs)
    return {
        "modes": int((counts >= len(made) / MODES / 10).sum()),
        "near": float(inside.double().mean()),
        "w1": float(costs[rows, columns].mean()),
    }
