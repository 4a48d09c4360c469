"""Vectors over the classes of a batch: values, gradients, classes without examples, labels that may be missing."""

from __future__ import annotations

import math

import pytest
import torch
from engine_tools import BY, Logits, data, gradients, mlp, moody, step_of, upper
from torch import Tensor
from torch.nn import functional as F

from lossdsl.engine.kernels import KERNELS
from lossdsl.engine.reference import Reference

Y = torch.tensor([0, 3, 0, 2, 2, 0])
"""Class 1 of 4 has no example."""


def normals(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


E, BODY = normals(6), normals(6, 4)
CLASSES = torch.arange(4).expand(6, 4)
PARTS = {c: E[c == Y] for c in range(4)}


def test_means_and_sums_by_class() -> None:
    mean, total = KERNELS["class_mean"](E, Y, classes=4), KERNELS["class_sum"](E, Y, classes=4)
    for c, part in PARTS.items():
        assert mean[5, c] == pytest.approx(float(part.mean()) if len(part) else 0.0, rel=1e-14)
        assert total[0, c] == pytest.approx(float(part.sum()), rel=1e-14)
    assert torch.equal(mean[:1].expand(6, 4), mean), "one vector for all examples"
    counts = KERNELS["class_sum"](torch.tensor(1.0), Y, classes=4)[0]
    assert counts.tolist() == [3, 0, 2, 1], "a Const counts once per example"


def test_a_condition_leaves_examples_out() -> None:
    condition = torch.tensor([1.0, 0, 0, 1, 1, 1])
    mean = KERNELS["class_mean"](E, Y, condition, classes=4)[0]
    torch.testing.assert_close(mean, torch.stack([(E[0] + E[5]) / 2, E[0] * 0, (E[3] + E[4]) / 2, E[0] * 0]))
    there = KERNELS["present"](Y, condition, classes=4, real=E)
    assert there.tolist() == [[1, 0, 1, 0]] * 6


@pytest.mark.parametrize("name", ["class_mean", "class_sum"])
def test_gradients_by_finite_differences(name: str) -> None:
    e = E.clone().requires_grad_()
    weights = normals(6, 4)
    assert torch.autograd.gradcheck(lambda v: KERNELS[name](v, Y, classes=4) * weights, (e,))
    assert torch.autograd.gradcheck(lambda v: KERNELS[name](v, Y, (e > 0).double(), classes=4) * weights, (e,))


def test_an_example_left_out_gives_no_gradient_even_where_it_is_infinite() -> None:
    v = torch.tensor([4.0, 1.0, 0.0], requires_grad=True)
    e = 1 / v
    KERNELS["class_mean"](e, torch.tensor([0, 1, -1]), classes=2).sum().backward()
    assert v.grad is not None and torch.isfinite(v.grad[:2]).all() and float(v.grad[0]) == pytest.approx(-3 / 16)


# --- binders that skip classes ---

THERE = torch.tensor([[1.0, 1, 0, 1], [0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0]])
OF_PRESENT = {
    "max": lambda v: v.amax(),
    "min": lambda v: v.amin(),
    "mean": lambda v: v.mean(),
    "logsumexp": lambda v: v.exp().sum().log(),
    "logmeanexp": lambda v: v.exp().mean().log(),
}


@pytest.mark.parametrize("name", OF_PRESENT)
def test_a_binder_over_the_classes_that_are_there(name: str) -> None:
    body = BODY.clone().requires_grad_()
    value = KERNELS[f"reduce_{name}"](body, CLASSES, THERE)
    for row in range(6):
        there = THERE[row] > 0
        expected = float(OF_PRESENT[name](BODY[row, there])) if there.any() else 0.0
        assert float(value[row].detach()) == pytest.approx(expected, rel=1e-13)
    value.sum().backward()
    assert body.grad is not None and torch.isfinite(body.grad).all()
    assert not body.grad[THERE == 0].any(), "what is skipped gets no gradient"
    assert torch.autograd.gradcheck(lambda v: KERNELS[f"reduce_{name}"](v, CLASSES, THERE), (body,))


def test_sorts_softmax_and_arguments_skip_too() -> None:
    ordered = KERNELS["reduce_sort"](BODY, CLASSES, THERE)
    weights = KERNELS["reduce_softmax"](BODY, CLASSES, 4, THERE)
    logs = KERNELS["reduce_log_softmax"](BODY, CLASSES, 4, THERE)
    best, worst = KERNELS["reduce_argmax"](BODY, CLASSES, THERE), KERNELS["reduce_argmin"](BODY, CLASSES, THERE)
    for row in range(6):
        there = (THERE[row] > 0).nonzero().flatten()
        left = BODY[row, there]
        expected = torch.cat([left.sort(descending=True).values, torch.zeros(4 - len(left))])
        torch.testing.assert_close(ordered[row], expected)
        torch.testing.assert_close(weights[row, there], left.softmax(0))
        assert float(weights[row].sum()) == pytest.approx(1 if len(left) else 0)
        torch.testing.assert_close(logs[row].exp(), weights[row])
        assert int(best[row]) == (int(there[left.argmax()]) if len(left) else 0)
        assert int(worst[row]) == (int(there[left.argmin()]) if len(left) else 0)


@pytest.mark.parametrize("name", ["sort", "softmax", "log_softmax"])
def test_gradients_of_vectors_over_what_is_there(name: str) -> None:
    body = BODY.clone().requires_grad_()
    count = () if name == "sort" else (4,)

    def weighted(v: Tensor) -> Tensor:
        return torch.where(THERE != 0, KERNELS[f"reduce_{name}"](v, CLASSES, *count, THERE), 0.0)

    assert torch.autograd.gradcheck(weighted, (body,))
    (weighted(body) * normals(6, 4)).sum().backward()
    assert body.grad is not None and torch.isfinite(body.grad).all()


# --- whole steps ---


def by_class(model: torch.nn.Module, x: Tensor, y: Tensor) -> dict[int, Tensor]:
    losses = F.cross_entropy(model(x), y, reduction="none")
    return {int(c): losses[y == c].mean() for c in y.unique()}


def test_class_fairness_is_the_worst_class_of_the_batch() -> None:
    """methods.md T31: the largest class mean, over the classes that the batch holds."""
    text = f"lower x' in linf(x, 0.05) maximize CE(f(x'), y) by pgd(steps = 2, step = 0.05, start = x)\nupper minimize max(j: class_mean(CE(f(x'), y))[j]) {BY}"
    model, (x, _) = mlp(), data()
    step = step_of(text, model)
    solutions = step.solve(x, Y)
    loss = step.objective(x, Y, solutions)
    means = by_class(model, solutions["x'"], Y)
    expected = max(means.values())
    torch.testing.assert_close(loss.detach(), expected.detach())
    for a, b in zip(gradients(loss, model), gradients(expected, model), strict=True):
        torch.testing.assert_close(a, b)
    assert float(loss.detach()) > float(torch.stack(list(means.values())).mean().detach())


def test_the_gradient_by_finite_differences() -> None:
    model, (x, _) = mlp(), data()
    step = upper("logsumexp(j: class_mean(CE(f(x), y))[j] * class_sum(H(p(x)))[j]) + class_mean(CE(f(x), y))[1]", model)
    weight = next(model.parameters())
    slope = gradients(step(x, Y), model)[0][1, 2]
    ends = []
    for move in (1e-6, -2e-6):
        with torch.no_grad():
            weight[1, 2] += move
        ends.append(float(step(x, Y).detach()))
    assert float(slope) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6)


