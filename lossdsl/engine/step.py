"""A training recipe on a model: one call solves the lower levels and returns the upper loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lossdsl.diagnostics import UserError
from lossdsl.engine import danskin
from lossdsl.engine.batch_level import BatchLevel, differentiable_weights
from lossdsl.engine.carried import carrying, gradient, trained
from lossdsl.engine.closures import Closure, Frame, Values
from lossdsl.engine.compiled import Compiled
from lossdsl.engine.find import FindRunner
from lossdsl.engine.implicit import Implicit
from lossdsl.engine.level import LevelRunner
from lossdsl.engine.modes import Modes, frozen, kept_modes
from lossdsl.engine.states import States
from lossdsl.front import Recipe
from lossdsl.plan.prune import logs_only


class Loss(Tensor):
    """The upper loss: a scalar tensor with its parts.

    terms: each addend of the objective by its text, averaged over the batch, without gradient.
    logs: the values of `log` statements.
    """

    terms: dict[str, Tensor]
    logs: dict[str, Tensor]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # results of arithmetic are plain tensors


@dataclass(frozen=True)
class Solved:
    """What the lower levels leave besides their solutions: the values of each, the maximisers that danskin keeps, and the level whose
    last update waits for the upper level's backward pass."""

    values: dict[str, Values]
    several: list[Tensor]
    waiting: LevelRunner | None = None


