"""`compile`: a recipe and a model to a training step; an attack suite and a model to an attack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lossdsl.assets import attack_paths
from lossdsl.diagnostics import UserError, did_you_mean
from lossdsl.engine.closures import Closure, Frame, Values
from lossdsl.engine.inputs import check_batch, domain_of
from lossdsl.engine.level import LevelRunner
from lossdsl.engine.modes import Modes, kept_modes
from lossdsl.front import Recipe, load, parse_recipe
from lossdsl.plan.ir import Instr, Plan, codes
from lossdsl.solve import Domain

CHUNK = 4096
"""Largest number of points solved at once where a level may be solved in parts."""


class Loss(Tensor):
    """The upper loss: a scalar tensor with its parts.

    terms: each addend of the objective by its text, averaged over the batch, without gradient.
    logs: the values of `log` statements.
    """

    terms: dict[str, Tensor]
    logs: dict[str, Tensor]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # results of arithmetic are plain tensors


class _Compiled:
    """What steps and attacks share: the plan as closures, and the way a batch enters."""

    def __init__(self, recipe: Recipe, model: nn.Module, num_classes: int, device: torch.device | None, chunk: int, check: bool) -> None:
        self.recipe, self.model, self.num_classes, self.device, self.chunk, self.check = recipe, model, num_classes, device, chunk, check
        self._domains: dict[tuple[Any, ...], Domain | None] = {}
        self._plan_for(recipe)

    def _plan_for(self, recipe: Recipe) -> None:
        self._now = recipe
        self.plan: Plan = recipe.plan
        self._kinds: dict[int, Instr] = {i.id: i for code in codes(self.plan) for i in code}
        self._samples = Closure(self.plan.samples, self._kinds, self._place)
        self._levels = [LevelRunner(s, self._kinds, self._place, self.chunk) for s in self.plan.solves]

    def _place(self, i: Instr) -> str:
        source = self.recipe.source
        return source.where(i.span) if i.span.end > i.span.start else source.name

    def _batch(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if self.device is not None:
            x, y = x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
        check_batch(x, y, self.num_classes, self.check, lambda: self._domain(x))
        return x.detach(), y.detach().long()

    def _domain(self, x: Tensor) -> Domain | None:
        key = (x.dtype, x.device, x.dim())
        if key not in self._domains:
            self._domains[key] = domain_of(self.recipe.domain, x)
        return self._domains[key]

    def _frame(self, x: Tensor, y: Tensor, modes: Modes, generator: torch.Generator | None) -> Frame:
        return Frame(x, y, self.model, modes, self.num_classes, self._domain(x), generator)

    def _values(self) -> Values:
        return [None] * self.plan.size


class Step(_Compiled):
    """One training step of a recipe. `loss = step(x, y)`; `loss.backward()`; the optimizer is the caller's.

    The model's mode is set as the recipe says and put back before the call returns; its parameters' gradients are only
    touched by `loss.backward()`.
    """

    def _plan_for(self, recipe: Recipe) -> None:
        super()._plan_for(recipe)
        assert self.plan.upper is not None
        self._upper = Closure(self.plan.upper.code, self._kinds, self._place)
        self._terms = _distinct([self._written(r, t) for r, t in zip(self.plan.upper.code.results, self.plan.upper.terms, strict=False)])

    def _written(self, result: int, text: str) -> str:
        """A term as the recipe writes it, on one line."""
        span = self._kinds[result].span
        source = self.recipe.source.holding(span)
        words = " ".join(source.excerpt(span).split())
        return text if not words else "-" + words if text.startswith("-") and not words.startswith("-") else words

    def __call__(self, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None, index: Tensor | None = None) -> Loss:
        """Solve the lower levels and return the upper loss, ready for `.backward()`.

        x [B, *input] inside the recipe's input domain, y [B] class indices. generator: source of every draw (default: torch's own).
        index: the examples' places in the training set, for recipes with per-example memory.
        Raises UserError for a bad batch, or where the model or an operation fails, with the line of the recipe.
        """
        x, y = self._batch(x, y)
        with kept_modes(self.model) as modes:
            frame = self._frame(x, y, modes, generator)
            self._solve(frame)
            return self._objective(frame)

    def solve(self, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The lower solutions by name, with the iterates ("x'@2") and samples that the upper level speaks of.

        A family x'[j != y] has shape [B, K - 1, *input], its classes in ascending order.
        """
        x, y = self._batch(x, y)
        with kept_modes(self.model) as modes:
            frame = self._frame(x, y, modes, generator)
            self._solve(frame)
        return {_shown(key): value for key, value in frame.points.items()}

    def objective(self, x: Tensor, y: Tensor, solutions: Mapping[str, Tensor]) -> Loss:
        """The upper loss at given lower solutions (what `solve` returned)."""
        x, y = self._batch(x, y)
        wanted = {
            i.attrs if i.op != "sample" else ("sample", *i.attrs) for i in self._kinds.values() if i.op in ("point", "family", "sample")
        }
        missing = sorted(_shown(k) for k in wanted if _shown(k) not in solutions and self._in_upper(k))
        if missing:
            raise UserError(f"objective needs {', '.join(missing)}", where=self.recipe.name, fix="pass what step.solve(x, y) returned")
        points = {key: solutions[_shown(key)].detach() for key in wanted if _shown(key) in solutions}
        with kept_modes(self.model) as modes:
            return self._objective(replace(self._frame(x, y, modes, None), points=points))

    def _in_upper(self, key: tuple[Any, ...]) -> bool:
        assert self.plan.upper is not None
        return any(key in (i.attrs, ("sample", *i.attrs)) for i in self.plan.upper.code if i.op in ("point", "family", "sample"))

    def _solve(self, frame: Frame) -> None:
        values = self._values()
        if self.plan.samples.results:
            with torch.no_grad():
                self._samples.run(frame, values)
            for id in self.plan.samples.results:
                frame.points["sample", self._kinds[id].attrs[-1]] = values[id]
        for level in self._levels:
            solution = level.run(frame, values)
            frame.points[level.name,] = solution.point
            for k, point in solution.iterates.items():
                frame.points[level.name, k] = point

    def _objective(self, frame: Frame) -> Loss:
        assert self.plan.upper is not None
        values = self._values()
        self._upper.run(frame, values)
        upper = self.plan.upper
        results = [_averaged(frame, values[r]) for r in upper.code.results]
        count = len(upper.terms)
        total = results[0]
        for part in results[1:count]:
            total = total + part
        loss = total.as_subclass(Loss)
        loss.terms = {name: value.detach() for name, value in zip(self._terms, results, strict=False)}
        loss.logs = {name: value.detach() for name, value in zip(upper.logs, results[count:], strict=True)}
        return loss

    def set_epoch(self, epoch: int) -> None:
        """Epochs count from 1; params that change by epoch take their value."""
        changed = self.recipe.at_epoch(epoch)
        if changed.params != self._now.params:
            state = self.state_dict()
            self._plan_for(changed)
            self.load_state_dict(state)

    def after_update(self) -> None:
        """To be called after the optimizer's step; recipes with state act on it."""

    def state_dict(self) -> dict[str, Tensor]:
        """What lives across batches besides the model: the last perturbations of levels that start from them."""
        return {f"previous.{level.name}": level.previous for level in self._levels if level.previous is not None}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave. Raises UserError for state that the recipe does not have."""
        keepers = {f"previous.{level.name}": level for level in self._levels if level.plan.level.solver.start_kind == "previous"}
        unknown = sorted(set(state) - set(keepers))
        if unknown:
            raise UserError(
                f"the recipe has no state {', '.join(unknown)}", where=self.recipe.name, fix="pass what state_dict() of this recipe gave"
            )
        for name, level in keepers.items():
            level.previous = state.get(name)


class Attack(_Compiled):
    """An attack suite on a model, always in eval mode."""

    @property
    def name(self) -> str:
        return self.recipe.name

    @property
    def count(self) -> str:
        """ "worst", "best_loss" or "each"."""
        return self.recipe.typed.count or "worst"

    @property
    def settings(self) -> list[dict[str, Any]]:
        """Per run: its name, solver, options, start, set and radius."""
        from lossdsl.check.typed import show

        rows = []
        for level in self.recipe.typed.levels:
            solver = level.solver
            start = solver.start_kind if solver.start_kind in ("uniform", "corner") else show(solver.start)
            rows.append(
                {
                    "name": level.run, "solver": solver.name, **solver.options.model_dump(), "start": start, "norm": level.set.name,
                    "radius": level.set.radius.value, "objective": f"{level.sense} {show(level.objective)}",
                }
            )  # fmt: skip
        return rows

    def run(
        self, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None, only: str | None = None
    ) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Each run's points [B, *input] and their objective [B] (larger is stronger; None if nothing is to be compared).

        `only` names the one run wanted. A family has shape [B, n, *input].
        """
        x, y = self._batch(x, y)
        found = {}
        with kept_modes(self.model) as modes:
            for level in self._levels:
                if only is not None and level.plan.level.run != only:
                    continue
                frame = self._frame(x, y, modes, generator)
                solution = level.run(frame, self._values(), rated=self.count == "best_loss" and len(self._levels) > 1)
                found[str(level.plan.level.run)] = (solution.point, solution.objective)
        return found


