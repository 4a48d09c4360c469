"""The reference evaluator against numbers worked out by hand and against torch's own losses.

In most tests the model is the identity, so that a point is its own logits.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lossdsl.engine.formulas
import lossdsl.engine.reference
import lossdsl.engine.reference_batch
from lossdsl.check.typed import Typed, TypedRecipe
from lossdsl.diagnostics import UserError
from lossdsl.engine.formulas import FORMULAS, REDUCTIONS
from lossdsl.engine.reference import CORE, Reference
from lossdsl.front import load, parse_recipe
from lossdsl.lang.ops import BINDERS, OPERATIONS, Operation
from tests.strategies.values import batch, small_model, values_for

LEVEL = "lower x' in linf(x, 1) maximize CE(f(x'), y) by pgd(steps = 2, step = 1, start = x)"
FAMILY = "lower x'[j != y] in linf(x, 1) maximize f(x'[j])[j] - f(x'[j])[y] by pgd(steps = 2, step = 1, start = x)"
X = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]], dtype=torch.float64)
Y = torch.tensor([1, 0])
XP = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.25, -0.5]], dtype=torch.float64)
P, PP = X.softmax(-1), XP.softmax(-1)
MIDDLE = (P + PP) / 2


class Identity(nn.Module):
    """f(v) = v, times a weight of one, so that there is a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, v: Tensor) -> Tensor:
        return self.weight * v


def recipe(text: str, before: str = "", level: str = LEVEL) -> TypedRecipe:
    lines = ("recipe r input x in reals", level, before, f"log value = {text}", "upper minimize CE(f(x), y) by sgd(lr = 0.1)")
    return parse_recipe("\n".join(lines)).typed


def logged(typed: TypedRecipe) -> Typed:
    return typed.logs[-1][1]


def evaluate(
    text: str, before: str = "", level: str = LEVEL, solutions: dict[str, Tensor] | None = None, x: Tensor = X, y: Tensor = Y
) -> Any:
    """A number of the recipe as a list per example, or as one float."""
    typed = recipe(text, before, level)
    value = Reference(typed, Identity(), x.shape[1]).value(logged(typed), x, y, {"x'": XP} if solutions is None else solutions)
    return value.item() if isinstance(value, Tensor) else [v.item() for v in value]


def each(formula: Callable[[int], Any]) -> list[float]:
    return [float(formula(n)) for n in range(2)]


