"""Angles of the terms' gradients, margin increase, R and R' over epochs."""

from __future__ import annotations

from matplotlib.figure import Figure

from lossdsl.diagnose.figures.style import LINES, legend_below, marks, over_epochs, panels, same
from lossdsl.diagnose.table import Table


def draw_angles(table: Table) -> Figure:
    """A panel for each run: the angle of every term over the epochs; above the line at 90 degrees a step lowers the margin (Kim et al.,
    fig. 4)."""
    parts = table.split("run")
    figure, axes = panels(len(parts), width=4.0, height=3.6, columns=2, sharey=True)
    for panel, (run, part) in zip(axes, parts.items(), strict=True):
        for number, (term, own) in enumerate(part.split("term").items()):
            defined = own.where(lambda row: row["angle"] is not None)
            panel.plot(defined["epoch"], defined["angle"], **marks(number), label=f"$-\\nabla$ {term}")
        panel.axhline(90, color="black", linewidth=1)
        panel.text(0.99, 91.5, "lowers the margin", ha="right", va="bottom", fontsize=8, transform=panel.get_yaxis_transform())
        panel.text(0.99, 88.5, "raises the margin", ha="right", va="top", fontsize=8, transform=panel.get_yaxis_transform())
        panel.set(title=run, ylim=(0, 180), yticks=range(0, 181, 30))
        over_epochs(panel)
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=8)
    axes[0].set_ylabel(table.label("angle"))
    return figure


def draw_increase(table: Table) -> Figure:
    """The expected margin increase at the left, the mean margin at the right, a line for each run (Kim et al., fig. 6)."""
    figure, axes = panels(2, width=4.0, height=3.2)
    for panel, name in zip(axes, ("increase", "margin"), strict=True):
        for number, (run, part) in enumerate(table.split("run").items()):
            panel.plot(part["epoch"], part[name], **marks(number), label=run or None)
        panel.axhline(0, color="black", linewidth=0.8)
        panel.set_ylabel(table.label(name))
        over_epochs(panel)
    legend_below(figure, axes[0], 4)
    return figure


def draw_smoothness(table: Table) -> Figure:
    """R full and R' dashed over the epochs, a run by colour and marker (FAIT, fig. 4)."""
    figure, (panel,) = panels(1, width=5.4, height=3.4)
    for number, (run, part) in enumerate(table.split("run").items()):
        for line, name in zip(LINES, ("R", "R'"), strict=False):
            panel.plot(part["epoch"], part[name], linestyle=line, markersize=5, **same(number), label=f"{run} {table.label(name)}".strip())
    panel.set(ylabel="mean divergence [nats]", ylim=(0, None))
    over_epochs(panel)
    legend_below(figure, panel, 2)
    return figure
