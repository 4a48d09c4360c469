"""A game of models as closures: what every player wants on a batch, and the gradients they follow.

Objectives are lowered, planned and run as those of recipes are: the same passes, the same kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lossdsl.check.game_typed import TypedDraw, TypedGame, TypedPlayer
from lossdsl.check.typed import Typed, show
from lossdsl.diagnostics import UserError
from lossdsl.engine.closures import Closure, Frame, Values
from lossdsl.engine.modes import constant_parameters, kept_modes
from lossdsl.plan.expressions import Emitter
from lossdsl.plan.ir import Code, Instr, Plan, Upper
from lossdsl.plan.pipeline import PASSES, verify

Place = Callable[[Instr], str]


@dataclass(frozen=True)
class GameBatch:
    """`x` [B, *shape]: fresh data. `draws`: the samples of the game by name, [B], [] or [B, n]."""

    x: Tensor
    draws: Mapping[str, Tensor]


def draw_batch(game: TypedGame, x: Tensor, generator: torch.Generator) -> GameBatch:
    """The samples of a game beside a batch of data, drawn on the CPU so that a seed means the same on every device."""
    return GameBatch(x, {draw.name: _drawn(draw, len(x), generator).to(x) for draw in game.samples})


def _drawn(draw: TypedDraw, count: int, generator: torch.Generator) -> Tensor:
    shape = {"example": (count,), "batch": (), "latent": (count, draw.size)}[draw.over]
    if draw.distribution == "normal":
        return torch.randn(shape, generator=generator) * draw.numbers[0]
    uniform = torch.rand(shape, generator=generator)
    if draw.distribution == "rademacher":
        return torch.where(uniform < 0.5, -1.0, 1.0)
    low, high = draw.numbers
    return low + (high - low) * uniform


def make_plan(name: str, terms: Sequence[Typed], logs: Sequence[tuple[str, Typed]] = ()) -> Plan:
    """The plan of an objective (or of the values that are only recorded), after every pass that recipes go through."""
    code = Emitter([0])
    results = tuple(code.linear(e, "train") for e in (*terms, *(e for _, e in logs)))
    upper = Upper(Code(tuple(code.instrs), results), tuple(show(e) for e in terms), tuple(n for n, _ in logs))
    plan = Plan(name, Code(), (), upper)
    verify(plan)
    for change in PASSES:
        plan = change(plan)
        verify(plan)
    return plan


class _Compiled:
    """A plan as one closure."""

    def __init__(self, plan: Plan, place: Place) -> None:
        assert plan.upper is not None
        self.plan, self.code = plan, plan.upper.code
        self.closure = Closure(self.code, {i.id: i for i in self.code}, place)

    def run(self, frame: Frame) -> list[Tensor]:
        """The results, averaged over the batch where they are numbers per example."""
        values: Values = [None] * self.plan.size
        self.closure.run(frame, values)
        found = [frame.tensor(values[r]) for r in self.code.results]
        return [value.mean() if value.dim() else value for value in found]


class ModelGame:
    """A game whose players are models.

    models: one for every model of the game, already prepared for `keep`. Raises UserError for players that are no models, for data written
    into the game, and for a model that is missing.
    """

    def __init__(self, game: TypedGame, models: Mapping[str, nn.Module], place: Place | None = None) -> None:
        _suits(game, models)
        where = place or (lambda i: game.name)
        self.game, self.models = game, {player.name: models[player.name] for player in game.players}
        self._objectives = {p.name: _Compiled(make_plan(p.name, [p.objective]), where) for p in game.players}
        self._logs = _Compiled(make_plan(game.name, (), game.logs), where) if game.logs else None

    def player(self, name: str) -> TypedPlayer:
        return next(p for p in self.game.players if p.name == name)

    def parameters(self, name: str) -> list[nn.Parameter]:
        """What a player moves."""
        return [p for p in self.models[name].parameters() if p.requires_grad]

    def objective(self, name: str, batch: GameBatch) -> Tensor:
        """What a player wants, averaged over the batch: a 0-d tensor, differentiable by every model."""
        return self._run(self._objectives[name], batch)[0]

    def logs(self, batch: GameBatch) -> dict[str, float]:
        """The values of `log` statements, averaged over the batch."""
        if self._logs is None:
            return {}
        names = (name for name, _ in self.game.logs)
        return {name: float(value) for name, value in zip(names, self._run(self._logs, batch), strict=True)}

    def gradient(self, name: str, batch: GameBatch) -> tuple[list[Tensor], Tensor]:
        """The gradient by its own parameters of what a player minimises, and the value of its objective, both on the batch.

        A player that maximises minimises minus its objective. The other models are constants, which saves the graph through them.
        Raises UserError where one of the numbers is not finite.
        """
        own, others = self.parameters(name), [model for other, model in self.models.items() if other != name]
        with constant_parameters(*others):
            value = self.objective(name, batch)
            loss = value if self.player(name).sense == "minimize" else -value
            found = torch.autograd.grad(loss, own, allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(own, found, strict=True)]
        if not bool(torch.stack([value.detach().isfinite(), *(g.isfinite().all() for g in gradients)]).all()):
            fix = "lower the learning rate or the step, or hold the weights: keep NAME in clip(0.01)"
            raise UserError(f"the objective of {name} or its gradient is not a finite number", where=self.game.name, fix=fix)
        return gradients, value.detach()

    def field(self, batch: GameBatch) -> Tensor:
        """V(z) on one batch for all players: their gradients (see `gradient`), flattened, one after the other."""
        parts = [gradient.reshape(-1) for name in self.models for gradient in self.gradient(name, batch)[0]]
        return torch.cat(parts)

    def point(self) -> Tensor:
        """z: the parameters of all players, flattened, one after the other."""
        return torch.cat([p.detach().reshape(-1) for name in self.models for p in self.parameters(name)])

    def move(self, z: Tensor) -> None:
        """Set the parameters of all players to z."""
        start = 0
        with torch.no_grad():
            for parameter in (p for name in self.models for p in self.parameters(name)):
                parameter.copy_(z[start : start + parameter.numel()].reshape(parameter.shape))
                start += parameter.numel()

    def _run(self, compiled: _Compiled, batch: GameBatch) -> list[Tensor]:
        x, models = batch.x, self.models
        labels = torch.zeros(len(x), dtype=torch.long, device=x.device)
        with kept_modes(*models.values()) as modes:
            frame = Frame(x, labels, models.get("f", next(iter(models.values()))), modes, 1, models=dict(models))
            frame.points.update({("sample", name): value for name, value in batch.draws.items()})
            return compiled.run(frame)


def _suits(game: TypedGame, models: Mapping[str, nn.Module]) -> None:
    numbers = [p.name for p in game.players if not p.model]
    if numbers:
        said = f"{', '.join(numbers)} is a number or a vector, and the other players are models"
        raise UserError(said, where=game.name, fix="make all players models, or none of them")
    if game.data:
        columns = ", ".join(name for name, _ in game.data)
        raise UserError(
            f"the columns {columns} are written into the game, which draws batches of data", where=game.name, fix="remove data (...)"
        )
    missing = [name for name in game.models if name not in models]
    if missing:
        raise UserError(f"there is no network for {', '.join(missing)}", where=game.name, fix="give one for every model of the game")