LN = math.log
EXACT: dict[str, list[float] | float] = {
    # z = (1, 2, 0.5), y = 1 and z = (0, -1, 3), y = 0; z' = (0.5, -1, 2) and (1.5, 0.25, -0.5)
    "DLR(f(x), y)": [-(2 - 1) / (2 - 0.5), -(0 - 3) / (3 - -1)],
    "hinge(f(x), y)": [0.0, 4.0],
    "hinge(f(x'), y)": [1 + 2 + 1, 0.0],
    "error(f(x), y)": [0, 1],
    "error(0 * f(x), y)": [1, 1],
    "error(p(x'), y)": [1, 0],
    "onehot(y)[1]": [1, 0],
    "smooth(y, 0.3)[1]": [0.7 + 0.1, 0.1],
    "norm(x' - x, 1)": [0.5 + 3 + 1.5, 1.5 + 1.25 + 3.5],
    "norm(x' - x, 2)": [math.sqrt(0.25 + 9 + 2.25), math.sqrt(2.25 + 1.5625 + 12.25)],
    "norm(x' - x, inf)": [3, 3.5],
    "dot(x, x')": [0.5 - 2 + 1, -0.25 - 1.5],
    "cos(x, x')": [-0.5 / math.sqrt(5.25 * 5.25), -1.75 / math.sqrt(10 * 2.5625)],
    "cos(x, 0 * x')": [1, 1],
    "dot(unit(x), x)": [math.sqrt(5.25), math.sqrt(10)],
    "norm(unit(0 * x), 2)": [0, 0],
    "norm(sign(x'), 1)": [3, 3],
    "sign(f(x)[0])": [1, 0],
    "abs(f(x')[1])": [1, 0.25],
    "exp(f(x)[1])": [math.exp(2), math.exp(-1)],
    "log(f(x')[0])": [LN(0.5), LN(1.5)],
    "sqrt(f(x')[0])": [0.5**0.5, 1.5**0.5],
    "relu(f(x)[1])": [2, 0],
    "tanh(f(x)[1])": [math.tanh(2), math.tanh(-1)],
    "sin(f(x)[1] + pi/2)": [math.cos(2), math.cos(-1)],
    "clip(f(x)[1], -0.5, 1.5)": [1.5, -0.5],
    "clip(f(x)[1], 3, 1)": [1, 1],
    "max(f(x)[0], f(x)[1])": [2, 0],
    "min(f(x)[0], f(x)[1])": [1, -1],
    "batch_mean(f(x)[1])": 0.5,
    "batch_sum(f(x)[1])": 1.0,
    "batch_mean(f(x)[1] where f(x)[1] > 0)": 2.0,
    "batch_sum(f(x)[2] where f(x)[1] < 0)": 3.0,
    "batch_mean(f(x)[1] where f(x)[1] > 9)": 0.0,
    "batch_sum(f(x)[1] where f(x)[1] > 9)": 0.0,
    "batch_mean(0.5)": 0.5,
    "batch_sum(0.5)": 1.0,
    "batch_sum(1 where f(x)[1] > 0)": 1.0,
    "max(j: f(x)[j] * batch_sum(f(x)[1]))": [2, 3],
    # binders
    "max(j: f(x)[j])": [2, 3],
    "max(j != y: f(x)[j])": [1, 3],
    "min(j: f(x)[j])": [0.5, -1],
    "min(j != y: f(x)[j])": [0.5, -1],
    "sum(j != y: f(x)[j])": [1.5, 2],
    "mean(j != y: f(x)[j])": [0.75, 1],
    "mean(j: f(x)[j])": [3.5 / 3, 2 / 3],
    "logsumexp(j != y: f(x)[j])": [LN(math.e + math.exp(0.5)), LN(math.exp(-1) + math.exp(3))],
    "f(x')[argmax(j: f(x)[j])]": [-1, -0.5],
    "f(x')[argmax(j != y: f(x)[j])]": [0.5, -0.5],
    "f(x')[argmin(j: f(x)[j])]": [2, 0.25],
    "f(x)[argmax(j: 1)]": [1, 0],
    "f(x)[argmin(j != y: 1)]": [1, -1],
    "softmax(j != y: f(x)[j])[0]": [math.e / (math.e + math.exp(0.5)), 0],
    "softmax(j != y: f(x)[j])[y]": [0, 0],
    "softmax(j: 2)[1]": [1 / 3, 1 / 3],
    "sort(j: f(x)[j])[1]": [2, 3],
    "sort(j: f(x)[j])[3]": [0.5, -1],
    "sort(j != y: f(x)[j])[2]": [0.5, -1],
    "sum(k in 0..2: k * f(x)[k])": [2 + 1, -1 + 6],
    "mean(k in 1..2: f(x)[k])": [1.25, 1],
    "max(k in 0..1: f(x)[k])": [2, 0],
    "sum(j != y: sum(i != j: f(x)[i] * f(x')[j]))": [(2 + 0.5) * 0.5 + (1 + 2) * 2, (0 + 3) * 0.25 + (0 - 1) * -0.5],
    "sum(j != y: max(j != j: f(x)[j]))": [2 + 2, 3 + 0],
    "sum(j: max(j != y: f(x)[j]) * f(x)[j])": [3.5, 6],
    "sum(K != y: K == 0)": [1, 0],
    # core forms
    "f(x)[y] + 2 * f(x)[0] - 1": [3, -1],
    "f(x)[1] / f(x)[2]": [4, -1 / 3],
    "-f(x)[1]^2": [-4, -1],
    "2^3^2 + 0 * K": 512,
    "K": 3,
    "(f(x)[1] > 0) + 2 * (f(x)[1] <= 2) + 4 * (f(x)[1] < 2) + 8 * (f(x)[1] >= 2)": [1 + 2 + 8, 2 + 4],
    "0 < f(x)[0] < 1.5": [1, 0],
    "(not f(x)[0] > 0) + 2 * (f(x)[0] > 0 and f(x)[1] > 9) + 4 * (f(x)[0] > 0 or f(x)[1] > 9)": [4, 1],
    "(y == 1) + 2 * (y != 1) + 4 * (y == argmax(j: f(x')[j]))": [1, 2 + 4],
    "if(f(x)[0] > 0, f(x)[1], f(x)[2])": [2, 3],
    "if(K > 2, f(x)[1], 7)": [2, -1],
    "stop(f(x)[y])": [2, 0],
    "log(p(x)[y]) - log(p(x)[0])": [1, 0],
    "fooled(x')": [1, 0],
    "sum(j: (f(x) * f(x'))[j])": [-0.5, -1.75],
    "sum(j: (f(x) - f(x)[y])[j])": [-2.5, 2],
    "norm(clip(x, 0, 1), 1)": [2.5, 1],
    # vectors of the batch: the labels are 1 and 0, class 2 has no example
    "class_mean(f(x)[1])[0]": [-1, -1],
    "class_mean(f(x)[1])[y]": [2, -1],
    "class_mean(f(x)[1])[2]": [0, 0],
    "class_sum(2)[1]": [2, 2],
    "class_sum(1 where f(x)[1] > 0)[0]": [0, 0],
    "max(j: class_mean(f(x)[0] - 5)[j])": [-4, -4],
    "min(j: class_mean(f(x)[0] + 5)[j])": [5, 5],
    "mean(j: class_mean(f(x)[1])[j] + 1)": [1.5, 1.5],
    "sum(j: class_mean(f(x)[1])[j] + 1)": [4, 4],
    "max(j != y: class_sum(-3)[j])": [-3, -3],
    "f(x)[argmin(j: class_mean(f(x)[0] + 5)[j])]": [1, 0],
    "sort(j: class_mean(f(x)[1] - 5)[j])[3]": [0, 0],
    "sort(j: class_mean(f(x)[1] - 5)[j])[2]": [-6, -6],
    "softmax(j: class_mean(0)[j])[0]": [0.5, 0.5],
    "logsumexp(j: class_mean(1)[j])": [1 + LN(2), 1 + LN(2)],
    "max(j: class_mean(1 where f(x)[1] > 9)[j])": [0, 0],
    "(zeros(K) + 2 * ones(K))[1]": [2, 2],
    "known(y)": [1, 1],
    # classes by score: y is left out
    "sum(j in top(1, i: f(x)[i]): f(x')[j])": [-1, -0.5],
    "max(j in top(2, i != y: -f(x)[i]): f(x')[j])": [2, 0.25],
    "sort(j in top(9, i != y: f(x)[i]): f(x')[j])[2]": [0.5, -0.5],
    # sets
    "norm(project(x', linf(x, 0.5)) - x, 1)": [1.5, 1.5],
    "norm(project(x', l2(0, 1)), 2)": [1, 1],
    "norm(project(x', l1(0, 1)), 1)": [1, 1],
    "norm(interior(x', linf(x, 1.5)), 1)": [1, 1],
}  # fmt: skip

