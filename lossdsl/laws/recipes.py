"""What a law asks of recipes and games that only running them can tell: the engine's solvers and the games' on every row at once.

They answer in float64. The exact evaluator takes their answers as given numbers, and a law that holds one is judged with a tolerance.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from lossdsl.check.law_typed import Network
from lossdsl.engine.api import compile
from lossdsl.engine.kernels.networks import network
from lossdsl.engine.kernels.table import kernel
from lossdsl.front import load
from lossdsl.games.game import Game
from lossdsl.solve import ExampleStreams

SEED = 0
"""Of every draw that a solver makes: equal assignments have equal solutions."""
LARGEST = 1e60
"""Weights up to which float64 has a gradient of a small network; beyond, a solution is no number, and an example with it says nothing."""
Pairs = tuple[tuple[str, float], ...]


class Rows(nn.Module):
    """A network whose every row has weights of its own, [B, P]; inputs [B * n, d] are n points for each row."""

    def __init__(self, shape: Network) -> None:
        super().__init__()
        self.shape = shape
        self.theta = torch.zeros(1, shape.size, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        copies = max(len(x) // len(self.theta), 1)
        found: Tensor = network(self.theta.repeat_interleave(copies, 0), x, self.shape)
        return found


@cache
def _compiled(recipe: str, params: Pairs, shape: Network) -> tuple[Rows, Any]:
    rows = Rows(shape)
    found = load(recipe).with_params(**dict(params))
    return rows, compile(found, rows, num_classes=shape.classes, chunk=2**31, check=False)


@kernel("solution")
def solution(theta: Tensor, x: Tensor, y: Tensor, recipe: str, params: Pairs, var: str, shape: Network) -> Tensor:
    """The lower solution `var` of a recipe, [B, d], for networks theta [B, P] at x [B, d] with labels y [B]."""
    rows, step = _compiled(recipe, params, shape)
    rows.theta = theta.detach().expand(len(x), -1)
    beyond = ~(rows.theta.abs() <= LARGEST).all(1, keepdim=True)
    rows.theta = rows.theta.masked_fill(beyond, 0.0)
    streams = ExampleStreams.of(SEED, torch.zeros_like(y))  # every row draws the same, whatever stands beside it
    found: Tensor = step.solve(x.detach(), y, generator=streams)[var]
    return found.detach().masked_fill(beyond, torch.nan)


@cache
def _game(name: str, params: Pairs) -> Game:
    return Game(load(name).with_params(**dict(params)))


@kernel("final")
def final(*args: Any) -> Tensor:
    """The last points of plays from starts [B, d], or of the declared one [1, d]."""
    *start, name, params, solver, options, _ = args
    played = _game(name, params).run(solver or None, start=start[0].detach() if start else None, seed=SEED, **dict(options))
    return played.final
