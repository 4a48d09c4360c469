"""The sections of `explain` that spell out what a game's text leaves to defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lossdsl.check.game_typed import Region, TypedDraw, TypedGame, TypedPlayer
from lossdsl.check.typed import number_text, show
from lossdsl.lang.games import GAME_SOLVERS

if TYPE_CHECKING:
    from lossdsl.front import Recipe

DEFAULT = "  (default)"


def game_sections(recipe: Recipe) -> list[list[str]]:
    """Values of params, players with their sets and objectives, the field, the data, the solver with every option: sections of lines."""
    game = recipe.game
    sections = [_params(recipe), _models(game), _samples(game), _data(game), *(_player(game, p) for p in game.players)]
    return sections + [_field(game), _logs(game), _solver(game)]


def _row(name: str, text: str, default: bool = False) -> str:
    return f"  {name:<11}{text}{DEFAULT if default else ''}".rstrip()


def _params(recipe: Recipe) -> list[str]:
    notes = {name: "  (set from outside)" for name in recipe.overrides}
    lines = [f"  {name} = {number_text(value)}{notes.get(name, '')}" for name, value in recipe.params.items()]
    return ["params", *lines] if lines else []


def _models(game: TypedGame) -> list[str]:
    lines = [f"  {name} : {takes} -> {gives}" for name, (takes, gives) in game.models.items()]
    about = {"clip": "every weight clipped to [-{0}, {0}] after each of its updates", "spectral": "spectral norm of every layer 1"}
    lines += [f"  {name} is kept: {about[how].format(number_text(bound))}" for name, (how, bound) in game.keeps.items()]
    return ["models", *lines] if lines else []


def _samples(game: TypedGame) -> list[str]:
    lines = [f"  {s.name} ~ {_distribution(s)}" for s in game.samples]
    return ["drawn anew in every evaluation of the field", *lines] if lines else []


def _distribution(draw: TypedDraw) -> str:
    numbers = f"({', '.join(map(number_text, draw.numbers))})" if draw.numbers else ""
    over = {"example": "one number per example", "batch": "one number for all", "latent": f"{draw.size} numbers per example"}
    return f"{draw.distribution}{numbers}, {over[draw.over]}"


def _data(game: TypedGame) -> list[str]:
    if not game.data:
        return []
    names = ", ".join(name for name, _ in game.data)
    rows = ["  (" + ", ".join(map(number_text, row)) + ")" for row in zip(*(column for _, column in game.data), strict=True)]
    return [f"data ({names}); objectives are averaged over its rows", *rows]


def _player(game: TypedGame, player: TypedPlayer) -> list[str]:
    what = "a model" if player.model else "a number" if player.size is None else f"a vector of {player.size} numbers"
    lines = [f"player {player.name}: {what}", _row(player.sense, show(player.objective))]
    if not player.model:
        start = ", ".join(map(number_text, player.init))
        lines += [_row("start", start), _row("in", _region(player.region), player.region is None)]
    if player.optimizer is not None:
        given = ", ".join(f"{name} = {_value(value)}" for name, value in player.optimizer.options)
        lines += [_row("by", f"{player.optimizer.name}({given})"), _row("", f"steps = {player.steps} per turn", player.steps == 1)]
    return lines


def _region(region: Region | None) -> str:
    if region is None:
        return "all numbers"
    numbers = ", ".join(map(number_text, region.numbers))
    if region.name == "box":
        return f"[{numbers}] in every entry"
    center = ", ".join(map(number_text, region.center))
    return f"simplex({numbers})" if region.name == "simplex" else f"{region.name}({center}; radius {numbers})"


def _field(game: TypedGame) -> list[str]:
    parts = [f"{'' if p.sense == 'minimize' else '-'}d/d{p.name} of what {p.name} {p.sense}s" for p in game.players]
    return ["field", _row("V(z)", "[" + ", ".join(parts) + "]")]


def _logs(game: TypedGame) -> list[str]:
    return ["recorded", *(f"  {name} = {show(e)}" for name, e in game.logs)] if game.logs else []


def _solver(game: TypedGame) -> list[str]:
    row, options = GAME_SOLVERS[game.solver.name], game.solver.options
    lines = [f"solve {row.name}", _row("update", row.update), _row("source", row.source), _row("sets", row.sets)]
    given = [(name, value) for name, value in options if not (name == "batch" and value is None)]
    return lines + [_row("", f"{name} = {_value(value)}", name not in options.model_fields_set) for name, value in given]


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return number_text(value) if isinstance(value, int | float) else str(value)