NOWHERE_NAN = (
    "max(j: log(class_mean(CE(f(x), y))[j]))",
    "max(j: f(x)[j] / class_mean(CE(f(x), y))[j])",
    "softmax(j: 1 / class_mean(CE(f(x), y))[j])[y]",
    "sort(j: log(class_sum(H(p(x)))[j]))[2]",
    "logsumexp(j != y: 1 / class_mean(CE(f(x), y) where f(x)[0] > 9)[j])",
    "mean(j: class_mean(CE(f(x), y))[j] / class_mean(H(p(x)) where f(x)[0] > 0)[j])",
    "f(x)[argmax(j: 1 / class_mean(CE(f(x), y))[j])]",
    "sum(j: class_mean(CE(f(x), y))[j] + f(x)[j])",
)


@pytest.mark.parametrize("text", NOWHERE_NAN)
@pytest.mark.parametrize("y", [Y, torch.full((6,), 2)], ids=["one class missing", "one class"])
def test_absent_classes_bring_no_nan(text: str, y: Tensor) -> None:
    model, (x, _) = mlp(), data()
    step = upper(f"0.1 * CE(f(x), y) + {text}", model)
    loss = step(x, y)
    expected = Reference(step.recipe.typed, model, 4).objective(x, y, {})
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-10, atol=1e-12)
    for a in gradients(loss, model):
        assert torch.isfinite(a).all()


