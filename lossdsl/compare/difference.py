"""What differs between two recipes, attack suites or games, term by term: `lossdsl diff`.

Layout, comments, the order of addends, the names of lets and defs and defaults written out make no difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from lossdsl.compare.fields import Field, Place, fields_of
from lossdsl.compare.terms import matched
from lossdsl.diagnostics import UserError

if TYPE_CHECKING:
    from lossdsl.front import Recipe


@dataclass(frozen=True)
class Row:
    """One thing of a section in both declarations, as text; None where a declaration does not have it."""

    section: str
    name: str
    old: str | None
    new: str | None

    @property
    def change(self) -> str:
        """ "removed", "added", "changed" or "same"."""
        if self.new is None:
            return "removed"
        return "added" if self.old is None else "same" if self.old == self.new else "changed"


@dataclass(frozen=True)
class Comparison:
    """All differences in the order of a method section, and beside changed objectives the terms that are the same."""

    old: Recipe
    new: Recipe
    rows: tuple[Row, ...]

    @property
    def differences(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.change != "same")

    def as_text(self, width: int = 120) -> str:
        """Both headings, then a line for each difference: - only old, + only new, ~ changed; terms without a sign are the same."""
        return as_text(self, width)

    def as_json(self) -> dict[str, Any]:
        """`old` and `new`: name, title, source; `equal`; `differences`; `unchanged_terms` of objectives that differ."""
        heads = {
            side: {"kind": r.kind, "name": r.name, "title": r.title, "source": r.source_note, "file": r.source.name}
            for side, r in (("old", self.old), ("new", self.new))
        }
        same = [{"section": r.section, "name": r.name, "term": r.old} for r in self.rows if r.change == "same"]
        different = [
            {"section": r.section, "name": r.name, "change": r.change, "old": r.old, "new": r.new} for r in self.rows if r.change != "same"
        ]
        return {**heads, "equal": not different, "differences": different, "unchanged_terms": same}


def compare(old: Recipe, new: Recipe) -> Comparison:
    """Two declarations of one kind, what they extend written out. Raises UserError where they are of different kinds."""
    if old.kind != new.kind:
        said = f"{old.name} is {_KINDS[old.kind]}, and {new.name} is {_KINDS[new.kind]}"
        raise UserError(said, where="diff", fix="compare two recipes, two attack suites or two games")
    before, after = fields_of(old), fields_of(new)
    places = _together(list(before), list(after))
    rows = [row for place in places for row in _rows(place, before.get(place), after.get(place))]
    return Comparison(old, new, tuple(sorted(rows, key=lambda row: _rank(row.section))))


_KINDS = {"attack": "an attack suite", "recipe": "a recipe", "game": "a game", "law": "a law"}
_ORDER = (
    "params", "input", "models", "generators", "data", "samples", "lower", "find", "run", "player", "states", "upper", "optimizer", "train",
    "logs", "count", "solve", "keep", "for", "where", "claim", "refute",
)  # fmt: skip
"""The first words of sections in the order of showing; levels and searches stay in the order of running."""


def _rank(section: str) -> int:
    word = section.partition(" ")[0]
    return _ORDER.index("lower" if word == "find" else word)


def _together(first: list[Place], second: list[Place]) -> list[Place]:
    """Both lists as one; what only the second has stands behind the neighbour that it has there, else before the next."""
    merged = list(first)
    for n, place in enumerate(second):
        if place not in merged:
            before = next((p for p in reversed(second[:n]) if p in merged), None)
            after = next((merged.index(p) for p in second[n:] if p in merged), len(merged))
            merged.insert(after if before is None else merged.index(before) + 1, place)
    return merged


def _rows(place: Place, old: Field | None, new: Field | None) -> Iterator[Row]:
    section, name = place
    if old is None or new is None:
        only = old or new
        assert only is not None
        if not only.quiet:
            texts = [a.text for a in only.addends] or [only.text]
            yield from (Row(section, name, text if old else None, text if new else None) for text in texts)
    elif old.key == new.key:
        return
    elif old.addends and new.addends and old.head == new.head:
        for a, b in matched(old.addends, new.addends):
            kept = a is not None and b is not None and a.key == b.key
            yield Row(section, name, a.text if a else None, a.text if a and kept else b.text if b else None)
    elif old.head and old.head == new.head and not old.addends:
        for part in _together([("", p) for p in old.parts], [("", p) for p in new.parts]):
            yield from _rows((section, part[1]), old.parts.get(part[1]), new.parts.get(part[1]))
    else:
        yield Row(section, name, old.text, new.text)


# --- text ----------------------------------------------------------------------------------------------------------

_SIGNS = {"removed": "-", "added": "+", "changed": "~", "same": " "}


def as_text(comparison: Comparison, width: int) -> str:
    """The comparison for a terminal of that many columns."""
    recipes = comparison.old, comparison.new
    wide = max(len(r.name) for r in recipes)
    lines = [
        f"{sign} {r.name:<{wide}}  {r.title}" + (f" ({r.source_note})" if r.source_note else "")
        for sign, r in zip("-+", recipes, strict=True)
    ]
    if not comparison.differences:
        return "\n".join([*lines, "", "nothing differs"])
    for section, group in groupby(comparison.rows, key=lambda row: row.section):
        rows = list(group)
        column = max(len(row.name) for row in rows)
        lines += ["", section, *(line for row in rows for line in _lines(row, column, width))]
    return "\n".join(lines)


def _lines(row: Row, column: int, width: int) -> list[str]:
    """One row; a change too long for one line has its sides below each other."""
    head = f"  {_SIGNS[row.change]} {row.name:<{column}}  "
    sides = [side for side in (row.old, row.new) if side is not None][: 1 if row.change == "same" else 2]
    line = head + " -> ".join(sides)
    if len(line) <= width:
        return [line]
    if len(sides) == 1:
        return _wrapped(head, sides[0], width)
    below = " " * (len(head) - 2)
    return [head.rstrip(), *_wrapped(f"{below}- ", sides[0], width), *_wrapped(f"{below}+ ", sides[1], width)]


def _wrapped(head: str, text: str, width: int) -> list[str]:
    return wrap(
        text,
        max(width, len(head) + 40),
        initial_indent=head,
        subsequent_indent=" " * (len(head) + 2),
        break_long_words=False,
        break_on_hyphens=False,
    )