AGAINST_TORCH: dict[str, list[float]] = {
    "CE(f(x), y)": F.cross_entropy(X, Y, reduction="none").tolist(),
    "CE(p(x), y)": F.cross_entropy(X, Y, reduction="none").tolist(),
    "CE(y || f(x))": F.cross_entropy(X, Y, reduction="none").tolist(),
    "CE(f(x), smooth(y, 0.2))": F.cross_entropy(X, Y, reduction="none", label_smoothing=0.2).tolist(),
    "CE(f(x), p(x'))": F.cross_entropy(X, PP, reduction="none").tolist(),
    "CE(p(x') || p(x))": F.cross_entropy(X, PP, reduction="none").tolist(),
    "CE(f(x), argmax(j: f(x')[j]))": F.cross_entropy(X, XP.argmax(-1), reduction="none").tolist(),
    "KL(p(x) || p(x'))": F.kl_div(PP.log(), P, reduction="none").sum(-1).tolist(),
    "KL(onehot(y) || p(x'))": F.cross_entropy(XP, Y, reduction="none").tolist(),
    "JS(p(x) || p(x'))": ((P * (P / MIDDLE).log() + PP * (PP / MIDDLE).log()).sum(-1) / 2).tolist(),
    "JS(onehot(y) || onehot(argmin(j: f(x)[j])))": [LN(2), LN(2)],
    "TV(p(x) || p(x'))": (torch.cdist(P[:, None], PP[:, None], p=1).flatten() / 2).tolist(),
    "SE(p(x), onehot(y))": F.mse_loss(P, F.one_hot(Y, 3).double(), reduction="none").sum(-1).tolist(),
    "H(p(x))": torch.distributions.Categorical(logits=X).entropy().tolist(),
    "H(onehot(y))": [0, 0],
    "H(0.25 * p(x) + 0.75 * p(x'))": torch.distributions.Categorical(probs=0.25 * P + 0.75 * PP).entropy().tolist(),
    "CE((1 - p(x)[y]) * p(x) + p(x)[y] * p(x'), y)": each(lambda n: -((1 - P[n, Y[n]]) * P[n, Y[n]] + P[n, Y[n]] * PP[n, Y[n]]).log()),
    "dot(softmax(j: f(x)[j]), log(p(x')))": (P * PP.log()).sum(-1).tolist(),
    "hinge(f(x), y)": (F.multi_margin_loss(X, Y, reduction="none") * 3 - F.relu(1 + X.sort(-1).values[:, 0] - X[[0, 1], Y])).tolist(),
}  # fmt: skip


