"""`lossdsl play`: its arguments, and what it hands to lossdsl.games. Free of torch until it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lossdsl.arguments import INTERRUPTED, OK, Parser, add_set, parse_number, parse_settings, standard_input, whole_number
from lossdsl.diagnostics import UserError
from lossdsl.front import Recipe, load, parse_recipe

if TYPE_CHECKING:
    from lossdsl.games import Game

SPREAD = 1.5
"""`--starts N` draws every number from [-1.5, 1.5], or from the player's set."""


def play_arguments(parser: Parser) -> None:
    parser.add_argument("game", metavar="GAME", help="the name of a shipped game, a .loss file, or - for standard input")
    add_set(parser)
    parser.add_argument(
        "--solver", action="append", default=[], metavar="SOLVER",
        help="another solver, 'gda' (with the declared options it knows) or 'gda(step = 0.1, iterations = 500)'; several are compared",
    )  # fmt: skip
    parser.add_argument("--step", metavar="A", help="instead of the game's")
    parser.add_argument("--iterations", type=whole_number, metavar="N", help="instead of the game's")
    parser.add_argument("--noise", metavar="S", help="standard deviation of the oracle's noise")
    parser.add_argument("--starts", metavar="N|U,V;U,V", help="so many random starts, or the points themselves (the declared one)")
    parser.add_argument("--seed", type=int, default=0, help="seed of random starts and of every draw (0)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="everything as JSON; of games of models the directory of the run")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="trajectories, or samples of models, written as .png and .svg")
    models = parser.add_argument_group("games of models")
    models.add_argument("--data", metavar="NAME", help="what they learn from: ring or digits (ring)")
    models.add_argument("--network", metavar="NAME", help="the networks: mlp, mlp_wide or mlp_small (mlp)")
    models.add_argument("--batch", type=whole_number, metavar="N", help="instead of the game's")
    models.add_argument("--every", type=whole_number, metavar="N", help="iterations between measurements (a twentieth of all)")
    models.add_argument("--resume", action="store_true", help="go on with the run in --out, if there is one")
    models.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N (auto)")
    models.add_argument("--quiet", action="store_true", help="no progress on standard error")


def run_play(arguments: argparse.Namespace) -> int:
    recipe = parse_recipe(standard_input().text, "<stdin>") if arguments.game == "-" else load(arguments.game)
    recipe = recipe.with_params(**parse_settings(arguments.set))
    if recipe.kind != "game":
        raise UserError(f"{recipe.name} is no game", where=recipe.source.name, fix="see: lossdsl list --games")
    return _play_models(recipe, arguments) if recipe.game.neural else _play_numbers(recipe, arguments)


def _play_models(recipe: Recipe, arguments: argparse.Namespace) -> int:
    if arguments.starts is not None:
        raise UserError("models start where torch puts their weights", where="--starts", fix="leave it out; --seed gives other weights")
    if len(arguments.solver) > 1:
        raise UserError("a game of models is played by one solver at a time", where="--solver", fix="keep one of them")
    from rich.console import Console

    from lossdsl.games.neural import PlayRequest, play_models

    given = {name: value for name in ("data", "network", "device") if (value := getattr(arguments, name)) is not None}
    request = PlayRequest(
        **given, solver=next(iter(arguments.solver), None), options=_options(arguments), seed=arguments.seed, out=arguments.out,
        resume=arguments.resume, every=arguments.every, console=None if arguments.quiet else Console(stderr=True),
    )  # fmt: skip
    play = play_models(recipe, request)
    Console().print(play.table())
    if arguments.plot is not None:
        from lossdsl.games.neural_pictures import draw_play

        for path in draw_play(play, arguments.plot):
            print(path)
    return OK if play.finished else INTERRUPTED


def _play_numbers(recipe: Recipe, arguments: argparse.Namespace) -> int:
    strange = [name for name in ("data", "network", "batch", "every", "resume", "device", "quiet") if getattr(arguments, name)]
    if strange:
        raise UserError(f"the players of {recipe.name} are no models", where=f"--{strange[0]}", fix="leave it out")
    from rich.console import Console

    from lossdsl.games import compile_game
    from lossdsl.games.report import Played, as_json, table
    from lossdsl.run.files import write_json

    game = compile_game(recipe)
    options = _options(arguments)
    games = [game.with_solver(solver, **options) for solver in arguments.solver or [None]]
    start = _starts(game, arguments.starts, arguments.seed)
    critical = [] if game.typed.samples else game.critical_points()
    plays = [Played(g, g.run(start=start, seed=arguments.seed), critical) for g in games]
    Console().print(table(plays))
    if arguments.out is not None:
        write_json(arguments.out, as_json(plays, arguments.seed))
        print(arguments.out)
    if arguments.plot is not None:
        from lossdsl.games.plots import plot_plays

        for path in plot_plays(plays, arguments.plot):
            print(path)
    return OK


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """--step, --iterations and --noise as options of a solver."""
    found: dict[str, Any] = {}
    for name in ("step", "noise"):
        text = getattr(arguments, name)
        if text is None:
            continue
        value = parse_number(text)
        if value is None:
            raise UserError(f"{text!r} is not a number", where=f"--{name}", fix="write a number such as 0.1 or 1/8")
        found[name] = value
    whole = {name: value for name in ("iterations", "batch") if (value := getattr(arguments, name)) is not None}
    return {**found, **whole}


def _starts(game: Game, text: str | None, seed: int) -> Any:
    """The starts of all plays, [N, d]; None: the declared one."""
    if text is None:
        return None
    if text.isascii() and text.isdigit() and int(text) > 0:
        return game.random_starts(int(text), SPREAD, seed)
    rows = [[parse_number(v) for v in row.split(",")] for row in text.split(";")]
    names = game.coordinates
    if any(None in row or len(row) != len(names) for row in rows):
        example = ",".join(["0.5"] * len(names))
        fix = f"write a number of starts, or {len(names)} numbers for each: --starts '{example};{example}'"
        raise UserError(f"{text!r} names no starts", where="--starts", fix=fix)
    return [[float(v or 0) for v in row] for row in rows]
