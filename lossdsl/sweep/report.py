"""A sweep as a table for the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lossdsl.sweep.collected import Collected
from lossdsl.sweep.grid import shown


def sweep_report(collected: Collected) -> RenderableType:
    """One line for each combination: n, mean ± standard deviation in percent, what diverged, what the sanity gate found."""
    table = Table(title=f"{collected.recipe}: {collected.attack} on {collected.checkpoint} checkpoints, accuracy in %")
    for heading in (*collected.over, "n", "clean", "robust", "diverged", "sanity"):
        table.add_column(heading, no_wrap=True)
    for row in collected.rows:
        diverged = f"seed {', '.join(map(str, row.diverged))}" if row.diverged else ""
        findings = ", ".join(f"{code} in {count}" for code, count in row.findings.items())
        table.add_row(*map(shown, row.values.values()), str(row.clean.n), str(row.clean), str(row.robust), diverged, findings)
    lines = [
        f"mean ± sample standard deviation over seeds {', '.join(map(str, collected.seeds))} (n: finished runs)",
        f"data: {collected.data}",
        *(f"{row.label}, seed {run.seed} diverged: {run.reason}" for row in collected.rows for run in row.runs if run.reason),
        f"written to {collected.out / 'sweep.json'}, {collected.out / 'frontier.png'} and .svg",
    ]
    return Group(table, *(Text(line) for line in lines))
