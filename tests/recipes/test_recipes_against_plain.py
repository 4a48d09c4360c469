"""Every shipped recipe against plain PyTorch: lower solutions, loss, gradients, running statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import pytest
import torch
from plain import METHODS
from plain_flow import FLOW_METHODS
from plain_weights import PLAIN
from torch import Generator, Tensor, nn

import lossdsl
from lossdsl.assets import recipe_paths

NAMES = sorted(METHODS)
RECIPES = {name: lossdsl.load(name) for name in NAMES}
NO_PARAMS: Mapping[str, float] = MappingProxyType({})
OVERRIDES = [
    ("fgsm_at", {"eps": 0.3}),
    ("fast_at", {"eps": 0.1, "step": 0.07}),
    ("pgd_at", {"step": 0.004}),
    ("pgd2_at", {"eps": 0.2, "step": 0.15}),
    ("trades", {"lambda": 0.5, "eps": 0.05, "step": 0.01}),
    ("mart", {"lambda": 0, "eps": 0.2, "step": 0.03}),
    ("fait", {"lambda": 3, "I": 1}),
    ("fait", {"I": 9}),
    ("trades_mer", {"b_cle": 0.5, "b_adv": 0.25}),
    ("fait_mer", {"I": 5, "b_cle": 0, "b_adv": 2}),
    ("score", {"lambda": 11}),
    ("fait_s", {"lambda": 1, "I": 7}),
    ("trades_mer_s", {"b_cle": -1, "b_adv": 3}),
    ("bat", {"m": 1}),
    ("bat", {"m": 5, "beta": 2.5}),
    ("beta_at", {"eps": 0.2, "step": 0.04}),
    ("sbeta_at", {"mu": 0.5}),
]


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    loss.backward()
    return [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]


def assert_same_gradients(ours: list[Tensor], plain: list[Tensor], tolerance: float) -> None:
    """Relative to the norm of the whole gradient, for every parameter by itself."""
    size = torch.cat([g.flatten() for g in plain]).norm()
    assert size > 1e-3
    for a, b in zip(ours, plain, strict=True):
        assert (a - b).norm() <= tolerance * size


def assert_same_buffers(ours: nn.Module, plain: nn.Module) -> None:
    for (name, a), (_, b) in zip(ours.named_buffers(), plain.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


def plain_run(
    name: str, setting: Any, generator: Generator, params: Mapping[str, float] = NO_PARAMS
) -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    model, method = setting.copy(), METHODS[name]
    values = {**method.params, **params}
    solutions = method.attack(model, setting.x, setting.y, generator, values)
    return model, solutions, method.loss(model, setting.x, setting.y, solutions, values)


def test_every_shipped_recipe_has_a_plain_version() -> None:
    """Each in exactly one of the three modules of plain versions."""
    assert sorted(recipe_paths()) == sorted([*METHODS, *FLOW_METHODS, *PLAIN])


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_those_of_the_papers(name: str) -> None:
    assert RECIPES[name].params == pytest.approx(METHODS[name].params)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_in_float64(name: str, setting: Any, draws: Callable[..., Generator]) -> None:
    """Solutions, loss, gradients and running statistics of one whole step."""
    plain_model, solutions, plain_loss = plain_run(name, setting, draws())
    model = setting.copy()
    step = lossdsl.compile(RECIPES[name], model, num_classes=setting.classes)
    found = step.solve(setting.x, setting.y, generator=draws())
    for key, point in solutions.items():
        assert found[key].shape == point.shape
        assert (found[key] - point).abs().max() < 1e-12
    model.load_state_dict(setting.model.state_dict())
    loss = step(setting.x, setting.y, generator=draws())
    assert float(loss.detach()) == pytest.approx(float(plain_loss.detach()), rel=1e-9)
    assert_same_gradients(gradients(model, loss), gradients(plain_model, plain_loss), 1e-9)
    assert_same_buffers(model, plain_model)


def test_mart_runs_the_clean_batch_first(normed: Any, draws: Callable[..., Generator]) -> None:
    """As the released code: the last batch weighs most in the running statistics."""
    plain_model, _, _ = plain_run("mart", normed, draws())
    model = normed.copy()
    lossdsl.compile(RECIPES["mart"], model, num_classes=4)(normed.x, normed.y, generator=draws())
    assert_same_buffers(model, plain_model)


class Wide(nn.Module):
    """The same model with its logits handed on in float64, so that only the passes through it round."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).double()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", NAMES)
def test_the_objective_in_float32(name: str, setting: Any, draws: Callable[..., Generator]) -> None:
    """At the same solutions: in float32 a gradient of rounding errors alone may turn a sign of the attack."""
    _, solutions, _ = plain_run(name, setting, draws())
    setting = setting.to(torch.float32)
    solutions = {key: point.float() for key, point in solutions.items()}
    plain_model, model = setting.copy(), setting.copy()
    plain_loss = METHODS[name].loss(Wide(plain_model), setting.x, setting.y, solutions, METHODS[name].params)
    loss = lossdsl.compile(RECIPES[name], model, num_classes=setting.classes).objective(setting.x, setting.y, solutions)
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(plain_loss.detach()), rel=1e-5)
    assert_same_gradients(gradients(model, loss), gradients(plain_model, plain_loss), 1e-5)


@pytest.mark.parametrize(("name", "params"), OVERRIDES, ids=lambda v: v if isinstance(v, str) else ",".join(v))
def test_other_params(name: str, params: dict[str, float], normed: Any, draws: Callable[..., Generator]) -> None:
    plain_model, _, plain_loss = plain_run(name, normed, draws(), params)
    model = normed.copy()
    loss = lossdsl.compile(RECIPES[name].with_params(**params), model, num_classes=4)(normed.x, normed.y, generator=draws())
    assert float(loss.detach()) == pytest.approx(float(plain_loss.detach()), rel=1e-9)
    assert_same_gradients(gradients(model, loss), gradients(plain_model, plain_loss), 1e-9)
    _, _, default_loss = plain_run(name, normed, draws())
    assert float(default_loss.detach()) != pytest.approx(float(loss.detach()), rel=1e-6)
