"""A report as a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lossdsl.sanity.findings import Outcome, Report

STYLES = {"finding": "bold yellow", "error": "bold red", "not run": "dim", "passed": ""}


def sanity_report(report: Report, title: str) -> RenderableType:
    """One line for each check; below, of each finding, what should hold, what to do and where to read."""
    about = f"{report.norm} radius {report.radius:.4g}, {report.right} of {report.examples} examples right, level {report.level:g} a test"
    table = Table(title=f"{title}: {about}")
    for heading in ("code", "check", "verdict", "what was found"):
        table.add_column(heading, no_wrap=heading != "what was found")
    for outcome in report.outcomes:
        table.add_row(outcome.code, outcome.check.title, outcome.status, outcome.verdict.detail, style=STYLES[outcome.status])
    return Group(table, *(Text(line) for outcome in report.findings for line in _explained(outcome)), Text(report.summary()))


def _explained(outcome: Outcome) -> Iterator[str]:
    yield f"{outcome.status} {outcome.code}, {outcome.check.title}: {outcome.verdict.detail}"
    yield f"  should hold: {outcome.check.claim}"
    yield f"  help: {outcome.check.remedy}"
    yield f"  see: {outcome.check.reference}"
