"""`lossdsl play`, explain, fmt and extends of games, and the pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from games_helpers import game

from lossdsl.assets import game_paths
from lossdsl.cli import main
from lossdsl.diagnostics import RecipeError, UserError
from lossdsl.front import load, parse_recipe
from lossdsl.games import load_game
from lossdsl.syntax.format import format_text

SCALAR = [name for name in game_paths() if not load(name).game.neural]


@pytest.mark.parametrize("name", list(game_paths()))
def test_every_shipped_game_is_short_checked_and_canonical(name: str) -> None:
    text = game_paths()[name].read_text(encoding="utf-8")
    assert format_text(text) == text
    assert not load(name).checked.diagnostics
    code = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert len(code) <= 20 and text.startswith("# T")


@pytest.mark.parametrize("name", SCALAR)
def test_every_game_of_numbers_plays_as_declared(name: str) -> None:
    played = load_game(name)
    run = played.run(iterations=3)
    assert run.points.shape == (4, 1, len(played.coordinates)) and bool(run.points.isfinite().all())


def test_play_prints_a_table_and_writes_json_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, plot = tmp_path / "played.json", tmp_path / "picture.png"
    words = ["play", "forsaken", "--solver", "gda(step = 0.05, iterations = 40)", "--solver", "eg_plus", "--starts", "0.5,0.5;1/4,-1"]
    assert main([*words, "--set", "c=0.45", "--iterations", "30", "--seed", "3", "--out", str(out), "--plot", str(plot)]) == 0
    text = capsys.readouterr().out
    assert "0.0447-0.9080i" in text and "is drawn in" in text and str(plot.with_suffix(".svg")) in text
    found = json.loads(out.read_text())
    assert found["coordinates"] == ["u", "v"] and found["params"] == {"c": 0.45} and found["seed"] == 3
    assert [s["name"] for s in found["solvers"]] == ["gda", "eg_plus"]
    assert [s["options"]["iterations"] for s in found["solvers"]] == [30, 30]
    assert found["solvers"][0]["options"]["step"] == 0.05 and found["solvers"][1]["options"]["step"] == 0.1
    assert [p["start"] for p in found["plays"]] == [[0.5, 0.5], [0.25, -1]] * 2
    (point,) = found["critical_points"]
    assert point["z"] == pytest.approx([0.078027, 0.411934], abs=1e-6) and point["character"] == "attracts"
    for path in (plot, plot.with_suffix(".svg")):
        assert path.stat().st_size > 10000


def test_pictures_of_one_player_and_of_vectors_are_over_the_iterations(tmp_path: Path) -> None:
    for name in ("co_toy", "ddi_synthetic"):
        assert main(["play", name, "--iterations", "10", "--plot", str(tmp_path / name)]) == 0
        assert "iteration" in (tmp_path / f"{name}.svg").read_text(encoding="utf-8") or (tmp_path / f"{name}.png").is_file()


def test_the_same_picture_twice(tmp_path: Path) -> None:
    for name in ("one", "two"):
        main(["play", "bilinear", "--iterations", "20", "--plot", str(tmp_path / name)])
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["play", "trades"], "trades is no game"),
        (["play", "forsakn"], "did you mean forsaken?"),
        (["play", "forsaken", "--solver", "extragradeint"], "did you mean extragradient?"),
        (["play", "forsaken", "--solver", "gda(step = 0.1, iterations = 5, alpha = 1)"], "gda has no argument alpha"),
        (["play", "forsaken", "--solver", "seg_plus"], "seg_plus needs alpha"),
        (["play", "forsaken", "--starts", "1,2,3"], "names no starts"),
        (["play", "forsaken", "--starts", "0"], "names no starts"),
        (["play", "forsaken", "--step", "big"], "'big' is not a number"),
        (["play", "forsaken", "--step", "-1"], "step of extragradient cannot be -1"),
        (["play", "forsaken", "--set", "d=1"], "forsaken has no param d"),
        (["train", "forsaken", "--out", "run"], "forsaken is a game, not a recipe"),
        (["plan", "forsaken"], "forsaken is a game, not a recipe"),
    ],
)
def test_wrong_words(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_explain_spells_out_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "global_forsaken"]) == 0
    out = capsys.readouterr().out
    for line in ("  in         [-1.5, 1.5] in every entry", "             noise = 0  (default)", "             alpha = 0.5"):
        assert line in out.splitlines(), line
    assert "V(z)       [d/dx of what x minimizes, -d/dy of what y maximizes]" in out


def test_extends_takes_another_solver_param_or_player() -> None:
    text = "game g extends forsaken\nparam c = 0.45\nplayer u = 1\nsolve ogda(step = 0.05, iterations = 7)\n"
    played = parse_recipe(text).game
    assert played.params == {"c": 0.45} and played.solver.name == "ogda" and played.title == ""
    assert [p.init for p in played.players] == [(1.0,), (0.5,)] and played.players[0].sense == "minimize"
    both = parse_recipe("game g extends bilinear\nplayer w = 2 minimize (w - x)^2\n").game
    assert [p.name for p in both.players] == ["x", "y", "w"]
    less = parse_recipe("game a extends bilinear\nplayer w = 2 minimize (w - x)^2\ngame b extends a\nremove w\n").game
    assert [p.name for p in less.players] == ["x", "y"]


def test_a_bare_solver_keeps_the_options_it_knows() -> None:
    played = load_game("forsaken").with_solver("eg_plus(step = 0.2, alpha = 0.3, iterations = 9)")
    assert played.with_solver("gda").solver.options.model_dump(exclude_unset=True) == {"step": 0.2, "iterations": 9}
    assert played.with_solver(alpha=0.7).solver.options.model_dump(exclude_unset=True) == {"step": 0.2, "iterations": 9, "alpha": 0.7}
    assert played.with_solver("gda", noise=0.5).solver.options.noise == 0.5
    with pytest.raises(RecipeError, match="no argument alpha"):
        played.with_solver("gda", alpha=0.5)
    assert load_game("forsaken").solver.name == "extragradient"


def test_starts_from_python() -> None:
    played = load_game("forsaken")
    assert played.run(start=[0.1, 0.2], iterations=2).points[0].tolist() == [[0.1, 0.2]]
    assert played.run(iterations=10, every=4).points.shape == (4, 1, 2)  # 0, 4, 8 and the last
    with pytest.raises(UserError, match="give one number for each of u, v"):
        played.run(start=[0.1, 0.2, 0.3])


def test_an_implicit_step_without_solution_is_an_error() -> None:
    played = game("player u = 1 minimize -exp(u)\n", "solve ppm(step = 5, iterations = 3)\n")
    with pytest.raises(UserError, match="the implicit step of ppm was not found in iteration 1"):
        played.run()


def test_ppm_solves_its_implicit_equation_to_rounding() -> None:
    played = load_game("forsaken")
    points = played.run("ppm(step = 0.2, iterations = 20)").points[:, 0]
    residual = points[1:] - points[:-1] + 0.2 * played.field(points[1:])
    assert float(residual.abs().max()) < 1e-14


def test_ppm_takes_shorter_newton_steps_where_full_ones_would_jump_to_and_fro() -> None:
    """w + 20 tanh(w) = 3 from w = 3: undamped Newton ends up jumping between 23 and -17."""
    played = game("player u = 3 minimize 20 * log(exp(u) + exp(-u))\n", "solve ppm(step = 1, iterations = 1)\n")
    w = played.run().final.item()
    assert w + 20 * math.tanh(w) == pytest.approx(3, abs=1e-12)