def step_compiler(recipe: Recipe) -> Callable[[nn.Module, int, torch.device], Step]:
    """A function that compiles one recipe for a model, for the trainer."""

    def build(model: nn.Module, num_classes: int, device: torch.device) -> Step:
        step = compile(recipe, model, num_classes=num_classes, device=device)
        assert isinstance(step, Step)
        return step

    return build


def attack_compiler(name: str, overrides: Mapping[str, float | int], model: nn.Module, num_classes: int, device: torch.device) -> Attack:
    """An attack suite by name, path or text, with other params, on a model.

    Raises UserError if there is no such suite or if the name is that of a training recipe.
    """
    suite = parse_recipe(name, "<attack>") if "\n" in name else load(name)
    if suite.kind != "attack":
        raise UserError(f"{suite.name} is a training recipe, not an attack suite", fix=did_you_mean(suite.name, attack_paths()))
    known = {n: v for n, v in overrides.items() if n in suite.params or n != "eps"}  # a suite with radii of its own needs no eps
    attack = compile(suite.with_params(**known), model, num_classes=num_classes, device=device)
    assert isinstance(attack, Attack)
    return attack


def _averaged(frame: Frame, value: Any) -> Tensor:
    tensor = frame.tensor(value)
    return tensor.mean() if tensor.dim() else tensor


