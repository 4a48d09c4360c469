"""The robustness-accuracy frontier (D16; FAIT, fig. 1): clean against robust accuracy, one point for each value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from lossdsl.diagnose.figures.labels import write_beside
from lossdsl.diagnose.figures.style import canvas, drawing, legend_below, marks, save
from lossdsl.sweep.collected import Collected, Row
from lossdsl.sweep.grid import shown


def draw_frontier(collected: Collected, out: Path) -> list[Path]:
    """Write `out` as PNG and SVG (its suffix is replaced) and return both paths.

    A point is the mean over seeds, its bars one standard deviation, small dots are the runs. Neighbouring values of the first swept
    param are joined; every combination of the others has a curve of its own, told apart by line and marker. Runs that diverged have no
    point and are counted below.
    """
    with drawing():
        figure = canvas(6.4, 4.8)
        axes = figure.add_subplot()
        first, *others = collected.over
        curves = _curves(collected, others)
        for number, (label, rows) in enumerate(curves.items()):
            _draw_curve(axes, rows, first, label, marks(number))
        axes.set(xlabel=f"clean accuracy [%]\n{_caption(collected)}", ylabel=f"robust accuracy under {collected.attack} [%]")
        axes.set_title(f"{collected.title or collected.recipe} over {first}", loc="left")
        axes.margins(0.12)
        if others:
            legend_below(figure, axes)
        points = [(_place(row), f"{first} = {shown(row.values[first])}") for rows in curves.values() for row in rows]
        write_beside(figure, axes, points)
        return save(figure, out)


def _curves(collected: Collected, others: list[str]) -> dict[str, list[Row]]:
    """The rows with at least one finished run, by the values of all params but the first."""
    found: dict[str, list[Row]] = {}
    for row in collected.rows:
        if row.clean.n:
            found.setdefault(", ".join(f"{name} = {shown(row.values[name])}" for name in others), []).append(row)
    return found


def _draw_curve(axes: Axes, rows: list[Row], first: str, label: str, style: dict[str, Any]) -> None:
    rows = sorted(rows, key=lambda row: row.values[first])
    clean, robust = zip(*map(_place, rows), strict=True)
    across, up = ([100 * (getattr(row, name).std or 0) for row in rows] for name in ("clean", "robust"))
    axes.errorbar(clean, robust, up, across, capsize=3, elinewidth=1, label=label or None, **style, zorder=3)
    for row in rows:
        runs = [run for run in row.runs if run.clean is not None and run.robust is not None]
        if len(runs) > 1:
            dots = [(100 * (run.clean or 0), 100 * (run.robust or 0)) for run in runs]
            axes.scatter([dot[0] for dot in dots], [dot[1] for dot in dots], s=9, color=style["color"], alpha=0.35, linewidths=0, zorder=2)


def _place(row: Row) -> tuple[float, float]:
    return 100 * (row.clean.mean or 0), 100 * (row.robust.mean or 0)


def _caption(collected: Collected) -> str:
    counts = sorted({row.clean.n for row in collected.rows})
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    diverged = sum(len(row.diverged) for row in collected.rows)
    extra = f"; {diverged} runs diverged" if diverged else ""
    missing = f"; {collected.missing} runs missing" if collected.missing else ""
    return f"mean ± one standard deviation over seeds, n = {n}; {collected.checkpoint} checkpoints{extra}{missing}"
