"""Plans against the slow evaluator that never sees a plan: the upper objective and what every lower level maximises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from golden_plans import SHIPPED, case_recipe, cases, plans, with_plan
from plan_models import CLASSES, batch, smooth_model
from torch import Tensor

import lossdsl
import lossdsl.engine.level as level_module
from lossdsl.engine.reference import Reference
from lossdsl.front import Recipe
from lossdsl.plan.ir import Plan
from lossdsl.solve.base import Problem, value_and_gradient

CASES = cases()


def name_of(case: Path) -> str:
    return f"{case.parent.name}/{case.stem}"


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11, check_dtype=False)


def check_upper(recipe: Recipe, plan: Plan) -> None:
    model, (x, y) = smooth_model(), batch()
    step = lossdsl.compile(with_plan(recipe, plan), model, num_classes=CLASSES)
    solutions = step.solve(x, y, generator=torch.Generator().manual_seed(5))
    found, expected = step.objective(x, y, solutions), Reference(recipe.typed, model, CLASSES).objective(x, y, solutions)
    close(found.detach(), expected.detach())
    parameters = list(model.parameters())
    for a, b in zip(torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True):
        close(a, b)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_the_upper_objective_before_and_after_the_pass(case: Path) -> None:
    for plan in plans(case):
        check_upper(case_recipe(case), plan)


@pytest.mark.parametrize("name", [name for name in SHIPPED if lossdsl.load(name).kind == "recipe"])
def test_the_upper_objective_of_a_shipped_recipe(name: str) -> None:
    recipe = lossdsl.load(name)
    check_upper(recipe, recipe.plan)


def compared_levels(monkeypatch: pytest.MonkeyPatch, recipe: Recipe, plan: Plan) -> list[str]:
    """Solve the levels of a plan, each compared at its start with the reference; the names of the levels."""
    model, (x, y) = smooth_model(), batch()
    step = lossdsl.compile(with_plan(recipe, plan), model, num_classes=CLASSES)
    reference, solve, seen = Reference(recipe.typed, model, CLASSES), level_module.solve, []
    known = {
        k: v for k, v in step.solve(x, y, generator=torch.Generator().manual_seed(5)).items() if k in {s.name for s in recipe.typed.samples}
    }

    def compared(problem: Problem, *args: Any, **options: Any) -> Any:
        level = recipe.typed.levels[len(seen)]
        seen.append(level.var)
        value, gradient = value_and_gradient(problem, start := problem.start())
        leaf = (start if level.axis is None else start.unflatten(0, (len(y), -1))).clone().requires_grad_()
        rows = reference.level_objective(level, leaf, x, y, known)
        expected = torch.stack(rows if level.axis is None else [v for row in rows for v in row])
        expected = expected if level.sense == "maximize" else -expected
        close(value, expected.detach())
        close(gradient, torch.autograd.grad(expected.sum(), leaf)[0].reshape(gradient.shape))
        solution = solve(problem, *args, **options)
        known[level.var] = solution.point.reshape(leaf.shape)
        return solution

    with monkeypatch.context() as patch:
        patch.setattr(level_module, "solve", compared)
        step.solve(x, y, generator=torch.Generator().manual_seed(5))
    return seen


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_what_a_lower_level_maximises_before_and_after_the_pass(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = case_recipe(case)
    for plan in plans(case):
        assert compared_levels(monkeypatch, recipe, plan) == [level.var for level in recipe.typed.levels] != []
