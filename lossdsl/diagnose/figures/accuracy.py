"""Accuracy against radii, per class, and the frontier of robustness and accuracy."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from lossdsl.diagnose.figures.labels import write_beside
from lossdsl.diagnose.figures.style import COLOURS, HATCHES, LINES, legend_below, marks, panels, percent, same
from lossdsl.diagnose.table import Table


def draw_radii(table: Table) -> Figure:
    """Robust accuracy full, clean accuracy dotted with small markers, over the radius; a run by colour and marker (Kim et al., fig. 3)."""
    figure, (panel,) = panels(1, width=5.6, height=3.6)
    for number, (run, part) in enumerate(table.split("run").items()):
        panel.plot(part["eps"], part["robust"], linestyle=LINES[0], **same(number), markersize=5, label=f"{run} robust".strip())
        thin = {**same(number), "linestyle": LINES[3], "linewidth": 1.2, "markersize": 3}
        panel.plot(part["eps"], part["clean"], **thin, label=f"{run} clean".strip())
    panel.set_xlabel(table.label("eps"))
    percent(panel, "accuracy")
    legend_below(figure, panel, 2)
    return figure


def draw_trained(table: Table) -> Figure:
    """A panel each for the best and the last checkpoint: robust full, clean dotted, over the radius that the run was trained at; a recipe
    by colour and marker (Kim et al., fig. 3; Fast-BAT, fig. 1)."""
    figure, axes = panels(2, width=3.9, height=3.5, sharey=True)
    for panel, (which, part) in zip(axes, table.split("checkpoint").items(), strict=True):
        for number, (recipe, own) in enumerate(part.split("recipe").items()):
            rows = sorted(own, key=lambda row: float(row["eps"] or 0))
            radii = [row["eps"] for row in rows]
            panel.plot(radii, [row["robust"] for row in rows], linestyle=LINES[0], **same(number), markersize=5, label=f"{recipe} robust")
            panel.plot(radii, [row["clean"] for row in rows], linestyle=LINES[3], **same(number), markersize=3, label=f"{recipe} clean")
        panel.set(title=f"{which} checkpoint", xlabel=table.label("eps"))
    percent(axes[0], "accuracy at the radius of training")
    legend_below(figure, axes[0], 2)
    return figure


def draw_classes(table: Table) -> Figure:
    """Bars of clean and robust accuracy for every class, a panel for each run; the worst robust class has a mark."""
    parts = table.split("run")
    figure, axes = panels(len(parts), width=4.6, height=3.2, columns=2, sharey=True)
    for panel, (run, part) in zip(axes, parts.items(), strict=True):
        known = part.where(lambda row: bool(row["examples"]))
        places = np.arange(len(known))
        panel.bar(places - 0.2, known["clean"], 0.38, color=COLOURS[5], edgecolor="white", label="clean")
        panel.bar(places + 0.2, known["robust"], 0.38, color=COLOURS[0], hatch=HATCHES[1], edgecolor="white", label="robust")
        worst = int(np.argmin(known["robust"]))
        panel.annotate("worst", (worst + 0.2, known["robust"][worst]), (0, 12), textcoords="offset points", ha="center", fontsize=8,
                       arrowprops={"arrowstyle": "->"})  # fmt: skip
        panel.set_xticks(places.tolist(), known["class"])
        panel.set(title=run, xlabel="class")
        panel.grid(axis="x", visible=False)
    percent(axes[0], "accuracy")
    legend_below(figure, axes[0])
    return figure


def draw_frontier(table: Table) -> Figure:
    """Robust over clean accuracy, a curve for each recipe in the order of the param that its runs differ in; the best robust accuracy is a
    star (FAIT, fig. 1)."""
    figure, (panel,) = panels(1, width=5.6, height=4.0)
    texts: list[tuple[tuple[float, float], str]] = []
    for number, (recipe, part) in enumerate(table.split("recipe").items()):
        rows = list(part)
        name, values = _swept([json.loads(str(row["params"])) for row in rows])
        order = sorted(range(len(rows)), key=lambda n: (values[n], n))
        clean, robust = ([float(rows[n][kind] or 0) for n in order] for kind in ("clean", "robust"))
        panel.plot(clean, robust, **marks(number), label=f"{recipe}, {name}" if name else recipe)
        if name:
            texts += [(at, f"{values[n]:g}") for n, at in zip(order, zip(clean, robust, strict=True), strict=True)]
        top = int(np.argmax(robust))
        panel.plot(clean[top], robust[top], "*", markersize=15, color=COLOURS[number % 7], markeredgecolor="black", zorder=5)
    panel.set(xlabel=table.label("clean"), ylabel=table.label("robust"))
    panel.margins(0.12)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=1))
    legend_below(figure, panel, 2)
    write_beside(figure, panel, texts)
    return figure


def _swept(params: list[dict[str, Any]]) -> tuple[str, list[float]]:
    """The one param that runs differ in and its values; no name and the order of the runs if there is none, or several."""
    names = [name for name in params[0] if len({one.get(name) for one in params}) > 1]
    if len(names) != 1:
        return "", [float(n) for n in range(len(params))]
    return names[0], [float(one[names[0]]) for one in params]
