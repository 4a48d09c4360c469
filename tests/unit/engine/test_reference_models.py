"""The reference evaluator's models, gradients, weights, states and counts against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lossdsl.check.typed import TypedFind, TypedRecipe
from lossdsl.diagnostics import UserError
from lossdsl.engine.reference import Reference
from lossdsl.front import parse_recipe

X = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]], dtype=torch.float64)
Y = torch.tensor([1, 0])
ONEHOT = torch.tensor([[0.0, 1, 0], [1, 0, 0]], dtype=torch.float64)
LOWER = "lower x' in linf(x, 1) maximize CE(f(x'), y) by pgd(steps = 4, step = 1, start = x)"
WEIGHTS = "lower w in l2(theta, 1) maximize CE(f{w}(x), y) by linear"


class Scaled(nn.Module):
    """f(v) = a * v, one parameter; in train mode one more than that."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([a], dtype=torch.float64))

    def forward(self, v: Tensor) -> Tensor:
        return self.a * v + float(self.training)


def reference(lines: str, upper: str = "minimize CE(f(x), y) by sgd(lr = 0.1)", models: dict[str, nn.Module] | None = None) -> Reference:
    typed: TypedRecipe = parse_recipe(f"recipe r input x in reals\n{lines}\nupper {upper}").typed
    return Reference(typed, Scaled(2.0).eval(), 3, models=models)


def value(slow: Reference, solutions: dict[str, Tensor] | None = None, mode: str = "eval") -> list[Any]:
    """The last logged number, per example or once."""
    found = slow.value(slow.typed.logs[-1][1], X, Y, solutions or {}, mode)
    return [found.item()] if isinstance(found, Tensor) else [v.item() for v in found]


def test_a_gradient_per_example() -> None:
    """d CE(2 v, y) / dv = 2 (softmax(2 v) - onehot(y)), and dot with x."""
    expected = (2 * ((2 * X).softmax(1) - ONEHOT) * X).sum(1)
    assert value(reference("log a = dot(x, grad(x: CE(f(x), y)))")) == pytest.approx(expected.tolist())
    moved = (2 * ((2 * (X + 1)).softmax(1) - ONEHOT) * X).sum(1)
    assert value(reference("log a = dot(x, grad(v = x + 1: CE(f(v), y)))")) == pytest.approx(moved.tolist())


def test_a_gradient_of_a_gradient() -> None:
    """e = |v|^3: grad is 3 |v| v, and the gradient of its product with x is 3 (|v| x + (v . x) v / |v|), at v = x: 6 |x| x."""
    text = "log a = norm(grad(v = x: dot(grad(u = v: norm(u, 2)^3), x)), 2)"
    assert value(reference(text)) == pytest.approx((6 * X.norm(dim=1) ** 2).tolist())


def test_a_gradient_sees_a_stop() -> None:
    """The gradient of stop(|v|) |v| is |v| times a unit vector."""
    assert value(reference("log a = norm(grad(v = x: stop(norm(v, 2)) * norm(v, 2)), 2)")) == pytest.approx(X.norm(dim=1).tolist())


def test_the_gradient_of_the_batch_by_theta() -> None:
    slope = (((2 * X).softmax(1) - ONEHOT) * X).sum(1).mean()
    assert value(reference("log a = norm(grad(theta: CE(f(x), y)), 2)")) == pytest.approx([abs(slope.item())])


def test_other_weights() -> None:
    slow = reference(f"{WEIGHTS}\nlog a = f{{w}}(x)[0] + 10 * f{{theta}}(x)[0] + 100 * f(x)[0]")
    w = torch.tensor([5.0], dtype=torch.float64)
    assert value(slow, {"w": w}) == pytest.approx([5 + 20 + 200, 0])
    slow = reference(
        f"{WEIGHTS}\nlog a = f{{w}}(x)[0] + 10 * f{{theta}}(x)[0] + 100 * f(x)[0]", "at w minimize CE(f(x), y) by sgd(lr = 0.1)"
    )
    assert value(slow, {"w": w}) == pytest.approx([5 + 20 + 500, 0])
    assert value(reference(f"{WEIGHTS}\nlog a = norm(theta, 2) + dot(w, theta)"), {"w": w}) == pytest.approx([2 + 10])
    with pytest.raises(UserError, match="no value of w is given"):
        value(slow)


def test_the_upper_gradient_at_other_weights_is_one_of_theta() -> None:
    slow = reference(WEIGHTS, "at w minimize CE(f(x), y) by sgd(lr = 0.1)")
    loss = slow.objective(X, Y, {"w": torch.tensor([5.0], dtype=torch.float64)})
    (slope,) = torch.autograd.grad(loss, list(slow.model.parameters()))
    logits = 5 * X + 1  # the upper level is in train mode
    assert slope.item() == pytest.approx(((logits.softmax(1) - ONEHOT) * X).sum(1).mean().item())


