"""Plans before and after each pass, and those of the shipped recipes, against the slow evaluator of the typed recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden_plans import SHIPPED, case_recipe, cases, plans, with_plan
from plan_models import CLASSES, batch, smooth_model
from test_plan_values import runnable
from torch import Tensor, nn

import lossdsl
from lossdsl.engine.reference import Reference
from lossdsl.front import Recipe
from lossdsl.plan.ir import Plan
from lossdsl.solve import min_norm_weights
from tests.strategies.oracle import compared, load_states, others, stages
from tests.strategies.values import values_for

CASES = cases()
RECIPES = [lossdsl.load(name) for name in SHIPPED]
TRAINING = {r.name: r for r in RECIPES if r.kind == "recipe"}
TRAINING |= {f"{r.name} in epoch 1000": r.at_epoch(1000) for r in TRAINING.values() if r.changes_by_epoch}


def name_of(case: Path) -> str:
    return f"{case.parent.name}/{case.stem}"


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11, check_dtype=False)


class Bench:
    """A recipe with a plan, compiled beside its reference, with the same states and other models."""

    def __init__(self, recipe: Recipe, plan: Plan) -> None:
        self.recipe, self.model = recipe, smooth_model()
        self.x, self.y = batch()
        models = others(recipe.typed, other_model)
        self.step = lossdsl.compile(with_plan(recipe, runnable(plan)), self.model, num_classes=CLASSES, models=models)
        self.reference = Reference(recipe.typed, self.model, CLASSES, models=models)
        values = values_for(recipe.typed, self.x, CLASSES, model=self.model)
        self.states = {s.name: values[s.name] for s in recipe.typed.states}
        load_states(self.step, self.states)
        self.index = torch.arange(len(self.x))

    def solve(self) -> dict[str, Tensor]:
        return self.step.solve(self.x, self.y, generator=torch.Generator().manual_seed(5), index=self.index)  # type: ignore[no-any-return]


def other_model(seed: int) -> nn.Module:
    """With BatchNorm: a frozen model is in eval mode throughout."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, CLASSES)).double()


def check_upper(recipe: Recipe, plan: Plan) -> None:
    """Loss, logs, parameter gradient and the next values of states. Under danskin: the min-norm combination over its solutions."""
    bench = Bench(recipe, plan)
    solutions = bench.solve()
    found = bench.step.objective(bench.x, bench.y, solutions, index=bench.index)
    parameters = list(bench.model.parameters())
    several = [key for key in solutions if "#" in key]
    branches = [{**solutions, **({key.partition("#")[0]: solutions[key]} if key else {})} for key in several or [""]]
    values, rows = [], []
    for branch in branches:
        values.append(bench.reference.objective(bench.x, bench.y, {**bench.states, **branch}))
        rows.append([g.flatten() for g in torch.autograd.grad(values[-1], parameters)])
    weights = torch.ones(1, dtype=torch.float64)
    if several:
        flat = torch.stack([torch.cat(row) for row in rows])
        weights = min_norm_weights(flat @ flat.T)
    close(found.detach(), sum(w * v.detach() for w, v in zip(weights, values, strict=True)))
    for n, gradient in enumerate(torch.autograd.grad(found, parameters)):
        close(gradient.flatten(), sum(w * row[n] for w, row in zip(weights, rows, strict=True)))
    if not several:
        check_rest(bench, found, {**bench.states, **solutions})


def check_rest(bench: Bench, loss: lossdsl.Loss, solutions: dict[str, Tensor]) -> None:
    for name, e in bench.recipe.typed.logs:
        value = bench.reference.value(e, bench.x, bench.y, solutions)
        close(loss.logs[name], (value if isinstance(value, Tensor) else torch.stack(value).mean()).detach())
    bench.step.after_update()
    after = {key.partition(".")[2]: value for key, value in bench.step.state_dict().items() if not key.startswith("previous")}
    for state in bench.recipe.typed.states:
        value = bench.reference.updates(bench.x, bench.y, solutions)[state.name]
        rows = value if isinstance(value, Tensor) else torch.stack(value) if state.per_example else value[0]
        close(after[state.name], rows.detach())


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_the_upper_objective_before_and_after_the_pass(case: Path) -> None:
    for plan in plans(case):
        check_upper(case_recipe(case), plan)


@pytest.mark.parametrize("name", TRAINING)
def test_the_upper_objective_of_a_shipped_recipe(name: str) -> None:
    check_upper(TRAINING[name], TRAINING[name].plan)


def compared_levels(recipe: Recipe, plan: Plan) -> list[str]:
    """Solve the levels of a plan, each compared with the reference; their names."""
    bench = Bench(recipe, plan)
    samples = {s.name for s in recipe.typed.samples}
    known = {**bench.states, **{k: v for k, v in bench.solve().items() if k in samples}}
    with compared(bench.reference, bench.x, bench.y, known, close) as seen:
        bench.solve()
    return list(dict.fromkeys(seen))


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_what_a_lower_level_maximises_before_and_after_the_pass(case: Path) -> None:
    recipe = case_recipe(case)
    for plan in plans(case):
        assert compared_levels(recipe, plan) == [stage.var for stage in stages(recipe.typed)] != []


@pytest.mark.parametrize("name", TRAINING)
def test_what_the_lower_levels_of_a_shipped_recipe_maximise(name: str) -> None:
    recipe = TRAINING[name]
    assert compared_levels(recipe, recipe.plan) == [stage.var for stage in stages(recipe.typed)]
