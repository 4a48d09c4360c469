"""How the figures look: colours that are told apart without colour vision, beside them always another mark or line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lossdsl.run.plots import save_figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito (2008), without the yellow, which is too faint for a line."""
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (1, 1)))
MARKERS = "os^Dv*P"
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "++", "oo")
BINS = 40
SEQUENTIAL = "cividis"
"""For numbers as colour: even in lightness (Nuñez et al., 2018)."""
SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "lossdsl",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def marks(number: int) -> dict[str, Any]:
    """Colour, line and marker of the curve with this number, for Axes.plot."""
    return {**same(number), "linestyle": LINES[number % 7], "markersize": 5}


def same(number: int) -> dict[str, Any]:
    """Its colour and marker alone, where the line says something else."""
    return {"color": COLOURS[number % 7], "marker": MARKERS[number % 7]}


def sparse(count: int) -> int:
    """At how many points of a curve of `count` there is a marker: about ten in all."""
    return max(1, count // 10)


@contextmanager
def drawing() -> Iterator[None]:
    """The settings of all figures; a figure is made and saved inside."""
    with rc_context(SETTINGS):
        yield


def canvas(width: float = 7.0, height: float = 4.2) -> Figure:
    """An empty figure of so many inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def panels(count: int, width: float = 3.6, height: float = 3.4, columns: int = 3, **shared: Any) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels side by side, at most `columns` in a row; `shared` goes to Figure.subplots."""
    across = min(count, columns)
    down = -(-count // across)
    figure = canvas(width * across + 0.6, height * down + 0.5)
    axes = list(figure.subplots(down, across, squeeze=False, **shared).flat)
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def legend_below(figure: Figure, axes: Axes, columns: int = 3) -> None:
    """The legend of one panel under the figure, where it hides no data."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)))


def save(figure: Figure, out: Path) -> list[Path]:
    """Write PNG and SVG (the suffix of `out` is replaced), the same bytes for the same content. Raises UserError: cannot be written."""
    return [save_figure(figure, out.with_suffix(end)) for end in (".png", ".svg")]


def over_epochs(axes: Axes) -> None:
    """Whole numbers below a panel over epochs."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")


def percent(axes: Axes, label: str) -> None:
    """Accuracies from 0 to 100 % at the left."""
    axes.set(ylabel=label, ylim=(-0.02, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1))


def outlined(panel: Axes, values: list[float], limits: tuple[float, float], number: int, label: str | None) -> None:
    """A histogram as a filled step line in colour and line of its number; heights are shares of the examples."""
    edges = np.linspace(*limits, BINS + 1).tolist()
    weights = np.full(len(values), 1 / max(len(values), 1))
    panel.hist(values, edges, weights=weights, histtype="stepfilled", color=COLOURS[number % 7], alpha=0.15)
    panel.hist(
        values, edges, weights=weights, histtype="step", color=COLOURS[number % 7], linestyle=LINES[number % 7], linewidth=1.6, label=label
    )
