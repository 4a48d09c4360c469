"""Games in which one player answers the other: Danskin's descent direction and the counterexample to its corollary (T27)."""

from __future__ import annotations

import pytest
import torch
from games_helpers import game, rows
from torch import Tensor

from lossdsl.games import load_game


def worst(x: Tensor) -> Tensor:
    """max over d in [0, 1] of the synthetic objective: it is convex in d, so an end is best; [..., 2] -> [...]."""
    up, down = x[..., 0] ** 2 + (x[..., 1] + 1) ** 2, x[..., 0] ** 2 + (x[..., 1] - 1) ** 2
    return torch.maximum(up, down)


def test_the_synthetic_field() -> None:
    x0, x1, d = 0.7, -0.4, 0.3
    found = load_game("ddi_synthetic").field(rows((x0, x1, d)))
    slope = (x1 + 1) ** 2 - (x1 - 1) ** 2 - (1 - 2 * d)
    torch.testing.assert_close(found, rows((2 * x0, 2 * d * (x1 + 1) + 2 * (1 - d) * (x1 - 1), -slope)))


def test_ddi_goes_straight_to_the_minimiser_and_one_maximiser_does_not() -> None:
    """From (1, 0) both ends are maximisers, with gradients (2, 2) and (2, -2): their min-norm combination is (2, 0)."""
    played = load_game("ddi_synthetic")
    together = played.run(seed=1).points[:, 0, :2]
    assert float(together[:, 1].abs().max()) < 1e-12 and torch.allclose(together[:10, 0], 1 - 0.1 * torch.arange(10).double())
    values = worst(together)
    assert bool((values[1:10] < values[:9]).all()) and float(values[10:].max()) < 1.011  # the optimum is 1, steps are 0.1
    alone = played.run("best_response", seed=1).points[:, 0, :2]
    assert float(worst(alone[1:]).mean()) > float(values[1:].mean()) + 0.02
    rises = worst(alone)[1:] - worst(alone)[:-1]
    assert int((rises > 0.01).sum()) >= 10  # a step along one maximiser's gradient often makes the worst case worse


def test_ddi_decreases_from_anywhere() -> None:
    played = load_game("ddi_synthetic")
    starts = rows((1.0, 0.8, 0.5), (-0.7, -0.9, 0.5), (0.2, 1.5, 0.5))
    values = worst(played.run(start=starts, seed=2, iterations=30).points[..., :2])
    assert bool((values[-1] < 1.1**2 + 0.1).all())  # the last steps of 0.1 jump over the kink
    assert bool((values[:6].diff(dim=0) < 0).all())


def test_at_the_counterexample_one_maximiser_gives_a_direction_of_ascent() -> None:
    """f(x) = |x| at x = 0: any d is a maximiser; -d leads away. The hull of ten of them holds 0, so DDi stays."""
    played = load_game("danskin_counterexample")
    alone = played.run("best_response", seed=0, iterations=1).final[0, 0]
    assert abs(float(alone)) == pytest.approx(0.1)
    assert float(played.run("danskin", seed=0, iterations=1).final[0, 0]) == 0
    moved = played.run("danskin", start=torch.zeros(200, 2), seed=3, iterations=1).final[:, 0]
    assert int((moved != 0).sum()) <= 3  # all ten draws on one side: probability 2 * 2^-10 each


def test_away_from_the_kink_both_descend() -> None:
    played = load_game("danskin_counterexample")
    for solver in ("best_response", "danskin"):
        points = played.run(solver, start=rows((0.55, 0.0), (-0.35, 0.0)), iterations=3).points[..., 0]
        torch.testing.assert_close(points[:, 0], torch.tensor([0.55, 0.45, 0.35, 0.25]).double())
        torch.testing.assert_close(points[:, 1], torch.tensor([-0.35, -0.25, -0.15, -0.05]).double())


def test_the_maximiser_is_left_at_its_best_answer_inside_its_set() -> None:
    """Ends of [-1, 2] are local maximisers of u v^2; the gradients 4 and 1 have the min-norm combination 1, and v = 2 is the better."""
    text = "let Phi = u * v^2\nplayer u = 2 minimize Phi\nplayer v = 0 in [-1, 2] maximize Phi\n"
    played = game(text, "solve danskin(starts = 12, inner = 100, inner_step = 0.1, step = 0.1, iterations = 1)\n")
    for seed in range(4):
        assert played.run(seed=seed).final[0].tolist() == pytest.approx([1.9, 2.0])


def test_order_of_declaration_does_not_matter() -> None:
    text = "let Phi = x * d\nplayer d = 1 in [-1, 1] maximize Phi\nplayer x = 0.55 minimize Phi\n"
    played = game(text, "solve danskin(starts = 5, inner = 10, inner_step = 1, step = 0.1, iterations = 3)\n")
    assert played.run().points[:, 0, 1].tolist() == pytest.approx([0.55, 0.45, 0.35, 0.25])
