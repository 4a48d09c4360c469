"""What the checker proves about an expression holds for the values that the reference evaluator finds."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossdsl.check.typed import Typed
from lossdsl.engine.reference import Reference
from lossdsl.front import Recipe, parse_recipe
from tests.strategies.expressions import TABLE, on_stage, recipes, unwrapped, well_typed
from tests.strategies.oracle import others
from tests.strategies.values import batch, small_model, values_for

pytestmark = pytest.mark.slow

B, SHAPE, K = 3, (2,), 3
MODEL = small_model(2, K)
kinds = st.sampled_from(sorted(TABLE))
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
random_texts = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=SLOW)


def typed(text: str, kind: str = "Real") -> tuple[Recipe, Typed]:
    recipe = parse_recipe(on_stage(text, kind))
    return recipe, unwrapped(recipe.typed.logs[-1][1], kind)


def reference(recipe: Recipe, model: torch.nn.Module = MODEL) -> Reference:
    return Reference(recipe.typed, model, K, models=others(recipe.typed, lambda seed: small_model(2, K, seed)))


def rows(recipe: Recipe, e: Typed, values: dict[str, Tensor], x: Tensor, y: Tensor, model: torch.nn.Module = MODEL) -> Any:
    """The value for each example, [B, ...]; of a Const, the number."""
    with torch.no_grad():
        value = reference(recipe, model).value(e, x, y, values)
    return value if isinstance(value, Tensor) else torch.stack([torch.as_tensor(v) for v in value])


# --- the strategies themselves ---


@random_texts
@given(st.data(), kinds)
def test_random_expressions_pass_the_checker(data: st.DataObject, kind: str) -> None:
    _, e = typed(data.draw(well_typed(kind)), kind)
    allowed = {"Class": {"Class", "Label"}, "Real": {"Real", "Const"}}.get(kind, {kind})
    assert str(e.kind) in allowed


@random_texts
@given(recipes(), st.integers(0, 3))
def test_random_recipes_pass_the_checker_and_have_finite_losses_and_gradients(text: str, seed: int) -> None:
    recipe = parse_recipe(text)
    x, y = batch(B, SHAPE, K, seed)
    model, values = small_model(2, K, seed), values_for(recipe.typed, x, K, seed)
    slow = reference(recipe, model)
    loss = slow.objective(x, y, values)
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    for level in recipe.typed.levels:
        point = values[level.var].clone().requires_grad_()
        if level.set.over != "input":
            flat = slow.batch_objective(level, point, x, y, values)
        else:
            found = slow.level_objective(level, point, x, y, values)
            flat = torch.stack(found if level.axis is None else [v for row in found for v in row])
        gradients += torch.autograd.grad(flat.sum(), point, allow_unused=True)
    assert loss.isfinite() and all(g is None or g.isfinite().all() for g in gradients)


# --- ranges ---


def closed_parts(e: Typed) -> list[Typed]:
    """The expression and the parts of it that stand in no binder and no gradient, numbers left out."""
    args = {"grad": e.args[:1], "bregman": e.args[:2]}.get(e.op, e.args)
    found = [e, *(part for a in args for part in closed_parts(a))]
    return [part for part in found if part.op != "number" and not any(name.startswith("@") for name in part.depends)]


@random_texts
@given(st.data(), kinds, st.integers(0, 3))
def test_values_lie_in_the_proven_range(data: st.DataObject, kind: str, seed: int) -> None:
    recipe, e = typed(data.draw(well_typed(kind)), kind)
    x, y = batch(B, SHAPE, K, seed)
    values = values_for(recipe.typed, x, K, seed)
    for part in closed_parts(e)[:15]:
        if (part.low, part.high) != (-inf, inf):
            value = rows(recipe, part, values, x, y)
            slack = 1e-12 * (1 + value.abs().max().item())
            assert part.low - slack <= value.min().item() and value.max().item() <= part.high + slack, part


LN2 = 0.6931471805599453
RANGES = {
    "CE(f(x), y)": (0, inf), "KL(p(x) || p(x'))": (0, inf), "JS(p(x) || p(x'))": (0, LN2), "TV(p(x) || p(x'))": (0, 1),
    "SE(p(x), p(x'))": (0, 2), "H(p(x))": (0, inf), "hinge(f(x), y)": (0, inf), "error(f(x), y)": (0, 1), "cos(x, x')": (-1, 1),
    "norm(x, 2)": (0, inf), "p(x)[y]": (0, 1), "f(x)[y]": (-inf, inf), "DLR(f(x), y)": (-inf, inf), "fooled(x')": (0, 1), "K": (2, inf),
    "1/K": (0, 0.5), "CE(f(x), y) < 1": (0, 1), "not CE(f(x), y)": (0, 1), "1 < K and K < 7": (0, 1), "1 - p(x)[y]": (0, 1),
    "-p(x)[y]": (-1, 0), "p(x)[y] - 2 * p(x')[y]": (-2, 1), "3 - CE(f(x), y)": (-inf, 3), "p(x)[y] * (p(x)[y] - 3)": (-3, 0),
    "0 * CE(f(x), y)": (0, 0), "p(x)[y] / (1 + p(x')[y])": (0, 1), "f(x)[y]^2": (0, inf), "f(x)[y]^3": (-inf, inf),
    "CE(f(x), y)^0.5": (0, inf), "log(p(x)[y])": (-inf, 0), "exp(f(x)[y])": (0, inf), "tanh(f(x)[y])": (-1, 1), "sign(f(x)[y])": (-1, 1),
    "relu(f(x)[y])": (0, inf), "sqrt(p(x)[y])": (0, inf), "abs(f(x)[y])": (0, inf), "if(f(x)[y] > 0, p(x)[y], 5)": (0, 5),
    "stop(p(x)[y])": (0, 1), "max(j: p(x)[j])": (0, 1), "mean(j: p(x)[j])": (0, 1), "sum(j: p(x)[j])": (0, inf),
    "sum(j: f(x)[j])": (-inf, inf), "softmax(j: f(x)[j])[y]": (0, 1), "sort(j: -p(x)[j])[2]": (-1, 0), "logsumexp(j: p(x)[j])": (-inf, inf),
    "batch_mean(p(x)[y] + 1)": (1, 2), "batch_mean(p(x)[y] + 1 where y == 0)": (0, 2), "batch_sum(p(x)[y] + 1)": (0, inf),
    "batch_sum(-p(x)[y])": (-inf, 0), "(0.3 * p(x) + 0.7 * p(x'))[y]": (0, 1), "((1 - p(x)[y]) * p(x) + p(x)[y] * p(x'))[y]": (0, 1),
    "mean(k in 1..2: k * p(x)[k])": (0, 1.5),
}  # fmt: skip


@pytest.mark.parametrize("text", RANGES)
def test_ranges_are_as_tight_as_they_should_be(text: str) -> None:
    e = typed(text)[1]
    assert (e.low, e.high) == pytest.approx(RANGES[text])


# --- dependence ---


def _changed(values: dict[str, Tensor], others: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """A level's variable and its iterates, or every sample ("random"), have other values."""
    touched = {n for n in values if n.partition("@")[0] == name or (name == "random" and n in ("eta", "u", "s", "q"))}
    return {n: (others if n in touched else values)[n] for n in values}


