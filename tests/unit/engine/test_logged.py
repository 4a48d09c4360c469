"""`Step.logged`: the values of `log` statements alone are those that the objective records, and nothing else is evaluated."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lossdsl

ATTACK = "lower x' in linf(x, 0.1) maximize CE(f(x'), y) by pgd(steps = 3, step = 0.05, start = uniform)"
RECIPES = {
    "values": f"recipe r {ATTACK} upper minimize CE(f(x'), y) by sgd(lr = 0.1) log a = KL(p(x) || p(x')) log b = batch_mean(CE(f(x'@1), y))",
    "gradients": f"recipe r {ATTACK} upper minimize CE(f(x'), y) by sgd(lr = 0.1) log a = norm(grad(theta: CE(f(x'), y)), 2) log b = norm(grad(x: CE(f(x), y)), 1)",
    "eval": f"recipe r {ATTACK} upper minimize CE(f(x'), y) by sgd(lr = 0.1) log a = CE(f(x), y) with f in eval log b = H(p(x'))",
    "state": "recipe r state s = 3 then batch_mean(CE(f(x), y)) upper minimize s * CE(f(x), y) by sgd(lr = 0.1) log a = s * CE(f(x), y) log b = s",
    "memory": "recipe r memory h = 2 then CE(f(x), y) upper minimize h * CE(f(x), y) by sgd(lr = 0.1) log a = h log b = h * CE(f(x), y)",
    "weights": f"recipe r {ATTACK} lower w in layerwise(theta, 0.01) maximize CE(f{{w}}(x'), y) by linear with f in untracked "
    "upper at w minimize CE(f(x'), y) by sgd(lr = 0.1) log a = CE(f(x'), y) log b = CE(f{theta}(x'), y)",
    "sample": "recipe r sample e ~ uniform(linf(0, 0.1)) upper minimize CE(f(x + e), y) by sgd(lr = 0.1) log a = CE(f(x + e), y) log b = norm(e, inf)",
}


def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()


@pytest.mark.parametrize("name", RECIPES)
def test_logged_values_are_those_of_the_objective(name: str) -> None:
    net = model()
    step = lossdsl.compile(lossdsl.parse(RECIPES[name]), net, num_classes=3)
    random = torch.Generator().manual_seed(1)
    x, y = torch.rand(7, 5, dtype=torch.float64, generator=random), torch.randint(3, (7,), generator=random)
    index = torch.arange(7)
    solutions = step.solve(x, y, generator=random, index=index)
    first = step.objective(x, y, solutions, index=index).logs
    step.after_update()
    before, statistics = step.state_dict(), {key: value.clone() for key, value in net.state_dict().items()}
    found = step.logged(x, y, solutions, index=index)
    net.load_state_dict(statistics)
    expected = {key: float(value) for key, value in step.objective(x, y, solutions, index=index).logs.items()}
    assert {key: float(value.mean()) for key, value in found.items()} == pytest.approx(expected, rel=1e-9)
    assert all(not value.requires_grad for value in found.values()) and net.training
    assert all(torch.equal(value, before[key]) for key, value in step.state_dict().items())
    if name in ("state", "memory"):  # the states have moved on, as they would in training
        assert expected != pytest.approx({key: float(value) for key, value in first.items()})


def test_values_are_per_example() -> None:
    net = model()
    step = lossdsl.compile(lossdsl.parse(RECIPES["eval"]), net, num_classes=3)
    x, y = torch.rand(4, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    expected = nn.functional.cross_entropy(net.eval()(x), y, reduction="none").detach()
    torch.testing.assert_close(step.logged(x, y, {"x'": x})["a"], expected)


def test_one_example_in_eval_mode_needs_no_batch_statistics() -> None:
    text = "recipe r upper minimize CE(f(x), y) by sgd(lr = 0.1) log a = CE(f(x), y) with f in eval"
    net = model()
    running = net[1].running_mean.clone()
    found = lossdsl.compile(lossdsl.parse(text), net, num_classes=3).logged(torch.rand(1, 5, dtype=torch.float64), torch.tensor([1]), {})
    assert found["a"].shape == (1,) and torch.equal(running, net[1].running_mean)


def test_a_missing_solution_is_named() -> None:
    step = lossdsl.compile(lossdsl.parse(RECIPES["values"]), model(), num_classes=3)
    with pytest.raises(lossdsl.UserError, match="x'"):
        step.logged(torch.rand(2, 5, dtype=torch.float64), torch.tensor([0, 1]), {})


def test_of_a_level_through_danskin_the_first_maximiser_is_seen() -> None:
    text = "recipe r lower x' in linf(x, 0.1) maximize CE(f(x'), y) by pgd(steps = 2, step = 0.05, start = uniform) through danskin(starts = 2) "
    step = lossdsl.compile(lossdsl.parse(text + "upper minimize CE(f(x'), y) by sgd(lr = 0.1) log a = CE(f(x'), y)"), model().eval(), num_classes=3)
    x, y = torch.rand(3, 5, dtype=torch.float64), torch.tensor([0, 1, 2])
    solutions = step.solve(x, y)
    same = {key: solutions["x'#1"] for key in ("x'#1", "x'#2")}
    torch.testing.assert_close(step.logged(x, y, solutions)["a"].mean(), step.objective(x, y, same).logs["a"])
