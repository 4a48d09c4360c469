"""Past counterexamples, in a file: tried first when a law of the same name is checked again, and confirmed anew like any other."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from lossdsl.check.law_typed import TypedLaw
from lossdsl.diagnostics import RecipeError, UserError
from lossdsl.laws.catalogue import Law
from lossdsl.laws.problem import Assignment, Free
from lossdsl.laws.verdict import Counterexample

MOST = 20
"""Counterexamples of one law that are kept, the newest first."""


class Past:
    """The counterexamples of a JSON file, by law; the file need not exist yet.

    Raises UserError where the file is none of these, or cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[str, list[dict[str, Any]]] = {}
        try:
            self._found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            for row in (row for rows in self._found.values() for row in rows):
                _assignment(row)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"this is no file of past counterexamples: {error}", where=str(path), fix="name another file") from None

    def of(self, law: Law) -> Iterator[tuple[TypedLaw, Assignment]]:
        """Those that still fit what the law quantifies over."""
        for row in self._found.get(law.name, []):
            assignment = _assignment(row)
            try:
                typed = law.at(row["choices"])
            except RecipeError:
                continue
            sizes = {q.name: q.size for q in typed.quantities}
            if typed.choices == row["choices"] and sizes == {name: len(v) for name, v in assignment.values.items()}:
                yield typed, assignment

    def add(self, law: Law, found: Counterexample) -> None:
        """Keep a counterexample and write the file, all at once."""
        a = found.assignment
        values = {name: [str(Fraction(v)) for v in numbers] for name, numbers in a.values.items()}
        row = {"choices": found.choices, "values": values, "charts": a.charts, "near": a.near}
        rows = [row, *(r for r in self._found.get(law.name, []) if r != row)]
        self._found[law.name] = rows[:MOST]
        text = json.dumps(self._found, indent=1, ensure_ascii=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside = self.path.with_name(f"{self.path.name}.{os.getpid()}")
            beside.write_text(text, encoding="utf-8")
            beside.replace(self.path)
        except OSError as error:
            raise UserError(f"the file cannot be written: {error.strerror}", where=str(self.path)) from None


def _assignment(row: dict[str, Any]) -> Assignment:
    values = {name: tuple(_number(v) for v in numbers) for name, numbers in row["values"].items()}
    return Assignment(values, dict(row["charts"]), bool(row["near"]))


def _number(text: str) -> Free:
    """A whole number stays one: labels are. Others are fractions."""
    v = Fraction(text)
    return int(v) if v.denominator == 1 and abs(v) < 2**31 else v
