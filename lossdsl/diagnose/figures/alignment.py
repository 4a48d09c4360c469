"""Gradient alignment over epochs."""

from __future__ import annotations

from matplotlib.figure import Figure

from lossdsl.diagnose.figures.style import legend_below, marks, over_epochs, panels
from lossdsl.diagnose.table import Table


def draw_alignment(table: Table) -> Figure:
    """The alignment score of the gradients at the left, the cosine of FGSM's and PGD's perturbations at the right (Fast-BAT, fig. 2)."""
    figure, axes = panels(2, width=4.0, height=3.2, sharey=True)
    for panel, name in zip(axes, ("alignment", "fgsm and pgd"), strict=True):
        for number, (run, part) in enumerate(table.split("run").items()):
            known = part.where(lambda row, n=name: row[n] is not None)  # type: ignore[misc]
            panel.plot(known["epoch"], known[name], **marks(number), label=run or None)
        panel.set_title(table.label(name), fontsize=10)
        over_epochs(panel)
    lowest = min(value for name in ("alignment", "fgsm and pgd") for value in table[name] if value is not None)
    axes[0].set(ylabel="cosine", ylim=(min(0.0, lowest) - 0.03, 1.03))
    legend_below(figure, axes[0], 4)
    return figure
