"""Attacks in suites and in training recipes: what the engine hands to the solvers, and what it makes of their answers."""

from __future__ import annotations

from typing import Any

import published
import pytest
import torch
from conftest import Digits
from torch import Tensor, nn

import lossdsl
from lossdsl.diagnostics import RecipeError, UserError
from lossdsl.engine.attack import Attack
from lossdsl.plan.cost import cost
from lossdsl.run.passes import counted
from lossdsl.solve import SETS_TORCH, Domain, ExampleStreams

RUNS = {
    "ce": "x' in linf(x, eps) maximize CE(f(x'), y) by apgd(steps = 6, start = sphere, restarts = 2)",
    "dlr": "x' in l2(x, 4 * eps) maximize DLR(f(x'), y) by apgd(steps = 6, start = x + normal(0.01))",
    "sparse": "x' in l1(x, 20 * eps) maximize CE(f(x'), y) by apgd(steps = 6, start = sphere)",
    "dlr_t": "x'[j in top(3, i != y: f(x)[i])] in linf(x, eps) maximize DLR(f(x'[j]), y, j) by apgd(steps = 6, start = sphere)",
    "fab": "x' in linf(x, eps) by fab(steps = 3)",
    "fab_t": "x'[j in top(3, i != y: f(x)[i])] in l2(x, 4 * eps) by fab(steps = 3, restarts = 2)",
    "square": "x' in linf(x, eps) maximize max(j != y: f(x')[j]) - f(x')[y] by square(queries = 20)",
    "square_2": "x' in l2(x, 4 * eps) maximize CE(f(x'), y) by square(queries = 10, restarts = 2)",
    "cw": "x' in l2(x, 4 * eps) by cw(steps = 4, searches = 2, step = 0.1)",
    "pgd": "x' in linf(x, eps) maximize CE(f(x'), y) by pgd(steps = 2, step = 0.02, start = uniform, restarts = 3)",
}


def suite(names: list[str], count: str = "worst", eps: float = 0.08, domain: str = "", model: nn.Module | None = None, **options: Any) -> Attack:
    runs = "\n".join(f"run {name} : {RUNS[name]}" for name in names)
    text = f"attack a\n{domain}\nparam eps = {eps}\n{runs}\ncount {count}"
    attack = lossdsl.compile(lossdsl.parse(text), model or small(), num_classes=10, **options)
    assert isinstance(attack, Attack)
    return attack


def small(classes: int = 10, shape: tuple[int, ...] = (1, 8, 8)) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        size = int(torch.Size(shape).numel())
        return nn.Sequential(nn.Flatten(), nn.Linear(size, 16), nn.Tanh(), nn.Linear(16, classes)).double()


def streams(index: Tensor) -> ExampleStreams:
    return ExampleStreams.of(0, index)


@pytest.mark.parametrize("name", RUNS)
def test_an_example_does_not_depend_on_the_others(name: str, digits: Digits) -> None:
    """Alone, in other company, or in chunks: the same point, in the set."""
    (x, y), index = digits.some(12), torch.arange(12)
    attack = suite([name], model=digits.model)
    point, _ = attack.run(x, y, generator=streams(index))[name]
    rows = torch.tensor([7, 2, 9, 3])
    part, _ = attack.run(x[rows], y[rows], generator=streams(index[rows]))[name]
    cut, _ = suite([name], model=digits.model, chunk=4).run(x, y, generator=streams(index))[name]
    torch.testing.assert_close(part, point[rows], rtol=0, atol=1e-12)
    torch.testing.assert_close(cut, point, rtol=0, atol=1e-12)
    every = point.flatten(0, 1) if point.dim() > x.dim() else point
    copies = len(every) // len(x)
    level = attack._levels[0].plan.level  # type: ignore[union-attr]
    region = SETS_TORCH[level.set.name](x.repeat_interleave(copies, 0), float(level.set.radius.value or 0), Domain(0.0, 1.0))
    assert bool(region.contains(every, 1e-12).all())


def test_a_family_attacks_every_target_as_published(digits: Digits) -> None:
    """Each member is the run for its target, up to the first success of any of them."""
    (x, y), steps = digits.some(20), 6
    point, _ = suite(["dlr_t"], model=digits.model).run(x, y, generator=streams(torch.arange(20)))["dlr_t"]
    targets = digits.model(x).sort(dim=1, descending=True).indices[:, 1:4]
    wide = x.repeat_interleave(3, 0)
    starts = SETS_TORCH["linf"](wide, 0.08, Domain(0.0, 1.0)).sphere(streams(torch.arange(20)).branches(targets)).view(20, 3, *x.shape[1:])
    wrong = []
    for n in range(3):
        at = published.Attacked(digits.model, x, y, lambda z, y, n=n: published.targeted_dlr(z, y, targets[:, n]), 0.08, "linf")
        found = published.apgd(at, starts[:, n], steps)
        wrong.append(torch.stack([digits.model(v).argmax(1) != y for v in found.points]))
        unbroken = ~wrong[-1].any(0)
        ours = digits.model(point[:, n]).argmax(1) != y
        assert not bool(ours[unbroken].any())
    broken = torch.stack(wrong).any(1).any(0)
    assert bool(((digits.model(point.flatten(0, 1)).argmax(1).view(20, 3) != y.unsqueeze(1)).any(1) == broken).all())
    assert 0 < int(broken.sum()) < 20