def test_states_hold_what_the_batch_shares() -> None:
    """Class vectors move class weights across batches."""
    text = f"state w = zeros(K) then w + class_mean(error(f(x), y))\nupper minimize CE(f(x), y) * (1 + w[y]) {BY}"
    step = step_of(text, mlp())
    x, _ = data()
    step(x, Y)
    step.after_update()
    wrong = [float(v) for v in KERNELS["class_mean"](KERNELS["error"](step.model(x), Y), Y, classes=4)[0]]
    assert step.state_dict()["state.w"].tolist() == pytest.approx(wrong) and any(wrong)


# --- missing labels ---

MIX = "\ntrain epochs = 1, batch = 4, data = mix(labelled, pseudo, fraction = 0.5)"
SOME = torch.tensor([0, -1, 3, 2, -1, 0])
LOST = SOME < 0

NOTHING = (
    "CE(f(x), y)", "f(x)[y]", "p(x)[y]", "-log(p(x)[y])", "log(1 - p(x)[y])", "-log(p(x)[y]) - log(1 - max(j != y: p(x)[j]))",
    "max(j != y: f(x)[j]) - f(x)[y]", "hinge(f(x), y)", "DLR(f(x), y)", "error(f(x), y)", "KL(onehot(y) || p(x))",
    "CE(f(x), smooth(y, 0.1))", "y == argmax(j: f(x)[j])", "sum(j != y: 1)", "sort(j != y: f(x)[j])[2]", "softmax(j != y: f(x)[j])[2]",
    "max(j in top(2, i != y: f(x)[i]): f(x)[j])", "log(p(x)[y] * p(x)[0])", "known(y)", "fooled(x')",
)  # fmt: skip


def mixed(text: str, model: torch.nn.Module, before: str = "") -> tuple[Tensor, list[Tensor], Tensor]:
    """The values [6] of a number of the recipe, the gradient of their sum, and what the slow evaluator says of them."""
    level = "lower x' in linf(x, 0.05) maximize CE(f(x'), y) by pgd(steps = 1, step = 0.05, start = x)"
    step = step_of(f"{level}\n{before}\nmemory m = 0 then ({text})\nupper minimize 6 * ({text}) + 0 * CE(f(x), y) {BY}{MIX}", model)
    x, _ = data()
    loss = step(x, SOME, index=torch.arange(6))
    slopes = gradients(loss, model)
    step.after_update()
    solutions = step.solve(x, SOME, index=torch.arange(6))
    expected = Reference(step.recipe.typed, model, 4).value(step.recipe.typed.states[0].update, x, SOME, solutions)
    return step.state_dict()["memory.m"], slopes, torch.stack([v.detach() for v in expected])


