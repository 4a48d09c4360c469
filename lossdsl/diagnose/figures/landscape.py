"""Loss surfaces."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from lossdsl.diagnose.figures.style import SEQUENTIAL, canvas
from lossdsl.diagnose.table import Table


def draw_landscape(table: Table) -> Figure:
    """A surface for each run over the same axes; below it the contours, where a dashed square is the ball (Fast-BAT, fig. A1)."""
    parts = table.split("run")
    figure = canvas(2.6 * len(parts) + 0.8, 4.7)
    low, high = min(table["loss"]), max(table["loss"])
    grid = figure.add_gridspec(2, len(parts), height_ratios=(1.15, 1))
    below = []
    for column, (run, part) in enumerate(parts.items()):
        side = round(len(part) ** 0.5)
        a, b, loss = (np.asarray(part[name]).reshape(side, side) for name in ("a", "b", "loss"))
        surface: Any = figure.add_subplot(grid[0, column], projection="3d")
        surface.plot_surface(a, b, loss, cmap=SEQUENTIAL, vmin=low, vmax=high, linewidth=0, antialiased=False, rcount=side, ccount=side)
        surface.locator_params(nbins=4)
        surface.set(xlabel="$a$", ylabel="$b$", zlim=(low, high))
        surface.set_title(run, y=0.98)
        surface.tick_params(labelsize=7, pad=-1)
        surface.set_box_aspect(None, zoom=0.88)
        surface.view_init(elev=28, azim=-125)
        below.append(figure.add_subplot(grid[1, column]))
        _contours(below[-1], part, (a, b, loss), np.linspace(low, high + 1e-9, 9))
    below[0].set_ylabel(table.label("b"))
    figure.colorbar(ScalarMappable(Normalize(low, high), SEQUENTIAL), ax=below, label=table.label("loss"), shrink=0.95)
    return figure


def _contours(panel: Axes, part: Table, values: tuple[Any, Any, Any], levels: Any) -> None:
    panel.contourf(*values, levels, cmap=SEQUENTIAL)
    panel.contour(*values, levels, colors="white", linewidths=0.4)
    radius = next((float(value) for name, value in part.facts.items() if name.endswith("radius") and value), 0.0)
    square = np.asarray([(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)]) * radius
    panel.plot(square[:, 0], square[:, 1], linestyle="--", color="white", linewidth=1.4)
    panel.plot([0], [0], "o", color="white", markeredgecolor="black", markersize=6)
    panel.set(xlabel=part.label("a"), aspect="equal")
