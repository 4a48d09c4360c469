"""What a report says: everything about runs that is on disk, and the diagnostics asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lossdsl.diagnose.api import diagnose
from lossdsl.diagnose.runs import OpenRun
from lossdsl.diagnose.subject import Options
from lossdsl.diagnose.table import Table
from lossdsl.diagnostics import UserError
from lossdsl.run.files import read_json
from lossdsl.run.measure import Rate

FIGURES = ("curves", "quadrants", "decomposition", "margins", "classes")
"""The diagnostics of a report unless others are asked for; each needs nothing but an ordinary run."""
EVALUATIONS = "evaluate-*.json"


@dataclass(frozen=True)
class Reported:
    """One run: what it trained and on what, as its directory says. evaluations: every stored result, by suite."""

    run: OpenRun
    evaluations: tuple[Mapping[str, Any], ...]

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def finished(self) -> Mapping[str, Any] | None:
        """The measurement at the end of training; None for a run that is not finished."""
        return self.run.result()


@dataclass(frozen=True)
class Content:
    """All that a page shows. `tables`: one per diagnostic, over all runs; `missing`: diagnostics that could not be made, and why."""

    runs: tuple[Reported, ...]
    tables: tuple[Table, ...]
    missing: Mapping[str, str]
    options: Options


def gather(
    paths: Sequence[Path],
    what: Sequence[str] | None = None,
    options: Options | None = None,
    *,
    note: Callable[[str], None] = lambda text: None,
) -> Content:
    """Read runs and measure the diagnostics `what` (None: those of FIGURES, of which one that fails is named in the report).

    Raises UserError: no run, a damaged one, one directory given twice, a diagnostic asked for that cannot be made.
    """
    options = options or Options()
    if not paths:
        raise UserError("there is nothing to report on", where="report", fix="name at least one run")
    same = [path for number, path in enumerate(paths) if path.resolve() in {p.resolve() for p in paths[:number]}]
    if same:
        raise UserError("is named twice", where=str(same[0]), fix="name every run once")
    runs = tuple(Reported(OpenRun(path, options), _evaluations(path)) for path in paths)
    tables, missing = [], {}
    for name in FIGURES if what is None else what:
        try:
            tables += list(diagnose(paths, [name], options, note=note))
        except UserError as error:
            if what is not None:
                raise
            missing[name] = str(error)
    return Content(runs, tuple(tables), missing, options)


def _evaluations(path: Path) -> tuple[Mapping[str, Any], ...]:
    """Stored results of `lossdsl evaluate`, in the order of their files."""
    return tuple(read_json(file, "result of an evaluation") for file in sorted(path.glob(EVALUATIONS)))


def rate(value: Mapping[str, Any]) -> str:
    """Accuracy with its interval, in percent."""
    found = Rate.from_json(value)
    low, high = found.interval
    return f"{100 * found.value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