class Step(Compiled):
    """One training step of a recipe. `loss = step(x, y)`; `loss.backward()`; the optimizer is the caller's.

    The model's mode is set as the recipe says and put back before the call returns; its parameters' gradients are only
    touched by `loss.backward()`.
    """

    def __init__(
        self, recipe: Recipe, model: nn.Module, num_classes: int, device: Any, chunk: int, check: bool, models: Any = None
    ) -> None:  # fmt: skip
        super().__init__(recipe, model, num_classes, device, chunk, check, models)
        self._states = States(recipe.typed.states)

    def _plan_for(self, recipe: Recipe) -> None:
        super()._plan_for(recipe)
        assert self.plan.upper is not None
        self._upper = Closure(self.plan.upper.code, self._kinds, self._place)
        self._logs = Closure(logs_only(self.plan.upper), self._kinds, self._place)
        self._inits = Closure(self.plan.inits, self._kinds, self._place)
        self._sampling = Closure(self.plan.sampling, self._kinds, self._place)
        inputs = [level for level in self._levels if isinstance(level, LevelRunner)]
        self._implicit = [Implicit(level, self._kinds, self._place) for level in inputs if level.plan.through == "implicit"]
        self._differentiable = {level.name for level in inputs if level.plan.through == "unrolling"}
        self._fused = next((level for level in inputs if level.plan.fused), None)
        self._several = next((level for level in inputs if level.plan.through == "danskin"), None)
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
        with self._at_work() as modes:
            frame = self._frame(x, y, modes, generator)
            self._begin(frame, index)
            solved = self._solve(frame, self._fused)
            return self._objective(frame, solved, index)

    def solve(
        self, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None, index: Tensor | None = None
    ) -> dict[str, Tensor]:  # fmt: skip
        """The lower solutions by name, with the iterates ("x'@2"), counts ("x'@survived") and samples that the upper level speaks of.

        A family x'[j != y] has shape [B, K - 1, *input], its classes in ascending order; weights are one vector, in the order of the
        model's parameters; under `through danskin` the maximisers are x'#1, x'#2, ...
        """
        x, y = self._batch(x, y)
        with self._at_work() as modes:
            frame = self._frame(x, y, modes, generator)
            self._begin(frame, index)
            solved = self._solve(frame)
        found = {_shown(key): value for key, value in frame.points.items() if key[0] != "state"}
        found.update(zip(self._branches(), solved.several, strict=True))
        found.update({name: _flat(at) for name, at in frame.weights.items()})
        return {**found, **{name: q for name, q in frame.shared.items() if name in self._over_batch()}}

    def objective(self, x: Tensor, y: Tensor, solutions: Mapping[str, Tensor], *, index: Tensor | None = None) -> Loss:
        """The upper loss at given lower solutions (what `solve` returned)."""
        x, y = self._batch(x, y)
        with self._at_work() as modes:
            frame = self._placed(x, y, modes, solutions, index)
            several = [solutions[key].detach() for key in self._branches() if key in solutions]
            return self._objective(frame, Solved({}, several), index)

    def logged(
        self, x: Tensor, y: Tensor, solutions: Mapping[str, Tensor], *, index: Tensor | None = None
    ) -> dict[str, Tensor]:  # fmt: skip
        """The values of `log` statements at given lower solutions and nothing else: [B] where they differ between examples, else scalars.

        A level through danskin is seen at its first maximiser. No gradient; states stay as they are. A `log` in train mode writes the
        running statistics, as it does in a step.
        """
        x, y = self._batch(x, y)
        with self._at_work() as modes:
            frame = self._placed(x, y, modes, solutions, index)
            if self._several is not None:
                frame.points[self._several.name,] = solutions[self._branches()[0]].detach()
            differentiable_weights(frame)
            values = self._values()
            with torch.set_grad_enabled(any(i.op == "grad_theta" for _, _, i in self._logs.steps)):
                self._logs.run(frame, values)
            assert self.plan.upper is not None
            return {name: frame.tensor(values[r]).detach() for name, r in zip(self.plan.upper.logs, self._logs.results, strict=True)}

    def _placed(self, x: Tensor, y: Tensor, modes: Modes, solutions: Mapping[str, Tensor], index: Tensor | None) -> Frame:
        """A frame with the lower solutions in it. Raises UserError if one is missing."""
        wanted = {
            i.attrs if i.op != "sample" else ("sample", *i.attrs)
            for i in self._kinds.values()
            if i.op in ("point", "family", "sample", "found")
        }
        wanted = {key for key in wanted if key[0] not in self._over_batch()}
        missing = sorted(_shown(k) for k in wanted if _shown(k) not in solutions and self._in_upper(k))
        missing += sorted(name for name in self._over_batch() if name not in solutions)
        if self._several is not None:
            missing = [m for m in missing if m != self._several.name] + [key for key in self._branches() if key not in solutions]
        if missing:
            raise UserError(f"objective needs {', '.join(missing)}", where=self.recipe.name, fix="pass what step.solve(x, y) returned")
        points = {key: solutions[_shown(key)] for key in wanted if _shown(key) in solutions}
        points = {key: p if key[0] in self._differentiable else p.detach() for key, p in points.items()}
        frame = replace(self._frame(x, y, modes, None), points=points)
        self._begin(frame, index)
        for level in self._levels:
            if isinstance(level, BatchLevel):
                level.put(frame, solutions[level.name].detach())
        return frame

    @contextmanager
    def _at_work(self) -> Iterator[Modes]:
        """The modes of the trained models, and the frozen ones held fixed; all put back at the end."""
        with frozen(*self.helpers), kept_modes(*self.trained) as modes:
            yield modes

    def _begin(self, frame: Frame, index: Tensor | None) -> None:
        self._states.begin(frame, self._inits, self._values(), index, self.recipe.name)

    def _over_batch(self) -> list[str]:
        """Variables that are one for the whole batch."""
        return [level.name for level in self._levels if isinstance(level, BatchLevel)]

    def _branches(self) -> list[str]:
        """The maximisers of a level through danskin, as `solve` calls them."""
        return [] if self._several is None else [f"{self._several.name}#{n + 1}" for n in range(self._several.plan.runs)]

    def _in_upper(self, key: tuple[Any, ...]) -> bool:
        assert self.plan.upper is not None
        leaves = ("point", "family", "sample", "found")
        return any(key in (i.attrs, ("sample", *i.attrs)) for i in self.plan.upper.code if i.op in leaves)

    def _solve(self, frame: Frame, waiting: LevelRunner | None = None) -> Solved:
        """Run the levels; the last update of the one that is waiting is left to the upper level."""
        values = self._values()
        solved = Solved({}, [], waiting)
        if self.plan.samples.results:
            with torch.no_grad():
                self._samples.run(frame, values)
            for id in self.plan.samples.results:
                frame.points["sample", self._kinds[id].attrs[-1]] = values[id]
        for level in self._levels:
            if isinstance(level, BatchLevel | FindRunner):
                level.run(frame, values)
            elif level is self._several:
                solved.several.extend(level.branches(frame, values))
                frame.points[level.name,] = solved.several[0]
            else:
                self._store(frame, level, values, level is waiting)
                solved.values[level.name] = values
        return solved

    def _store(self, frame: Frame, level: LevelRunner, values: Values, waits: bool) -> None:
        solution = level.run(frame, values, waits=waits)
        frame.points[level.name,] = solution.point
        for k, point in solution.iterates.items():
            frame.points[level.name, k] = point
        for fact in ("survived", "first_fooled"):
            count = getattr(solution, fact)
            if count is not None:
                frame.points[level.name, fact] = count

    def _objective(self, frame: Frame, solved: Solved, index: Tensor | None) -> Loss:
        assert self.plan.upper is not None
        differentiable_weights(frame)
        with torch.enable_grad():  # gradients as values, implicit terms and combinations need them even where the caller wants none
            total, results = self._totalled(frame, solved)
        upper, count = self.plan.upper, len(self.plan.upper.terms)
        loss = (total if torch.is_grad_enabled() else total.detach()).as_subclass(Loss)
        loss.terms = dict(zip(self._terms, (term.detach() for term in results[:count]), strict=False))
        logs = results[count : count + len(upper.logs)]
        loss.logs = {name: _averaged(frame, value).detach() for name, value in zip(upper.logs, logs, strict=True)}
        states = results[count + len(upper.logs) :]
        self._states.propose({n: frame.tensor(v).detach() for n, v in zip(upper.states, states, strict=True)}, index)
        return loss

    def _totalled(self, frame: Frame, solved: Solved) -> tuple[Tensor, list[Any]]:
        """The upper loss; its averaged terms, then the values of logs and states."""
        if self._several is not None:
            return self._combined(frame, self._several.name, solved.several)
        if solved.waiting is not None:
            return self._with_last_update(frame, solved, solved.waiting)
        return self._evaluated(frame, solved)

    def _evaluated(self, frame: Frame, solved: Solved) -> tuple[Tensor, list[Any]]:
        """The upper objective once, with the implicit terms of its levels; its averaged terms, then the values of logs and states."""
        assert self.plan.upper is not None
        conditions = [i.conditions(frame, self._values_of(i.level, frame, solved)) for i in self._implicit]
        variables = [frame.points[i.level.name,].detach().requires_grad_() for i in self._implicit]
        for implicit, variable in zip(self._implicit, variables, strict=True):
            frame.points[implicit.level.name,] = variable
        values = self._values()
        self._upper.run(frame, values)
        upper = self.plan.upper
        results = [values[r] for r in upper.code.results]
        count = len(upper.terms)
        parts = [_averaged(frame, value) for value in results[:count]]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        if variables:
            slopes = torch.autograd.grad(total, variables, retain_graph=True, allow_unused=True)
            for implicit, at, slope in zip(self._implicit, conditions, slopes, strict=True):
                if at is not None and slope is not None:
                    total = total + implicit.term(at, slope)
        return total, [*parts, *results[count:]]

    def _with_last_update(self, frame: Frame, solved: Solved, level: LevelRunner) -> tuple[Tensor, list[Any]]:
        """As `_evaluated`; one backward pass gives the gradient of the loss that is returned and that of the level's last update."""
        at = level.name, level.plan.updates
        point = frame.points[at] = frame.points[at].detach().requires_grad_()
        total, results = self._evaluated(frame, solved)
        *rows, slope = gradient(total, self.trained, point)
        level.finish(frame, solved.values[level.name], point.detach(), slope * len(point))
        return carrying(total.detach(), rows, self.trained), results

    def _values_of(self, level: LevelRunner, frame: Frame, solved: Solved) -> Values:
        """What the level computed before its updates."""
        if level.name in solved.values:
            return solved.values[level.name]
        values = self._values()
        with torch.no_grad():
            for earlier in self._levels[: self._levels.index(level) + 1]:  # levels share what they compute before their updates
                earlier.before.run(frame, values)
        return values

    def _combined(self, frame: Frame, name: str, several: list[Tensor]) -> tuple[Tensor, list[Any]]:
        """The upper level at every maximiser, combined to the min-norm gradient; what is recorded is the weighted mean."""
        if not trained(self.trained):
            fix = "leave requires_grad on for at least one parameter"
            raise UserError("through danskin combines gradients, and the model has no parameter to train", where=self.recipe.name, fix=fix)
        totals, rows, recorded = [], [], []
        for point in several:
            frame.points[name,] = point
            total, results = self._evaluated(frame, Solved({}, []))
            rows.append(gradient(total, self.trained))
            totals.append(total.detach())
            recorded.append([frame.tensor(value).detach() for value in results])
        loss, weights = danskin.combined(totals, rows, self.trained)
        return loss, [danskin.mean([row[n] for row in recorded], weights) for n in range(len(recorded[0]))]

    def class_probabilities(self) -> Tensor | None:
        """The law [K] of the classes that the next batch is drawn from, on the CPU; None without a sampler.

        Raises UserError if it is not a distribution.
        """
        if not self.plan.sampling.results:
            return None
        parameter = next(self.model.parameters())
        x = torch.zeros((1, 1), dtype=parameter.dtype, device=parameter.device)
        with kept_modes(self.model) as modes, torch.no_grad():
            frame = self._frame(x, torch.zeros(1, dtype=torch.long, device=x.device), modes, None)
            self._states.begin(frame, self._inits, self._values(), torch.zeros(1, dtype=torch.long), self.recipe.name)
            values = self._values()
            self._sampling.run(frame, values)
        law: Tensor = values[self.plan.sampling.results[0]][0].double().cpu()
        if not bool(((law >= 0) & law.isfinite()).all()) or abs(float(law.sum()) - 1) > 1e-4:
            raise UserError(
                f"the sampler's numbers {[round(v, 4) for v in law.tolist()]} are no distribution",
                where=self.recipe.name,
                fix="write for example sampler = classes(softmax(j: w[j]))",
            )
        return law / law.sum()

    def set_epoch(self, epoch: int) -> None:
        """Epochs count from 1; params that change by epoch take their value."""
        changed = self.recipe.at_epoch(epoch)
        if changed.params != self._now.params:
            state = self.state_dict()
            self._plan_for(changed)
            self.load_state_dict(state)

    def after_update(self) -> None:
        """To be called after the optimizer's step: states take their new values."""
        self._states.commit()

    def state_dict(self) -> dict[str, Tensor]:
        """What lives across batches besides the models: states, memories, and the last perturbations of levels that start from them."""
        keepers = [level for level in self._levels if isinstance(level, LevelRunner) and level.previous is not None]
        return {f"previous.{level.name}": level.previous for level in keepers if level.previous is not None} | self._states.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave. Raises UserError for state that the recipe does not have."""
        inputs = [level for level in self._levels if isinstance(level, LevelRunner)]
        keepers = {f"previous.{level.name}": level for level in inputs if level.plan.level.solver.start_kind == "previous"}
        unknown = sorted(set(state) - set(keepers) - self._states.names())
        if unknown:
            raise UserError(
                f"the recipe has no state {', '.join(unknown)}", where=self.recipe.name, fix="pass what state_dict() of this recipe gave"
            )
        for name, level in keepers.items():
            level.previous = state.get(name)
        self._states.load_state_dict(state)


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


def _flat(weights: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in weights.values()])
