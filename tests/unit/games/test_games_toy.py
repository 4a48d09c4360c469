"""The toy of catastrophic overfitting: h(a) = sin(theta a) on (-pi/2, -1) and (pi/2, 1), FGSM of radius eps (T35, A17).

With this data the two examples are mirror images; margins are sin(theta a) at a near pi/2. FGSM moves a by eps along the sign of the
loss's slope, away from the crest sin = 1 that is nearest.
"""

from __future__ import annotations

import math

import pytest
import torch

from lossdsl.games import Game, compile_game, load_game

THETA = torch.linspace(0.0005, 9.9995, 10000, dtype=torch.float64).unsqueeze(1)


def toy(eps: float) -> Game:
    return compile_game(load_game("co_toy").recipe.with_params(eps=eps))


def plain(theta: float, v: float) -> float:
    return (math.sin(theta * v) - 1) ** 2


@pytest.mark.parametrize("theta", [0.4, 1.3, 2.7, 6.9])
def test_losses_against_plain_arithmetic(theta: float) -> None:
    eps, a = 0.3, math.pi / 2
    slope = 2 * (math.sin(theta * a) - 1) * math.cos(theta * a) * theta
    at = a + eps * math.copysign(1, slope)
    played, z = toy(eps), torch.tensor([[theta]], dtype=torch.float64)
    assert played.objectives(z)["theta"].item() == pytest.approx(plain(theta, at))
    logs = played.logs(z)
    assert logs["clean"].item() == pytest.approx(plain(theta, a))
    assert logs["worst"].item() == pytest.approx(max(plain(theta, a + eps * (k / 10 - 1)) for k in range(21)))
    assert played.field(z).item() == pytest.approx(2 * (math.sin(theta * at) - 1) * math.cos(theta * at) * at)  # at is a constant


def best_theta(eps: float) -> float:
    return float(THETA[toy(eps).objectives(THETA)["theta"].argmin()])


@pytest.mark.parametrize("eps", [0.2, 0.3, math.pi / 8 - 0.01])
def test_below_pi_over_8_the_best_model_under_fgsm_is_robust(eps: float) -> None:
    theta = best_theta(eps)
    assert theta == pytest.approx(1, abs=2e-3)
    z = torch.tensor([[theta]], dtype=torch.float64)
    assert toy(eps).logs(z)["worst"].item() == pytest.approx((1 - math.cos(eps)) ** 2, abs=1e-3)


@pytest.mark.parametrize("eps", [math.pi / 8 + 0.01, 0.45, 0.5])
def test_above_pi_over_8_it_overfits_catastrophically(eps: float) -> None:
    """At theta = 7 the FGSM point lands on the next crest, sin(7 (pi/2 +- eps)) near 1, while the clean prediction is -1."""
    theta = best_theta(eps)
    assert theta == pytest.approx(7, abs=0.35)
    z = torch.tensor([[theta]], dtype=torch.float64)
    played = toy(eps)
    fgsm = played.objectives(z)["theta"].item()
    assert fgsm < (1 - math.cos(eps)) ** 2 and fgsm < 0.01
    assert played.logs(z)["clean"].item() > 1 and played.logs(z)["worst"].item() > 3.5


def test_at_theta_7_and_1_fgsm_losses_meet_at_pi_over_8() -> None:
    """sin(7 pi/2 + 7 pi/8) = sin(3 pi/8) = cos(pi/8): the two kinks have one loss at eps = pi/8 and change places there."""
    kinks = torch.tensor([[1 - 1e-4], [7 - 1e-4]], dtype=torch.float64)
    at = toy(math.pi / 8).objectives(kinks)["theta"]
    torch.testing.assert_close(at[0], at[1], rtol=0, atol=1e-4)
    below, above = (toy(math.pi / 8 + d).objectives(kinks)["theta"] for d in (-0.01, 0.01))
    assert below[0] < below[1] and above[0] > above[1]


def test_the_critical_radius_depends_on_how_far_theta_may_go() -> None:
    """With theta up to 11 the same happens at 11 from pi/10 on."""
    kinks = torch.tensor([[1 - 1e-4], [11 - 1e-4]], dtype=torch.float64)
    at = toy(math.pi / 10).objectives(kinks)["theta"]
    torch.testing.assert_close(at[0], at[1], rtol=0, atol=1e-4)


def test_training_from_a_small_theta_finds_the_robust_model() -> None:
    final = toy(0.3).run(iterations=400).final.item()
    assert final == pytest.approx(1, abs=0.02)
