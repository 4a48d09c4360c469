"""The recipes of plain_flow against plain PyTorch: lower solutions, loss, gradients, running statistics, modes; whole runs where they have
a memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
import torch
from conftest import cnn_relu_bn, make, mlp_tanh
from plain_flow import FLOW_METHODS, ElleA, FlowMethod, FreeAt, Outcome, ddi, fast_bat_exact
from torch import Generator, Tensor, nn

import lossdsl
from lossdsl.run.optim import build_stepper

NAMES = sorted(FLOW_METHODS)
RECIPES = {name: lossdsl.load(name) for name in NAMES}
NO_PARAMS: Mapping[str, float] = MappingProxyType({})
MODELS = {"mlp": mlp_tanh, "cnn": cnn_relu_bn}
WIDE = {"eps": 0.1, "lambda": 4.0, "share": 0.7}
"""A weight at which some coordinates of the solution are free and some are not."""
OVERRIDES = [
    ("gradalign", {"eps": 0.2, "lambda": 3}),
    ("fast_bat", WIDE),
    ("fast_bat", {**WIDE, "share": 0}),
    ("fast_bat_random", WIDE),
    ("fast_bat_corner", WIDE),
    ("fast_bat_sign", WIDE),
    ("fast_bat_exact", WIDE),
    ("llr", {"eps": 0.2, "lambda": 0.5, "mu": 7, "step": 0.07}),
    ("llr_fgsm", {"eps": 0.2, "lambda": 3}),
    ("cure", {"eps": 0.2, "lambda": 3}),
    ("elle", {"eps": 0.2, "lambda": 7}),
    ("ddi", {"eps": 0.2, "step": 0.1}),
    ("free_at", {"eps": 0.2}),
    ("alp", {"eps": 0.2, "lambda": 3}),
]


@pytest.fixture(params=[(m, inside) for m in MODELS for inside in (False, True)], ids=lambda p: f"{p[0]}-{'inside' if p[1] else 'border'}")
def place(request: pytest.FixtureRequest) -> Any:
    """A model and a batch that touches both ends of [0, 1], or that stays away from them, so that no point is clipped to the domain."""
    name, inside = request.param
    setting = make(MODELS[name], 4)
    return replace(setting, x=0.3 + 0.4 * setting.x) if inside else setting


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    loss.backward()
    return [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]


def assert_same_gradients(ours: list[Tensor], plain: list[Tensor], tolerance: float = 1e-9) -> None:
    size = torch.cat([g.flatten() for g in plain]).norm()
    assert size > 1e-3
    for a, b in zip(ours, plain, strict=True):
        assert (a - b).norm() <= tolerance * size


def assert_same_state(ours: nn.Module, plain: nn.Module, tolerance: float = 1e-12) -> None:
    """Buffers, and parameters too."""
    for (name, a), (_, b) in zip(ours.state_dict().items(), plain.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}")


def compare(recipe: Any, method: FlowMethod, place: Any, draws: Callable[..., Generator], params: Mapping[str, float]) -> Outcome:
    """One step of both; everything must agree. The model is left in eval mode before, and must be in it afterwards."""
    plain_model = place.copy()
    plain = method.run(plain_model, place.x, place.y, draws(), {**method.params, **params})
    step = lossdsl.compile(recipe.with_params(**params), place.copy(), num_classes=4)
    found = step.solve(place.x, place.y, generator=draws())
    for key, point in plain.solutions.items():
        assert found[key].shape == point.shape
        assert (found[key] - point).abs().max() < 1e-12, key
    model = place.copy().eval()
    loss = lossdsl.compile(recipe.with_params(**params), model, num_classes=4)(place.x, place.y, generator=draws())
    assert not any(m.training for m in model.modules())
    assert float(loss.detach()) == pytest.approx(float(plain.loss), rel=1e-9)
    assert sum(float(t) for t in loss.terms.values()) == pytest.approx(float(plain.loss), rel=1e-9)
    assert_same_gradients(gradients(model, loss), plain.gradients)
    assert_same_state(model, plain_model)
    return plain


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_those_of_the_papers(name: str) -> None:
    assert RECIPES[name].params == pytest.approx(FLOW_METHODS[name].params)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_in_float64(name: str, place: Any, draws: Callable[..., Generator]) -> None:
    compare(RECIPES[name], FLOW_METHODS[name], place, draws, NO_PARAMS)


@pytest.mark.parametrize(("name", "params"), OVERRIDES, ids=lambda v: v if isinstance(v, str) else ",".join(v))
def test_other_params(name: str, params: dict[str, float], place: Any, draws: Callable[..., Generator]) -> None:
    compare(RECIPES[name], FLOW_METHODS[name], place, draws, params)


@pytest.mark.parametrize("name", ["fast_bat", "fast_bat_random", "fast_bat_corner", "fast_bat_sign"])
def test_fast_bat_has_free_and_held_coordinates_here(name: str, place: Any, draws: Callable[..., Generator]) -> None:
    """So that the mask matters above, and the implicit term changes the gradient where its share is not 0."""
    method = FLOW_METHODS[name]
    plain = method.run(place.copy(), place.x, place.y, draws(), {**method.params, **WIDE})
    without = method.run(place.copy(), place.x, place.y, draws(), {**method.params, **WIDE, "share": 0})
    found = plain.solutions["x'"]
    low, high = (place.x - 0.1).clamp(min=0), (place.x + 0.1).clamp(max=1)
    free = ((found > low) & (found < high)).double().mean()
    assert 0.1 < float(free) < 0.9
    change = torch.cat([(a - b).flatten() for a, b in zip(plain.gradients, without.gradients, strict=True)])
    assert change.norm() > 1e-3 * torch.cat([b.flatten() for b in without.gradients]).norm()


def test_gradalign_leaves_out_examples_without_a_gradient(draws: Callable[..., Generator]) -> None:
    """ReLUs that are all off at the first and the third example, at x and around it: their cosine is not 1 for free, it does not count."""
    setting = _dead()
    plain = compare(RECIPES["gradalign"], FLOW_METHODS["gradalign"], setting, draws, {"lambda": 3, "eps": 0.05})
    slope = torch.autograd.grad(setting.model(setting.x.requires_grad_()).sum(), setting.x)[0]
    setting.x.requires_grad_(False)
    assert [bool(row.any()) for row in slope] == [False, True, False, True, True]
    assert bool(plain.loss.isfinite())


def _dead() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        setting = make(mlp_tanh, 4, batch=5)
        model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)).double()
    with torch.no_grad():
        model[0].weight.abs_()
        model[0].bias.fill_(-0.6)
    x = 0.5 + 0.4 * setting.x
    x[0], x[2] = 0.02, 0.03
    return replace(setting, model=model, x=x)


@pytest.mark.parametrize("builder", ["mlp", "cnn"])
def test_elle_a_over_eight_batches(builder: str, draws: Callable[..., Generator]) -> None:
    """The weights move by SGD; before the fifth batch the caller scales a layer, so that the error jumps and lambda with it. After the sixth
    batch everything is saved and taken up by a new step on a new model."""
    setting = make(MODELS[builder], 4)
    plain_model, model = setting.copy(), setting.copy()
    plain_draws, our_draws = draws(), draws()
    controller, recipe = ElleA(4000.0), RECIPES["elle_a"]
    step = lossdsl.compile(recipe, model, num_classes=4)
    plain_optimizer, optimizer = (torch.optim.SGD(m.parameters(), lr=1e-3, momentum=0.9) for m in (plain_model, model))
    factors = []
    for n in range(8):
        if n == 4:
            for m in (plain_model, model):
                with torch.no_grad():
                    m[-1].weight.mul_(6)
        batch = make(MODELS[builder], 4, seed=n + 1)
        factors.append(controller.factor)
        plain = controller.batch(plain_model, batch.x, batch.y, plain_draws, recipe.params)
        loss = step(batch.x, batch.y, generator=our_draws)
        assert float(loss.logs["lambda_now"]) == pytest.approx(factors[-1], rel=1e-12)
        assert float(loss.detach()) == pytest.approx(float(plain.loss), rel=1e-9)
        assert_same_gradients(gradients(model, loss), plain.gradients)
        for p, g in zip(plain_model.parameters(), plain.gradients, strict=True):
            p.grad = g
        for o in (plain_optimizer, optimizer):
            o.step()
        optimizer.zero_grad()
        step.after_update()
        assert_same_state(model, plain_model, 1e-10)
        if n == 5:
            saved = {key: value.clone() for key, value in step.state_dict().items()}
            fresh = setting.copy()
            fresh.load_state_dict(model.state_dict())
            moments = optimizer.state_dict()
            model, step = fresh, lossdsl.compile(recipe, fresh, num_classes=4)
            step.load_state_dict(saved)
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
            optimizer.load_state_dict(moments)
    assert controller.jumps[4] and not any(controller.jumps[:4])
    assert factors[:5] == [0.0] * 5 and factors[5] == 4000.0


def test_elle_a_waits_for_after_update(normed: Any, draws: Callable[..., Generator]) -> None:
    """A step whose update is not taken changes no state."""
    step = lossdsl.compile(RECIPES["elle_a"], normed.copy(), num_classes=4)
    step(normed.x, normed.y, generator=draws())
    assert not step.state_dict()
    step.after_update()
    assert float(step.state_dict()["state.n"]) == 1


@pytest.mark.parametrize("builder", ["mlp", "cnn"])
def test_free_at_over_two_batches(builder: str) -> None:
    """Each batch eight times in a row, as the trainer does; the second one is smaller, and the run is taken up by a new step within it.
    The epochs' optimizer is the recipe's."""
    recipe = RECIPES["free_at"].with_params(eps=0.1)
    setting = make(MODELS[builder], 4)
    batches = [make(MODELS[builder], 4, seed=1), make(MODELS[builder], 4, batch=5, seed=2)]
    plain_model, model = setting.copy(), setting.copy()
    plain, step = FreeAt(0.1), lossdsl.compile(recipe, model, num_classes=4)
    plain_optimizer, optimizer = (torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4) for m in (plain_model, model))
    starts = []
    for batch in batches:
        for _ in range(recipe.train.replays):
            expected = plain.replay(plain_model, batch.x, batch.y)
            optimizer.zero_grad()
            loss = step(batch.x, batch.y)
            assert float(loss.detach()) == pytest.approx(float(expected.loss), rel=1e-9)
            assert_same_gradients(gradients(model, loss), expected.gradients)
            plain_optimizer.step()
            optimizer.step()
            step.after_update()
            assert_same_state(model, plain_model, 1e-10)
            torch.testing.assert_close(step.state_dict()["previous.x'"], plain.delta, rtol=0, atol=1e-12)
            starts.append(float((expected.solutions["x'@0"] - batch.x).abs().max()))
            if len(starts) == 11:
                saved = step.state_dict()
                step = lossdsl.compile(recipe, model, num_classes=4)
                step.load_state_dict(saved)
    assert len(starts) == 16 and starts[0] == 0 and min(starts[1:]) > 0.09


@pytest.mark.parametrize(("builder", "starts"), [("mlp", 10), ("cnn", 3)])
def test_ddi_over_three_updates(builder: str, starts: int, draws: Callable[..., Generator]) -> None:
    """The direction scaled to length one, times the rate; the optimizer is the recipe's, as the trainer builds it."""
    text = f"recipe few extends ddi\nlower x' in linf(x, eps) through danskin(starts = {starts})"
    recipe = lossdsl.parse(text).with_params(eps=0.2, step=0.1)
    setting = make(MODELS[builder], 4)
    plain_model, model = setting.copy(), setting.copy()
    plain_draws, our_draws, method = draws(), draws(), ddi(starts)
    step = lossdsl.compile(recipe, model, num_classes=4)
    stepper = build_stepper(recipe.typed.optimizer, model.parameters(), recipe.train, per_epoch=3)
    for n in range(3):
        batch = make(MODELS[builder], 4, seed=n + 1)
        plain = method(plain_model, batch.x, batch.y, plain_draws, recipe.params)
        stepper.optimizer.zero_grad()
        loss = step(batch.x, batch.y, generator=our_draws)
        assert float(loss.detach()) == pytest.approx(float(plain.loss), rel=1e-9)
        assert_same_gradients(gradients(model, loss), plain.gradients)
        stepper.step(stepper.norm())
        length = torch.cat([g.flatten() for g in plain.gradients]).norm()
        with torch.no_grad():
            for p, g in zip(plain_model.parameters(), plain.gradients, strict=True):
                p.sub_(0.1 * g / length)
        assert_same_state(model, plain_model, 1e-10)


@pytest.mark.parametrize("params", [{}, WIDE], ids=["default", "wide"])
def test_fast_bat_with_the_exact_inverse(params: dict[str, float], place: Any, draws: Callable[..., Generator]) -> None:
    """With steps and tolerance enough, the linear system is solved; BatchNorm in train mode couples the examples of its matrix."""
    text = """recipe solved extends fast_bat_exact
    lower x' in linf(x, eps) through implicit(scale = share * lambda, steps = 500, tolerance = 1e-14)"""
    method = FlowMethod(fast_bat_exact(steps=None), FLOW_METHODS["fast_bat_exact"].params)
    compare(lossdsl.parse(text), method, place, draws, params)
