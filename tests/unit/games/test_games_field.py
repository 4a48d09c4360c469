"""V(z) and its Jacobian against formulas worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from games_helpers import game, rows

from lossdsl.diagnostics import UserError
from lossdsl.games import load_game

Z = rows((0.3, -0.7), (1.1, 0.4), (-2.0, 0.9))


def slope(s: torch.Tensor) -> torch.Tensor:
    """Derivative of s^2/4 - s^4/2 + s^6/6."""
    return s / 2 - 2 * s**3 + s**5


def test_a_maximiser_moves_against_its_gradient() -> None:
    found = load_game("bilinear").field(Z)
    torch.testing.assert_close(found, torch.stack((Z[:, 1], -Z[:, 0]), 1), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "c"), [("forsaken", 0.5), ("forsaken_45", 0.45)])
def test_field_and_jacobian_of_forsaken(name: str, c: float) -> None:
    played, (u, v) = load_game(name), Z.T
    torch.testing.assert_close(played.field(Z), torch.stack((v - c + slope(u), slope(v) - u), 1), rtol=0, atol=1e-14)
    curve = [0.5 - 6 * s**2 + 5 * s**4 for s in (u, v)]
    expected = torch.stack((torch.stack((curve[0], torch.ones(3)), 1), torch.stack((-torch.ones(3), curve[1]), 1)), 1)
    torch.testing.assert_close(played.jacobian(Z), expected.double(), rtol=1e-13, atol=1e-13)
    assert played.field(Z[0]).shape == (2,) and played.jacobian(Z[0]).shape == (2, 2)


def test_players_need_not_share_an_objective() -> None:
    played = game("player u = 1 minimize u^2 * v\nplayer v = 1 maximize u * v - v^3\nplayer w = 0 minimize (w - u)^2\n")
    z = rows((0.5, -1.5, 2.0))
    u, v, w = 0.5, -1.5, 2.0
    torch.testing.assert_close(played.field(z), rows((2 * u * v, -(u - 3 * v**2), 2 * (w - u))))
    assert played.objectives(z)["v"].item() == u * v - v**3
    torch.testing.assert_close(played.jacobian(z)[0], rows((2 * v, 2 * u, 0), (-1, 6 * v, 0), (-2, 0, 2)))


def test_vectors_have_entries_norms_and_products() -> None:
    text = "player u = [1, 2, 3] minimize dot(u, w) + u[1]^3 + sum(k in 0..2: k * u[k])\nplayer w = [0, 0, 0] maximize dot(u, w) - norm(w, 2)^2/2\n"
    played = game(text)
    assert played.coordinates == ("u[0]", "u[1]", "u[2]", "w[0]", "w[1]", "w[2]")
    u, w = rows((1.0, -2.0, 0.5), (0.1, 0.2, 0.3)), rows((0.4, 0.6, -1.0), (1.0, 1.0, 2.0))
    own = w + torch.stack((0 * u[:, 1], 3 * u[:, 1] ** 2 + 1, 2 + 0 * u[:, 1]), 1)
    torch.testing.assert_close(played.field(torch.cat((u, w), 1)), torch.cat((own, w - u), 1))


def test_objectives_and_logs_are_averaged_over_the_data() -> None:
    text = "data (a, b) = (1, 2), (3, -1), (0, 5)\nlet miss = u * a - b\nplayer u = 0 minimize miss^2\nlog size = abs(miss)\n"
    played, u = game(text), rows((0.0,), (2.0,))
    a, b = torch.tensor([1.0, 3.0, 0.0]).double(), torch.tensor([2.0, -1.0, 5.0]).double()
    miss = u * a - b
    torch.testing.assert_close(played.field(u), (2 * miss * a).mean(1, keepdim=True))
    torch.testing.assert_close(played.logs(u)["size"], miss.abs().mean(1))
    torch.testing.assert_close(played.jacobian(u)[:, 0, 0], torch.full((2,), float((2 * a**2).mean())).double())


def test_a_gradient_as_a_value_of_data_and_of_a_player() -> None:
    played = game("data (a) = (1), (2)\nplayer theta = 1 minimize grad(a: theta^2 * a^3) + grad(theta: theta^3)^2\n")
    theta = rows((0.7,), (-1.2,))
    squares = torch.tensor([1.0, 4.0]).double()
    expected = (2 * theta * 3 * squares).mean(1, keepdim=True) + 36 * theta**3
    torch.testing.assert_close(played.field(theta), expected)


def test_stop_and_if_pass_no_gradient() -> None:
    played = game("player u = 1 minimize stop(u) * u + if(u > 0, u^2, sqrt(u))\n")
    torch.testing.assert_close(played.field(rows((0.5,))), rows((0.5 + 1.0,)))


def test_pi_and_sin() -> None:
    played = game("model f(x) = sin(theta * x)\nplayer theta = 1 minimize f(pi/4)\n")
    torch.testing.assert_close(played.field(rows((0.5,))), rows((math.pi / 4 * math.cos(math.pi / 8),)))


def test_samples_are_drawn_per_play_and_shared_by_the_objectives_of_one_evaluation() -> None:
    played = game(
        "sample e ~ normal(2)\nsample s ~ uniform(1, 3) over batch\nplayer u = 0 minimize (u - e)^2\nplayer v = 0 minimize (v - e)^2 * s\n"
    )
    z = torch.zeros(4000, 2, dtype=torch.float64)
    draw = played.draw(4000, seed=3)
    found = played.field(z, draw)
    torch.testing.assert_close(found[:, 1], found[:, 0] * draw.samples["s"])
    assert abs(float(found[:, 0].std()) - 4) < 0.2 and 1 <= float(draw.samples["s"]) <= 3
    assert not torch.equal(played.field(z, played.draw(4000, seed=4)), found)
    with pytest.raises(UserError, match="the field is random: it needs a draw of e"):
        played.field(z)


@pytest.mark.parametrize("z", [torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, 2)])
def test_points_of_the_wrong_form(z: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"pass \[N, 2\] in float64"):
        load_game("bilinear").field(z)


def test_a_recipe_is_no_game_and_a_game_no_recipe() -> None:
    with pytest.raises(UserError, match="trades is no game"):
        load_game("trades")
    with pytest.raises(UserError, match="forsaken is a game, not a recipe"):
        _ = load_game("forsaken").recipe.plan