@pytest.mark.parametrize("text", [*EXACT, *AGAINST_TORCH])
def test_values(text: str) -> None:
    expected = EXACT.get(text, AGAINST_TORCH.get(text))
    assert evaluate(text) == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_dlr_with_a_target() -> None:
    x = torch.tensor([[3.0, 1.0, 0.0, -2.0, -7.0]], dtype=torch.float64)
    value = evaluate("DLR(f(x), y, argmin(j: abs(f(x)[j] - 1)))", solutions={"x'": x}, x=x, y=torch.tensor([0]))
    assert value == pytest.approx([-(3.0 - 1.0) / (3.0 - (0.0 + -2.0) / 2)], rel=1e-11)


def test_every_operation_and_binder_has_a_formula_and_a_case() -> None:
    assert set(REDUCTIONS) == set(BINDERS)
    user = [name for name in OPERATIONS if name not in FORMULAS and name not in CORE]
    assert not user, f"no formula for {user}"
    assert not set(FORMULAS) & set(CORE)
    used: set[str] = set()

    def visit(e: Typed) -> None:
        used.update({e.op, *(a for a in e.attrs if e.op == "reduce")})
        for a in (*e.args, *([e.axis.domain.expr] if e.axis and e.axis.domain.expr else [])):
            visit(a)

    for text in (*EXACT, *AGAINST_TORCH):
        visit(logged(recipe(text)))
    assert set(OPERATIONS) | set(BINDERS) | set(FORMULAS) <= used


def test_it_shares_no_code_with_the_compiler() -> None:
    for module in (lossdsl.engine.reference, lossdsl.engine.reference_batch, lossdsl.engine.formulas):
        assert "lossdsl.plan" not in (text := inspect.getsource(module)) and "kernels" not in text and "closures" not in text


# --- gradients ---


