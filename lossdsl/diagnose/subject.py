"""What most diagnostics look at: a model, examples, and the points where an attack suite leads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from lossdsl.diagnose.quantities import measured
from lossdsl.diagnostics import UserError
from lossdsl.engine.api import attack_compiler
from lossdsl.run.measure import check_in_set, evaluation_mode, right, survives
from lossdsl.run.protocols import Attack
from lossdsl.run.rng import derive
from lossdsl.solve import ExampleStreams


@dataclass(frozen=True)
class Options:
    """How diagnostics look at runs; None leaves a choice to the diagnostic.

    attack, overrides: a suite and other values for its params (the radius is the run's own unless `overrides` says eps). checkpoint:
    "best", "last" or "epoch:N" (with train --keep-epochs). split: "test", "validation" or "train". limit: the first examples only.
    radii: where accuracy is measured against eps. example: the one that is looked at alone. starts: how many random starts. updates:
    how many of the first updates are replayed.
    """

    attack: str = "pgd20"
    overrides: Mapping[str, float | int] | None = None
    checkpoint: str = "best"
    split: str = "test"
    limit: int | None = None
    seed: int = 0
    batch: int = 512
    device: str = "auto"
    data_root: Path | None = None
    workers: int = 0
    radii: tuple[float, ...] | None = None
    example: int = 0
    starts: int | None = None
    updates: int = 2000


@dataclass(frozen=True)
class Subject:
    """A model with examples x [N, *shape], y [N] on its device, and an attack suite with its params. Nothing changes the model."""

    model: nn.Module
    x: Tensor
    y: Tensor
    classes: tuple[str, ...]
    suite: str
    params: Mapping[str, float | int]
    seed: int = 0
    batch: int = 512

    @classmethod
    def of(
        cls, model: nn.Module, x: Tensor, y: Tensor, num_classes: int, attack: str = "pgd20", seed: int = 0, **params: float | int
    ) -> Subject:  # fmt: skip
        """Any model and tensors under a suite by name, file or text; `params` are the suite's (eps=0.1).

        Raises UserError: no examples, labels outside 0..num_classes-1, no such suite.
        """
        if len(y) == 0 or len(x) != len(y):
            raise UserError(f"{len(x)} inputs and {len(y)} labels", where="diagnose", fix="give at least one example, and a label for each")
        if int(y.min()) < 0 or int(y.max()) >= num_classes:
            raise UserError(f"labels reach from {int(y.min())} to {int(y.max())}", where="diagnose", fix=f"they are 0..{num_classes - 1}")
        return cls(model, x, y, tuple(map(str, range(num_classes))), attack, params, seed)

    def __len__(self) -> int:
        return len(self.y)

    @cached_property
    def attack(self) -> Attack:
        """The suite, compiled for the model. Raises UserError: no such suite or param."""
        return attack_compiler(self.suite, self.params, self.model, self.num_classes, self.x.device)

    def under(self, suite: str | None = None, **params: float | int) -> Subject:
        """The same model and examples under another suite, or with other values for its params."""
        return replace(self, suite=suite or self.suite, params={**self.params, **params})

    def at(self, x: Tensor, y: Tensor) -> Subject:
        """The same model and attack with other examples."""
        return replace(self, x=x, y=y)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def radius(self) -> float:
        """The largest radius of the suite's runs, in units of x; 0 for suites whose radius differs between examples."""
        return max((float(row["radius"]) for row in self.attack.settings if isinstance(row.get("radius"), int | float)), default=0.0)

    @property
    def norm(self) -> str:
        return str(self.attack.settings[0].get("norm", ""))

    @property
    def about(self) -> str:
        """The attack, for notes."""
        return f"x* by {self.attack.name}, {self.norm} radius {self.radius:.4g}, seed {self.seed}, {len(self)} examples"

    @cached_property
    def adversarial(self) -> Tensor:
        """x* [N, *shape]: for each example a point that some run of the suite breaks it with, else the last run's point.

        Clean errors are attacked too. The random numbers are those of `lossdsl evaluate` with this seed, whatever the batch. Raises
        UserError for a model whose logits pass no gradient to the inputs.
        """
        if not self.differentiable:
            raise UserError(
                f"the model passes no gradient to its inputs, which {self.attack.name} needs",
                where="diagnose",
                fix="look for rounding, detach() or outputs that do not depend on the input",
            )
        with evaluation_mode(self.model):
            return torch.cat([self._attacked(rows) for rows in self.rows()])

    @cached_property
    def differentiable(self) -> bool:
        """Whether the logits depend on the inputs as far as gradients can see."""
        with evaluation_mode(self.model), torch.enable_grad():
            x = self.x[:2].detach().requires_grad_()
            z = self.model(x)
            return z.requires_grad and torch.autograd.grad(z.sum(), x, allow_unused=True)[0] is not None

    @cached_property
    def clean(self) -> Tensor:
        """Which examples are classified correctly [N]."""
        return self.right_at(self.x)

    @cached_property
    def robust(self) -> Tensor:
        """Which are right at x and at x* [N]: a clean error counts as a robust error."""
        return self.clean & self.right_at(self.adversarial)

    def rows(self) -> tuple[Tensor, ...]:
        """The examples in batches, by place."""
        parts: tuple[Tensor, ...] = torch.arange(len(self), device=self.x.device).split(self.batch)
        return parts

    def values(self, expressions: Mapping[str, str], points: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Expressions of the language for every example, [N] each; x' is x* unless `points` says other."""
        given = {"x'": self.adversarial} if points is None else points
        return measured(self.model, self.x, self.y, expressions, given, num_classes=self.num_classes, batch=self.batch)

    def right_at(self, points: Tensor) -> Tensor:
        """Which examples are classified correctly at other points [N, *shape]; logits that are not finite count as wrong."""
        with evaluation_mode(self.model):
            return torch.cat([right(self.model, points[rows], self.y[rows]) for rows in self.rows()])

    def predicted(self, points: Tensor) -> Tensor:
        """The class of the largest probability at points [N, *shape] (the lowest at a tie), [N]."""
        return self.probabilities(points).argmax(1)

    @torch.no_grad()
    def probabilities(self, points: Tensor) -> Tensor:
        """p at points [N, *shape], [N, K]."""
        with evaluation_mode(self.model):
            return torch.cat([self.model(points[rows]).softmax(1) for rows in self.rows()])

    def _attacked(self, rows: Tensor) -> Tensor:
        x, y = self.x[rows], self.y[rows]
        with torch.no_grad():
            alive, chosen = self.model(x).isfinite().all(1), x.clone()  # others are wrong as they are
        for row in self.attack.settings:
            name, at = str(row["name"]), alive.nonzero().squeeze(1)
            if len(at) == 0:
                break
            streams = ExampleStreams.of(derive(self.seed, "run", name), rows[at])
            points = self.attack.run(x[at], y[at], generator=streams, only=name)[name][0]
            check_in_set(self.attack.name, row, x[at], points)
            chosen[at], alive[at] = self._weakest(points, y[at], x.ndim)
        return chosen

    def _weakest(self, points: Tensor, y: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """One point for each example, of a family [N, n, *shape] one that breaks it if there is one; whether it is right there."""
        alive = survives(self.model, points, y, rank)
        if points.ndim == rank:
            return points, alive
        chosen = (~alive).int().argmax(1)
        return points[torch.arange(len(y), device=y.device), chosen], alive.all(1)
