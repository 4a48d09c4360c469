"""The words of a command line: a parser that guesses what was meant, the values of --set, and the recipe they choose."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from lossdsl.diagnostics import UserError, suggest
from lossdsl.front import Recipe, load, parse_recipe
from lossdsl.source import Source

OK, FINDINGS, USAGE, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that says which option was probably meant."""

    def __init__(self, **settings: Any) -> None:
        self.options: list[str] = []
        super().__init__(allow_abbrev=False, **settings)

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        self.options += [n for n in names if n.startswith("--")]
        return super().add_argument(*names, **settings)

    def refuse(self, extra: Sequence[str]) -> NoReturn:
        """The error for arguments that no option takes."""
        word = next((w for w in extra if w.startswith("-")), extra[0])
        best = suggest(word.partition("=")[0], self.options) if word.startswith("-") else None
        self.error(f"unrecognized argument {word}" + (f": did you mean {best}?" if best else ""))


def parse_number(text: str) -> int | float | None:
    """A number as the language writes it, or a fraction a/b of two; None if it is neither."""
    parts = text.strip().split("/")
    if len(parts) > 2 or not all(_NUMBER.fullmatch(p.strip()) for p in parts):
        return None
    values = [int(p) if p.strip().lstrip("+-").isdigit() else float(p) for p in parts]
    if len(values) == 1:
        return values[0] if math.isfinite(values[0]) else None
    return values[0] / values[1] if values[1] and all(map(math.isfinite, values)) else None


def parse_settings(given: Sequence[str]) -> dict[str, int | float]:
    """`["eps=8/255", "lambda=3"]` as a dict. Raises UserError that names the wrong one."""
    found: dict[str, int | float] = {}
    for text in given:
        name, equals, value = text.partition("=")
        name, number = name.strip(), parse_number(value)
        if not equals or not name:
            raise UserError(f"{text!r} sets nothing", where="--set", fix="write name=value, for example --set eps=8/255")
        if number is None:
            raise UserError(f"{value!r} is not a number", where=f"--set {text}", fix="write a number such as 0.03, 5e-4 or 8/255")
        if name in found:
            raise UserError(f"{name} is set twice", where="--set", fix="set it once")
        found[name] = number
    return found


def whole_number(text: str) -> int:
    """An argparse type: 1, 2, ..."""
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def standard_input() -> Source:
    """The text on standard input. Raises UserError where it is not UTF-8."""
    try:
        return Source(sys.stdin.buffer.read().decode("utf-8"), "<stdin>")
    except UnicodeDecodeError as error:
        raise UserError(f"the text is not UTF-8 (byte {error.start})", where="<stdin>", fix="send it as UTF-8") from None


def chosen_recipe(arguments: argparse.Namespace) -> Recipe:
    """The recipe of a command, with its --set, --by and --train."""
    recipe = parse_recipe(standard_input().text, "<stdin>") if arguments.recipe == "-" else load(arguments.recipe)
    recipe = recipe.with_params(**parse_settings(arguments.set))
    options = ", ".join(arguments.train) or None
    return recipe.with_clauses(by=arguments.by, train=options) if arguments.by or options else recipe


def add_set(parser: Parser) -> None:
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another value for a param: --set eps=8/255")


def add_recipe(parser: Parser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="the name of a shipped recipe or attack, a .loss file, or - for standard input")
    add_set(parser)
    parser.add_argument("--by", metavar="OPTIMIZER", help="another optimizer of the upper level: --by 'adam(lr = 1e-3)'")
    parser.add_argument(
        "--train", metavar="OPTIONS", action="append", default=[], help="other options of train: --train 'epochs = 30, schedule = cosine'"
    )