def gradient(text: str, at: list[list[float]], y: list[int], level: str = LEVEL) -> Tensor:
    """Of a level's objective, by its point; the objective gets f(x')[0] added, since one without gradient is refused."""
    objective = level.replace("CE(f(x'), y)", f"({text}) + f(x')[0]")
    typed = recipe("f(x)[0]", level=objective)
    point = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    values = Reference(typed, Identity(), point.shape[1]).level_objective(typed.levels[0], point, X[: len(at)], torch.tensor(y), {})
    (found,) = torch.autograd.grad(torch.stack(values).sum(), point)
    found[:, 0] -= 1
    return found


KINKS = {
    "f(x')[0] > 0": [0, 0, 0],
    "sign(f(x')[0])": [0, 0, 0],
    "error(f(x'), y)": [0, 0, 0],
    "f(x)[argmax(j: f(x')[j])]": [0, 0, 0],
    "CE(f(x), smooth(argmax(j: f(x')[j]), 0.1))": [0, 0, 0],
    "norm(x' - x', 2)": [0, 0, 0],
    "norm(x', 2)": [0.6, 0.8, 0],
    "cos(x', 0 * x')": [0, 0, 0],
    "dot(unit(x' - stop(x')), x)": [0, 0, 0],
    "sqrt(f(x')[2])": [0, 0, 0],
    "abs(f(x')[2])": [0, 0, 0],
    "relu(f(x')[2])": [0, 0, 0],
    "stop(f(x')[0]) * f(x')[1]": [0, 3, 0],
    "if(f(x')[0] > 0, f(x')[1], log(f(x')[2]))": [0, 1, 0],
    "if(f(x')[2] > 0, 1/f(x')[2], f(x')[0])": [1, 0, 0],
    "max(f(x')[0] + 1, f(x')[1])": [1, 0, 0],
    "min(f(x')[0] + 1, f(x')[1])": [1, 0, 0],
    "max(j: if(j == 2, f(x')[2] + 4, f(x')[j]))": [0, 1, 0],
    "min(j: -if(j == 2, f(x')[2] + 4, f(x')[j]))": [0, -1, 0],
    "sort(j: if(j == 2, f(x')[2] + 4, f(x')[j]))[2]": [0, 0, 1],
    "norm(relu(f(x')) - onehot(y), inf)": [1, 0, 0],
    "clip(f(x')[0], 0, 1)": [0, 0, 0],
    "clip(f(x')[0], 0, f(x')[1])": [1, 0, 0],
    "clip(f(x')[0], 0, f(x')[2])": [0, 0, 1],
    "clip(f(x')[2], f(x')[0], 9)": [1, 0, 0],
    "log(p(x')[0]) - log(p(x')[1])": [1, -1, 0],
    "f(x')[0]^2": [6, 0, 0],
    "hinge(f(x'), y)": [0, 0, 0],
}


@pytest.mark.parametrize("text", KINKS)
def test_gradients_where_they_are_a_convention(text: str) -> None:
    """At z' = (3, 4, 0), y = 1; the margin of the hinge is exactly 1."""
    assert gradient(text, [[3.0, 4.0, 0.0]], [1]).tolist() == [pytest.approx(KINKS[text])]


SMOOTH = (
    "CE(f(x'), y)", "KL(p(x) || p(x'))", "KL(p(x') || p(x))", "JS(p(x) || p(x'))", "SE(p(x'), onehot(y))", "TV(p(x') || p(x))", "H(p(x'))",
    "DLR(f(x'), y)", "hinge(f(x'), argmin(j: f(x')[j]))", "cos(x, x')", "norm(x' - x, 1)", "norm(x' - x, 2)", "norm(x' - x, inf)",
    "dot(unit(x'), x)", "tanh(f(x')[0])^3", "exp(-f(x')[0])", "log(1 - max(j != y: p(x')[j]))", "logsumexp(j != y: f(x')[j])",
    "dot(softmax(j != y: f(x')[j]), log(p(x)))", "sort(j: f(x')[j] * f(x)[j])[2]", "mean(j: f(x')[j] / (1 + abs(f(x)[j])))", "2^f(x')[1]",
    "sum(j != y: sum(i != j: f(x')[i] * p(x')[j]))", "CE((1 - p(x')[y]) * p(x) + p(x')[y] * p(x'), y)", "CE(f(x'), smooth(y, 0.2))",
    "CE(f(x'), p(x'))", "min(f(x')[0], f(x')[1]^2)", "sqrt(TV(p(x') || p(x)))",
)  # fmt: skip


