"""The runs of a sweep: every combination of values, each with every seed. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from lossdsl.arguments import parse_number
from lossdsl.diagnostics import LossdslError, UserError
from lossdsl.front import Recipe

Number = int | float
MOST_RUNS = 10_000


@dataclass(frozen=True)
class Point:
    """One combination of values, and the recipe with them."""

    values: Mapping[str, Number]
    recipe: Recipe

    @property
    def label(self) -> str:
        """lambda=1, eps=0.2"""
        return ", ".join(f"{name}={shown(value)}" for name, value in self.values.items())

    def folder(self, seed: int) -> str:
        """The name of the directory of a run."""
        return ",".join([*(f"{name}={value!r}" for name, value in self.values.items()), f"seed={seed}"])


def shown(value: Number) -> str:
    """A value in reports: short, and exact unless it has more than six digits."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def parse_over(words: Sequence[str]) -> dict[str, tuple[Number, ...]]:
    """`["lambda=1,3,6", "eps=8/255,16/255"]` as values by name. Raises UserError that names the wrong one."""
    found: dict[str, tuple[Number, ...]] = {}
    for word in words:
        name, equals, text = word.partition("=")
        name, where = name.strip(), f"--over {word}"
        if not (name and equals and text.strip()):
            raise UserError("sweeps over nothing", where=where, fix="write name=value,value,... for example --over lambda=1,3,6")
        if name in found:
            raise UserError(f"{name} is swept twice", where=where, fix=f"write all its values in one --over {name}=...")
        values = []
        for part in text.split(","):
            number = parse_number(part)
            if number is None:
                raise UserError(f"{part.strip()!r} is not a number", where=where, fix="write numbers such as 0.03, 5e-4 or 8/255")
            values.append(number)
        found[name] = tuple(values)
    return found


def points_of(recipe: Recipe, over: Mapping[str, Sequence[Number]]) -> tuple[Point, ...]:
    """Every combination, the first name slowest. Raises UserError for a name the recipe does not have, a value that it refuses and one that
    is given twice."""
    if not over:
        raise UserError("there is nothing to sweep over", where="--over", fix="name a param and its values: --over lambda=1,3,6")
    over = {name: [_whole(value) for value in values] for name, values in over.items()}
    for name, values in over.items():
        where = f"--over {name}"
        if not values:
            raise UserError("has no values", where=where, fix=f"write --over {name}=1,3,6")
        if len(set(values)) != len(values):
            raise UserError(f"a value is given twice: {', '.join(map(shown, values))}", where=where, fix="write each once")
        for value in values:
            _with(recipe, {name: value}, f"{where}={shown(value)}")
    combinations = [dict(zip(over, values, strict=True)) for values in product(*over.values())]
    if len(combinations) > MOST_RUNS:
        raise UserError(f"{len(combinations)} combinations are too many", where="--over", fix="sweep over fewer values")
    return tuple(Point(values, _with(recipe, values, "--over")) for values in combinations)


def _whole(value: Number) -> Number:
    """3.0 as 3: equal numbers make the same run."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value


def _with(recipe: Recipe, values: Mapping[str, Number], where: str) -> Recipe:
    """The recipe with other values, checked and planned. Its refusal gets the place on the command line."""
    try:
        changed = recipe.with_params(**values)
        _ = changed.plan
        return changed
    except UserError as error:
        raise UserError(error.problem, where=where, fix=error.fix) from error
    except LossdslError as error:
        raise UserError(f"the recipe refuses it:\n{error}", where=where, fix="use a value that the recipe allows") from error