@random_texts
@given(st.data(), kinds, st.sampled_from(("x'", "w'", "z'", "random", "theta", "W", "d", "t", "n0", "mem", "cw")))
def test_an_expression_does_not_change_with_what_it_does_not_depend_on(data: st.DataObject, kind: str, name: str) -> None:
    recipe, e = typed(data.draw(well_typed(kind)), kind)
    assume(name not in e.depends)
    x, y = batch(B, SHAPE, K)
    values, others = values_for(recipe.typed, x, K), values_for(recipe.typed, x, K, seed=1)
    model = small_model(2, K, seed=1) if name == "theta" else MODEL
    torch.testing.assert_close(rows(recipe, e, _changed(values, others, name), x, y, model), rows(recipe, e, values, x, y), rtol=0, atol=0)


@random_texts
@given(st.data(), kinds)
def test_an_example_does_not_change_with_the_others_unless_it_depends_on_the_batch(data: st.DataObject, kind: str) -> None:
    recipe, e = typed(data.draw(well_typed(kind)), kind)
    assume("batch" not in e.depends and str(e.kind) != "Const")
    (x, y), (x2, y2) = batch(B, SHAPE, K), batch(B, SHAPE, K, seed=1)
    values, others = values_for(recipe.typed, x, K), values_for(recipe.typed, x, K, seed=1)
    x2[0], y2[0] = x[0], y[0]
    for name, value in others.items():
        if value.dim() and name not in ("W", "d", "cw"):
            value[0] = values[name][0]
        else:
            value.copy_(values[name])
    torch.testing.assert_close(rows(recipe, e, others, x2, y2)[0], rows(recipe, e, values, x, y)[0], rtol=1e-9, atol=1e-12)


