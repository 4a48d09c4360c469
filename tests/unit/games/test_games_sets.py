"""Players in sets: projections of every solver, and uniform draws."""

from __future__ import annotations

import pytest
import torch
from games_helpers import game, rows

from lossdsl.games import load_game
from lossdsl.lang.games import GAME_SOLVERS

BOX = "player u = 1 in [0, 2] minimize u * v\nplayer v = 1 in [0.5, 3] maximize u * v\n"
"""Solution: u = 0 (v anything), approached from the boundary."""


@pytest.mark.parametrize("solver", ["gda", "extragradient", "ogda", "rfbs"])
def test_projected_solvers_find_the_solution_on_the_boundary(solver: str) -> None:
    """u >= 0 and v >= 0.5: u falls to its border and stays, v moves no more."""
    played = game(BOX)
    run = played.run(solver, step=0.2, iterations=200)
    assert float(run.final[0, 0]) == 0 and played.verdicts(run) == ["converged"]
    assert bool((run.points[..., 0] >= 0).all()) and bool(((run.points[..., 1] >= 0.5) & (run.points[..., 1] <= 3)).all())


def clipped(z: torch.Tensor) -> torch.Tensor:
    return torch.stack((z[:, 0].clamp(0, 2), z[:, 1].clamp(0.5, 3)), 1)


def field(z: torch.Tensor) -> torch.Tensor:
    return torch.stack((z[:, 1], -z[:, 0]), 1)


def test_one_projected_step_of_each_against_its_formula() -> None:
    played, z, a = game(BOX), rows((0.3, 2.9), (1.9, 0.6)), 1.5
    bar = clipped(z - a * field(z))
    expected = {
        "gda(step = 1.5, iterations = 1)": bar,
        "extragradient(step = 1.5, iterations = 1)": clipped(z - a * field(bar)),
        "eg_plus(step = 1.5, alpha = 0.4, projection = both, iterations = 1)": clipped(z - 0.4 * a * field(bar)),
        "eg_plus(step = 1.5, alpha = 0.4, iterations = 1)": z - 0.4 * (z - a * field(z) - bar + a * field(bar)),
        "seg_plus(step = 1.5, alpha = 0.4, iterations = 1)": z - 0.4 * (z - a * field(z) - bar + a * field(bar)),
    }
    for solver, found in expected.items():
        torch.testing.assert_close(played.run(solver, start=z).final, found, rtol=0, atol=1e-14)


def test_two_projected_steps_of_the_methods_with_memory() -> None:
    played, z, a = game(BOX), rows((0.1, 1.2)), 0.4  # the first extrapolation is cut at u = 0
    one = clipped(z - a * field(z))
    torch.testing.assert_close(
        played.run(f"ogda(step = {a}, iterations = 2)", start=z).final, clipped(one - a * (2 * field(one) - field(z))), rtol=0, atol=1e-14
    )
    torch.testing.assert_close(
        played.run(f"rfbs(step = {a}, iterations = 2)", start=z).final, clipped(one - a * field(2 * one - z)), rtol=0, atol=1e-14
    )
    first = played.run(f"bcseg_plus(step = {a}, alpha = 0.5, every = 3, iterations = 1)", start=z).final
    bar0, rate = clipped(z - a * field(z)), 0.5 / (1 / 3 + 1)
    torch.testing.assert_close(first, z - 0.5 * (z - a * field(z) - bar0 + a * field(bar0)), rtol=0, atol=1e-14)
    h = first - a * field(first) + (1 - rate) * (bar0 - z + a * field(z))
    bar = clipped(h)
    found = played.run(f"bcseg_plus(step = {a}, alpha = 0.5, every = 3, iterations = 2)", start=z).final
    torch.testing.assert_close(found, first - rate * (h - bar + a * field(bar)), rtol=0, atol=1e-14)


def test_matching_pennies_on_simplices() -> None:
    """A matrix game whose only equilibrium is mixed: (1/3, 2/3) against (1/2, 1/2)."""
    text = "let Phi = 2 * p[0] * q[0] - 2 * p[0] * q[1] - p[1] * q[0] + p[1] * q[1]\nplayer p in simplex(2) minimize Phi\nplayer q = [0.9, 0.1] in simplex(2) maximize Phi\n"
    played = game(text)
    assert played.start.tolist() == [[0.5, 0.5, 0.9, 0.1]]
    run = played.run("extragradient", step=0.3, iterations=500)
    torch.testing.assert_close(run.final, rows((1 / 3, 2 / 3, 0.5, 0.5)), rtol=0, atol=1e-6)
    torch.testing.assert_close(run.points[..., :2].sum(2), torch.ones(len(run.points), 1).double())
    assert played.verdicts(run) == ["converged"]


@pytest.mark.parametrize(
    ("region", "nearest"),
    [
        ("l2(0, 1)", (0.6, 0.8)),
        ("linf(0, 1)", (1.0, 1.0)),
        ("l2([3, 0], 4)", (3.0, 4.0)),
        ("[-1, 2]", (2.0, 2.0)),
        ("simplex(2)", (0.0, 1.0)),
    ],
)
def test_a_start_far_outside_comes_back_to_the_nearest_point(region: str, nearest: tuple[float, float]) -> None:
    played = game(f"player u = [0, 1] in {region} minimize norm(u, 2)^2\n")
    far = rows((3.0, 9.0) if "[3, 0]" in region else (3.0, 4.0))
    torch.testing.assert_close(played.run(start=far, iterations=1).points[0], rows(nearest))


@pytest.mark.parametrize("region", ["l2(1, 0.5)", "linf(1, 0.5)", "[0.5, 1.5]", "simplex(2)"])
def test_random_starts_lie_in_the_set_and_spread_over_it(region: str) -> None:
    played = game(f"player u = {'[0.5, 0.5]' if 'simplex' in region else '[1, 1]'} in {region} minimize norm(u, 2)^2\n")
    z = played.random_starts(500, seed=1)
    torch.testing.assert_close(played.run(start=z, iterations=1).points[0], z, rtol=0, atol=1e-12)
    centre = 0.5 if "simplex" in region else 1.0
    assert float((z.mean(0) - centre).abs().max()) < 0.05 and float(z.std(0).min()) > 0.2
    assert torch.equal(z, played.random_starts(500, seed=1)) and not torch.equal(z, played.random_starts(500, seed=2))


def test_free_players_start_within_the_spread() -> None:
    z = load_game("bilinear").random_starts(300, 1.5)
    assert float(z.abs().max()) <= 1.5 and float(z.abs().max()) > 1.3


def test_the_table_of_solvers_and_that_of_updates_have_the_same_rows() -> None:
    from lossdsl.games.solvers import UPDATES

    assert {*UPDATES, "alternating"} == set(GAME_SOLVERS)
