"""Noise: what stochastic solvers do on average, over many plays with a fixed seed and generous margins."""

from __future__ import annotations

import math

import pytest
import torch
from games_helpers import game, rows
from torch import Tensor

from lossdsl.games import Game, compile_game, load_game


def test_noise_is_fresh_in_every_evaluation_and_has_its_size() -> None:
    """Two evaluations in one step of extragradient on V = 0: the second draw alone moves the point, by step * noise."""
    played = game("player u = 0 minimize 0 * u\nplayer v = 0 maximize 0 * v\n")
    still = torch.zeros(3000, 2, dtype=torch.float64)
    moved = played.run("extragradient(step = 0.5, iterations = 1, noise = normal(2))", start=still).final
    assert abs(float(moved.std()) - 1) < 0.03 and abs(float(moved.mean())) < 0.05
    assert abs(float(torch.corrcoef(moved.T)[0, 1])) < 0.06
    two = played.run("gda(step = 0.5, iterations = 2, noise = normal(2))", start=still).final
    assert abs(float(two.std()) - math.sqrt(2)) < 0.04


def test_one_seed_is_one_play_and_another_seed_another() -> None:
    played = load_game("bilinear").with_solver("gda(step = 0.1, iterations = 20, noise = normal(0.3))")
    assert torch.equal(played.run(seed=5).points, played.run(seed=5).points)
    assert not torch.equal(played.run(seed=5).points, played.run(seed=6).points)


def test_bias_correction_uses_one_draw_for_both_fields() -> None:
    """Where V = 0 the noise of V(z, s) and V(z-, s) is the same draw s: the second extrapolation is bar = z - step (1 - (1 - a)) s + ..."""
    played = game("player u = 0 minimize 0 * u\n")
    from lossdsl.games.regions import Projection
    from lossdsl.games.solvers import Oracle, bcseg_plus

    solver = played.with_solver(
        "bcseg_plus(step = 1, alpha = 0.25, schedule = sqrt, every = 1e9, iterations = 5, noise = normal(1))"
    ).solver
    oracle = Oracle(played._field, torch.Generator().manual_seed(0), 1.0)
    z = torch.zeros(20000, 1, dtype=torch.float64)
    _, (bar, before) = bcseg_plus(z, 1, (z, z), oracle, solver.options, Projection(played._field))
    assert abs(float(bar.std()) - 0.25) < 0.01  # z - s + (1 - a)(0 - 0 + s) = -a s; two independent draws would give 1.25
    assert torch.equal(before, z)


def repelling() -> Game:
    return compile_game(load_game("quadratic").recipe.with_params(rho=-0.1))


def size(points: Tensor) -> float:
    return float(points.square().sum(1).mean().sqrt())


@pytest.mark.parametrize("solver", ["seg_plus", "bcseg_plus"])
def test_a_fixed_extrapolation_holds_under_weak_mvi(solver: str) -> None:
    """rho = -0.1, L = 1: with the first step fixed and a_k decreasing plays approach the solution in mean square."""
    run = repelling().run(f"{solver}(step = 1, alpha = 0.2, every = 100, iterations = 1000, noise = normal(0.1))", start=torch.ones(64, 2))
    assert size(run.points[200]) < 0.1 and size(run.final) < 0.7 * size(run.points[100])


def test_a_decreasing_extrapolation_loses_what_it_is_for() -> None:
    run = repelling().run("seg(step = 1, alpha = 1, every = 100, iterations = 1000, noise = normal(0.1))", start=torch.ones(64, 2))
    assert size(run.final) > 2


CURVED = "player u = 0 minimize u^2/2 + 0.8 * sin(u + 1)\n"
"""V(u) = u + 0.8 cos(u + 1): monotone, with curvature at its only zero -0.78087."""
NOISE = "(step = 0.5, alpha = 0.5, every = 20, iterations = 700, noise = normal(1))"


def final(solver: str) -> Tensor:
    return game(CURVED).run(solver + NOISE, start=torch.zeros(1000, 1), every=700).final[:, 0]


def biased() -> float:
    """Where seg_plus ends: E V(z - step (V(z) + s)) = 0 with E cos(m + 1 - step s) = cos(m + 1) exp(-step^2 / 2)."""
    shrink = math.exp(-(0.5**2) / 2)
    m = z = 0.0
    for _ in range(200):
        m = -0.8 * shrink * math.cos(m + 1)
    for _ in range(200):
        z = m + 0.5 * (z + 0.8 * math.cos(z + 1))
    return z


def test_seg_plus_is_biased_where_the_field_is_curved() -> None:
    solution = game(CURVED).critical_points()[0].z[0]
    assert solution == pytest.approx(-0.78087, abs=1e-5) and biased() == pytest.approx(-0.598, abs=1e-3)
    mean = float(final("seg_plus").mean())
    assert abs(mean - biased()) < 0.02 and abs(mean - solution) > 0.15


@pytest.mark.parametrize("solver", ["bcseg_plus", "seg"])
def test_bias_correction_and_decreasing_extrapolation_are_not(solver: str) -> None:
    solution = game(CURVED).critical_points()[0].z[0]
    assert abs(float(final(solver).mean()) - solution) < 0.02


def test_samples_inside_an_objective_are_a_stochastic_oracle_too() -> None:
    played = game("sample e ~ normal(1)\nplayer u = 3 minimize (u - 2 - e)^2/2\n", "solve gda(step = 0.05, iterations = 400)\n")
    final = played.run(start=torch.full((500, 1), 3.0)).final
    assert abs(float(final.mean()) - 2) < 0.05
    assert float(final.std()) == pytest.approx(math.sqrt(0.05 / (2 - 0.05)), rel=0.15)  # stationary variance of the linear recursion
    assert played.verdicts(played.run()) == ["random"]
    with pytest.raises(Exception, match="random"):
        played.field(rows((1.0,)))
