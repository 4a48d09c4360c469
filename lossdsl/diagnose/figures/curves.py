"""Curves over epochs."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lossdsl.diagnose.figures.style import COLOURS, LINES, MARKERS, legend_below, panels
from lossdsl.diagnose.table import Table

_SPLITS = ("train", "validation", "test")


def draw_curves(table: Table) -> Figure:
    """A panel for each split that was measured: robust accuracy full, clean accuracy dashed, a run by colour and marker; the best
    checkpoint as a large mark (Robey et al., fig. 1)."""
    splits = [split for split in _SPLITS if split in table["split"]]
    figure, axes = panels(len(splits), height=3.6, sharey=True)
    for panel, split in zip(axes, splits, strict=True):
        part = table.where(lambda row, s=split: row["split"] == s)  # type: ignore[misc]
        for number, (run, own) in enumerate(part.split("run").items()):
            same: dict[str, Any] = {"color": COLOURS[number % 7], "marker": MARKERS[number % 7]}
            look = {**same, "markersize": 4, "markevery": max(1, len(own) // 10)}
            panel.plot(own["epoch"], own["clean"], linestyle=LINES[1], linewidth=1, **look, label=f"{run} clean".strip())
            panel.plot(own["epoch"], own["robust"], linestyle=LINES[0], linewidth=1.8, **look, label=f"{run} robust".strip())
            best = own.where(lambda row: bool(row["best"]))
            big = {**same, "markersize": 10, "markeredgecolor": "black", "linestyle": "none"}
            panel.plot(best["epoch"], best["robust"], **big, label=f"{run} best".strip())
        panel.set(title=f"{split} examples", xlabel="epoch", ylim=(0, 1.02))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel("accuracy")
    axes[0].yaxis.set_major_formatter(PercentFormatter(1))
    legend_below(figure, axes[0], 3)
    return figure
