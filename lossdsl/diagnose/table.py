"""What every diagnostic gives: columns with units, rows of plain values, notes; to JSON and CSV and back. Free of torch."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Cell = str | int | float | bool | None
"""None where a value is not defined; a note then says why."""


@dataclass(frozen=True)
class Column:
    """A column's name, the unit of its values ("" for pure numbers and words) and what they are."""

    name: str
    unit: str = ""
    about: str = ""

    @property
    def label(self) -> str:
        """For axes: what it is, and its unit."""
        text = self.about or self.name
        return f"{text} [{self.unit}]" if self.unit else text


@dataclass(frozen=True)
class Table:
    """The outcome of a diagnostic.

    name: the diagnostic's, by which its figure is found. source: the figure or equation of a paper that it follows. notes: what a
    reader must know beside the numbers, findings among them. facts: single numbers that belong to the whole (eps, radius, base loss).
    Numbers are finite: a value that is not defined is None. Raises ValueError for NaN, infinity and rows of another length.
    """

    name: str
    title: str
    source: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Cell] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"{self.name}: row {number} has {len(row)} cells, there are {len(self.columns)} columns")
            for column, cell in zip(self.columns, row, strict=True):
                if isinstance(cell, float) and not math.isfinite(cell):
                    raise ValueError(f"{self.name}: {column.name} is {cell} in row {number}")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        names = [column.name for column in self.columns]
        return (dict(zip(names, row, strict=True)) for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> list[Any]:
        """The cells of a column, from top to bottom. Raises KeyError."""
        place = self._place(name)
        return [row[place] for row in self.rows]

    def has(self, name: str) -> bool:
        return any(column.name == name for column in self.columns)

    def label(self, name: str) -> str:
        """What to write on an axis for a column."""
        return self.columns[self._place(name)].label

    def _place(self, name: str) -> int:
        for place, column in enumerate(self.columns):
            if column.name == name:
                return place
        raise KeyError(f"{self.name} has no column {name}; it has {', '.join(c.name for c in self.columns)}")

    def where(self, keep: Callable[[dict[str, Any]], bool]) -> Table:
        """The rows that satisfy a condition."""
        return replace(self, rows=tuple(row for row, cells in zip(self.rows, self, strict=True) if keep(cells)))

    def split(self, name: str) -> dict[str, Table]:
        """One table for each value of a column, in order of appearance; all of it under "" where there is no such column."""
        if not self.has(name):
            return {"": self}
        return {str(value): self.where(lambda row, v=value: row[name] == v) for value in dict.fromkeys(self[name])}  # type: ignore[misc]

    def summary(self) -> Table:
        """Minimum, quartiles, mean and maximum of every numeric column, for tables too long to read, run by run."""
        names = ("min", "25%", "median", "mean", "75%", "max", "values")
        columns = tuple(Column(n) for n in (*(["run"] if self.has("run") else []), "column", *names))
        rows = [(*([run] if self.has("run") else []), *row) for run, part in self.split("run").items() for row in part._summaries()]
        return replace(self, columns=columns, rows=tuple(rows))

    def _summaries(self) -> Iterator[tuple[Cell, ...]]:
        for column in self.columns:
            values = [v for v in self[column.name] if isinstance(v, float)]
            if len(values) > 1:
                low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
                yield column.name, min(values), low, middle, statistics.fmean(values), high, max(values), len(values)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for json.dump(allow_nan=False); `from_json` takes them back."""
        columns = [{"name": c.name, "unit": c.unit, "about": c.about} for c in self.columns]
        plain = {name: getattr(self, name) for name in ("name", "title", "source")}
        return {**plain, "columns": columns, "rows": [list(row) for row in self.rows], "notes": list(self.notes), "facts": dict(self.facts)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Table:
        columns = tuple(Column(**column) for column in value["columns"])
        rows = tuple(tuple(row) for row in value["rows"])
        return cls(value["name"], value["title"], value["source"], columns, rows, tuple(value["notes"]), value["facts"])

    def to_csv(self) -> str:
        """A header of names with units, then the rows; an undefined value is an empty cell."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([f"{c.name} [{c.unit}]" if c.unit else c.name for c in self.columns])
        writer.writerows(self.rows)
        return out.getvalue()


def joined(tables: Mapping[str, Table]) -> Table:
    """The tables of one diagnostic of several runs, one below the other, the run's name in front."""
    first = next(iter(tables.values()))
    rows = tuple((name, *row) for name, table in tables.items() for row in table.rows)
    shared = {note for note in first.notes if all(note in table.notes for table in tables.values())}
    named = [note if note in shared else f"{name}: {note}" for name, table in tables.items() for note in table.notes]
    notes = tuple(dict.fromkeys(named))
    facts = {f"{name}: {key}": value for name, table in tables.items() for key, value in table.facts.items()}
    return replace(first, columns=(Column("run"), *first.columns), rows=rows, notes=notes, facts=facts)


def column_rows(columns: Sequence[Sequence[Any]]) -> tuple[tuple[Cell, ...], ...]:
    """Rows from columns of equal length."""
    return tuple(zip(*columns, strict=True))
