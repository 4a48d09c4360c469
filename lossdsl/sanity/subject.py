"""The model under inspection: its passes counted, its logits, gradients and attacked points computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lossdsl.diagnostics import UserError
from lossdsl.engine.api import compile
from lossdsl.front import parse_recipe
from lossdsl.run.measure import Rate
from lossdsl.run.rng import derive, generator
from lossdsl.sanity.probes import CE, Threat


@dataclass(frozen=True)
class Budget:
    """How much the gate may spend. Attacks go from `steps` to `more` steps; `far` steps at the unbounded radius; a black box gets so many
    random `corners` and `queries`."""

    name: str
    examples: int
    steps: int
    more: int
    far: int
    corners: int
    queries: int


QUICK = Budget("quick", examples=128, steps=10, more=20, far=20, corners=20, queries=100)
FULL = Budget("full", examples=1000, steps=20, more=100, far=100, corners=100, queries=1000)
BUDGETS = {budget.name: budget for budget in (QUICK, FULL)}


@dataclass(frozen=True)
class Settings:
    """How the gate computes: `budget` is "quick" or "full", `batch` the number of examples at a time."""

    budget: str = "quick"
    seed: int = 0
    batch: int = 512


@dataclass(frozen=True)
class Measured:
    """The numbers to be judged: those of the suite, and which of the subject's examples [N] it left unbroken, where that is known."""

    suite: str
    clean: Rate
    robust: Rate | None
    alive: Tensor | None = None


MOST = 1e30
"""Stands for infinity in a report, which is JSON."""


class Stopped(Exception):  # noqa: N818  (what happened, not a fault of ours)
    """An attack could not go on: an objective that is not finite, a model that fails on attacked inputs."""


