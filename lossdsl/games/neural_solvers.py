"""How games of models are played: turns with optimizers of their own, or all parameters at once by the updates of lossdsl.games.solvers,
with a fresh batch for every evaluation of the field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from lossdsl.check.game_typed import TypedPlayer
from lossdsl.games.neural_data import Source
from lossdsl.games.neural_game import GameBatch, ModelGame, draw_batch
from lossdsl.games.neural_models import hold
from lossdsl.games.solvers import UPDATES
from lossdsl.run.optim import Stepper, build_optimizer
from lossdsl.run.rng import derive, generator


class Held:
    """The projection of the solvers' updates: z [1, d] to the parameters that `keep` allows. In place of it a spectrally normalised
    model, which all parameters are allowed for, makes its power iteration."""

    def __init__(self, game: ModelGame) -> None:
        self.game, self.keeps = game, game.game.keeps
        self.trivial = all(kind != "clip" for kind, _ in self.keeps.values())

    def __call__(self, z: Tensor) -> Tensor:
        self.game.move(z[0])
        hold(self.game.models, self.keeps, *self.game.models)
        return self.game.point().unsqueeze(0)


@dataclass(frozen=True)
class Draws:
    """The random numbers of a run: those of batches (data and samples), and the noise of an oracle."""

    batches: torch.Generator
    noise: torch.Generator

    @classmethod
    def start(cls, seed: int) -> Draws:
        return cls(generator("cpu", derive(seed, "batches")), generator("cpu", derive(seed, "noise")))

    def state_dict(self) -> dict[str, Tensor]:
        return {"batches": self.batches.get_state(), "noise": self.noise.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.batches.set_state(state["batches"])
        self.noise.set_state(state["noise"])


class Trainer:
    """Plays a game on data, one iteration at a time. `iteration` counts those that are done."""

    def __init__(self, game: ModelGame, source: Source, seed: int, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.game, self.source, self.device, self.dtype = game, source, device, dtype
        self.solver, self.keeps = game.game.solver, game.game.keeps
        self.draws, self.held = Draws.start(seed), Held(game)
        self.steppers = {p.name: _stepper(game, p) for p in game.game.players} if self.solver.name == "alternating" else {}
        self.iteration = 0

    def fresh(self, draws: torch.Generator | None = None, count: int | None = None) -> GameBatch:
        """A batch that has not been seen: data and samples, `batch` of each."""
        source = draws or self.draws.batches
        size = count or self.solver.options.batch
        assert size is not None
        x = self.source.draw(size, source).to(self.device, self.dtype)
        return draw_batch(self.game.game, x, source)

    def iterate(self) -> None:
        """One iteration: a turn of every player in the order written, or one update of all of them together."""
        if self.solver.name == "alternating":
            self.turns()
        else:
            self.update()
        self.iteration += 1

    def turns(self) -> None:
        """Every player in turn: `steps` updates by its own optimizer, each on a fresh batch, and what `keep` asks after each."""
        for player in self.game.game.players:
            stepper = self.steppers[player.name]
            for _ in range(player.steps):
                found, _value = self.game.gradient(player.name, self.fresh())
                for parameter, gradient in zip(self.game.parameters(player.name), found, strict=True):
                    parameter.grad = gradient
                stepper.step(stepper.norm() if stepper.normalize else 0.0)
                hold(self.game.models, self.keeps, player.name)

    def update(self) -> None:
        """All parameters together, by the solver's update; what it leaves is held once more where its last step is not projected."""
        oracle: Any = self._field  # the updates call it and their projection, and ask nothing else of them
        held: Any = self.held
        options: Any = self.solver.options
        z, _ = UPDATES[self.solver.name](self.game.point().unsqueeze(0), self.iteration, (), oracle, options, held)
        self.game.move(z[0])
        if not self.held.trivial and getattr(options, "projection", "both") == "first":
            self.held(z)

    def _field(self, z: Tensor) -> Tensor:
        """V(z) [1, d] on a fresh batch, with the noise of the oracle."""
        self.game.move(z[0])
        found = self.game.field(self.fresh())
        noise = getattr(self.solver.options, "noise", 0.0)
        if noise:
            found = found + noise * torch.randn(found.shape, generator=self.draws.noise).to(found)
        return found.unsqueeze(0)


def _stepper(game: ModelGame, player: TypedPlayer) -> Stepper:
    assert player.optimizer is not None
    optimizer = build_optimizer(player.optimizer, game.parameters(player.name))
    return Stepper(optimizer, LambdaLR(optimizer, lambda t: 1.0), player.optimizer.options.normalize, None)