def test_a_level_over_the_weights_is_averaged_and_differentiable_in_them() -> None:
    slow = reference(WEIGHTS)
    w = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    found = slow.batch_objective(slow.typed.levels[0], w, X, Y, {})
    (slope,) = torch.autograd.grad(found, w)
    assert slope.item() == pytest.approx((((3 * X).softmax(1) - ONEHOT) * X).sum(1).mean().item())


def test_other_models_and_their_modes() -> None:
    lines = "model g frozen\nmodel h\nlog a = g(x)[0] + 10 * h(x)[0] + 100 * f(x)[0]"
    models: dict[str, nn.Module] = {"g": Scaled(3.0), "h": Scaled(4.0)}
    slow = reference(lines, "minimize CE(f(x), y) + CE(h(x), y) by sgd(lr = 0.1)", models)
    assert value(slow, mode="train") == pytest.approx([3 + 10 * 5 + 100 * 3, 0 + 10 + 100])
    found = slow.value(slow.typed.logs[-1][1], X, Y, {})
    slopes = torch.autograd.grad(sum(found), [*models["g"].parameters(), *models["h"].parameters()], allow_unused=True)
    assert slopes[0] is None and slopes[1].item() == pytest.approx(10)


def test_a_distribution_is_the_same_for_every_example() -> None:
    slow = reference("lower q in simplex(K) maximize q[y] * CE(f(x), y) by ascent(steps = 1, step = 1, start = ones(K)/K)\nlog a = q[y]")
    q = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    assert value(slow, {"q": q}) == pytest.approx([0.5, 0.2])
    point = q.clone().requires_grad_()
    (slope,) = torch.autograd.grad(slow.batch_objective(slow.typed.levels[0], point, X, Y, {}), point)
    losses = -(2 * X).log_softmax(1)[[0, 1], Y]
    assert slope.tolist() == pytest.approx([losses[1].item() / 2, losses[0].item() / 2, 0])


def test_states_have_their_first_value_unless_one_is_given() -> None:
    lines = (
        "state n = 3 then n + batch_mean(x_sum), c = 2 * ones(K) then class_mean(x_sum)\nmemory r = 7 then x_sum + r\nlog a = n + c[y] + r"
    )
    slow = reference("let x_sum = norm(x, 1)\n" + lines)
    assert value(slow) == pytest.approx([3 + 2 + 7] * 2)
    given = {"n": torch.tensor(1.0), "c": torch.tensor([1.0, 2.0, 3.0]), "r": torch.tensor([10.0, 20.0])}
    given = {name: v.double() for name, v in given.items()}
    assert value(slow, given) == pytest.approx([1 + 2 + 10, 1 + 1 + 20])
    after = slow.updates(X, Y, given)
    assert isinstance(after["n"], Tensor) and after["n"].item() == pytest.approx(1 + (3.5 + 4) / 2)
    assert after["c"][0].tolist() == pytest.approx([4, 3.5, 0])
    assert [float(v) for v in after["r"]] == pytest.approx([13.5, 24])


def test_counts_and_roots_are_given() -> None:
    lines = (
        f"{LOWER}\nfind t in [0, 1] where f(x)[0] == 3 * t by bisection(steps = 2)\nlog a = survived(x') + 10 * first_fooled(x') + 100 * t"
    )
    slow = reference(lines)
    counts = {"x'@survived": torch.tensor([2.0, 3.0]), "x'@first_fooled": torch.tensor([1.0, 4.0]), "t": torch.tensor([0.5, 0.25])}
    assert value(slow, {k: v.double() for k, v in counts.items()}) == pytest.approx([2 + 10 + 50, 3 + 40 + 25])
    (find,) = (stage for stage in slow.typed.stages if isinstance(stage, TypedFind))
    tried = torch.tensor([0.5, 1.0], dtype=torch.float64)
    assert [v.item() for v in slow.equation(find, tried, X, Y, {})] == pytest.approx([2 - 1.5, 0 - 3])


def test_counts_of_a_family_are_those_of_its_member() -> None:
    family = LOWER.replace("lower x'", "lower x'[j != y]").replace("CE(f(x'), y)", "f(x'[j])[j]")
    slow = reference(f"{family}\nlog a = max(j != y: survived(x'[j]))")
    counts = {"x'@survived": torch.tensor([[1.0, 4.0], [3.0, 2.0]], dtype=torch.float64)}
    assert value(slow, counts) == pytest.approx([4, 3])
