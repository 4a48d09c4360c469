"""A pass keeps the value and the gradient of a step: before and after it, and against a formula written by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from golden_plans import case_recipe, cases, plans, with_plan
from plan_formulas import FORMULAS
from plan_models import CLASSES, batch, moody_model, smooth_model
from torch import Tensor, nn

import lossdsl
from lossdsl.plan.gradients import mark_gradients
from lossdsl.plan.ir import Plan, Solve, codes

CASES = cases()
MERGES_TRAIN_PASSES = ("share", "share_points", "join")
"""By the rule of the language equal points of one evaluation have one pass, and `joint` puts all points in one batch."""
THIRD_ORDER = "gradient_of_a_gradient"
"""torch's BatchNorm has no third derivatives."""


def name_of(case: Path) -> str:
    return f"{case.parent.name}/{case.stem}"


def shows(case: Path) -> bool:
    """Does the pass change what BatchNorm and dropout see, as the language asks it to? It drops passes in train mode, or puts one in eval
    mode before those that write the statistics it reads; or one pass with one mask serves an attack and the upper level."""
    if any(isinstance(s, Solve) and s.fused for s in plans(case)[1].solves):
        return True
    before, after = ([i.id for code in codes(plan) for i in code if i.op == "forward"] for plan in plans(case))
    return (case.parent.name in MERGES_TRAIN_PASSES and len(before) != len(after)) or (case.parent.name == "eval_first" and before != after)


def runnable(plan: Plan) -> Plan:
    """Gradients as values know from their marks whether they are differentiated again, passes in eval mode whether they are differentiated
    after a later pass has written their statistics: a plan with either runs with its marks only."""
    marked = any(i.op == "grad" or (i.op == "forward" and i.attrs[1] == "eval") for code in codes(plan) for i in code)
    return mark_gradients(plan) if marked else plan


def result(case: Path, plan: Plan, build: Callable[[], nn.Module]) -> list[Tensor]:
    """The loss, its logs, the parameters' gradients and the buffers after one step."""
    model = build()
    step = lossdsl.compile(with_plan(case_recipe(case), runnable(plan)), model, num_classes=CLASSES)
    torch.manual_seed(3)
    loss = step(*batch(), generator=torch.Generator().manual_seed(5))
    loss.backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and bool(g.abs().sum() > 0) for g in gradients)
    return [loss.detach(), *loss.logs.values(), *gradients, *model.buffers()]  # type: ignore[list-item]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_pass_keeps_value_and_gradient(case: Path) -> None:
    before, after = plans(case)
    for a, b in zip(result(case, before, smooth_model), result(case, after, smooth_model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", [c for c in CASES if c.stem != THIRD_ORDER and not shows(c)], ids=name_of)
def test_a_pass_keeps_dropout_and_running_statistics(case: Path) -> None:
    """Bit for bit: as many passes in train mode, in the same order, with the same masks."""
    before, after = plans(case)
    for a, b in zip(result(case, before, moody_model), result(case, after, moody_model), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_the_upper_objective_is_its_formula(case: Path) -> None:
    recipe, (x, y), model = case_recipe(case), batch(), smooth_model()
    step = lossdsl.compile(recipe, model, num_classes=CLASSES)
    solutions = step.solve(x, y, generator=torch.Generator().manual_seed(5))
    loss = step.objective(x, y, solutions)
    expected = FORMULAS[case.stem](model, x, y, solutions)
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-11, atol=1e-11, check_dtype=False)
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    for found, right in zip(torch.autograd.grad(loss, list(model.parameters())), wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-11)


def test_the_formulas_are_those_of_the_cases() -> None:
    assert set(FORMULAS) == {case.stem for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_the_plan_lists_every_pass_through_the_model(case: Path) -> None:
    """Calls counted by a hook: those of the plan, a family's pass being one call."""
    recipe, model = case_recipe(case), smooth_model()
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    lossdsl.compile(recipe, model, num_classes=CLASSES)(*batch())
    assert len(calls) == calls_of(recipe.plan)


def calls_of(plan: Plan) -> int:
    """Calls of the model in a step."""
    upper = plan.upper.code.forwards() if plan.upper else 0
    levels = sum(s.before.forwards() + s.start.forwards() * s.runs + s.body.forwards() * (s.updates + s.evaluations) for s in plan.solves)
    return plan.samples.forwards() + levels + upper


def test_the_gradient_marks_save_memory_and_nothing_else() -> None:
    """A pass marked "none" leaves no graph: its logits require no gradient."""
    case = next(c for c in CASES if c.stem == "constants_above")
    recipe, model = case_recipe(case), smooth_model()
    wanting: list[bool] = []
    step = lossdsl.compile(recipe, model, num_classes=CLASSES)
    solutions = step.solve(*batch(), generator=torch.Generator().manual_seed(5))
    model.register_forward_hook(lambda _m, _i, out: wanting.append(out.requires_grad))
    step.objective(*batch(), solutions)
    marks = [i.gradient == "parameters" for i in recipe.plan.upper.code if i.op == "forward"]
    assert wanting == marks and True in marks and False in marks


def test_no_case_is_pinned_with_an_error_inside() -> None:
    for case in CASES:
        for plan in plans(case):
            assert not [i for code in codes(plan) for i in code if i.op == "error" and not i.args]
