"""Normalised gradient norms over the first updates."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from lossdsl.diagnose.figures.style import COLOURS, marks, panels, sparse
from lossdsl.diagnose.replay import WHOLE
from lossdsl.diagnose.table import Table

SMOOTH = 50
"""The curve is the median over about a fiftieth of the updates; the single ones are dots."""


def draw_norms(table: Table) -> Figure:
    """A panel for each run, a curve for each term, and one panel that compares the whole objectives of all runs (Kim et al., fig. 7)."""
    parts = table.split("run")
    figure, axes = panels(len(parts) + (len(parts) > 1), width=3.1, height=3.2, columns=3)
    for panel, (run, part) in zip(axes, parts.items(), strict=False):
        terms = part.split("term")
        for number, (term, own) in enumerate(terms.items() if len(terms) > 2 else [*terms.items()][:1]):  # one term is the objective
            _curve(panel, own, number, term)
        panel.set_title(run)
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=8)
    if len(parts) > 1:
        for number, (run, part) in enumerate(parts.items()):
            _curve(axes[-1], part.where(lambda row: row["term"] == WHOLE), number, run)
        axes[-1].set_title("whole objectives")
        axes[-1].legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=8)
    for panel in axes:
        panel.set(xlabel="update", yscale="log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel(table.label("normalised"))
    return figure


def _curve(panel: Any, part: Table, number: int, label: str) -> None:
    defined = part.where(lambda row: row["normalised"] is not None)
    updates, values = np.asarray(defined["update"]), np.asarray(defined["normalised"])
    if len(values) == 0:
        return
    width = max(1, len(values) // SMOOTH)
    if width > 1:
        panel.plot(updates, values, ".", color=COLOURS[number % 7], markersize=2, alpha=0.35)
    whole = len(values) // width * width
    middles = np.median(values[:whole].reshape(-1, width), axis=1)
    panel.plot(updates[:whole].reshape(-1, width).mean(1), middles, **marks(number), markevery=sparse(len(middles)), label=label)
