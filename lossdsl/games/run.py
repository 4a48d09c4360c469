"""Playing a game: the one loop around the updates of all solvers, and what it leaves behind."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lossdsl.check.game_typed import GameSolver
from lossdsl.games.field import Field
from lossdsl.games.regions import Projection
from lossdsl.games.solvers import UPDATES, Memory, Oracle, Update

GONE = 1e12
"""A play whose point is farther than this from 0 has diverged; it stays where it was then."""


@dataclass(frozen=True)
class Trajectory:
    """The points of N plays: points [T + 1, N, d], the starts first. A diverged play repeats its last finite point."""

    solver: GameSolver
    points: Tensor
    diverged: Tensor
    """bool [N]"""

    @property
    def final(self) -> Tensor:
        """[N, d]"""
        return self.points[-1]

    def play(self, n: int) -> Tensor:
        """The points of one play, [T + 1, d]."""
        return self.points[:, n]


def play(field: Field, solver: GameSolver, start: Tensor, seed: int = 0, every: int = 1) -> Trajectory:
    """Plays from every row of `start` [N, d] by the declared number of iterations; all draws come from `seed`.

    every: keep only each so many-th point, and the last.
    """
    options = solver.options
    oracle = Oracle(field, torch.Generator().manual_seed(seed), float(getattr(options, "noise", 0.0)))
    projection = Projection(field)
    update = UPDATES[solver.name] if solver.name in UPDATES else _turns(field)
    z, memory = projection(start.detach().to(torch.float64)), ()
    return _loop(z, memory, update, oracle, solver, projection, every)


def _turns(field: Field) -> Update:
    from lossdsl.games.turns import Turns

    return Turns(field)


def _loop(z: Tensor, memory: Memory, update: Update, oracle: Oracle, solver: GameSolver, p: Projection, every: int) -> Trajectory:
    points, gone = [z], torch.zeros(len(z), dtype=torch.bool)
    iterations = solver.options.iterations
    for k in range(iterations):
        after, memory = update(z, k, memory, oracle, solver.options, p)
        gone = gone | ~(after.norm(dim=1) <= GONE)
        z = torch.where(gone.unsqueeze(1), z, after) if bool(gone.any()) else after
        if (k + 1) % every == 0 or k + 1 == iterations:
            points.append(z)
        if bool(gone.all()):
            break
    return Trajectory(solver, torch.stack(points), gone)