@pytest.mark.parametrize("text", SMOOTH)
def test_gradients_against_central_differences(text: str) -> None:
    typed = recipe("f(x)[0]", level=LEVEL.replace("CE(f(x'), y)", text))
    reference = Reference(typed, Identity(), 3)

    def objective(point: Tensor) -> Tensor:
        return torch.stack(reference.level_objective(typed.levels[0], point, X, Y, {}))

    assert torch.autograd.gradcheck(objective, (XP.clone().requires_grad_(),))


# --- points, families, samples, modes ---


def test_iterates_samples_and_defs() -> None:
    before = """sample eta ~ normal(1) sample r ~ uniform(0, 1) sample c ~ normal(1) over batch sample v ~ normal(1) over classes
        def M(z) = f(z) - f(z)[y]"""
    solutions = {"x'": XP, "x'@1": X + 1, "x'@0": X + 2, "eta": X * 2, "r": torch.tensor([3.0, 4.0]), "c": torch.tensor(5.0), "v": -X}
    for text, expected in {
        "f(x')[0]": [0.5, 1.5], "f(x'@1)[0]": [2, 1], "f(x'@0)[0]": [3, 2], "f(x + eta)[1]": [6, -3], "r": [3, 4], "c + K": 8,
        "v[2]": [-0.5, -3], "M(x')[2]": [3, -2], "sum(j: v[j] * c)": [-17.5, -10],
    }.items():  # fmt: skip
        used = text + " + 0 * (dot(eta, x) + r + c + v[0] + M(x)[0])" if text not in ("c + K",) else text
        assert evaluate(used, before, solutions={k: s.double() for k, s in solutions.items()}) == pytest.approx(expected), text


# Classes other than y: (0, 2) for example 0 and (1, 2) for example 1; entry 10 * example + class tells the members apart.
MEMBERS = torch.tensor([[0.0, 2.0], [11.0, 12.0]], dtype=torch.float64)[..., None] + torch.tensor([0.0, 0.25, 0.5], dtype=torch.float64)


def test_families_are_picked_by_class() -> None:
    solutions = {"x'": MEMBERS, "x'@1": -MEMBERS}
    for text, expected in {
        "sum(j != y: f(x'[j])[0] * (j == 2))": [2, 12],
        "max(j != y: -f(x'[j])[0])": [0, -11],
        "f(x'[argmax(j != y: f(x)[j])])[1]": [0.25, 12.25],
        "sum(j != y: f(x'[j]@1)[j])": [-(0 + 2.5), -(11.25 + 12.5)],
        "sum(j != y: sum(i != y: f(x'[i])[0] * f(x'[j])[0] * (i != j)))": [0, 2 * 11 * 12],
        "f(x'[worst])[0]": [0, 12],
    }.items():
        before = "let worst = argmax(j != y: f(x)[j]) with f in eval"
        assert evaluate(text, before if "worst" in text else "", FAMILY, solutions) == pytest.approx(expected), text


def test_a_level_over_a_family() -> None:
    typed = recipe("f(x)[0]", level=FAMILY)
    point = MEMBERS.clone().requires_grad_()
    values = Reference(typed, Identity(), 3).level_objective(typed.levels[0], point, X, Y, {})
    assert [[v.item() for v in row] for row in values] == [[-0.25, 0.25], [0.25, 0.5]]
    (found,) = torch.autograd.grad(values[0][1] + 2 * values[1][0], point)
    assert found.tolist() == [[[0, 0, 0], [0, -1, 1]], [[-2, 2, 0], [0, 0, 0]]]


