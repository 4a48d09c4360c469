"""The compiled field of a game of numbers and vectors: objectives, V(z) and its Jacobian at many points z at once, in float64."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lossdsl.check.game_typed import TypedDraw, TypedGame, TypedPlayer
from lossdsl.diagnostics import UserError
from lossdsl.engine.closures import Closure, Frame, Values
from lossdsl.engine.modes import Modes
from lossdsl.games.lower import lower_game
from lossdsl.plan.ir import Instr, codes
from lossdsl.source import Source


@dataclass(frozen=True)
class Draw:
    """One draw of everything random: the samples of the game, per point and row of data, and the noise of the oracle [N, d]."""

    samples: dict[str, Tensor] = field(default_factory=dict)
    noise: Tensor | None = None


class Field:
    """V(z): for every player the gradient of its objective by its own variable, with the sign of a minimiser.

    Points are rows of z [N, d], float64; the entries of the players stand side by side in the order of declaration. Objectives are
    averaged over the rows of `data`.
    """

    def __init__(self, game: TypedGame, source: Source) -> None:
        self.game, self.source = game, source
        plan = lower_game(game)
        assert plan.upper is not None
        kinds: dict[int, Instr] = {i.id: i for code in codes(plan) for i in code}
        self._closure = Closure(plan.upper.code, kinds, self._place)
        self._size = plan.size
        self._model, self._modes = nn.Identity(), Modes()
        self.rows = max((len(column) for _, column in game.data), default=1)
        self.slices: dict[str, slice] = {}
        for player in game.players:
            start = sum(p.size or 1 for p in game.players[: len(self.slices)])
            self.slices[player.name] = slice(start, start + (player.size or 1))

    @property
    def dimension(self) -> int:
        return sum(p.size or 1 for p in self.game.players)

    def _place(self, i: Instr) -> str:
        return self.source.where(i.span) if i.span.end > i.span.start else self.source.name

    # --- values ---

    def values(self, z: Tensor, draw: Draw | None = None) -> list[Tensor]:
        """The objective of every player, then the logged values, each [N]; differentiable in z."""
        frame = self._frame(z, draw or Draw())
        found: Values = [None] * self._size
        self._closure.run(frame, found)
        shape = (len(z), self.rows)
        return [frame.tensor(found[r]).expand(shape[0] * shape[1]).reshape(shape).mean(1) for r in self._closure.results]

    def _frame(self, z: Tensor, draw: Draw) -> Frame:
        """One example per point and row of data."""
        if z.dim() != 2 or z.shape[1] != self.dimension or z.dtype != torch.float64:
            raise UserError(
                f"a point of shape {list(z.shape)} in {z.dtype}", where=self.game.name, fix=f"pass [N, {self.dimension}] in float64"
            )
        missing = [s.name for s in self.game.samples if s.name not in draw.samples]
        if missing:
            raise UserError(f"the field is random: it needs a draw of {missing[0]}", where=self.game.name, fix="pass draw = game.draw(...)")
        wide = z.repeat_interleave(self.rows, 0) if self.rows > 1 else z
        blank = wide.detach().new_zeros(len(wide))
        frame = Frame(blank, blank.long(), self._model, self._modes, 1)
        for player in self.game.players:
            part = wide[:, self.slices[player.name]]
            if player.size is None:
                frame.points["state", player.name] = part[:, 0]
            else:
                frame.shared[player.name] = part
        for name, column in self.game.data:
            frame.points["sample", name] = torch.tensor(column, dtype=z.dtype).repeat(len(z))
        for name, value in draw.samples.items():
            frame.points["sample", name] = value
        return frame

    def draw(self, points: int, noise: float, generator: torch.Generator) -> Draw:
        """A fresh draw for `points` points."""
        samples = {s.name: _drawn(s, points * self.rows, generator) for s in self.game.samples}
        shape = (points, self.dimension)
        return Draw(samples, noise * torch.randn(shape, dtype=torch.float64, generator=generator) if noise else None)

    # --- derivatives ---

    def __call__(self, z: Tensor, draw: Draw | None = None, graph: bool = False) -> Tensor:
        """V(z), [N, d], plus the noise of the draw; with `graph` differentiable in z."""
        at = z if graph and z.requires_grad else z.detach().requires_grad_()
        with torch.enable_grad():
            objectives = self.values(at, draw)
            found = _gradients(self.game.players, objectives, at, graph)
        parts = [self._signed(p, g) for p, g in zip(self.game.players, found, strict=True)]
        value = torch.cat(parts, 1)
        return value if draw is None or draw.noise is None else value + draw.noise

    def _signed(self, player: TypedPlayer, gradient: Tensor) -> Tensor:
        own = gradient[:, self.slices[player.name]]
        return own if player.sense == "minimize" else -own

    def jacobian(self, z: Tensor, draw: Draw | None = None) -> Tensor:
        """The derivative of V, [N, d, d]: entry (i, j) is that of V_i by z_j."""
        at = z.detach().requires_grad_()
        with torch.enable_grad():
            value = self(at, draw, graph=True)
            rows = [_gradient(value[:, i].sum(), at, graph=True) for i in range(self.dimension)]
        return torch.stack(rows, 1).detach()


def _gradients(players: tuple[TypedPlayer, ...], objectives: list[Tensor], at: Tensor, graph: bool) -> list[Tensor]:
    """The gradient of every player's objective by the whole point; equal objectives are differentiated once."""
    done: dict[int, Tensor] = {}
    for player, value in zip(players, objectives, strict=False):
        if id(player.objective) not in done:
            done[id(player.objective)] = _gradient(value.sum(), at, graph)
    return [done[id(p.objective)] for p in players]


def _gradient(value: Tensor, at: Tensor, graph: bool) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(at)
    found = torch.autograd.grad(value, at, create_graph=graph, retain_graph=True, allow_unused=True)[0]
    return torch.zeros_like(at) if found is None else found


def _drawn(sample: TypedDraw, count: int, generator: torch.Generator) -> Tensor:
    """Fresh numbers: one per example, `size` per example, or one for all."""
    shape = {"batch": (), "example": (count,), "latent": (count, sample.size)}[sample.over]
    if sample.distribution == "normal":
        return sample.numbers[0] * torch.randn(shape, dtype=torch.float64, generator=generator)
    uniform = torch.rand(shape, dtype=torch.float64, generator=generator)
    if sample.distribution == "rademacher":
        return torch.where(uniform < 0.5, -1.0, 1.0).double()
    low, high = sample.numbers
    return low + (high - low) * uniform
