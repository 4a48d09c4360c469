"""What a compiled recipe and a compiled attack share: the plan as closures, and the way a batch enters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lossdsl.engine.batch_level import BatchLevel
from lossdsl.engine.closures import Closure, Frame, Values
from lossdsl.engine.find import FindRunner
from lossdsl.engine.inputs import check_batch, domain_of
from lossdsl.engine.level import LevelRunner
from lossdsl.engine.modes import Modes
from lossdsl.front import Recipe
from lossdsl.plan.ir import Find, Instr, Plan, Solve, codes
from lossdsl.solve import Domain, Randomness

Runner = LevelRunner | BatchLevel | FindRunner


class Compiled:
    """A recipe's plan on a model, and on the other models that it names."""

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        num_classes: int,
        device: torch.device | None,
        chunk: int,
        check: bool,
        models: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.recipe, self.model, self.num_classes, self.device, self.chunk, self.check = recipe, model, num_classes, device, chunk, check
        self.models = dict(models or {})
        self.frozen = frozenset(name for name, is_frozen in recipe.typed.models.items() if is_frozen)
        self._domains: dict[tuple[Any, ...], Domain | None] = {}
        self._plan_for(recipe)

    @property
    def trained(self) -> tuple[nn.Module, ...]:
        """The models that the upper level moves."""
        return (self.model, *(m for name, m in self.models.items() if name not in self.frozen))

    @property
    def helpers(self) -> tuple[nn.Module, ...]:
        """The frozen models."""
        return tuple(self.models[name] for name in sorted(self.frozen))

    def _plan_for(self, recipe: Recipe) -> None:
        self._now = recipe
        self.plan: Plan = recipe.plan
        self._kinds: dict[int, Instr] = {i.id: i for code in codes(self.plan) for i in code}
        self._over_weights = any(i.op == "weights" or (i.op == "forward" and len(i.attrs) > 2) for i in self._kinds.values())
        self._samples = Closure(self.plan.samples, self._kinds, self._place)
        self._levels: list[Runner] = [self._runner(s) for s in self.plan.solves]

    def _runner(self, plan: Solve | Find) -> Runner:
        if isinstance(plan, Find):
            return FindRunner(plan, self._kinds, self._place)
        if plan.level.set.over != "input":
            return BatchLevel(plan, self._kinds, self._place)
        return LevelRunner(plan, self._kinds, self._place, self.chunk)

    def _place(self, i: Instr) -> str:
        source = self.recipe.source
        return source.where(i.span) if i.span.end > i.span.start else source.name

    def _batch(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if self.device is not None:
            x, y = x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
        unlabelled = self.recipe.train is not None and self.recipe.train.data is not None
        check_batch(x, y, self.num_classes, self.check, lambda: self._domain(x), unlabelled)
        return x.detach(), y.detach().long()

    def _domain(self, x: Tensor) -> Domain | None:
        key = (x.dtype, x.device, x.dim())
        if key not in self._domains:
            self._domains[key] = domain_of(self.recipe.domain, x)
        return self._domains[key]

    def _frame(self, x: Tensor, y: Tensor, modes: Modes, generator: Randomness) -> Frame:
        moved = frozenset(name for name, p in self.model.named_parameters() if p.requires_grad) if self._over_weights else frozenset()
        return Frame(
            x, y, self.model, modes, self.num_classes, self._domain(x), generator, models=self.models, frozen=self.frozen, moved=moved
        )  # fmt: skip

    def _values(self) -> Values:
        return [None] * self.plan.size
