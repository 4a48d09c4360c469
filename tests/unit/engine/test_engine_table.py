"""Every row of the tables of the language runs: its example, in a recipe, gives the value and gradient of the slow evaluator."""

from __future__ import annotations

import pytest
import torch
from engine_tools import BY, data, gradients, mlp, seeded, step_of
from torch import Tensor

import lossdsl
from lossdsl.engine.closures import Closure
from lossdsl.engine.kernels import COMPARISONS, KERNELS
from lossdsl.engine.reference import Reference
from lossdsl.lang.ops import BINDERS, OPERATIONS
from lossdsl.lang.specs import SETS, SOLVERS
from lossdsl.plan.ir import codes
from lossdsl.solve import SEARCHES_TORCH, SETS_TORCH
from lossdsl.solve.first_order import SOLVERS_TORCH

BEFORE = "lower x' in linf(x, 0.1) maximize CE(f(x'), y) by pgd(steps = 2, step = 0.05, start = x + normal(0.05))\nlet g = x' - x, h = x\n"
BEFORE += "generator cubes(q) = sum(j: q[j]^3) + log(1 + sum(j: q[j]^2)) generator entropy(q) = 2 - H(q) + q[0]\n"
WRAPPED = {"Real": "{}", "Const": "{}", "Input": "norm({}, 1)", "Vector": "({})[0]", "Prob": "KL({} || p(x'))"}

