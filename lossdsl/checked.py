"""The outcome of checking a file."""

from __future__ import annotations

from dataclasses import dataclass

from lossdsl.check.game_typed import TypedGame
from lossdsl.check.law_typed import TypedLaw
from lossdsl.check.typed import TypedRecipe
from lossdsl.diagnostics import Diagnostic
from lossdsl.syntax import tree as t
from lossdsl.syntax.parse import Parsed


@dataclass(frozen=True)
class Checked:
    """The outcome of checking one declaration: its typed form (None if it has errors) and every finding."""

    declaration: t.Declaration
    typed: TypedRecipe | TypedGame | TypedLaw | None
    diagnostics: tuple[Diagnostic, ...]
    changing: frozenset[str] = frozenset()
    epochs: frozenset[int] = frozenset()
    """First epochs of later values of params."""


@dataclass(frozen=True)
class CheckedFile:
    """A whole file: the tree and, per declaration, its check."""

    parsed: Parsed
    checks: tuple[Checked, ...]
    shared: tuple[t.Item, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()
