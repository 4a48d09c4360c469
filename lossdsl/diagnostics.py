"""What can be wrong, said as data: a code, a place, a reason and a way out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from lossdsl.source import Source, Span

Severity = Literal["error", "warning", "note"]
"""A note says what is known of a method, not that its text is wrong; it never changes an exit code."""


@dataclass(frozen=True)
class Related:
    """A second place that explains the first ("x' is introduced here")."""

    span: Span
    message: str


@dataclass(frozen=True)
class Edit:
    """A replacement that mends the finding when applied to the text."""

    span: Span
    replacement: str


@dataclass(frozen=True)
class Diagnostic:
    """One finding. `label` stands under the underlined text, `help` says how to mend it."""

    code: str
    message: str
    span: Span
    label: str = ""
    help: str = ""
    related: tuple[Related, ...] = ()
    edit: Edit | None = None
    severity: Severity = "error"


class LossdslError(Exception):
    """Base of every error a user can cause; the command line prints it without a traceback."""


class UserError(LossdslError):
    """A fault outside recipe text (data, checkpoint, option): where, what is wrong, how to mend it."""

    def __init__(self, problem: str, *, where: str = "", fix: str = "") -> None:
        self.problem, self.where, self.fix = problem, where, fix
        head = f"{where}: {problem}" if where else problem
        super().__init__(f"{head}\n  help: {fix}" if fix else head)


class NotFiniteError(UserError):
    """A number that was computed is NaN or infinite: what was running cannot go on."""


class RecipeError(LossdslError):
    """The text of a recipe is wrong; holds every finding of the file at once."""

    def __init__(self, source: Source, diagnostics: Iterable[Diagnostic]) -> None:
        self.source = source
        self.diagnostics = tuple(diagnostics)
        super().__init__()

    def __reduce__(self) -> tuple[type, tuple[Source, tuple[Diagnostic, ...]]]:
        """Exceptions travel between processes by their arguments."""
        return type(self), (self.source, self.diagnostics)

    def __str__(self) -> str:
        from lossdsl.render import render_text

        return "\n".join(render_text(self.source, d) for d in self.diagnostics)


def suggest(name: str, candidates: Iterable[str]) -> str | None:
    """The known name that was probably meant, or None."""
    pool = sorted(set(candidates) - {name})
    folded = {c.lower(): c for c in pool}
    if name.lower() in folded:
        return folded[name.lower()]
    close = get_close_matches(name, pool, n=1, cutoff=0.6) or get_close_matches(name.lower(), folded, n=1, cutoff=0.7)
    return folded.get(close[0].lower(), close[0]) if close else None


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """A help text: the near match if there is one, else the names that exist."""
    pool = sorted(set(candidates))
    best = suggest(name, pool)
    if best:
        return f"did you mean {best}?"
    return "known here: " + ", ".join(pool) if pool else ""
