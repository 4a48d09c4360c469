"""The compiled step beside the slow evaluator: what both need to be given, and every level compared while it is solved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lossdsl.engine.batch_level as batch_module
import lossdsl.engine.find as find_module
import lossdsl.engine.level as level_module
from lossdsl.check.typed import TypedFind, TypedLevel, TypedRecipe
from lossdsl.engine.api import Step
from lossdsl.engine.reference import Reference
from lossdsl.solve.base import Problem, Solution, value_and_gradient

Close = Callable[[Tensor, Tensor], None]


def load_states(step: Step, values: Mapping[str, Tensor]) -> None:
    """Put the values of the states and memories (of examples 0, 1, ...) into the compiled step."""
    kinds = {s.name: "memory" if s.per_example else "state" for s in step.recipe.typed.states}
    step.load_state_dict({f"{kind}.{name}": values[name] for name, kind in kinds.items()})


def stages(typed: TypedRecipe) -> list[TypedLevel | TypedFind]:
    """Levels and root searches that run: a set of weights of radius 0 skips its level."""
    still = {level.var for level in typed.levels if level.set.over == "weights" and level.set.radius.value == 0}
    return [s for s in typed.stages if s.var not in still]


@contextmanager
def compared(reference: Reference, x: Tensor, y: Tensor, known: dict[str, Tensor], close: Close) -> Iterator[list[str]]:
    """While a step solves its levels, each is compared with the reference: the objective and its gradient at the start and at another
    point of the set, the equation of a root at both ends. `known`: samples and states, to which solutions are added. Gives the names of
    what has run."""
    seen: list[str] = []
    by_name = {stage.var: stage for stage in reference.typed.stages}

    def solving(solve: Callable[..., Solution]) -> Callable[..., Solution]:
        def solved(problem: Problem, *args: Any, **options: Any) -> Solution:
            level = by_name[problem.name]
            assert isinstance(level, TypedLevel)
            seen.append(level.var)
            kept = torch.random.get_rng_state()
            state = None if problem.generator is None else problem.generator.get_state()
            _same_objective(reference, level, problem, problem.start(), x, y, known, close)
            torch.random.set_rng_state(kept)
            if problem.generator is not None and state is not None:
                problem.generator.set_state(state)
            solution = solve(problem, *args, **options)
            _same_objective(reference, level, problem, problem.set.project(0.9 * solution.point + 0.05), x, y, known, close)
            _keep(level, solution, x, known)
            return solution

        return solved

    def searching(function: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, steps: int, name: str) -> Tensor:
        find = by_name[name]
        assert isinstance(find, TypedFind)
        seen.append(name)
        for t in (low, low + 0.7 * (high - low)):
            close(function(t), torch.stack(reference.equation(find, t, x, y, known)).detach())
        known[name] = BISECTION(function, low, high, steps, name)
        return known[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(level_module, "solve", solving(level_module.solve))
        patch.setattr(batch_module, "solve", solving(batch_module.solve))
        patch.setattr(find_module, "bisection", searching)
        yield seen


BISECTION = find_module.bisection


def _same_objective(
    reference: Reference, level: TypedLevel, problem: Problem, point: Tensor, x: Tensor, y: Tensor, known: Mapping[str, Tensor], close: Close
) -> None:  # fmt: skip
    value, gradient = value_and_gradient(problem, point)
    whole = level.set.over != "input"
    leaf = (point[0] if whole else point if level.axis is None else point.unflatten(0, (len(y), -1))).detach().clone().requires_grad_()
    if whole:
        expected = reference.batch_objective(level, leaf, x, y, known).reshape(1)
    else:
        rows = reference.level_objective(level, leaf, x, y, known)
        expected = torch.stack(rows if level.axis is None else [v for row in rows for v in row])
    expected = expected if level.sense == "maximize" else -expected
    close(value, expected.detach())
    close(gradient.reshape(leaf.shape), torch.autograd.grad(expected.sum(), leaf)[0])


def _keep(level: TypedLevel, solution: Solution, x: Tensor, known: dict[str, Tensor]) -> None:
    shape = solution.point[0].shape if level.set.over != "input" else x.shape if level.axis is None else (len(x), -1, *x.shape[1:])
    points = {level.var: solution.point, **{f"{level.var}@{k}": point for k, point in solution.iterates.items()}}
    known.update({name: point.detach().reshape(shape) for name, point in points.items()})
    for name in ("survived", "first_fooled"):
        count = getattr(solution, name)
        if count is not None:
            known[f"{level.var}@{name}"] = count.reshape(shape[:2] if level.axis is not None else shape[:1])


def others(typed: TypedRecipe, build: Callable[[int], nn.Module]) -> dict[str, nn.Module]:
    """A network for every other model that a recipe names."""
    return {name: build(n + 11) for n, name in enumerate(typed.models)}
