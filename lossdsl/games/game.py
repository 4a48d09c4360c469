"""The public face of a game: its field, its solutions, and ways to play it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from lossdsl.check.game_typed import GameSolver, Region, TypedGame, TypedPlayer
from lossdsl.diagnostics import UserError
from lossdsl.front import Recipe, load
from lossdsl.games.choice import with_solver
from lossdsl.games.critical import CriticalPoint, critical_points
from lossdsl.games.field import Draw, Field
from lossdsl.games.regions import uniform
from lossdsl.games.run import Trajectory, play
from lossdsl.games.verdict import verdict
from lossdsl.lang.games import GAME_SOLVERS


class Game:
    """A game of numbers and vectors, ready to be evaluated and played. Everything is float64 on the CPU."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.typed: TypedGame = recipe.game
        if self.typed.neural:
            raise UserError(f"the players of {recipe.name} are models", where=recipe.source.name, fix="use lossdsl.games.neural")
        self._field = Field(self.typed, recipe.source)

    @property
    def name(self) -> str:
        return self.recipe.name

    @property
    def players(self) -> tuple[TypedPlayer, ...]:
        return self.typed.players

    @property
    def coordinates(self) -> tuple[str, ...]:
        """What each entry of z is: "u" for a number, "u[0]", "u[1]", ... for a vector."""
        return tuple(name for p in self.players for name in ([p.name] if p.size is None else [f"{p.name}[{n}]" for n in range(p.size)]))

    @cached_property
    def start(self) -> Tensor:
        """The declared start, [1, d]."""
        return torch.tensor([[v for p in self.players for v in p.init]], dtype=torch.float64)

    def field(self, z: Tensor, draw: Draw | None = None) -> Tensor:
        """V(z) for every row of z [N, d] (or of one point [d]): gradients of what players minimise, minus those of what they maximise."""
        return self._field(z, draw) if z.dim() == 2 else self._field(z.unsqueeze(0), draw)[0]

    def jacobian(self, z: Tensor, draw: Draw | None = None) -> Tensor:
        """The derivative of V, [N, d, d] (or [d, d] at one point)."""
        return self._field.jacobian(z, draw) if z.dim() == 2 else self._field.jacobian(z.unsqueeze(0), draw)[0]

    def objectives(self, z: Tensor, draw: Draw | None = None) -> dict[str, Tensor]:
        """The objective of every player, by its name, [N]."""
        found = self._field.values(z if z.dim() == 2 else z.unsqueeze(0), draw)
        return {p.name: v.detach() for p, v in zip(self.players, found, strict=False)}

    def logs(self, z: Tensor, draw: Draw | None = None) -> dict[str, Tensor]:
        """The values of the game's `log` statements, by name, [N]."""
        found = self._field.values(z if z.dim() == 2 else z.unsqueeze(0), draw)[len(self.players) :]
        return {name: v.detach() for (name, _), v in zip(self.typed.logs, found, strict=True)}

    def draw(self, points: int = 1, *, noise: float = 0.0, seed: int = 0) -> Draw:
        """One draw of the game's samples, and of the noise of an oracle."""
        return self._field.draw(points, noise, torch.Generator().manual_seed(seed))

    def critical_points(self, starts: Tensor | None = None) -> list[CriticalPoint]:
        """Where V vanishes inside the sets, found by Newton's method from `starts` [N, d] (default: 257 fixed points)."""
        return critical_points(self._field, starts)

    def with_solver(self, solver: str | None = None, **options: float | int | str) -> Game:
        """The same game played otherwise.

        solver: as a `solve` statement has it, "gda(step = 0.1, iterations = 100)"; a bare name keeps those declared options that it
        knows. options replace single ones: step, iterations, noise (a standard deviation), alpha, ...
        Raises UserError or RecipeError for what the solver does not take.
        """
        return Game(with_solver(self.recipe, solver, options))

    def run(
        self, solver: str | None = None, *, start: Tensor | Sequence[float] | None = None, seed: int = 0, every: int = 1,
        **options: float | int | str,
    ) -> Trajectory:  # fmt: skip
        """Plays the game, by default as declared (see `with_solver`).

        start: [N, d] or one point; N plays run side by side, each with noise of its own. every: keep each so many-th point.
        """
        game = self.with_solver(solver, **options) if solver is not None or options else self
        return play(game._field, game.typed.solver, self._points(start), seed, every)

    def random_starts(self, count: int, spread: float = 1.5, seed: int = 0) -> Tensor:
        """Uniform starts, [count, d]: from the player's set, else from [-spread, spread] in every entry."""
        generator = torch.Generator().manual_seed(seed)
        blank = torch.zeros(count, self._field.dimension, dtype=torch.float64)
        free = Region("box", (), (-spread, spread))
        parts = [uniform(p.region or free, blank[:, self._field.slices[p.name]], generator) for p in self.players]
        return torch.cat(parts, 1)

    def _points(self, start: Tensor | Sequence[float] | None) -> Tensor:
        if start is None:
            return self.start
        points = torch.as_tensor(start, dtype=torch.float64)
        points = points if points.dim() == 2 else points.unsqueeze(0)
        if points.dim() != 2 or points.shape[1] != len(self.coordinates):
            names = ", ".join(self.coordinates)
            raise UserError(f"a start of shape {list(points.shape)}", where=self.name, fix=f"give one number for each of {names}")
        return points

    def verdicts(self, trajectory: Trajectory) -> list[str]:
        """What became of every play: "converged", "shrinking", "cycle", "growing", "diverged" or "undecided"; "random" with draws."""
        noise = float(getattr(trajectory.solver.options, "noise", 0.0))
        if self.typed.samples or noise > 0 or GAME_SOLVERS[trajectory.solver.name].nested:
            return ["diverged" if gone else "random" for gone in trajectory.diverged.tolist()]
        count = trajectory.points.shape[1]
        return [verdict(self._field, trajectory.play(n), bool(trajectory.diverged[n])) for n in range(count)]

    @property
    def solver(self) -> GameSolver:
        return self.typed.solver


def compile_game(recipe: Recipe) -> Game:
    """A declaration of a game, ready to be played. Raises UserError for recipes, and for games whose players are models."""
    return Game(recipe)


def load_game(name: str | Path) -> Game:
    """A shipped game by name ("forsaken"), or the last declaration of a .loss file by path."""
    return compile_game(load(name))
