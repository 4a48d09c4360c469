"""`solve alternating`: players of numbers take turns, each with a torch optimizer of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lossdsl.games.field import Field
from lossdsl.games.regions import Projection
from lossdsl.games.solvers import Memory, Oracle
from lossdsl.lang.specs import OptimizerSpec
from lossdsl.run.optim import build_optimizer


class Turns:
    """One iteration: every player in the order written, `steps` updates each, with the others where they are by then."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self._own: dict[str, tuple[nn.Parameter, torch.optim.Optimizer]] = {}

    def __call__(self, z: Tensor, k: int, memory: Memory, v: Oracle, o: Any, p: Projection) -> tuple[Tensor, Memory]:
        z = z.clone()
        for player in self.field.game.players:
            place = self.field.slices[player.name]
            for _ in range(player.steps):
                z[:, place] = self._step(player.name, player.optimizer, z[:, place], v(z)[:, place])
                z = p(z)
        return z, ()

    def _step(self, name: str, spec: OptimizerSpec | None, part: Tensor, gradient: Tensor) -> Tensor:
        assert spec is not None
        if name not in self._own:
            own = nn.Parameter(part.clone())
            self._own[name] = own, build_optimizer(spec, [own])
        own, optimizer = self._own[name]
        with torch.no_grad():
            own.copy_(part)
        length = gradient.norm(dim=1, keepdim=True)
        own.grad = torch.where(length > 0, gradient / length, gradient) if spec.options.normalize else gradient
        optimizer.step()
        return own.detach().clone()
