"""Recipes over weights, classes, early stops, memories and other models against plain PyTorch, through several whole optimizer steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
import torch
from plain_weights import PLAIN, Batch, Outcome
from torch import Generator, Tensor, nn

import lossdsl

NAMES = sorted(PLAIN)
RECIPES = {name: lossdsl.load(name) for name in NAMES}
NO_PARAMS: Mapping[str, float] = MappingProxyType({})
SAMPLED = {"on"}
"""Params that only say from which epoch on something acts; the plain versions ask for the epoch."""


def helper(setting: Any, seed: int = 3) -> nn.Module:
    """Another model for the same inputs, with BatchNorm and dropout, left in a mixture of modes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        size = setting.x[0].numel()
        layers = nn.Linear(size, 9), nn.BatchNorm1d(9), nn.Dropout(0.5), nn.ReLU(), nn.Linear(9, setting.classes)
        model = nn.Sequential(nn.Flatten(), *layers).double()
        model(torch.rand(32, *setting.x.shape[1:], dtype=torch.float64))
        model[3].eval()
        model[1].weight.requires_grad_(False)
    return model


def sharper(setting: Any) -> Any:
    """The same with logits nine times as large: confident enough for a soft margin below 0."""
    model = setting.copy()
    with torch.no_grad():
        list(model.children())[-1].weight.mul_(9)
    return replace(setting, model=model)


def fooling(setting: Any, name: str, right: float = 0.6) -> Tensor:
    """Labels of which most are the model's prediction, so that attacks have something to do; some -1 for mixed data."""
    predicted = setting.copy().train(name == "mma")(setting.x).argmax(1)
    mixed = torch.where(torch.arange(len(setting.y)) < right * len(setting.y), predicted, setting.y)
    if name.endswith("_rst"):
        mixed = mixed.clone()
        mixed[1::3] = -1
    return mixed


class Pair:
    """A recipe and its plain version on two copies of one model."""

    def __init__(
        self, name: str, setting: Any, params: Mapping[str, float] = NO_PARAMS, epoch: int = 1, classes: int | None = None
    ) -> None:
        self.name, self.setting, self.epoch = name, setting, epoch
        self.ours, self.plain = setting.copy(), setting.copy()
        self.helper = helper(setting) if name == "hat" else None
        models = {"g": copy.deepcopy(self.helper)} if self.helper is not None else None
        recipe = RECIPES[name].with_params(**params)
        self.step = lossdsl.compile(recipe, self.ours, num_classes=setting.classes, models=models)
        self.step.set_epoch(epoch)
        self.params = {**PLAIN[name][1], **params}
        self.kept: dict[str, object] = {}

    def run_plain(self, x: Tensor, y: Tensor, g: Generator, index: list[int] | None = None) -> Outcome:
        batch = Batch(x, y, g, index or [], self.kept, self.helper)
        return PLAIN[self.name][0](self.plain, batch, {**self.params, "epoch": self.epoch})


def assert_same_outcome(pair: Pair, loss: Tensor, outcome: Outcome) -> None:
    assert float(loss.detach()) == pytest.approx(float(outcome.loss), rel=1e-9)
    size = torch.cat([p.grad.flatten() for p in pair.plain.parameters() if p.grad is not None]).norm()
    assert size > 1e-3
    for p, q in zip(pair.ours.parameters(), pair.plain.parameters(), strict=True):
        ours = torch.zeros_like(p) if p.grad is None else p.grad
        theirs = torch.zeros_like(q) if q.grad is None else q.grad
        assert (ours - theirs).norm() <= 1e-9 * size


def assert_same_models(ours: nn.Module, plain: nn.Module, tolerance: float = 1e-12) -> None:
    """Weights, buffers and modes."""
    for (name, a), (_, b) in zip(ours.state_dict().items(), plain.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}")


# --- one whole step ---------------------------------------------------------------------------------------------------

VARIANTS = [
    *[(name, {}, 1) for name in NAMES if name != "trades_awp"],
    *[("fat", {"eps": 0.15, "step": 0.03, "tau": tau}, 1) for tau in (0, 1, 2, 10)],
    ("fat_trades", {"eps": 0.15, "step": 0.04, "tau": 1}, 1),
    ("fat_mart", {"eps": 0.15, "step": 0.04, "tau": 2}, 1),
    ("fat", {"eps": 0.15, "step": 0.03}, 60),
    ("gairat", {"eps": 0.15, "step": 0.03}, 30),
    ("gairat", {"eps": 0.15, "step": 0.03}, 31),
    ("gairat", {"Lambda": 2, "steps": 7, "eps": 0.15, "step": 0.03}, 40),
    ("trades_awp", {}, 9),
    ("trades_awp", {}, 10),
    ("trades_awp", {"gamma": 0.1, "lambda": 2}, 1),
    ("at_awp", {"gamma": 0.2, "eps": 0.1}, 1),
    ("hat", {"eps": 0.2, "step": 0.05, "h": 3.5}, 1),
    ("mma", {"hi": 0.3, "least": 0.1}, 1),
    ("bat_rst", {"m": 3, "eps": 0.1}, 1),
    ("sam", {"rho": 1.5}, 1),
    ("bisam", {"mu": 1, "alpha": 2, "rho": 0.5}, 1),
    ("class_fairness", {"eps": 0.1}, 1),
]
STARTS_LATER = {("fat", 60): {"tau": 1}, ("trades_awp", 10): {"gamma": 0.005}}
"""What the recipe's schedule says at an epoch."""


