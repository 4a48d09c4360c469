"""What the checker makes of a game, beyond the errors in tests/golden/errors."""

from __future__ import annotations

import pytest

from lossdsl.check.game_typed import Region
from lossdsl.diagnostics import RecipeError
from lossdsl.front import parse_recipe

NESTED = "solve danskin(starts = 3, inner = 2, inner_step = 1, step = 0.1, iterations = 10)\n"


@pytest.mark.parametrize(
    "players",
    [
        "player u = 1 minimize Phi\nplayer v = 1 in [-1, 1] minimize Phi\n",
        "player u = 1 in [-1, 1] maximize Phi\nplayer v = 1 in [-1, 1] maximize Phi\n",
        "player u = 1 minimize Phi\nplayer v = 1 in [-1, 1] maximize Phi\nplayer w = 1 minimize w^2\n",
        "player u = 1 minimize Phi\n",
    ],
)
def test_an_answer_needs_one_minimiser_and_one_maximiser(players: str) -> None:
    text = "game g\nlet Phi = u * v\n" if "player v" in players else "game g\nlet Phi = u^2\n"
    with pytest.raises(RecipeError, match="danskin is for one minimiser and one maximiser of the same objective"):
        _ = parse_recipe(text + players + NESTED).game


def test_starts_and_sets() -> None:
    text = (
        "game g\nparam r = 2\nplayer a minimize a^2\nplayer b in simplex(4) minimize norm(b, 2)\nplayer c = [1, -1] in l2(0, r) minimize norm(c, 1)\n"
        "player d = 3 in [r, 2 * r] minimize d^2\nsolve gda(step = 0.1, iterations = 1)\n"
    )
    game = parse_recipe(text).game
    assert [p.init for p in game.players] == [(0.0,), (0.25,) * 4, (1.0, -1.0), (3.0,)]
    assert [p.size for p in game.players] == [None, 4, 2, None]
    assert [p.region for p in game.players] == [
        None,
        Region("simplex", (), (4.0,)),
        Region("l2", (0.0,), (2.0,)),
        Region("box", (), (2.0, 4.0)),
    ]


def test_players_and_params_are_known_everywhere_and_lets_from_where_they_stand() -> None:
    text = (
        "game g\nlet e = c * u * v\nplayer u = c minimize e\nplayer v = 1 maximize e\nparam c = 2\nsolve gda(step = c/10, iterations = 1)\n"
    )
    game = parse_recipe(text).game
    assert game.players[0].init == (2.0,) and game.solver.options.step == 0.2  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["x", "y", "f", "p", "theta", "K"])
def test_names_of_recipes_are_free(name: str) -> None:
    text = f"game g\nplayer {name} = 1 minimize {name}^2\nsolve gda(step = 0.1, iterations = 1)\n"
    assert parse_recipe(text).game.players[0].name == name


def test_a_game_and_its_text_and_hash() -> None:
    text = "game g extends forsaken\nparam c = 0.45\n"
    recipe = parse_recipe(text)
    again = parse_recipe(recipe.text)
    assert again.hash == recipe.hash != recipe.with_params(c=0.4).hash
    assert "solve extragradient" in recipe.text and recipe.kind == "game"