EXPRESSIONS = {f"operation {name}": row.example for name, row in OPERATIONS.items()} | {
    "CE of a Prob": "CE(p(x), y)",
    "CE with a Prob for target": "CE(p(x'), p(x))",
    "CE with bars": "CE(onehot(y) || f(x))",
    "DLR with a target": "DLR(f(x'), y, argmax(j != y: f(x)[j]))",
    "norm 1": "norm(x' - x, 1)",
    "norm inf": "norm(f(x), inf)",
    "batch_mean where": "batch_mean(CE(f(x), y) where f(x)[y] > f(x)[0])",
    "batch_sum where": "batch_sum(CE(f(x), y) where CE(f(x), y) < 1.5)",
    "batch_sum of a number": "batch_sum(0.5)",
    "batch_sum of a number where": "batch_sum(K where f(x)[y] > 0)",
    "batch_mean of a number where": "batch_mean(K where f(x)[y] > 0) * H(p(x))",
    "batch_mean where a number": "batch_mean(CE(f(x), y) where K > 3) + batch_mean(CE(f(x'), y) where K > 7)",
    "clip of logits": "clip(f(x), -0.2, CE(f(x), y))[y]",
    "log of a Prob": "log(p(x))[y]",
    "exp of logits": "exp(f(x))[y]",
    "unit of a Vector": "unit(softmax(j: f(x)[j]))[y]",
    "dot of Vectors": "dot(softmax(j: f(x)[j]), softmax(j: f(x')[j]))",
    "arithmetic": "-(CE(f(x), y) + 2) * 3 / (1 + H(p(x))) - 2^H(p(x'))",
    "conditions": "if(not (f(x)[y] > 0 and f(x)[0] <= 1 or f(x)[1] == 2), CE(f(x), y), H(p(x)))",
    "comparisons": "CE(f(x), y) * ((f(x)[y] >= f(x)[0]) + (f(x)[y] < 0.1) + (f(x)[1] != f(x)[2]))",
    "mixture": "KL(0.3 * p(x) + 0.7 * p(x') || p(x))",
    "mixture per example": "KL(p(x)[y] * p(x) + (1 - p(x)[y]) * p(x') || p(x))",
    "stop": "KL(stop(p(x)) || p(x'))",
    "entries": "f(x)[0] * p(x)[1] + f(x')[y]",
    "log of a number": "log(1 + CE(f(x), y))",
    "log of one minus a probability": "log(1 - p(x)[y]) * p(x)[0]",
    "log of a multiple": "-log(2 * p(x)[y])",
    "log of a power": "-log(p(x)[y]^2) - log(sqrt(p(x')[y]))",
    "log of a sum": "-log(p(x)[1] + p(x)[2])",
    "log of a quotient": "log(1 / p(x)[y])",
    "log of a mean": "-log(mean(j != y: p(x)[j]))",
    "log of what is left": "-log(1 - sum(j != y: p(x)[j])) - log(1 - (1 - p(x')[y]))",
    "log of a branch": "-log(if(f(x)[0] > 0, p(x)[y], 0.5))",
    "log of a softmax": "-log(softmax(j: f(x)[j])[0]) - log(softmax(j != y: f(x)[j])[argmax(j != y: f(x)[j])])",
    "largest class mean": "max(j: class_mean(CE(f(x), y))[j])",
    "classes without examples": "mean(j: class_mean(CE(f(x), y) where y == 1)[j] * p(x)[j]) + sort(j: class_sum(H(p(x)))[j])[4]",
    "softmax of class means": "softmax(j: class_mean(CE(f(x), y))[j])[y] * log(softmax(j: 2 * class_mean(CE(f(x), y))[j])[y])",
    "class means of two kinds": "max(j != y: class_sum(H(p(x)))[j] / class_mean(CE(f(x), y) where y != 0)[j] + f(x)[j])",
    "class mean under a condition": "if(f(x)[0] > 0, class_mean(CE(f(x), y)), log(p(x)))[1]",
    "smallest logarithm of a class mean": "min(j: log(class_mean(CE(f(x), y))[j])) + f(x)[argmin(j: class_mean(f(x)[0])[j])]",
    "best classes": "logsumexp(j in top(2, i != y: f(x)[i] * p(x)[i]): f(x')[j])",
    "best classes of a class": "max(j: sum(i in top(2, k != j: f(x)[k] * f(x)[j]): f(x')[i] * p(x)[j]))",
    "Bregman divergence": "D[cubes](p(x) || p(x'))",
    "Bregman divergence per class": "max(j != y: D[cubes](p(x') || (1 - p(x)[j]) * p(x) + p(x)[j] * p(x')))",
    "entropy as a generator": "D[entropy](p(x) || p(x'))",
    "projection of a point per class": "sum(j: norm(project(p(x)[j] * x' + (1 - p(x)[j]) * x, linf(x, 0.01 * H(p(x)))) - x, 2))",
    "log of a stopped sum": "-log(stop(sum(j != y: p(x)[j]))) * H(p(x))",
} | {f"binder {name}": {"argmax": "f(x')[argmax(j != y: f(x)[j])]", "argmin": "f(x')[argmin(j != y: f(x)[j])]", "softmax": "softmax(j != y: f(x)[j])[0]", "sort": "sort(j != y: f(x)[j])[3]"}.get(name, f"{name}(j != y: f(x)[j] * p(x')[j])") for name in BINDERS} | {
    f"{name} over whole numbers": f"{name}(k in 0..3: (k + 1) * f(x)[k])" for name in ("sum", "mean", "max", "min")
}  # fmt: skip


