"""What the passes must not do where the golden cases do not look, and the check made after each pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from golden_plans import with_plan
from plan_models import CLASSES, batch, moody_model, smooth_model
from torch import Tensor

import lossdsl
from lossdsl.front import Recipe
from lossdsl.lang.types import Kind
from lossdsl.plan.cost import cost
from lossdsl.plan.fuse import fuse_backward
from lossdsl.plan.ir import Code, Instr, Plan, Solve, codes
from lossdsl.plan.pipeline import PASSES, make_plan, verify
from lossdsl.plan.share import share

ATTACK = "by pgd(steps = 2, step = 0.05, start = x)"


def recipe(body: str) -> Recipe:
    return lossdsl.parse(f"recipe r\n{body}")


# --- the model's state between passes ---


def solutions(text: Recipe, plan: Plan) -> dict[str, Tensor]:
    """The lower solutions of a model with BatchNorm and dropout, whose statistics are far from those of the batch."""
    model = moody_model()
    step = lossdsl.compile(with_plan(text, plan), model, num_classes=CLASSES)
    torch.manual_seed(3)
    return step.solve(*batch(), generator=torch.Generator().manual_seed(5))  # type: ignore[no-any-return]


def assert_same_solutions(text: Recipe) -> None:
    naive, planned = solutions(text, make_plan(text.typed, ())), solutions(text, text.plan)
    for name, value in naive.items():
        torch.testing.assert_close(planned[name], value, rtol=0, atol=1e-12)


def test_an_eval_pass_is_not_shared_across_a_level_that_writes_statistics() -> None:
    assert_same_solutions(
        recipe(
            "lower x' in linf(x, 0.1) maximize KL(p(x) || p(x')) by ascent(steps = 2, step = 1, start = x + normal(0.05))\n"
            f"lower z in linf(x, 0.1) maximize CE(f(z), y) {ATTACK} with f in train\n"
            "lower w in linf(x, 0.1) maximize KL(p(x) || p(w)) by ascent(steps = 2, step = 1, start = x + normal(0.05))\n"
            "upper minimize CE(f(x'), y) + CE(f(z), y) + CE(f(w), y) by sgd(lr = 0.1)"
        )
    )


def test_an_eval_pass_is_not_hoisted_out_of_a_level_that_writes_statistics() -> None:
    assert_same_solutions(
        recipe(
            "let steady = p(x) with f in eval\n"
            "lower x' in linf(x, 0.1) maximize KL(steady || p(x')) by ascent(steps = 4, step = 1, start = x + normal(0.05)) with f in train\n"
            "upper minimize CE(f(x'), y) by sgd(lr = 0.1)"
        )
    )


def test_untracked_levels_may_share_and_hoist_eval_passes() -> None:
    assert_same_solutions(
        recipe(
            "let steady = p(x) with f in eval\n"
            "lower x' in linf(x, 0.1) maximize KL(steady || p(x')) by ascent(steps = 2, step = 1, start = x + normal(0.05)) with f in untracked\n"
            "lower z in linf(x, 0.1) maximize KL(steady || p(z)) by ascent(steps = 2, step = 1, start = x + normal(0.05)) with f in untracked\n"
            "upper minimize CE(f(x'), y) + CE(f(z), y) by sgd(lr = 0.1)"
        )
    )


# --- cost ---


def test_the_cost_of_a_family_is_per_class() -> None:
    text = recipe(
        f"lower x'[j != y] in linf(x, 0.1) maximize f(x'[j])[j] {ATTACK}\n"
        f"lower z[j] in linf(x, 0.1) maximize f(z[j])[j] + f(x)[j] {ATTACK}\n"
        "upper minimize CE(f(x), y) + sum(j != y: CE(f(x'[j]), y)) + max(j: f(z[j])[j]) by sgd(lr = 0.1)"
    )
    assert (
        str(cost(text.plan)) == "cost: 2 + 3*(K - 1) + 3*(K) forward passes, 2*(K - 1) + 2*(K) input-backward passes, 1 full backward pass"
    )


def test_restarts_and_best_iterates_cost_one_evaluation_each() -> None:
    def of(options: str) -> str:
        text = f"lower x' in linf(x, 0.1) maximize CE(f(x'), y) by pgd(steps = 3, step = 0.05, start = corner{options})\nupper minimize CE(f(x'), y) by sgd(lr = 0.1)"
        return str(cost(recipe(text).plan))

    assert of("") == "cost: 4 forward passes, 3 input-backward passes, 1 full backward pass"
    assert of(", keep = best") == "cost: 5 forward passes, 3 input-backward passes, 1 full backward pass"
    assert of(", restarts = 4") == "cost: 17 forward passes, 12 input-backward passes, 1 full backward pass"


def test_the_cost_counts_passes_of_a_start() -> None:
    text = recipe(
        "lower x' in linf(x, 0.1) maximize CE(f(x'), y) by pgd(steps = 1, step = 0.05, start = x + p(x)[y] * normal(0.1), restarts = 3)\n"
        "upper minimize CE(f(x'), y) by sgd(lr = 0.1)"
    )
    assert cost(text.plan).forward == 3 + 3 + 3 + 1


def test_the_cost_counts_passes_of_a_sample() -> None:
    text = recipe(
        f"sample e ~ normal(p(x)[y])\nlower x' in linf(x, 0.1) maximize CE(f(x' + e), y) {ATTACK}\nupper minimize CE(f(x'), y) by sgd(lr = 0.1)"
    )
    assert cost(text.plan).forward == 1 + 2 + 1


def test_the_cost_counts_a_family_in_a_later_level_per_class() -> None:
    text = recipe(
        f"lower x'[j != y] in linf(x, 0.1) maximize f(x'[j])[j] {ATTACK}\n"
        f"lower z in linf(x, 0.1) maximize CE(f(z), y) * max(j != y: f(x'[j])[j]) {ATTACK}\n"
        "upper minimize CE(f(z), y) by sgd(lr = 0.1)"
    )
    assert cost(text.plan).copies == (("K - 1", 3, 2),) and cost(text.plan).forward == 3


# --- the check after each pass ---


def test_the_check_finds_a_value_used_before_it_is_computed() -> None:
    plan = recipe("upper minimize CE(f(x), y) by sgd(lr = 0.1)").plan
    code = plan.upper.code
    broken = replace(plan, upper=replace(plan.upper, code=Code(code.instrs[::-1], code.results)))
    with pytest.raises(AssertionError, match="computed twice or uses"):
        verify(broken)


def test_the_check_finds_a_value_computed_twice() -> None:
    plan = recipe("upper minimize CE(f(x), y) by sgd(lr = 0.1)").plan
    code = plan.upper.code
    with pytest.raises(AssertionError, match="computed twice"):
        verify(replace(plan, upper=replace(plan.upper, code=Code((*code.instrs, code.instrs[-1]), code.results))))


def test_the_check_finds_a_missing_result() -> None:
    plan = recipe("upper minimize CE(f(x), y) by sgd(lr = 0.1)").plan
    with pytest.raises(AssertionError, match="a result of upper is not computed"):
        verify(replace(plan, upper=replace(plan.upper, code=replace(plan.upper.code, results=(999,)))))


def test_the_check_finds_an_upper_level_that_reads_a_lower_one() -> None:
    """Values do not flow from a level to the upper one except as the solution."""
    plan = recipe(f"lower x' in linf(x, 0.1) maximize CE(f(x'), y) {ATTACK}\nupper minimize CE(f(x'), y) by sgd(lr = 0.1)").plan
    inner = plan.solves[0].before.instrs[0].id
    code = plan.upper.code
    broken = replace(code, instrs=(*code.instrs, Instr(999, "neg", (inner,), Kind.REAL)))
    with pytest.raises(AssertionError, match="uses"):
        verify(replace(plan, upper=replace(plan.upper, code=broken)))


def test_every_pass_order_given_by_a_test_is_checked() -> None:
    """make_plan runs the passes it is given, and each on its own gives a valid plan."""
    text = lossdsl.load("fait_mer").typed
    for change in PASSES:
        verify(make_plan(text, (change,)))


def test_draws_never_merge() -> None:
    text = recipe("sample a ~ normal(0.1)\nsample b ~ normal(0.1)\nupper minimize CE(f(x + a), y) + CE(f(x + b), y) by sgd(lr = 0.1)")
    shared = share(share(make_plan(text.typed, ())))
    assert sum(i.op == "draw" for code in codes(shared) for i in code) == 2
    assert shared.upper.code.forwards() == 2


# --- the last update from the upper level's backward pass ---

REPLAYED = (
    "lower x' in linf(x, 0.1) maximize CE(f(x'), y) by pgd(steps = 2, step = 0.07, start = previous) with f in untracked\n"
    "upper minimize CE(f(x'@1), y) + CE(f(x), y) by sgd(lr = 0.1)"
)


def fused(text: str) -> bool:
    return any(isinstance(s, Solve) and s.fused for s in recipe(text).plan.solves)


def test_a_fused_update_is_the_update() -> None:
    """Loss, gradients and the perturbation that is kept, over three batches; one pass fewer."""
    text, runs = recipe(REPLAYED), []
    for passes in (PASSES[: PASSES.index(fuse_backward)], PASSES):
        model, calls = smooth_model(), []
        model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        step, found = lossdsl.compile(with_plan(text, make_plan(text.typed, passes)), model, num_classes=CLASSES), []
        for examples in (6, 4, 7):
            loss = step(*batch(examples))
            model.zero_grad()
            loss.backward()
            found += [loss.detach(), *(p.grad for p in model.parameters()), step.state_dict()["previous.x'"]]
        runs.append((found, len(calls)))
    (apart, many), (together, few) = runs
    assert (many, few) == (12, 9)
    for a, b in zip(apart, together, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x'@1", "x'@0"),
        ("CE(f(x), y)", "CE(f(x'), y)"),
        ("CE(f(x), y)", "SE(p(x'@1), onehot(y))"),
        ("upper minimize CE(f(x'@1), y)", "upper minimize 2 * CE(f(x'@1), y)"),
        ("upper", "log end = CE(f(x'), y)\nupper"),
        ("in untracked", "in train"),
        ("in untracked", "in eval"),
        ("pgd", "ascent"),
        ("previous", "x"),
        ("start = previous", "start = previous, keep = best"),
        ("start = previous", "start = previous, restarts = 2"),
        ("start = previous", "start = previous, noise = normal(0.01)"),
        ("start = previous", "start = previous, until fooled(1)"),
        ("upper", "let n = survived(x')\nlog n = n\nupper"),
    ],
)  # fmt: skip
def test_only_the_same_gradient_is_fused(old: str, new: str) -> None:
    assert fused(REPLAYED)
    assert not fused(REPLAYED.replace(old, new, 1))
