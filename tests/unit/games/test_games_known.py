"""The games of the slides: where the field vanishes, what the flow does there, and where plays end (methods.md, T33 and A16)."""

from __future__ import annotations

import math

import pytest
import torch
from games_helpers import game, rows
from torch import Tensor

from lossdsl.games import Game, load_game

pytestmark = pytest.mark.slow


def flow(played: Game, start: Tensor, time: float, step: float) -> Tensor:
    """The points of dz/dt = -V(z) by the classical Runge-Kutta method, [T + 1, N, 2]."""
    z, points = start, [start]
    for _ in range(round(time / step)):
        a = -played.field(z)
        b = -played.field(z + step / 2 * a)
        c = -played.field(z + step / 2 * b)
        z = z + step / 6 * (a + 2 * b + 2 * c - played.field(z + step * c))
        points.append(z)
    return torch.stack(points)


KNOWN = {
    # name: critical point, eigenvalues of the Jacobian there, what the flow does
    "bilinear": ((0, 0), complex(0, 1), "centre"),
    "almost_bilinear": ((0, 0), complex(0.05, math.sqrt(1 - 0.05**2)), "attracts"),
    "almost_bilinear_max": ((0, 0), complex(-0.05, math.sqrt(1 - 0.05**2)), "repels"),
    "forsaken": ((0.046019, 0.477185), complex(-0.0598, 0.8370), "repels"),
    "forsaken_45": ((0.078027, 0.411934), complex(0.0447, 0.9080), "attracts"),
    "quadratic": ((0, 0), complex(-0.1, math.sqrt(0.99)), "repels"),
    "global_forsaken": ((0, 0), complex(2 / 3, 1), "attracts"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_one_critical_point(name: str) -> None:
    point, eigenvalue, character = KNOWN[name]
    (found,) = load_game(name).critical_points()
    assert found.z == pytest.approx(point, abs=6e-7)
    assert found.eigenvalues[1] == pytest.approx(eigenvalue, abs=8e-5)
    assert found.eigenvalues[0] == pytest.approx(eigenvalue.conjugate(), abs=8e-5)
    assert found.character == character


def test_several_critical_points_and_a_saddle() -> None:
    played = game("player u = 0.1 minimize u^4/4 - u^2/2\nplayer v = 0 minimize v^2\n")
    found = {round(c.z[0], 9): c.character for c in played.critical_points()}
    assert found == {-1.0: "attracts", 0.0: "saddle", 1.0: "attracts"}
    inside = game("player u = 0.1 in [0, 3] minimize u^4/4 - u^2/2\nplayer v = 0 minimize v^2\n")
    assert sorted(round(c.z[0], 9) for c in inside.critical_points()) == [0.0, 1.0]


def test_the_cycle_of_forsaken() -> None:
    """Every start ends on one cycle."""
    starts = rows((0.5, 0.5), (0.2, 0.2), (-1.0, 1.4), (1.5, -1.5))
    last = flow(load_game("forsaken"), starts, 54, 0.06)[-250:]  # more than one round
    for n in range(len(starts)):
        low, high = last[:, n].amin(0), last[:, n].amax(0)
        assert low.tolist() == pytest.approx([-1.3207, -1.2985], abs=2e-3)
        assert high.tolist() == pytest.approx([1.4700, 1.4488], abs=2e-3)


def test_descent_ascent_and_extragradient_of_forsaken_go_round_on_either_side_of_the_flow() -> None:
    played = load_game("forsaken")
    inside = played.run(iterations=800)  # extragradient with the declared step
    outside = played.run("gda", step=0.03, iterations=1500)
    assert played.verdicts(inside) == played.verdicts(outside) == ["cycle"]
    assert float(inside.points[-150:].amax(0)[0, 0]) < 1.44 < float(outside.points[-400:].amax(0)[0, 0])


def test_forsaken_45_is_shielded() -> None:
    """The point attracts from nearby, and the cycle is reached from (0.5, 0.5)."""
    played = load_game("forsaken_45")
    run = played.run(start=rows((0.08, 0.42), (0.5, 0.5)), iterations=1800)
    assert played.verdicts(run) == ["converged", "cycle"]


def test_almost_bilinear_as_printed_has_a_cycle_that_repels() -> None:
    """Averaging gives r' = -(eps/2) r (1 - 3/4 r^2): radius sqrt(4/3) = 1.1547."""
    points = flow(load_game("almost_bilinear"), rows((1.05, 0.0), (1.25, 0.0)), 13, 0.05)
    inner, outer = points.norm(dim=2).T  # two rounds
    assert float(inner[-126:].max()) < 0.93 * float(inner[:126].max()) and float(outer[-126:].max()) > 1.1 * float(outer[:126].max())


def test_almost_bilinear_with_phi_at_the_maximiser_has_a_cycle_that_attracts() -> None:
    last = flow(load_game("almost_bilinear_max"), rows((0.9, 0.0), (1.4, 0.2)), 63, 0.1)[-66:].norm(dim=2)
    for n in range(2):
        # Of an integration with error 1e-11. (methods.md has 1.153 to 1.180: 1.01 times that, as descent ascent gives with step 0.002.)
        assert float(last[:, n].min()) == pytest.approx(1.1426, abs=3e-3) and float(last[:, n].max()) == pytest.approx(1.1676, abs=3e-3)


@pytest.mark.parametrize(("solver", "sign"), [("extragradient", -1), ("gda", 1)])
def test_the_step_moves_the_cycle(solver: str, sign: int) -> None:
    """Extragradient contracts by step/2 per unit of time and descent ascent expands by it: radius sqrt(4/3 (1 -+ step/eps))."""
    step, radius = 0.05, math.sqrt(4 / 3 * (1 + sign * 0.5))
    run = load_game("almost_bilinear_max").run(solver, start=rows((radius, 0.0)), step=step, iterations=1600)
    assert float(run.points[-252:].norm(dim=2).square().mean().sqrt()) == pytest.approx(radius, rel=0.02)
    wrong = load_game("almost_bilinear_max").run(solver, start=rows((math.sqrt(4 / 3), 0.0)), step=step, iterations=1600)
    assert float(wrong.points[-252:].norm(dim=2).square().mean().sqrt()) == pytest.approx(radius, rel=0.06)


def test_a_step_as_large_as_eps_removes_the_cycle() -> None:
    run = load_game("almost_bilinear_max").run(step=0.3, iterations=800)
    assert load_game("almost_bilinear_max").verdicts(run) == ["converged"]


def test_global_forsaken_traps_small_steps_and_not_eg_plus() -> None:
    played = load_game("global_forsaken")
    slow = played.run("gda(step = 0.02, iterations = 3000)", start=rows((1.2, 0.3)))
    assert played.verdicts(slow) == ["cycle"]
    assert played.verdicts(played.run(start=rows((1.2, 0.3), (-1.4, 1.4)), iterations=300)) == ["converged", "converged"]


def test_verdicts_of_the_bilinear_game() -> None:
    played = load_game("bilinear")
    assert played.verdicts(played.run("gda", iterations=1000)) == ["diverged"]
    assert played.verdicts(played.run("gda", iterations=50)) == ["growing"]
    assert played.verdicts(played.run(iterations=100)) == ["shrinking"]
    assert played.verdicts(played.run(iterations=900)) == ["converged"]
    assert played.verdicts(played.run(iterations=4)) == ["undecided"]
    assert played.verdicts(played.run("gda(step = 0.1, iterations = 50, noise = normal(0.1))")) == ["random"]


def test_a_play_that_runs_away_stops_where_it_was() -> None:
    played = game("player u = 1 minimize -u^4\n")
    run = played.run(start=rows((1.0,), (0.0,)), step=0.5, iterations=40)
    assert run.diverged.tolist() == [True, False]
    assert bool(run.points.isfinite().all()) and float(run.final[1]) == 0
    assert played.verdicts(run)[0] == "diverged"
