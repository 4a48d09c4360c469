"""Laws of the plan's passes, on random recipes: none changes a value or a gradient, or makes a step dearer, and doing it again changes
nothing. test_engine_property.py compares the plan after all of them with the slow evaluator; here every pass is compared with the next."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import lossdsl
import lossdsl.engine.batch_level as batch_module
import lossdsl.engine.find as find_module
import lossdsl.engine.level as level_module
from lossdsl.check.typed import TypedRecipe
from lossdsl.engine.api import Step
from lossdsl.front import Recipe
from lossdsl.plan.cost import cost
from lossdsl.plan.fuse import fuse_backward
from lossdsl.plan.gradients import mark_gradients
from lossdsl.plan.ir import Plan
from lossdsl.plan.pipeline import PASSES, Pass, make_plan
from lossdsl.solve import Problem, Solution
from lossdsl.solve.problem import value_and_gradient
from tests.strategies.expressions import HEAD, Names, recipes, well_typed
from tests.strategies.oracle import load_states, others
from tests.strategies.values import batch, small_model, values_for

pytestmark = pytest.mark.slow

K = 3
UPPER = "by sgd(lr = 0.1)"


def few(examples: int) -> settings:
    """Without shrinking, which takes minutes: the recipes are short."""
    checks, phases = list(HealthCheck), (Phase.generate,)
    return settings(max_examples=examples, deadline=None, derandomize=True, phases=phases, suppress_health_check=checks)


PAIRS = ("({} - {})", "({} / (1.5 + abs({})))", "({} > {})", "max({}, {})", "min({}, {}^2)", "(tanh({})^2 * {})")
"""Of two numbers, that some pass might take for the same in either order."""
NUMBERS = ("f(x)[0]", "f(x)[1]", "CE(f(x), y)", "CE(f(x + eta), y)", "lam", "u", "0.3")


TRIVIAL = (("1.25", "1"), ("(0.5 * ", "(0 * "), ("(0.1 * ", "(-(-1) * "), ("0.04", "0"), ("x + eta", "(1 - 0) * x + 0 * x - (0 - eta)"))


@st.composite
def written(draw: st.DrawFn) -> Recipe:
    """A random recipe. Many a number is 0 or 1, an operation stands there in both orders, all points of the upper level are joined."""
    text, pair = draw(recipes()).removesuffix(UPPER), draw(st.sampled_from(PAIRS))
    mode = draw(st.sampled_from(("", " with f in train joint")))
    a, b = draw(st.lists(st.sampled_from(NUMBERS), min_size=2, max_size=2, unique=True))
    text = f"{text} + 0.1 * tanh({pair.format(a, b)} + 2 * {pair.format(b, a)}) {UPPER}{mode}"
    for old, new in TRIVIAL if draw(st.booleans()) else ():
        text = re.sub(rf"(?<!/ ){re.escape(old)}", new, text)
    return lossdsl.parse(text)


def stages(recipe: TypedRecipe) -> Iterator[tuple[Pass, Plan, Plan]]:
    """Every pass with the plan before and after it."""
    plan = make_plan(recipe, ())
    for change in PASSES:
        before, plan = plan, change(plan)
        yield change, before, plan


# --- what a plan costs ---


def batches(plan: Plan) -> tuple[int, ...]:
    """Forward, input-backward and full backward passes over one batch, at K classes."""
    found = cost(plan)
    copies = [(eval(name, {"K": K}), f, b) for name, f, b in found.copies]  # "K - 1", as cost writes it
    return found.forward + sum(n * f for n, f, _ in copies), found.input_backward + sum(n * b for n, _, b in copies), found.full_backward


@few(40)
@given(written())
def test_a_pass_makes_no_step_dearer_and_is_done_once(recipe: Recipe) -> None:
    for change, before, after in stages(recipe.typed):
        assert all(b <= a for a, b in zip(batches(before), batches(after), strict=True)), change.__name__
        assert change(after) == after, change.__name__


# --- what a plan computes ---


@dataclass
class Seen:
    """A level as its solver meets it: the objective and its gradient in the point, at the start and at another point of the set. What it
    found, and where the draws stand afterwards."""

    numbers: list[Tensor]
    found: Any
    generator: Tensor


@contextmanager
def watched(generator: torch.Generator, known: list[Seen]) -> Iterator[list[Seen]]:
    """While a step solves: what its solvers meet. Levels that are known have the solutions and draws of then."""
    seen: list[Seen] = []

    def meet(numbers: list[Tensor], before: Tensor, solve: Callable[[], Any]) -> Any:
        generator.set_state(before)
        if len(known) > len(seen):
            entry = replace(known[len(seen)], numbers=numbers)
            generator.set_state(entry.generator)
        else:
            entry = Seen(numbers, solve(), generator.get_state())
        seen.append(entry)
        return entry.found

    def solving(solve: Callable[..., Solution]) -> Callable[..., Solution]:
        def solved(problem: Problem, *args: Any, **options: Any) -> Solution:
            before, start = generator.get_state(), problem.start()
            numbers = [*value_and_gradient(problem, start), *value_and_gradient(problem, problem.set.project(0.9 * start + 0.05))]
            return meet([start, *numbers], before, lambda: solve(problem, *args, **options))  # type: ignore[no-any-return]

        return solved

    def searching(function: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, steps: int, name: str) -> Tensor:
        numbers = [low, high, function(low), function(low + 0.7 * (high - low))]
        return meet(numbers, generator.get_state(), lambda: bisection(function, low, high, steps, name))  # type: ignore[no-any-return]

    bisection = find_module.bisection
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(level_module, "solve", solving(level_module.solve))
        patch.setattr(batch_module, "solve", solving(batch_module.solve))
        patch.setattr(find_module, "bisection", searching)
        yield seen


def compiled(recipe: Recipe, plan: Plan) -> Step:
    """The step of a plan, its passes marked (an unmarked plan cannot run)."""
    changed = replace(recipe)
    changed.__dict__["plan"] = mark_gradients(plan)
    models = others(recipe.typed, lambda n: small_model(2, K, n))
    return lossdsl.compile(changed, small_model(2, K), num_classes=K, models=models, check=False)  # type: ignore[no-any-return]


def upper(step: Step, values: dict[str, Tensor]) -> list[Tensor]:
    """Loss, logs, gradients of the parameters, the next values of states, at given solutions."""
    loss = step.objective(*batch(3, (2,), K), values, index=torch.arange(3))
    gradients = torch.autograd.grad(loss, list(step.model.parameters()), allow_unused=True, materialize_grads=True)
    step.after_update()
    return [loss.detach(), *loss.logs.values(), *gradients, *(v for v in step.state_dict().values() if isinstance(v, Tensor))]


def same(found: list[Tensor], expected: list[Tensor], what: str) -> None:
    """To 1e-9 of the size of the numbers: passes add up in another order."""
    assert len(found) == len(expected), what
    for a, b in zip(found, expected, strict=True):
        size = max(1.0, float(b.detach().abs().max()) if b.numel() else 1.0)
        torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-9, atol=1e-9 * size, msg=lambda m: f"{what}: {m}")


@few(20)
@given(written())
def test_a_pass_changes_no_value_and_no_gradient(recipe: Recipe) -> None:
    generator = torch.Generator()
    x, y = batch(3, (2,), K)
    values = values_for(recipe.typed, x, K)
    expected: list[Tensor] = []
    known: list[Seen] = []
    for change, before, after in stages(recipe.typed):
        for plan in (before, after)[bool(expected) :]:
            step = compiled(recipe, plan)
            load_states(step, values)
            with watched(generator.manual_seed(5), known) as seen:
                step.solve(x, y, generator=generator, index=torch.arange(3))
            load_states(step, values)
            numbers = upper(step, values)
            known, expected = known or seen, expected or numbers
            same(numbers, expected, f"{change.__name__}, upper level")
            assert len(seen) == len(known)
            for n, (a, b) in enumerate(zip(seen, known, strict=True)):
                same(a.numbers, b.numbers, f"{change.__name__}, level {n + 1}")


# --- the last update from the upper level's backward pass ---


@st.composite
def replayed(draw: st.DrawFn) -> str:
    """A level that goes on where the last batch ended, its objective a term of the upper one."""
    steps = draw(st.integers(1, 3))
    names = Names(points=("x", "Q"), numbers=("K", "lam"), batch=False)
    objective = f"CE(f(Q), y) * (1.5 + tanh({draw(well_typed('Real', 1, names))}))"
    rest = draw(st.sampled_from(("", " + 0.5 * CE(f(x), y)", " + H(p(x))", " + KL(p(x) || smooth(y, 0.1))")))
    solver, ball = f"pgd(steps = {steps}, step = 0.07, start = previous)", draw(st.sampled_from(("linf", "l2", "l1")))
    return f"""recipe replayed
{HEAD}
lower x' in {ball}(x, eps) maximize {objective.replace("Q", "x'")} by {solver} with f in untracked
upper minimize {objective.replace("Q", f"x'@{steps - 1}")}{rest} {UPPER}"""


@few(25)
@given(replayed())
def test_a_fused_update_is_the_update(text: str) -> None:
    """Loss, gradients and what is kept for the next batch, over two batches, without the passes of one update."""
    recipe, found = lossdsl.parse(text), []
    plans = [make_plan(recipe.typed, PASSES[: PASSES.index(fuse_backward)]), recipe.plan]
    for plan in plans:
        step, numbers = compiled(recipe, plan), []
        for seed in (1, 2):
            loss = step(*batch(3, (2,), K, seed), generator=torch.Generator().manual_seed(5), index=torch.arange(3))
            numbers += [loss.detach(), *torch.autograd.grad(loss, list(step.model.parameters())), step.state_dict()["previous.x'"]]
        found.append(numbers)
    same(found[1], found[0], "fuse_backward")
    (forward, backward, full), fewer = map(batches, plans)
    assert fewer == (forward - recipe.plan.solves[0].body.forwards(), backward - 1, full)