@dataclass
class Subject:
    """`model` in eval mode on inputs `x` [N, *shape] with labels `y` [N] in 0..K-1; `training` names the modules that stayed in train
    mode, `given_training` says whether it was handed over in train mode. Attacks see the examples that are classified correctly."""

    model: nn.Module
    x: Tensor
    y: Tensor
    threat: Threat
    settings: Settings
    given_training: bool = False
    training: tuple[str, ...] = ()
    surrogates: tuple[nn.Module, ...] = ()
    measured: Measured | None = None
    points: dict[str, Tensor] = field(default_factory=dict)
    not_finite: int = 0

    @property
    def budget(self) -> Budget:
        return BUDGETS[self.settings.budget]

    @torch.no_grad()
    def logits_at(self, x: Tensor, batch: int | None = None, model: nn.Module | None = None) -> Any:
        """The outputs [N, K] at any inputs, `batch` at a time."""
        parts = [(model or self.model)(part) for part in x.split(batch or self.settings.batch)]
        return torch.cat(parts) if all(isinstance(part, Tensor) for part in parts) else parts[0]

    @cached_property
    def outputs(self) -> Any:
        """Whatever the model returns on the clean inputs, not yet known to be logits."""
        return self.logits_at(self.x)

    def difference(self, again: Tensor) -> tuple[float, int]:
        """The largest difference of other outputs to `outputs`, relative to the largest of these, and how many predictions change."""
        z = self.outputs
        scale = max(float(z.abs().max()), torch.finfo(z.dtype).tiny)
        worst = float((again - z).abs().nan_to_num(torch.inf, torch.inf).max()) / scale
        return min(worst, MOST), int((again.argmax(1) != z.argmax(1)).sum())

    @cached_property
    def repeated(self) -> tuple[float, int]:
        """`difference` of a second pass."""
        return self.difference(self.logits_at(self.x))

    @property
    def rounding(self) -> float:
        """Half of the digits of a number: what the order of additions on a GPU may change."""
        return float(torch.finfo(self.outputs.dtype).eps ** 0.5)

    @property
    def random(self) -> bool:
        return self.repeated[0] > self.rounding

    @property
    def classes(self) -> int:
        return int(self.outputs.shape[1])

    @cached_property
    def correct(self) -> Tensor:
        """Which examples are classified correctly [N]."""
        return (self.outputs.argmax(1) == self.y) & torch.isfinite(self.outputs).all(1)

    @cached_property
    def margins(self) -> Tensor:
        """f(x)_y - max_{j != y} f(x)_j on the clean inputs [N]."""
        own = self.outputs.gather(1, self.y.unsqueeze(1))
        others = self.outputs.scatter(1, self.y.unsqueeze(1), -torch.inf)
        gap: Tensor = own.squeeze(1) - others.amax(1)
        return gap

    @cached_property
    def slopes(self) -> tuple[Tensor, Tensor] | None:
        """Per example the largest absolute entry of the gradients by the input of the cross-entropy and of the margin [N] each; None if
        the outputs cannot be differentiated by it."""
        found = [self._slopes(x, y) for x, y in zip(*(values.split(self.settings.batch) for values in (self.x, self.y)), strict=True)]
        if any(part is None for part in found):
            return None
        ce, margin = zip(*(part for part in found if part is not None), strict=True)
        return torch.cat(ce), torch.cat(margin)

    def _slopes(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor] | None:
        x = x.clone().requires_grad_()
        z = self.model(x)
        if not z.requires_grad:
            return None
        own = z.gather(1, y.unsqueeze(1)).squeeze(1)
        margin = own - z.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)
        wholes = (cross_entropy(z, y, reduction="sum"), margin.sum())
        found = [torch.autograd.grad(whole, x, retain_graph=True, allow_unused=True)[0] for whole in wholes]
        if any(g is None for g in found):
            return None
        ce, slope = (g.flatten(1).abs().amax(1) for g in found)
        return ce, slope

    # --- attacks ---

    @cached_property
    def unbounded(self) -> float:
        """A radius that holds every other example of the domain, so that some point in it is classified differently."""
        if self.threat.domain is None:
            low, high = self.x.min(), self.x.max()
        else:
            low, high = (torch.as_tensor(bound, dtype=torch.float64) for bound in self.threat.domain)
        width, size = float((high - low).max()), self.x[0].numel()
        return width * {"linf": 1.0, "l2": size**0.5, "l1": float(size)}[self.threat.norm]

    def attacked(self, solver: Callable[[Threat], str], objective: str = CE, *, factor: float = 1.0, scale: float = 1.0) -> Tensor:
        """The correctly classified examples [M, *shape] moved by one attack. The radius is `factor` times the threat's, at most the
        unbounded one; the random draws are the same in every call."""
        threat = replace(self.threat, radius=min(factor * self.threat.radius, self.unbounded))
        text = threat.text(objective, solver(threat), scale)
        if text not in self.points:
            self.points[text] = self._run(self.model, text)
        return self.points[text]

    def _run(self, model: nn.Module, text: str) -> Tensor:
        attack = compile(parse_recipe(text, "<sanity>"), model, num_classes=self.classes, chunk=self.settings.batch)
        draws = generator(self.x.device, derive(self.settings.seed, "sanity"))
        try:
            points: Tensor = attack.run(self.x[self.correct], self.y[self.correct], generator=draws)["probe"][0]
        except UserError as failure:
            raise Stopped(failure.problem) from failure
        return points

    def transferred(self, surrogate: nn.Module, text: str) -> Tensor:
        """Which correctly classified examples [M] break at points made on another model."""
        return self.broken(self._run(surrogate, text))

    def broken(self, points: Tensor) -> Tensor:
        """Which of the correctly classified examples [M] are misclassified at their points; outputs that are not finite break none, and
        are counted for S17."""
        z = self.logits_at(points)
        finite = torch.isfinite(z).all(1)
        self.not_finite += int((~finite).sum())
        return (z.argmax(1) != self.y[self.correct]) & finite
