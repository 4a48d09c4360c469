"""`find t in [lo, hi] where e == 0`: a root per example."""

from __future__ import annotations

import pytest
import torch
from engine_tools import BY, Logits, batchnorm, data, gradients, mlp, step_of
from torch import Tensor, nn

import lossdsl
from lossdsl.diagnostics import LossdslError, UserError

CE = nn.functional.cross_entropy
POINTS = torch.tensor([[0.9, 0.2, 0.1, 0.0], [0.5, 0.4, 0.0, 0.0], [0.2, 0.7, 0.0, 0.0], [0.95, 0.05, 0.0, 0.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 0, 0, 0])


def found(text: str, x: Tensor = POINTS, y: Tensor = LABELS, model: nn.Module | None = None) -> Tensor:
    step = step_of(f"{text}\nupper minimize CE(f((1 - t) * x), y) + 0 * t {BY}", model or Logits())
    return step.solve(x, y)["t"]


@pytest.mark.parametrize("steps", [1, 4, 10, 45])
def test_the_root_is_found_to_half_the_last_interval(steps: int) -> None:
    """The logits fall linearly: (1 - t) (x_0 - x_1) = c has the root 1 - c / (x_0 - x_1)."""
    t = found(f"find t in [0, 1] where f((1 - t) * x)[0] - f((1 - t) * x)[1] == 0.05 by bisection(steps = {steps})")
    gaps = POINTS[:, 0] - POINTS[:, 1]
    roots = 1 - 0.05 / gaps
    inside = (roots > 0) & (roots < 1)
    assert inside.tolist() == [True, True, False, True]
    assert ((t - roots).abs()[inside] <= 0.5 ** (steps + 1) + 1e-15).all()
    assert (t - roots).abs()[inside].max() > 0.5 ** (steps + 6) or steps == 45


def test_rising_functions_without_a_root() -> None:
    """Never too far: the upper end; too far from the start: the lower end; a root at an end is that end."""
    x = torch.tensor([[0.1, 0.0, 0.0, 0.0], [0.9, 0.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.0], [0.25, 0.0, 0.0, 0.0]], dtype=torch.float64)
    t = found("find t in [0, 0.25] where t + f(x)[0] == 0.5 by bisection(steps = 6)", x)
    assert t.tolist() == [0.25, 0.0, 0.0, 0.25]


def test_the_interval_is_that_of_each_example() -> None:
    t = found("let wide = norm(x, 1)\nfind t in [-wide, 2 * wide] where t - f(x)[0] == 0 by bisection(steps = 20)")
    wide = POINTS.sum(1)
    assert ((t - POINTS[:, 0]).abs() <= 3 * wide / 2**21 + 1e-15).all()
    assert found("find t in [0, norm(x, 1) / 2] where t - f(x)[0] == 0 by bisection(steps = 30)")[0] == pytest.approx(0.6)


def test_an_interval_the_wrong_way_round_for_one_example() -> None:
    with pytest.raises(UserError, match="interval of a root"):
        found("find t in [0.5, f(x)[0]] where t - 0.6 * f(x)[0] == 0 by bisection(steps = 3)")


def test_a_function_that_is_nan() -> None:
    with pytest.raises(UserError, match="NaN"):
        found("find t in [0, 1] where t * log(0 - f(x)[0]) == 0 by bisection(steps = 3)")


def test_the_root_is_a_constant_of_the_levels_that_follow() -> None:
    """It sets the radius of a level, example by example, and passes no gradient."""
    x, y = data()
    model = mlp()
    text = (
        "find t in [0, 0.3] where t - p(x)[y] + 0.1 == 0 by bisection(steps = 30)\n"
        "lower x' in linf(x, t + 0.01) maximize CE(f(x'), y) by linear(start = x)\n"
        f"upper minimize t * CE(f(x'), y) + t^2 {BY}"
    )
    step = step_of(text, model)
    solved = step.solve(x, y)
    t = solved["t"]
    assert len(set(t.tolist())) > 2
    torch.testing.assert_close((solved["x'"] - x).abs().amax(1), t + 0.01, rtol=1e-9, atol=0)
    expected = (t * CE(model(solved["x'"]), y, reduction="none") + t**2).mean()
    loss = step(x, y)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    for a, b in zip(gradients(loss, model), gradients(expected, model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)
    given = step.objective(x, y, solved)
    assert float(given.detach()) == pytest.approx(float(loss.detach()), rel=1e-12)
    with pytest.raises(UserError, match="t"):
        step.objective(x, y, {"x'": solved["x'"]})


def test_two_searches_the_second_using_the_first() -> None:
    text = "find s in [0, 1] where s - f(x)[0] == 0 by bisection(steps = 40)\nfind t in [0, 1] where t - s^2 == 0 by bisection(steps = 40)"
    torch.testing.assert_close(found(text), POINTS[:, 0] ** 2, rtol=0, atol=1e-11)


def test_the_search_is_in_eval_mode_and_leaves_no_trace() -> None:
    """steps + 2 passes, no statistics, no flags, no gradients; the modes come back."""
    x, y = data()
    model = batchnorm().train()
    model.layers[1].eval()
    seen: list[tuple[bool, bool, bool]] = []
    model.register_forward_pre_hook(
        lambda m, inputs: seen.append((m.training, any(p.requires_grad for p in m.parameters()), torch.is_grad_enabled()))
    )
    modes, buffers = [m.training for m in model.modules()], [b.clone() for b in model.buffers()]
    step = step_of(f"find t in [0, 1] where CE(f(x + t), y) - 1.4 == 0 by bisection(steps = 7)\nupper minimize t * CE(f(x), y) {BY}", model)
    step.solve(x, y)
    assert seen == [(False, False, False)] * 9
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_random_points_are_drawn_once_for_the_whole_search() -> None:
    """A sample is shared by all evaluations: the root belongs to one function."""
    x, y = data()
    text = "sample e ~ uniform(0, 1)\nfind t in [0, 1] where t - e == 0 by bisection(steps = 40)"
    step = step_of(f"{text}\nupper minimize t * CE(f(x), y) + 0 * e {BY}", mlp())
    solved = step.solve(x, y, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(solved["t"], solved["e"], rtol=0, atol=1e-11)


@pytest.mark.parametrize("text", [
    "find t in [0, 1] where CE(f(x), y) == 0 by bisection(steps = 3)",
    "find t in [1, 0] where t - 0.5 == 0 by bisection(steps = 3)",
    "find t in linf(x, 1) where t - 0.5 == 0 by bisection(steps = 3)",
    "find t in [0, 1] where t - 0.5 by bisection(steps = 3)",
    "find t in [0, 1] where t <= 0.5 by bisection(steps = 3)",
    "find t in [0, 1] where t * batch_mean(CE(f(x), y)) - 0.5 == 0 by bisection(steps = 3)",
    "find t in [0, 1] where t - f(x)[0] == 0 by newton(steps = 3)",
    "find t in [0, 1] where t - f(x)[0] == 0 by bisection(steps = 0 - 1)",
    "find t in [0, 1] where f(x + t) == 0 by bisection(steps = 3)",
])  # fmt: skip
def test_what_cannot_be_found_is_one_clear_error(text: str) -> None:
    with pytest.raises(LossdslError) as caught:
        lossdsl.parse(f"recipe r\n{text}\nupper minimize CE(f(x), y) + 0 * t {BY}").plan  # noqa: B018
    assert len([d for d in caught.value.diagnostics if d.severity == "error"]) == 1  # type: ignore[attr-defined]
