"""Curves over epochs, rules of early stopping, and time."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from lossdsl.diagnose.figures.style import COLOURS, HATCHES, LINES, legend_below, over_epochs, panels, percent, same, sparse
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
            look = {**same(number), "markersize": 4, "markevery": sparse(len(own))}
            panel.plot(own["epoch"], own["clean"], linestyle=LINES[1], linewidth=1, **look, label=f"{run} clean".strip())
            panel.plot(own["epoch"], own["robust"], linestyle=LINES[0], linewidth=1.8, **look, label=f"{run} robust".strip())
            best = own.where(lambda row: bool(row["best"]))
            big = {**same(number), "markersize": 10, "markeredgecolor": "black", "linestyle": "none"}
            panel.plot(best["epoch"], best["robust"], **big, label=f"{run} best".strip())
        panel.set_title(f"{split} examples")
        over_epochs(panel)
    percent(axes[0], "accuracy")
    legend_below(figure, axes[0], 3)
    return figure


def draw_alarm(table: Table) -> Figure:
    """A panel for each run: accuracy under FGSM dashed, under PGD full; epochs where the alarm holds are shaded (Wong et al.)."""
    parts = table.split("run")
    figure, axes = panels(len(parts), height=3.2, sharey=True)
    for panel, (run, part) in zip(axes, parts.items(), strict=True):
        look: dict[str, Any] = {"markersize": 5, "markevery": sparse(len(part))}
        panel.plot(part["epoch"], part["fgsm"], linestyle=LINES[1], **same(0), **look, label="FGSM")
        panel.plot(part["epoch"], part["pgd"], linestyle=LINES[0], **same(1), **look, label="PGD (validation attack)")
        for epoch in part.where(lambda row: bool(row["alarm"]))["epoch"]:
            panel.axvspan(epoch - 0.5, epoch + 0.5, facecolor="0.85", edgecolor="0.6", hatch="////", linewidth=0, zorder=0)
        panel.set_title(run)
        over_epochs(panel)
    axes[0].bar([axes[0].get_xlim()[0]], [0], 0, facecolor="0.85", edgecolor="0.6", hatch="////", label="alarm")
    percent(axes[0], "accuracy on the validation split")
    legend_below(figure, axes[0])
    return figure


def draw_stopping(table: Table) -> Figure:
    """A panel for each run: robust test accuracy at the epoch that each rule chooses, the epoch beside the bar."""
    parts = table.split("run")
    figure, axes = panels(len(parts), height=2.8, sharex=True)
    for panel, (run, part) in zip(axes, parts.items(), strict=True):
        places = range(len(part))
        panel.barh(places, part["robust"], 0.6, color=COLOURS[0], edgecolor="white")
        for place, (value, epoch) in enumerate(zip(part["robust"], part["epoch"], strict=True)):
            panel.annotate(f"{value:.1%}, epoch {epoch}", (value, place), (4, 0), textcoords="offset points", va="center", fontsize=9)
        panel.set_yticks(list(places), part["rule"])
        panel.invert_yaxis()
        panel.set(title=run, xlabel=part.label("robust"), xlim=(0, max(*table["robust"], 0.01) * 1.6))
        panel.xaxis.set_major_formatter(PercentFormatter(1))
        panel.grid(axis="y", visible=False)
    return figure


def draw_time(table: Table) -> Figure:
    """Seconds per epoch, a bar for each run, with the seconds of an update beside it."""
    names = table["run"] if table.has("run") else table["recipe"]
    figure, (panel,) = panels(1, width=6.4, height=0.9 + 0.45 * len(names))
    places = range(len(names))
    panel.barh(places, table["epoch"], 0.6, color=COLOURS[0], hatch=HATCHES[1], edgecolor="white")
    for place, (epoch, update) in enumerate(zip(table["epoch"], table["update"], strict=True)):
        text = f"{epoch:.3g} s; {1000 * update:.3g} ms an update"
        panel.annotate(text, (epoch, place), (4, 0), textcoords="offset points", va="center", fontsize=9)
    panel.set_yticks(list(places), names)
    panel.invert_yaxis()
    panel.set(xlabel=table.label("epoch"), xlim=(0, max(table["epoch"]) * 1.5))
    panel.grid(axis="y", visible=False)
    return figure