@pytest.mark.parametrize("text", NOTHING)
def test_an_example_without_a_label_has_no_value_and_no_gradient(text: str) -> None:
    model = mlp()
    values, slopes, expected = mixed(text, model)
    assert not values[LOST].any() and values[~LOST].abs().sum() + (text.startswith("y ==")) + ("fooled" in text) > 0
    torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-12)
    x, _ = data()
    seen = upper(
        f"4 * ({text}) + 0 * CE(f(x), y)",
        model,
        before="lower x' in linf(x, 0.05) maximize CE(f(x'), y) by pgd(steps = 1, step = 0.05, start = x)",
    )
    for a, b in zip(slopes, gradients(seen(x[~LOST], SOME[~LOST]), model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_what_says_something_of_an_example_without_a_label() -> None:
    model = mlp()
    values, _, expected = mixed("(y != argmax(j: f(x)[j])) + SE(p(x), onehot(y)) + H(smooth(y, 0.5))", model)
    torch.testing.assert_close(values, expected)
    squares = model(data()[0]).softmax(1).square().sum(1).detach()
    torch.testing.assert_close(values[LOST], 1 + squares[LOST])


def test_a_class_that_may_be_a_missing_label() -> None:
    text = "CE(f(x), if(f(x)[0] > f(x)[1], y, argmax(j: f(x)[j])))"
    values, _, expected = mixed(text, mlp())
    torch.testing.assert_close(values, expected)


def test_class_means_leave_out_examples_without_a_label() -> None:
    model, (x, _) = mlp(), data()
    step = step_of(
        f"log n = class_sum(1)[0] + 10 * sum(j: class_sum(1)[j])\nupper minimize max(j: class_mean(CE(f(x), y))[j]) {BY}{MIX}", model
    )
    loss = step(x, SOME)
    assert float(loss.logs["n"]) == 2 + 10 * 4
    expected = max(by_class(model, x[~LOST], SOME[~LOST]).values())
    torch.testing.assert_close(loss.detach(), expected.detach())


def test_families_and_levels_run_with_missing_labels() -> None:
    text = (
        "lower x'[j != y] in linf(x, 0.1) maximize f(x'[j])[j] - f(x'[j])[y] by pgd(steps = 2, step = 0.1, start = x)\n"
        "let worst = argmax(j != y: f(x'[j])[j]) with f in eval\n"
        f"log hurt = batch_sum(CE(f(x'[worst]), y) where not known(y))\nupper minimize CE(f(x'[worst]), y) + max(j != y: f(x'[j])[j]) {BY}{MIX}"
    )
    model, (x, _) = moody(), data()
    loss = step_of(text, model)(x, SOME)
    assert float(loss.logs["hurt"]) == 0
    assert all(torch.isfinite(g).all() for g in gradients(loss, model))


@pytest.mark.parametrize("text", ["-log(p(x)[y]) - log(1 - max(j != y: p(x)[j]))", "CE(f(x), y)", "hinge(f(x), y)"])
def test_large_logits_beside_missing_labels(text: str) -> None:
    model = Logits(torch.float32)
    step = step_of(f"input x in reals\nupper minimize {text} {BY}{MIX}", model, 3)
    x = torch.tensor([[1e4, 0.0, -1e4], [-1e4, 1e4, 0.0], [0.0, 1e4, 1e4]])
    loss = step(x, torch.tensor([0, -1, 0]))
    (slope,) = gradients(loss, model)
    assert torch.isfinite(loss.detach()) and torch.isfinite(slope)


def test_recipes_with_labels_pay_nothing_for_missing_ones() -> None:
    plan = upper("CE(f(x), y) + hinge(f(x), y) + max(j != y: f(x)[j])", mlp()).plan
    assert plan.upper is not None and not {"known", "if", "gate"} & {i.op for i in plan.upper.code}
    assert math.prod(i.attrs == () for i in plan.upper.code if i.op == "label")