def test_broken_examples_skip_later_restarts_and_are_never_repaired(digits: Digits) -> None:
    x, y = digits.some(80)
    model = digits.model
    broken = torch.zeros(80, dtype=torch.bool)
    for restarts in (1, 2, 3):
        text = RUNS["pgd"].replace("restarts = 3", f"restarts = {restarts}")
        attack = lossdsl.compile(lossdsl.parse(f"attack a\nparam eps = 0.08\nrun pgd : {text}\ncount worst"), model, num_classes=10)
        with counted(model) as counter:
            point, _ = attack.run(x, y, generator=streams(torch.arange(80)))["pgd"]
        passes = counter.take()
        now = model(point).argmax(1) != y
        assert bool((now >= broken).all())
        broken = now
    assert 0 < int(broken.sum()) < 80
    assert passes.backward_examples < 3 * 2 * 80


def test_count_best_loss_compares_objectives_and_nobody_leaves(digits: Digits) -> None:
    x, y = digits.some(10)
    attack = suite(["ce", "sparse"], "best_loss", model=digits.model)
    with counted(digits.model) as counter:
        point, objective = attack.run(x, y, generator=streams(torch.arange(10)), only="ce")["ce"]
        to_the_end = counter.take().forward_examples
        suite(["ce"], model=digits.model).run(x, y, generator=streams(torch.arange(10)))
        to_the_first_success = counter.take().forward_examples
    torch.testing.assert_close(objective, published.ce(digits.model(point), y), rtol=0, atol=1e-12)
    assert 10 < to_the_first_success < to_the_end
    with pytest.raises(RecipeError, match="makes a norm small"):
        suite(["fab"], "best_loss")


def test_a_transfer_attack_does_not_ask_the_victim() -> None:
    """apgd on another model's loss cannot stop at the victim's first error."""
    text = "attack a\nmodel g frozen\nrun r : x' in linf(x, 0.2) maximize CE(g(x'), y) by apgd(steps = 5, start = sphere)\ncount each"
    victim, other = small(), small(10)
    attack = lossdsl.compile(lossdsl.parse(text), victim, num_classes=10, models={"g": other})
    x, y = torch.rand(4, 1, 8, 8, dtype=torch.float64), torch.arange(4)
    with counted(victim) as counter:
        attack.run(x, y, generator=streams(torch.arange(4)))
    assert counter.take().forward_calls == 0


