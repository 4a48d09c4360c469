"""Equalities between methods: value and every gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

import lossdsl

BAT_KL = """
recipe bat_kl extends bat
lower x' in linf(x, eps)
  maximize KL(p(x) || p(x'))
  by pgd(steps = 10, step = step, start = x + normal(0.001))
"""
ONE_FULL_STEP = """
recipe one_full_step extends fgsm_at
lower x' in linf(x, eps) maximize CE(f(x'), y) by pgd(steps = 1, step = eps, start = x)
"""


def recipe(name: str, **params: float) -> Any:
    loaded = lossdsl.parse(name) if "\n" in name else lossdsl.load(name)
    return loaded.with_params(**{{"lam": "lambda"}.get(k, k): v for k, v in params.items()})


def step_of(chosen: Any, setting: Any, generator: Generator) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of a whole step."""
    model = setting.copy()
    loss = lossdsl.compile(chosen, model, num_classes=setting.classes)(setting.x, setting.y, generator=generator)
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()]


def loss_at(chosen: Any, setting: Any, solutions: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients at given lower solutions."""
    model = setting.copy()
    loss = lossdsl.compile(chosen, model, num_classes=setting.classes).objective(setting.x, setting.y, solutions)
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()]


def nearby(setting: Any, seed: int = 3) -> Tensor:
    noise = torch.rand(setting.x.shape, dtype=setting.x.dtype, generator=Generator().manual_seed(seed))
    return (setting.x + 0.2 * noise - 0.1).clamp(0, 1)


def assert_same(a: tuple[Tensor, list[Tensor]], b: tuple[Tensor, list[Tensor]], tolerance: float = 1e-9) -> None:
    assert float(a[0]) == pytest.approx(float(b[0]), rel=tolerance)
    size = torch.cat([g.flatten() for g in b[1]]).norm()
    for ours, other in zip(a[1], b[1], strict=True):
        assert (ours - other).norm() <= tolerance * size


def different(a: tuple[Tensor, list[Tensor]], b: tuple[Tensor, list[Tensor]]) -> bool:
    return float(a[0]) != pytest.approx(float(b[0]), rel=1e-6)


def test_one_bridge_and_the_kl_attack_are_trades(setting: Any, draws: Callable[..., Generator]) -> None:
    trades = step_of(recipe("trades", lam=6), setting, draws())
    assert_same(step_of(recipe(BAT_KL, m=1, beta=6), setting, draws()), trades)
    assert different(step_of(recipe(BAT_KL, m=2, beta=6), setting, draws()), trades)
    assert different(step_of(recipe("bat", m=1, beta=6), setting, draws()), trades)


@pytest.mark.parametrize(("fait", "base"), [("fait", "trades"), ("fait_mer", "trades_mer"), ("fait_s", "score")])
@pytest.mark.parametrize("middle", ["x'", "x"])
def test_fait_is_its_base_where_the_middle_point_is_an_end(fait: str, base: str, middle: str, smooth: Any) -> None:
    """KL(p(x) || p(x')) + KL(p(x') || p(x')) and KL(p(x) || p(x)) + KL(p(x) || p(x'))."""
    far = nearby(smooth)
    lam = recipe(fait).params["lambda"]
    expected = loss_at(recipe(base, lam=lam), smooth, {"x'": far})
    assert_same(loss_at(recipe(fait), smooth, {"x'": far, "x'@2": far if middle == "x'" else smooth.x}), expected)
    assert different(loss_at(recipe(fait), smooth, {"x'": far, "x'@2": nearby(smooth, 4)}), expected)


@pytest.mark.parametrize(("mer", "base"), [("trades_mer", "trades"), ("fait_mer", "fait"), ("trades_mer_s", "score")])
def test_mer_without_weights_is_its_base(mer: str, base: str, normed: Any, draws: Callable[..., Generator]) -> None:
    lam = recipe(mer).params["lambda"]
    expected = step_of(recipe(base, lam=lam), normed, draws())
    assert_same(step_of(recipe(mer, b_cle=0, b_adv=0), normed, draws()), expected)
    assert different(step_of(recipe(mer, b_cle=0.01, b_adv=0), normed, draws()), expected)
    assert different(step_of(recipe(mer, b_cle=0, b_adv=0.01), normed, draws()), expected)


def test_smooth_beta_tends_to_beta(smooth: Any, draws: Callable[..., Generator]) -> None:
    beta = step_of(recipe("beta_at"), smooth, draws())
    assert_same(step_of(recipe("sbeta_at", mu=1e6), smooth, draws()), beta)
    gaps = [abs(step_of(recipe("sbeta_at", mu=mu), smooth, draws())[0] - beta[0]) for mu in (1, 10, 100)]
    assert gaps[0] > gaps[1] > gaps[2]


def test_smooth_beta_without_temperature_is_the_mean_over_classes(smooth: Any) -> None:
    """mu = 0: equal weights, so that the loss is the mean of CE over the K - 1 perturbations."""
    family = torch.stack([nearby(smooth, seed) for seed in (1, 2, 3)], 1)
    members = [loss_at(recipe("pgd_at"), smooth, {"x'": family[:, j]}) for j in range(3)]
    mean = [torch.stack(parts).mean(0) for parts in zip(*(m[1] for m in members), strict=True)]
    assert_same(loss_at(recipe("sbeta_at", mu=0), smooth, {"x'": family}), (torch.stack([m[0] for m in members]).mean(), mean))


def test_smooth_beta_weights_are_constants(smooth: Any) -> None:
    """The loss is linear in the weights: with stop, a change of the margins alone brings no gradient. Without it, it does."""
    family = torch.stack([nearby(smooth, seed) for seed in (1, 2, 3)], 1)
    text = """
recipe unstopped extends sbeta_at
upper minimize sum(j != y: w[j] * CE(f(x'[j]), y))
"""
    stopped, unstopped = (loss_at(recipe(r, mu=3), smooth, {"x'": family}) for r in ("sbeta_at", text))
    assert float(stopped[0]) == pytest.approx(float(unstopped[0]), rel=1e-12)
    assert any((a - b).norm() > 1e-3 * b.norm() for a, b in zip(stopped[1], unstopped[1], strict=True))


def test_one_full_sign_step_is_fgsm(setting: Any) -> None:
    steps = [lossdsl.compile(recipe(r), setting.copy(), num_classes=setting.classes) for r in ("fgsm_at", ONE_FULL_STEP)]
    fgsm, pgd = (step.solve(setting.x, setting.y)["x'"] for step in steps)
    assert torch.equal(fgsm, pgd)
    assert (fgsm != setting.x).any()


def test_trades_without_lambda_is_standard_training(normed: Any, draws: Callable[..., Generator]) -> None:
    assert_same(step_of(recipe("trades", lam=0), normed, draws()), step_of(recipe("erm"), normed, draws()))


def test_a_radius_of_zero_leaves_the_clean_point(normed: Any, draws: Callable[..., Generator]) -> None:
    """No room for the attack: TRADES, MART and BAT at x' = x."""
    for name in ("trades", "fait", "mart", "bat", "pgd_at", "fgsm_at"):
        step = lossdsl.compile(recipe(name, eps=0), normed.copy(), num_classes=4)
        assert torch.equal(step.solve(normed.x, normed.y, generator=draws())["x'"], normed.x)
    assert_same(step_of(recipe("pgd_at", eps=0), normed, draws()), step_of(recipe("erm"), normed, draws()))


def lower(base: str, head: str, through: str) -> str:
    """A recipe whose level passes gradients another way."""
    return f"recipe other extends {base}\nlower {head} through {through}\n"


REDUCTIONS: dict[str, tuple[tuple[str, dict[str, float]], tuple[str, dict[str, float]]]] = {
    "DDi with one maximiser": (
        (lower("ddi", "x' in linf(x, eps)", "danskin(starts = 1)"), {}), (lower("ddi", "x' in linf(x, eps)", "nothing"), {})
    ),
    "Fast-BAT with alpha2 = 0": (
        ("fast_bat", {"share": 0, "lam": 30}), (lower("fast_bat", "x' in linf(x, eps)", "nothing"), {"lam": 30})
    ),
    "AT-AWP with gamma = 0": (("at_awp", {"gamma": 0}), ("pgd_at", {})),
    "TRADES-AWP with gamma = 0": (("trades_awp", {"gamma": 0}), ("trades", {})),
    "SAM with rho = 0": (("sam", {"rho": 0, "s": 0}), ("erm", {})),
    "ASAM with rho = 0": (("asam", {"rho": 0, "s": 0}), ("erm", {})),
    "BiSAM with rho = 0": (("bisam", {"rho": 0, "s": 0}), ("erm", {})),
    "GradAlign with lambda = 0": (("gradalign", {"lam": 0}), ("fgsm_at", {})),
    "CURE with lambda = 0": (("cure", {"lam": 0}), ("fgsm_at", {})),
    "LLR-FGSM with lambda = 0": (("llr_fgsm", {"lam": 0}), ("fgsm_at", {})),
    "ALP with lambda = 0": (
        ("alp", {"lam": 0}), ("recipe both extends pgd_at\nupper minimize (CE(f(x), y) + CE(f(x'), y))/2\n", {})
    ),
    "Free-AT on its first batch": (("free_at", {}), ("erm", {})),
    "GAIRAT before its weights": (("gairat", {}), ("pgd_at", {})),
    "ELLE with lambda = 0": (
        ("elle", {"lam": 0}),
        ("recipe bare\nparam eps = 8/255\nlower d in linf(0, eps) maximize CE(f(x + d), y) by linear(start = 0)\nupper minimize CE(f(x + d), y) by sgd(lr = 0.2)\n", {}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REDUCTIONS)
def test_a_method_at_the_end_of_its_range_is_another_one(name: str, smooth: Any, draws: Callable[..., Generator]) -> None:
    (special, params), (base, others) = REDUCTIONS[name]
    expected = step_of(recipe(base, **others), smooth, draws())
    assert_same(step_of(recipe(special, **params), smooth, draws()), expected)
    for param in params.keys() - others.keys() - {"s"}:
        moved = step_of(recipe(special, **{**params, param: 1000.0 if param == "lam" else 0.3}), smooth, draws())
        assert any((a - b).norm() > 1e-6 * b.norm() for a, b in zip(moved[1], expected[1], strict=True)), f"{param} does nothing"
