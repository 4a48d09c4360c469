"""Where the grammar and the recipes lie. No other file knows."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


@cache
def _folder(name: str) -> Path:
    """`name` beside the package in a checkout, inside the package in a wheel."""
    inside, beside = _PACKAGE / name, _PACKAGE.parent / name
    return inside if inside.is_dir() else beside


def grammar_path() -> Path:
    return _folder("grammars") / "lossdsl.lark"


def recipe_paths() -> dict[str, Path]:
    """Every shipped recipe by name, in alphabetical order."""
    return {p.stem: p for p in sorted(_folder("recipes").glob("*.loss"))}


def attack_paths() -> dict[str, Path]:
    """Every shipped attack suite by name, in alphabetical order."""
    return {p.stem: p for p in sorted((_folder("recipes") / "attacks").glob("*.loss"))}


def game_paths() -> dict[str, Path]:
    """Every shipped game by name, in alphabetical order."""
    return {p.stem: p for p in sorted((_folder("recipes") / "games").glob("*.loss"))}


def law_paths() -> dict[str, Path]:
    """Every shipped file of laws by name, in alphabetical order."""
    return {p.stem: p for p in sorted((_folder("recipes") / "laws").glob("*.loss"))}


def law_scripts() -> dict[str, Path]:
    """Every shipped Python file of laws by name, in alphabetical order; some have the name of a file of the language."""
    return {p.stem: p for p in sorted((_folder("recipes") / "laws").glob("*.py"))}