def _shown(key: tuple[Any, ...]) -> str:
    """("x'",) is x', ("x'", 2) is x'@2, ("sample", "eta") is eta."""
    if key[0] == "sample" and len(key) == 2 and isinstance(key[1], str):
        return str(key[1])
    return str(key[0]) if len(key) == 1 else f"{key[0]}@{key[1]}"


def _distinct(names: list[str]) -> list[str]:
    out: list[str] = []
    for name in names:
        out.append(name if name not in out else f"{name} #{len(out) + 1}")
    return out


def compile(
    recipe: Recipe | str,
    model: nn.Module,
    *,
    num_classes: int,
    device: torch.device | str | None = None,
    chunk: int = CHUNK,
    check: bool = True,
) -> Any:
    """A recipe on a model: a Step; an attack suite on a model: an Attack.

    recipe: a Recipe, or the name or path that `load` takes. num_classes: K >= 2, the width of the model's logits.
    device: where batches are moved (the model is the caller's to move); None leaves them. chunk: the largest number of points
    that a level in eval mode is solved for at once; results do not depend on it. check: look at every batch for labels out of
    range, NaN, and inputs outside the domain.
    Raises UserError, or RecipeError for a recipe with errors.
    """
    recipe = load(recipe) if isinstance(recipe, str) else recipe
    if not isinstance(model, nn.Module):
        raise UserError(f"the model is a {type(model).__name__}, not a torch.nn.Module", where="compile")
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 2:
        raise UserError(f"num_classes is {num_classes!r}", where="compile", fix="pass the number of classes, a whole number from 2")
    if chunk < 1:
        raise UserError(f"chunk is {chunk}", where="compile", fix="pass a number of points from 1")
    place = _device(device)
    kind = Step if recipe.kind == "recipe" else Attack
    compiled = kind(recipe, model, num_classes, place, chunk, check)
    _check_classes(compiled)
    return compiled


def _device(device: torch.device | str | None) -> torch.device | None:
    try:
        return None if device is None else torch.device(device)
    except RuntimeError:
        raise UserError(f"there is no device {device!r}", where="compile", fix="cpu, cuda or cuda:N") from None


def _check_classes(compiled: _Compiled) -> None:
    """Operations that need more classes than there are."""
    for i in compiled._kinds.values():
        needed = {"DLR": 4 if len(i.args) == 3 else 3}.get(i.op, 2)
        if i.op in ("at", "log_at", "log_not_at") and i.attrs:
            needed = i.attrs[0] + 1
        if i.op == "nth":
            ordered = compiled._kinds[i.args[0]]
            while ordered.op == "stop":
                ordered = compiled._kinds[ordered.args[0]]
            classes = compiled._kinds[ordered.args[1]]
            needed = i.attrs[0] + (classes.attrs[0] == "not")
        if needed > compiled.num_classes:
            raise UserError(f"{i.text} needs {needed} classes, and there are {compiled.num_classes}", where=compiled._place(i))


__all__ = ["Attack", "Loss", "Step", "attack_compiler", "compile", "step_compiler"]