def scalar(name: str, expression: str) -> str:
    row = OPERATIONS.get(name.removeprefix("operation ")) if name.startswith("operation ") else None
    kind = (
        "Real"
        if row is None or row.name == "smooth"
        else str(row.result or {"unit": "Input", "sign": "Input", "clip": "Input"}.get(row.name, "Real"))
    )
    return WRAPPED[kind].format(expression)


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_has_the_value_and_gradient_of_the_reference(name: str) -> None:
    text = f"{BEFORE}upper minimize CE(f(x), y) + 2 * {scalar(name, EXPRESSIONS[name])} {BY}"
    model, (x, y) = mlp(), data()
    step = step_of(text, model)
    solutions = step.solve(x, y, generator=seeded())
    loss = step.objective(x, y, solutions)
    expected = Reference(step.recipe.typed, model, 4).objective(x, y, solutions)
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-9, atol=1e-11)
    for a, b in zip(gradients(loss, model), gradients(expected, model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_every_operation_of_every_plan_here_is_compiled_from_the_tables() -> None:
    """The kernels that exist are the kernels that plans use: none is dead, none is missing."""
    used = {"misclassified", "class_range", "gate_any", "network", "solution", "final"}  # the last three: of laws, where they are loaded
    for name, expression in EXPRESSIONS.items():
        text = f"recipe r\n{BEFORE}upper minimize CE(f(x), y) + {scalar(name, expression)} {BY}"
        used |= {i.op for code in codes(lossdsl.parse(text).plan) for i in code}
    family = "recipe r\nlower x'[j != y] in linf(x, 0.1) maximize f(x'[j])[j] by linear(start = x)\nlet w = argmax(j != y: f(x'[j])[j])\nupper minimize CE(f(x'[w]), y) by sgd(lr = 0.1)"
    mixed = "recipe r\nupper minimize CE(f(x), smooth(y, 0.1)) by sgd(lr = 0.1)\ntrain epochs = 1, batch = 4, data = mix(labelled, pseudo, fraction = 0.5)"
    used |= {i.op for text in (family, mixed) for code in codes(lossdsl.parse(text).plan) for i in code}
    dead = {*KERNELS, *COMPARISONS} - used
    assert not dead, f"kernels that no expression reaches: {sorted(dead)}"


def test_every_row_has_its_other_side() -> None:
    assert set(SOLVERS) == {*SOLVERS_TORCH, *SEARCHES_TORCH} and not set(SOLVERS_TORCH) & set(SEARCHES_TORCH)
    assert {name for name, row in SETS.items() if row.over == "input"} == set(SETS_TORCH)
    for name in OPERATIONS:
        assert name in KERNELS or name in ("CE",), name
    for name in BINDERS:
        assert f"reduce_{name}" in KERNELS, name


def test_fooled_is_the_prediction_in_eval_mode() -> None:
    step = step_of(f"{BEFORE}upper minimize CE(f(x), y) * (1 + fooled(x')) {BY}", mlp())
    x, y = data(20)
    solutions = step.solve(x, y, generator=seeded())
    model = step.model
    wrong = (model(solutions["x'"]).argmax(1) != y).double()
    assert 0 < float(wrong.sum()) < 20
    expected = (torch.nn.functional.cross_entropy(model(x), y, reduction="none") * (1 + wrong)).mean()
    torch.testing.assert_close(step.objective(x, y, solutions).detach(), expected.detach())


# --- axes ---


AXES = {
    "binder in binder": "max(j != y: max(i != j: f(x)[i] * f(x')[j]) * p(x)[j])",
    "same domain twice": "sum(j != y: f(x)[j] * max(i != y: f(x)[i] - f(x')[j]))",
    "inner left out by outer": "sum(j: logsumexp(i != j: f(x)[i] + f(x')[j]) * p(x)[j])",
    "three deep": "sum(j: max(i != j: min(k != i: f(x)[k] * f(x')[i] + f(x)[j])))",
    "vector at an outer class": "max(j: softmax(i != j: f(x)[i] * f(x')[j])[y])",
    "argmax at an outer class": "sum(j: f(x')[argmax(i != j: f(x)[i])] * p(x)[j])",
    "left out: an argmax": "max(j != argmax(i: f(x)[i]): f(x)[j])",
    "sort inside": "sum(j: sort(i != j: f(x)[i] * p(x')[j])[2])",
    "sum of a constant": "sum(j != y: 2) + max(j: 1)",
    "entropy of a mixture per class": "sum(j: H(p(x)[j] * p(x) + (1 - p(x)[j]) * p(x')))",
    "divergence to a class": "max(j != y: KL(onehot(j) || p(x)) * p(x')[j])",
    "smoothed class": "sum(j: CE(f(x), smooth(j, 0.3)) * p(x')[j])",
    "hinge at every class": "mean(j: hinge(f(x), j) * p(x')[j])",
    "DLR at every class": "mean(j: DLR(f(x), j))",
    "points per class": "sum(j: CE(f(x + p(x')[j] * (x' - x)), y))",
    "points per pair of classes": "max(j != y: sum(i: f((1 - p(x)[j]) * x + p(x)[i] * x')[j]))",
    "norms of points per class": "sum(j: norm(x' - p(x)[j] * x, 2) + cos(x', x' - p(x)[j] * x) + dot(x, f(x)[j] * x'))",
    "unit of points per class": "sum(j: norm(unit(f(x)[j] * (x' - x)), 1) * f(x)[j])",
    "condition per class": "sum(j != y: if(f(x)[j] > f(x)[y], f(x')[j] - f(x)[y], CE(f(x'), j)))",
    "condition outside the class": "sum(j: if(f(x)[y] > 0, f(x)[j], H(p(x'))) * p(x)[j])",
    "condition per class around a point": "sum(j: CE(f(if(f(x)[j] > 0, x, x')), y) * p(x')[j])",
    "largest of two": "sum(j: max(f(x)[j], min(f(x')[j], CE(f(x), y))))",
    "vectors and entries": "sum(j: (f(x) - f(x)[j])[y] * (f(x) * f(x')[j])[j])",
    "log of a sum of probabilities": "-log(sum(j != y: p(x)[j])) - log(1 - max(j != y: p(x')[j]))",
    "log of a product": "log(p(x)[y] * max(j != y: p(x')[j]) / p(x')[0])",
}


@pytest.mark.parametrize("name", AXES)
def test_axes_are_aligned(name: str) -> None:
    compare_with_reference(f"{BEFORE}upper minimize CE(f(x), y) + {AXES[name]} {BY}")


FAMILIES = {
    "softmax weights": "sum(j != y: stop(softmax(i != y: 3 * f(x'[i])[i]))[j] * CE(f(x'[j]), y))",
    "worst member": "CE(f(x'[argmax(j != y: f(x'[j])[j])]), y)",
    "member and point": "max(j != y: KL(p(x) || p(x'[j])) * p(x)[j])",
    "member in a nested binder": "sum(j != y: max(i: f(x'[j])[i] * p(x)[i]))",
    "two members": "sum(j != y: max(i != y: norm(x'[j] - x'[i], 2) * p(x)[i]))",
    "member per outer class": "sum(j: f(x'[argmax(i != y: f(x'[i])[j] * f(x)[i])])[j])",
    "iterate of a member": "sum(j != y: CE(f(x'[j]@1), y) + norm(x'[j] - x'[j]@0, 1))",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_families_and_binders(name: str) -> None:
    before = "lower x'[j != y] in linf(x, 0.1) maximize f(x'[j])[j] - f(x'[j])[y] by pgd(steps = 2, step = 0.05, start = uniform)\n"
    compare_with_reference(f"{before}upper minimize CE(f(x), y) + {FAMILIES[name]} {BY}")


def test_a_family_over_all_classes() -> None:
    before = "lower x'[j] in linf(x, 0.1) maximize f(x'[j])[j] by pgd(steps = 2, step = 0.05, start = uniform)\n"
    compare_with_reference(f"{before}upper minimize logsumexp(j: f(x'[j])[j]) - min(j: f(x'[j])[y]) {BY}")


def compare_with_reference(text: str) -> None:
    model, (x, y) = mlp(), data()
    step = step_of(text, model)
    solutions = step.solve(x, y, generator=seeded())
    loss, expected = step.objective(x, y, solutions), Reference(step.recipe.typed, model, 4).objective(x, y, solutions)
    close(loss.detach(), expected.detach())
    for a, b in zip(gradients(loss, model), gradients(expected, model), strict=True):
        close(a, b)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_closures_know_what_they_take_from_outside() -> None:
    plan = lossdsl.load("trades").plan
    kinds = {i.id: i for code in codes(plan) for i in code}
    body = Closure(plan.solves[0].body, kinds, lambda i: "")
    assert [kinds[n].text for n in body.needs] == ["p(x)"]