DEPENDS = {
    "1": set(), "K": set(), "x": set(), "onehot(y)": set(), "f(x)": {"theta"}, "p(x)": {"theta"}, "x'": {"x'"}, "x'@1": {"x'"},
    "f(x' - x)": {"theta", "x'"}, "eta": {"random"}, "u + 1": {"random"}, "fooled(x')": {"theta", "x'"},
    "batch_mean(u where norm(w', 2) > 1)": {"random", "batch", "w'"}, "f(z'[worst])[0]": {"theta", "z'"}, "f(x)[worst]": {"theta", "z'"},
    "max(j != worst: norm(x, 1))": {"theta", "z'"}, "max(j: onehot(j)[0])": set(), "max(j != y: f(z'[j])[j])": {"theta", "z'"},
    "sum(j: max(i != j: f(x')[i]))": {"theta", "x'"}, "stop(f(x'))": {"theta", "x'"}, "a": {"theta", "x'", "random"},
    "if(norm(x', 2) > 1, norm(w', 2), u)": {"x'", "w'", "random"}, "sum(k in 0..2: norm(x' - k, 1))": {"x'"},
    "0.3 * p(x) + 0.7 * p(w')": {"theta", "w'"}, "smooth(argmax(j: f(w')[j]), 0.1)": {"theta", "w'"}, "mid(0.3)": {"x'"},
}  # fmt: skip


@pytest.mark.parametrize("text", DEPENDS)
def test_what_an_expression_depends_on(text: str) -> None:
    kind = next(k for k in ("Real", "Input", "Prob", "Logits") if _is_kind(text, k))
    assert typed(text, kind)[1].depends == DEPENDS[text]


def _is_kind(text: str, kind: str) -> bool:
    if text in ("x", "x'", "x'@1", "eta", "mid(0.3)"):
        return kind == "Input"
    if text in ("p(x)", "onehot(y)") or text.startswith(("smooth", "0.3 *")):
        return kind == "Prob"
    return kind == ("Logits" if text in ("f(x)", "f(x' - x)", "stop(f(x'))") else "Real")


def test_a_sorted_vector_keeps_counting_from_one_when_it_is_stopped_or_in_a_mode() -> None:
    lets = "let t = sort(j: f(x)[j]) with f in eval\nlog value = t[1] - max(j: f(x)[j]) + stop(sort(j: f(x)[j]))[3] - min(j: f(x)[j])"
    recipe = parse_recipe(f"recipe r {lets} upper minimize CE(f(x), y) by sgd(lr = 0.1)")
    x, y = batch(B, SHAPE, K)
    assert rows(recipe, recipe.typed.logs[-1][1], {}, x, y).tolist() == [0] * B


def test_the_zero_one_error_is_an_operation_and_not_a_failure_of_the_checker() -> None:
    recipe, e = typed("1 - error(f(x), y)")
    x, y = batch(B, SHAPE, K)
    assert rows(recipe, e, {}, x, y).tolist() == (MODEL(x).argmax(-1) == y).double().tolist()
