"""Tables of diagnostics for the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from lossdsl.diagnose.table import Cell, Table

MOST_ROWS = 40
"""Longer tables are shown by their quartiles; the files hold every row."""


def show(table: Table) -> RenderableType:
    """A table with its notes; of a long one the summary."""
    long = len(table) > MOST_ROWS
    shown = table.summary() if long else table
    grid = RichTable()
    for column in shown.columns:
        numeric = any(isinstance(v, int | float) for v in shown[column.name])
        grid.add_column(f"{column.name} [{column.unit}]" if column.unit else column.name, justify="right" if numeric else "left")
    for row in shown.rows:
        grid.add_row(*map(_cell, row))
    lines = list(table.notes)
    if long:
        lines.append(f"{len(table)} rows; with --out DIR they are written whole")
    return Group(Text(f"{table.title} ({table.source})", style="bold"), grid, *(Text(line) for line in lines))


def _cell(value: Cell) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
