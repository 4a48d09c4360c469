"""`diagnose`: names of diagnostics and runs to tables; `draw`: a table to its figure; `write`: both to files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from lossdsl.diagnose.catalog import Row, find
from lossdsl.diagnose.figures.style import drawing, save
from lossdsl.diagnose.runs import OpenRun
from lossdsl.diagnose.subject import Options, Subject
from lossdsl.diagnose.table import Table, joined
from lossdsl.diagnostics import UserError
from lossdsl.run.files import write_atomic, write_error


def diagnose(
    runs: Sequence[Path], names: Sequence[str], options: Options | None = None, *, note: Callable[[str], None] = lambda text: None
) -> Iterator[Table]:  # fmt: skip
    """The table of each diagnostic, over all runs (column "run" in front), in the order of `names`.

    note: is told what is being measured. Raises UserError: no such diagnostic, not a run, or a run without what a diagnostic needs.
    """
    options = options or Options()
    rows = [find(name) for name in names]
    if not runs or not rows:
        raise UserError("there is nothing to diagnose", where="diagnose", fix="name at least one run and one diagnostic")
    opened = _named([OpenRun(path, options) for path in runs])
    subjects: dict[str, Subject] = {}
    for row in rows:
        tables = {}
        for name, run in opened.items():
            note(f"{row.name}: {name}")
            tables[name] = _measured(row, name, run, subjects)
        yield joined(tables)


def _measured(row: Row, name: str, run: OpenRun, subjects: dict[str, Subject]) -> Table:
    """One diagnostic of one run; subjects are kept, so that an attack is made once for all diagnostics."""
    if row.of == "run":
        found: Table = row.measure()(run, run.options)
        return found
    if name not in subjects:
        subjects[name] = run.subject()
    table: Table = row.measure()(subjects[name], run.options)
    return table


def _named(runs: Sequence[OpenRun]) -> dict[str, OpenRun]:
    """Runs by the name of their directory, or by their path where two have the same name."""
    names = [run.name for run in runs]
    return {run.name if names.count(run.name) == 1 else str(run.path): run for run in runs}


def draw(table: Table) -> Figure:
    """The figure of a table, of matplotlib. Call it, and save, inside `figures.style.drawing()`, or use `write`."""
    figure: Figure = find(table.name).draw()(table)
    return figure


def write(table: Table, out: Path) -> list[Path]:
    """NAME.json, NAME.csv, NAME.png and NAME.svg in a directory, which is made. Raises UserError: cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(out, error) from error
    stem = out / table.name
    text = json.dumps(table.to_json(), indent=1, allow_nan=False, ensure_ascii=False)
    write_atomic(stem.with_suffix(".json"), (text + "\n").encode())
    write_atomic(stem.with_suffix(".csv"), table.to_csv().encode())
    with drawing():
        return [stem.with_suffix(".json"), stem.with_suffix(".csv"), *save(draw(table), stem)]