@pytest.mark.parametrize(("name", "params", "epoch"), VARIANTS, ids=lambda v: ",".join(f"{k}={n}" for k, n in v.items()) if isinstance(v, dict) else str(v))  # fmt: skip
def test_a_step_in_float64(name: str, params: dict[str, float], epoch: int, setting: Any, draws: Callable[..., Generator]) -> None:
    """Solutions, loss, gradients, running statistics, modes and weights of one step."""
    y, index = fooling(setting, name), torch.arange(len(setting.y)) + 3
    pair = Pair(name, setting, params, epoch)
    pair.params.update(STARTS_LATER.get((name, epoch), {}))
    outcome = pair.run_plain(setting.x, y, draws(), index.tolist())
    found = pair.step.solve(setting.x, y, generator=draws(), index=index)
    for key, point in outcome.solutions.items():
        assert found[key].shape == point.shape
        assert (found[key] - point).abs().max() < 1e-12
    pair.ours.load_state_dict(setting.model.state_dict())
    pair.ours.train()
    modes = [m.training for m in pair.ours.modules()]
    loss = pair.step(setting.x, y, generator=draws(), index=index)
    assert [m.training for m in pair.ours.modules()] == modes
    assert all(p.grad is None for p in pair.ours.parameters())
    loss.backward()
    assert_same_outcome(pair, loss, outcome)
    assert_same_models(pair.ours, pair.plain)
    assert float(loss.detach()) == pytest.approx(sum(float(v) for v in loss.terms.values()), rel=1e-9)
    pair.ours.load_state_dict(setting.model.state_dict())
    given = pair.step.objective(setting.x, y, found, index=index)
    assert float(given.detach()) == pytest.approx(float(loss.detach()), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_params_are_those_of_the_papers(name: str) -> None:
    ours = {key: value for key, value in RECIPES[name].params.items() if key not in SAMPLED}
    assert ours == pytest.approx(dict(PLAIN[name][1]))


@pytest.mark.parametrize(
    ("name", "param", "values"),
    [
        ("fat", "tau", {1: 0, 50: 0, 51: 1, 90: 1, 91: 2, 120: 2}),
        ("fat_trades", "tau", {30: 0, 31: 1, 50: 1, 51: 2, 70: 2, 71: 3}),
        ("fat_mart", "tau", {20: 0, 21: 1, 41: 2, 61: 3, 80: 3, 81: 4}),
        ("gairat", "on", {1: 0, 30: 0, 31: 1, 100: 1}),
        ("trades_awp", "gamma", {1: 0, 9: 0, 10: 0.005, 200: 0.005}),
    ],
)
def test_schedules_of_params(name: str, param: str, values: dict[int, float]) -> None:
    assert {epoch: RECIPES[name].at_epoch(epoch).params[param] for epoch in values} == values


# --- whole optimizer steps --------------------------------------------------------------------------------------------


def optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer:
    """As the recipe says; the rate lower, so that rounding does not grow."""
    spec = RECIPES[name].optimizer
    options = {key: value for key, value in spec.options.model_dump().items() if key != "normalize"}
    return torch.optim.SGD(model.parameters(), **{**options, "lr": 0.05})


def batches(setting: Any, name: str, count: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Different batches of examples of one training set; some examples come again."""
    torch.manual_seed(11)
    y = fooling(setting, name)
    found = []
    for n in range(count):
        rows = torch.randperm(len(y))[:5] if n else torch.arange(5)
        x = (setting.x[rows] + 0.02 * n).clamp(0, 1)
        found.append((x, y[rows], rows))
    return found


@pytest.mark.parametrize("name", ["trades_awp", "at_awp", "sam", "asam", "bisam", "cfol", "mma", "fat", "hat"])
@pytest.mark.parametrize("build", ["normed", "smooth"])
def test_three_whole_steps(name: str, build: str, request: pytest.FixtureRequest, draws: Callable[..., Generator]) -> None:
    """Weights, momentum, running statistics, states; the AWP of TRADES switches on after the first of them (epoch 9 to 10)."""
    setting = request.getfixturevalue(build)
    setting = sharper(setting) if name == "mma" else setting
    params = {"cfol": {"rate": 0.3, "eps": 0.1}, "mma": {"hi": 0.1, "least": 0.05}, "fat": {"eps": 0.1, "tau": 1}}.get(name, {})
    pair = Pair(name, setting, params)
    ours, plain = optimizer(name, pair.ours), optimizer(name, pair.plain)
    for n, (x, y, rows) in enumerate(batches(setting, name, 3)):
        pair.epoch = 9 if n == 0 else 10
        pair.step.set_epoch(pair.epoch)
        if name == "trades_awp":
            pair.params["gamma"] = 0 if n == 0 else 0.005
        outcome = pair.run_plain(x, y, draws(n), rows.tolist())
        plain.step()
        ours.zero_grad()
        loss = pair.step(x, y, generator=draws(n), index=rows)
        loss.backward()
        ours.step()
        pair.step.after_update()
        keep_plain(pair)
        assert float(loss.detach()) == pytest.approx(float(outcome.loss), rel=1e-9)
        assert_same_models(pair.ours, pair.plain, 1e-10)
        for a, b in zip(ours.state.values(), plain.state.values(), strict=True):
            torch.testing.assert_close(a["momentum_buffer"], b["momentum_buffer"], rtol=1e-8, atol=1e-10)
        if name == "cfol":
            check_law(pair)
        if name == "mma":
            check_radii(pair)
        if n == 1:
            saved = {key: value.clone() for key, value in pair.step.state_dict().items()}
            pair.step = lossdsl.compile(
                RECIPES[name].with_params(**params), pair.ours, num_classes=setting.classes, models=pair.step.models
            )
            pair.step.load_state_dict(saved)


def keep_plain(pair: Pair) -> None:
    """What the plain version proposed acts from the next batch on."""
    new = pair.kept.pop("new", None)
    if pair.name == "cfol":
        pair.kept["w"] = new
    if pair.name == "mma":
        assert isinstance(new, dict) and isinstance(pair.kept["radii"], dict)
        pair.kept["radii"].update(new)


def check_law(pair: Pair) -> None:
    w = pair.kept["w"]
    assert isinstance(w, Tensor) and w.max() > 0
    torch.testing.assert_close(pair.step.state_dict()["state.w"], w, rtol=1e-12, atol=0)
    q = torch.softmax(w, 0)
    law = pair.params["gamma"] / len(w) + (1 - pair.params["gamma"]) * q
    torch.testing.assert_close(pair.step.class_probabilities(), law, rtol=1e-12, atol=0)


def check_radii(pair: Pair) -> None:
    radii = pair.kept["radii"]
    assert isinstance(radii, dict)
    memory = pair.step.state_dict()["memory.r"]
    assert {i: float(memory[i]) for i in radii} == pytest.approx(radii, rel=1e-9, abs=1e-12)
    assert all(float(memory[i]) == 0 for i in range(len(memory)) if i not in radii)
    assert len(set(radii.values())) > 1


def test_the_radii_of_mma_cover_every_case(smooth: Any, draws: Callable[..., Generator]) -> None:
    """Right examples with a radius inside, right ones never fooled (the whole interval, no margin term), and wrong ones (0)."""
    smooth = sharper(smooth)
    y = fooling(smooth, "mma", 0.7)
    pair = Pair("mma", smooth, {"hi": 0.1, "least": 0.1})
    pair.step(smooth.x, y, generator=draws(), index=torch.arange(7)).backward()
    pair.step.after_update()
    radii = pair.step.state_dict()["memory.r"]
    wrong = smooth.copy().eval()(smooth.x).argmax(1) != y
    assert wrong.any() and bool((radii[wrong] == 0).all())
    never = radii == 1.05 * 0.1
    inside = (radii > 0) & ~never
    assert never.any() and inside.any() and bool((never | inside)[~wrong].all())


def test_the_law_of_cfol_starts_uniform(smooth: Any) -> None:
    assert Pair("cfol", smooth).step.class_probabilities().tolist() == [0.25] * 4


# --- what a recipe promises beside its numbers ------------------------------------------------------------------------


class Calls:
    """How often a model is called, and with which of its modules in train mode."""

    def __init__(self, model: nn.Module) -> None:
        self.modes: list[bool] = []
        model.register_forward_pre_hook(lambda module, inputs: self.modes.append(module.training))


@pytest.mark.parametrize(("epoch", "train"), [(9, 2), (10, 4)])
def test_awp_costs_nothing_before_it_starts(epoch: int, train: int, normed: Any, draws: Callable[..., Generator]) -> None:
    """11 passes of the attack, 2 of the loss, and with AWP 2 more at the perturbed weights."""
    pair = Pair("trades_awp", normed, epoch=epoch)
    calls = Calls(pair.ours)
    pair.step(normed.x, normed.y, generator=draws())
    assert (calls.modes.count(False), calls.modes.count(True)) == (11, train)
    assert ("w" in pair.step.solve(normed.x, normed.y, generator=draws())) is (epoch == 10)


@pytest.mark.parametrize("name", ["sam", "asam", "bisam"])
def test_sharpness_costs_two_passes(name: str, normed: Any, draws: Callable[..., Generator]) -> None:
    pair = Pair(name, normed)
    calls = Calls(pair.ours)
    pair.step(normed.x, normed.y, generator=draws())
    assert calls.modes == [True, True]


@pytest.mark.parametrize("tau", [10, 11, 99])
def test_fat_that_never_stops_is_pgd(tau: int, normed: Any, draws: Callable[..., Generator]) -> None:
    """Without noise; the early-stopped attack of tau = 0 is another one."""
    text = 'recipe quiet extends fat\nlower x\' in linf(x, eps) by pgd(steps = 10, step = step, start = x + uniform(linf(0, eps)), until fooled(tau))'  # fmt: skip
    y = fooling(normed, "fat")
    params = {"eps": 0.15, "step": 0.03}

    def solution(recipe: Any, **more: float) -> Tensor:
        step = lossdsl.compile(recipe.with_params(**params, **more), normed.copy(), num_classes=4)
        return step.solve(normed.x, y, generator=draws())["x'"]

    quiet = lossdsl.parse(text)
    whole = solution(lossdsl.load("pgd_at"))
    assert torch.equal(solution(quiet, tau=tau), whole)
    assert not torch.equal(solution(quiet, tau=0), whole)


@pytest.mark.parametrize("left_in_train", [True, False])
def test_the_helper_of_hat_is_not_touched(left_in_train: bool, normed: Any, draws: Callable[..., Generator]) -> None:
    """Buffers, weights, modes module by module, requires_grad and .grad, after backward; it is in eval mode while it is asked."""
    model, given = normed.copy(), helper(normed).train(left_in_train)
    given[2].train(not left_in_train)
    before = copy.deepcopy(given)
    calls = Calls(given[2])
    step = lossdsl.compile("hat", model, num_classes=4, models={"g": given})
    step(normed.x, normed.y, generator=draws()).backward()
    assert calls.modes == [False]
    assert [m.training for m in given.modules()] == [m.training for m in before.modules()]
    assert [p.requires_grad for p in given.parameters()] == [p.requires_grad for p in before.parameters()]
    assert all(p.grad is None for p in given.parameters())
    assert all(torch.equal(a, b) for a, b in zip(given.state_dict().values(), before.state_dict().values(), strict=True))
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", ["at_rst", "trades_rst", "mart_rst", "bat_rst"])
def test_examples_without_a_label(name: str, smooth: Any, draws: Callable[..., Generator]) -> None:
    """What a dropped label was plays no part; labels outside the classes are refused; with every label, the loss is its base's."""
    y, step = fooling(smooth, name), Pair(name, smooth).step
    with pytest.raises(lossdsl.UserError, match="label"):
        step(smooth.x, torch.where(y < 0, -2, y), generator=draws())
    base = lossdsl.compile({"at_rst": "pgd_at"}.get(name, name.removesuffix("_rst")), smooth.copy(), num_classes=4)
    with pytest.raises(lossdsl.UserError, match="label"):
        base(smooth.x, y, generator=draws())
    ours, theirs = (s(smooth.x, smooth.y, generator=draws()) for s in (step, base))
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-12)


@pytest.mark.parametrize("name", ["trades_rst", "bat_rst"])
def test_a_batch_without_any_label(name: str, smooth: Any, draws: Callable[..., Generator]) -> None:
    """The divergence is what is left."""
    step = Pair(name, smooth).step
    loss = step(smooth.x, torch.full_like(smooth.y, -1), generator=draws())
    loss.backward()
    assert float(loss.detach()) >= 0
    assert all(bool(p.grad.isfinite().all()) for p in step.model.parameters() if p.grad is not None)


def test_class_fairness_follows_the_worst_class(smooth: Any, draws: Callable[..., Generator]) -> None:
    """One class alone: its mean; classes that the batch lacks do not count, whatever their loss would be."""
    step = Pair("class_fairness", smooth).step
    y = torch.full_like(smooth.y, 2)
    base = lossdsl.compile("pgd_at", smooth.copy(), num_classes=4)(smooth.x, y, generator=draws())
    assert float(step(smooth.x, y, generator=draws()).detach()) == pytest.approx(float(base.detach()), rel=1e-12)
