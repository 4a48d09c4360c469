"""Games written down for tests, and formulas that are worked out without the compiler."""

from __future__ import annotations

import torch
from torch import Tensor

from lossdsl.front import parse_recipe
from lossdsl.games import Game, compile_game

GDA = "solve gda(step = 0.1, iterations = 10)\n"


def game(text: str, solve: str = GDA) -> Game:
    """A game without its header; `solve` unless the text has a solver."""
    return compile_game(parse_recipe("game g\n" + text + ("" if "solve " in text else solve)))


def rows(*points: tuple[float, ...]) -> Tensor:
    return torch.tensor(points, dtype=torch.float64)


def linear(matrix: Tensor) -> Game:
    """The game of two numbers whose field is V(z) = M z, each player with an objective of its own."""
    (a, b), (c, d) = matrix.tolist()
    return game(f"player u = 1 minimize ({a}) * u^2/2 + ({b}) * u * v\nplayer v = 1 minimize ({c}) * u * v + ({d}) * v^2/2\n")


def largest(matrix: Tensor) -> float:
    """The spectral radius."""
    return float(torch.linalg.eigvals(matrix).abs().max())