def test_a_later_level_sees_an_earlier_solution_as_a_constant() -> None:
    second = "\nlower w in linf(x', 1) minimize dot(w, x') + f(w)[0] by pgd(steps = 1, step = 1, start = x')"
    typed = recipe("f(w)[0]", level=LEVEL + second)
    given, point = XP.clone().requires_grad_(), X.clone().requires_grad_()
    values = Reference(typed, Identity(), 3).level_objective(typed.levels[1], point, X, Y, {"x'": given})
    assert [v.item() for v in values] == pytest.approx([-0.5 + 1, -1.75 + 0])
    found = torch.autograd.grad(torch.stack(values).sum(), (point, given), allow_unused=True)
    assert found[0].tolist() == (XP + torch.tensor([1.0, 0, 0])).tolist() and found[1] is None


class Moody(nn.Module):
    """Adds its batch's mean in train mode, and 100 in eval mode; counts its passes in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3, affine=False, dtype=torch.float64)
        self.passes: list[tuple[int, bool]] = []

    def forward(self, v: Tensor) -> Tensor:
        self.passes.append((len(v), self.training))
        self.norm(v)
        return v + (v.mean(0) if self.norm.training else 100)


def test_modes_and_restoring_them() -> None:
    before = "let a = f(x)[0] with f in eval\nlet b = f(x)[0] with f in untracked"
    typed = recipe("f(x)[0] + 0 * (a + b + fooled(x'))", before)
    model = Moody()
    reference = Reference(typed, model, 3)
    for training in (True, False):
        model.train(training)
        state = {k: v.clone() for k, v in model.state_dict().items()}
        a, b = (reference.value(e, X, Y, {"x'": XP}) for e in _modes_in(logged(typed)))
        assert ([v.item() for v in a], [v.item() for v in b]) == ([101, 100], [1.5, 0.5])
        assert [v.item() for v in reference.value(logged(typed), X, Y, {"x'": XP})] == [1.5, 0.5]
        assert all(m.training is training for m in model.modules())
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    values = reference.level_objective(typed.levels[0], X, X, Y, {})
    assert values[0].item() == pytest.approx(F.cross_entropy(X + 100, Y, reduction="none")[0].item()), "a level runs in eval mode"
    model.passes.clear()
    reference.value(logged(typed), X, Y, {"x'": XP})
    assert model.passes == [(2, True), (2, False), (2, True), (2, False)], "whole batches, one pass per occurrence"


def _modes_in(e: Typed) -> list[Typed]:
    return [e] if e.op == "mode" else [found for a in e.args for found in _modes_in(a)]


def test_a_module_that_the_caller_froze_stays_frozen_in_train_mode() -> None:
    model = Moody().train()
    model.norm.eval()
    typed = recipe("f(x)[0]")
    assert [v.item() for v in Reference(typed, model, 3).value(logged(typed), X, Y, {})] == [101, 100]
    assert model.training and not model.norm.training


def test_modes_are_restored_after_a_failure() -> None:
    class Broken(nn.Module):
        def forward(self, v: Tensor) -> Tensor:
            raise ArithmeticError

    model, typed = Broken().eval(), recipe("f(x)[0]")
    with pytest.raises(ArithmeticError):
        Reference(typed, model, 3).value(logged(typed), X, Y, {})
    assert not model.training


def test_a_binder_runs_the_model_once_for_all_its_classes() -> None:
    model, typed = Moody(), recipe("max(j != y: f(x'[j])[j])", level=FAMILY)
    Reference(typed, model, 3).value(logged(typed), X, Y, {"x'": MEMBERS})
    assert model.passes == [(4, True)]


# --- whole objectives ---


def test_trades_by_hand() -> None:
    r = load("trades").with_params(**{"lambda": 2})
    model = small_model(4, 3)
    x, y = batch(3, (4,), 3)
    solutions = values_for(r.typed, x, 3)
    loss = Reference(r.typed, model, 3).objective(x, y, solutions)
    clean, adversarial = model(x), model(solutions["x'"])
    by_hand = F.cross_entropy(clean, y) + 2 * F.kl_div(F.log_softmax(adversarial, -1), F.softmax(clean, -1), reduction="batchmean")
    _same_loss(loss, by_hand, model)
    inner = Reference(r.typed, model, 3).level_objective(r.typed.levels[0], solutions["x'"], x, y, {})
    kl = F.kl_div(F.log_softmax(adversarial, -1), F.softmax(clean, -1), reduction="none").sum(-1)
    torch.testing.assert_close(torch.stack(inner), kl)


def test_beta_by_hand() -> None:
    r = load("beta_at")
    model = small_model(4, 4)
    x, y = batch(5, (4,), 4)
    solutions = values_for(r.typed, x, 4)
    loss = Reference(r.typed, model, 4).objective(x, y, solutions)
    worst = []
    for n in range(5):
        others = [j for j in range(4) if j != y[n]]
        margins = [model(solutions["x'"][n, k][None])[0, j] - model(solutions["x'"][n, k][None])[0, y[n]] for k, j in enumerate(others)]
        worst.append(solutions["x'"][n, max(range(3), key=lambda k: margins[k].item())])
    _same_loss(loss, F.cross_entropy(model(torch.stack(worst)), y), model)


def _same_loss(loss: Tensor, by_hand: Tensor, model: nn.Module) -> None:
    torch.testing.assert_close(loss, by_hand)
    weights = list(model.parameters())
    for a, b in zip(torch.autograd.grad(loss, weights), torch.autograd.grad(by_hand, weights), strict=True):
        torch.testing.assert_close(a, b)


def test_a_const_objective_is_not_averaged_again() -> None:
    text = "recipe r input x in reals upper minimize batch_sum(f(x)[0]) by sgd(lr = 0.1)"
    assert Reference(parse_recipe(text).typed, Identity(), 3).objective(X, Y, {}).item() == 1.0
    assert Reference(parse_recipe(text.replace("batch_sum", "")).typed, Identity(), 3).objective(X, Y, {}).item() == 0.5


def test_lower_solutions_are_constants_of_the_upper_level() -> None:
    typed = parse_recipe(f"recipe r input x in reals {LEVEL} upper minimize CE(f(x'), y) + norm(x', 2) by sgd(lr = 0.1)").typed
    point = XP.clone().requires_grad_()
    (found,) = torch.autograd.grad(Reference(typed, Identity(), 3).objective(X, Y, {"x'": point}), point, allow_unused=True)
    assert found is None


# --- operations of the user ---


def test_operations_of_the_user_need_a_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPERATIONS, "focal", Operation("focal", "Logits, Label -> Real", "", "", ""))
    typed = recipe("focal(f(x), y)")
    with pytest.raises(UserError, match="focal"):
        Reference(typed, Identity(), 3).value(logged(typed), X, Y, {})
    formulas = {"focal": lambda z, y: -((1 - z.softmax(0)[y]) ** 2) * z.log_softmax(0)[y]}
    value = Reference(typed, Identity(), 3, formulas).value(logged(typed), X, Y, {})
    assert [v.item() for v in value] == pytest.approx(each(lambda n: -((1 - P[n, Y[n]]) ** 2) * P[n, Y[n]].log()))


def test_a_missing_solution_and_a_missing_upper_level_are_named() -> None:
    typed = recipe("f(x'@1)[0]")
    with pytest.raises(UserError, match="x'@1"):
        Reference(typed, Identity(), 3).value(logged(typed), X, Y, {"x'": XP})
    with pytest.raises(UserError, match="no upper level"):
        Reference(load("pgd20").typed, Identity(), 3).objective(X, Y, {})