@pytest.mark.parametrize("shape", [(12,), (3, 5), (2, 5, 6)])
@pytest.mark.parametrize("domain", ["", "input x in reals", "input x in [0.2, 0.9]"])
def test_inputs_of_any_rank_and_domain(shape: tuple[int, ...], domain: str) -> None:
    g = torch.Generator().manual_seed(0)
    model = small(10, shape)
    x = 0.2 + 0.7 * torch.rand(6, *shape, generator=g, dtype=torch.float64)
    y = model(x).argmax(1)
    low, high = {"": (0.0, 1.0), "input x in reals": (-9.0, 9.0), "input x in [0.2, 0.9]": (0.2, 0.9)}[domain]
    names = [name for name in RUNS if name != "square_2"]
    found = suite(names, domain=domain, model=model).run(x, y, generator=streams(torch.arange(6)))
    for name, (point, _) in found.items():
        assert bool((point >= low).all()) and bool((point <= high).all()), name
    assert any(bool((model(p.flatten(0, p.dim() - x.dim())).argmax(1) != y.repeat_interleave(len(p.flatten(0, p.dim() - x.dim())) // 6)).any()) for p, _ in found.values())


def test_per_channel_domains() -> None:
    g = torch.Generator().manual_seed(0)
    model, domain = small(10, (2, 5, 5)), "input x in [[0, 0.3], [0.5, 1]]"
    x = torch.stack((0.5 * torch.rand(4, 5, 5, generator=g), 0.3 + 0.7 * torch.rand(4, 5, 5, generator=g)), 1).double()
    found = suite(list(RUNS), domain=domain, model=model).run(x, model(x).argmax(1), generator=streams(torch.arange(4)))
    for name, (point, _) in found.items():
        every = point.reshape(-1, 2, 5, 5)
        assert bool((every[:, 0] <= 0.5).all()) and bool((every[:, 1] >= 0.3).all()) and bool((every >= 0).all()), name


@pytest.mark.parametrize(("name", "classes"), [("dlr", 2), ("dlr_t", 3)])
def test_dlr_needs_enough_classes(name: str, classes: int) -> None:
    text = f"attack a\nparam eps = 0.1\nrun r : {RUNS[name]}\ncount worst"
    with pytest.raises(UserError, match=f"needs {classes + 1} classes, and there are {classes}"):
        lossdsl.compile(lossdsl.parse(text), small(classes), num_classes=classes)
    attack = lossdsl.compile(lossdsl.parse(text), small(classes + 1), num_classes=classes + 1)
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    point, _ = attack.run(x, torch.zeros(3, dtype=torch.long), generator=streams(torch.arange(3)))["r"]
    assert point.shape == ((3, 1, 8, 8) if name == "dlr" else (3, 3, 1, 8, 8))


@pytest.mark.parametrize("name", ["ce", "sparse", "square", "square_2", "dlr"])
def test_training_takes_the_best_point_of_an_attack(name: str, digits: Digits) -> None:
    """As a lower level nobody leaves: the point of the largest objective of all restarts, a constant of the upper level."""
    x, y = digits.some(8)
    model = small()
    recipe = f"recipe r\nparam eps = 0.08\nlower {RUNS[name]}\nupper minimize CE(f(x'), y) by sgd(lr = 0.1)\ntrain epochs = 1, batch = 8"
    step = lossdsl.compile(lossdsl.parse(recipe), model, num_classes=10)
    loss = step(x, y, generator=torch.Generator().manual_seed(0))
    loss.backward()
    gradient = model[3].weight.grad.clone()  # type: ignore[union-attr, operator]
    attack = suite([name], "best_loss", model=model)
    point, _ = attack.run(x, y, generator=torch.Generator().manual_seed(0))[name]
    expected = nn.functional.cross_entropy(model(point), y)
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, model[3].weight)[0], rtol=0, atol=1e-12)
    assert float(expected.detach()) > float(nn.functional.cross_entropy(model(x), y).detach())


def test_iterates_of_apgd_in_training() -> None:
    model = small()
    x, y = torch.rand(5, 1, 8, 8, dtype=torch.float64), torch.arange(5)
    recipe = (
        "recipe r\nlower x' in linf(x, 0.1) maximize CE(f(x'), y) by apgd(steps = 4, start = x)\n"
        "upper minimize CE(f(x'@0), y) + CE(f(x'@3), y) by sgd(lr = 0.1)\ntrain epochs = 1, batch = 5"
    )
    loss = lossdsl.compile(lossdsl.parse(recipe), model, num_classes=10)(x, y)
    at = published.Attacked(model, x, y, published.ce, 0.1, "linf")
    found = published.apgd(at, x, 4)
    expected = (published.ce(model(x), y) + published.ce(model(found.points[3]), y)).mean()
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("level", "message"),
    [
        ("x' in linf(x, 0.1) maximize CE(f(x'), y) by apgd(steps = 2, start = x) through unrolling", "apgd are not differentiated"),
        ("x' in linf(x, 0.1) by cw(steps = 2)", "cw does not work on linf|belongs to an attack"),
        ("x' in linf(x, 0.1) maximize CE(f(x'), y) by apgd(steps = 2)", "apgd needs a start"),
        ("x' in linf(x, 0.1) maximize CE(f(x'), y) by apgd(steps = 2, start = x, step = 0.1)", "no argument step"),
        ("x' in linf(x, 0.1) maximize CE(f(x'), y) by square(queries = 2, noise = normal(0.1))", "no argument noise"),
        ("w in l2(theta, 0.1) maximize CE(f{w}(x), y) by apgd(steps = 2, start = theta)", "apgd is for inputs"),
    ],
)
def test_what_attacks_cannot_do_is_said(level: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        lossdsl.parse(f"recipe r\nlower {level}\nupper minimize CE(f(x), y) by sgd(lr = 0.1)\ntrain epochs = 1, batch = 5")


@pytest.mark.parametrize("name", [name for name in RUNS if "[" not in RUNS[name]])
def test_the_plan_counts_the_passes_of_examples_that_stay(name: str, digits: Digits) -> None:
    """Where nobody is broken: as many as the plan says, or fewer for points that come again; of every class for fab's backward passes."""
    x, y = digits.some(4)
    attack = suite([name], eps=1e-5, model=digits.model)
    with counted(digits.model) as counter:
        attack.run(x, y, generator=streams(torch.arange(4)))
    passes, planned = counter.take(), cost(attack.plan)
    assert passes.forward_calls <= planned.forward
    assert passes.backward_calls <= planned.input_backward * (9 if name == "fab" else 1)
    if name in ("dlr", "cw", "fab", "pgd", "square_2"):
        assert passes.forward_calls == planned.forward


@pytest.mark.parametrize("name", RUNS)
def test_explain_and_plan_say_what_a_run_does(name: str) -> None:
    recipe = lossdsl.parse(f"attack a\nparam eps = 0.1\nrun r : {RUNS[name]}\ncount worst")
    text, plan = recipe.explain(), str(recipe.plan)
    solver = recipe.typed.levels[0].solver.name
    assert solver in text and f"updates by {solver}(" in plan
    if solver != "pgd":
        assert "done at its first fooling point" in text
    assert "an example is done at its first success" in plan
    if "maximize" not in RUNS[name]:
        assert "maximize" in text
