"""Distances between perturbations with their losses, and descent along directions."""

from __future__ import annotations

from matplotlib.figure import Figure

from lossdsl.diagnose.figures.style import COLOURS, LINES, legend_below, marks, outlined, panels
from lossdsl.diagnose.table import Table


def draw_distances(table: Table) -> Figure:
    """Distances pair by pair at the left, losses at the right with each run's clean loss as a vertical line (Cevher 2024)."""
    figure, (left, right) = panels(2, width=4.0, height=3.2)
    runs = table.split("run")
    kinds = {kind: table.where(lambda row, k=kind: row["quantity"] == k) for kind in ("distance", "loss")}  # type: ignore[misc]
    clean = {
        name.rpartition("clean loss")[0].rstrip(": "): float(value or 0)
        for name, value in table.facts.items()
        if name.endswith("clean loss")
    }
    farthest, loss = max(kinds["distance"]["value"]), [*kinds["loss"]["value"], *clean.values()]
    spread = max(loss) - min(loss) or 1.0
    for number, (run, part) in enumerate(runs.items()):
        values = {kind: part.where(lambda row, k=kind: row["quantity"] == k)["value"] for kind in kinds}  # type: ignore[misc]
        outlined(left, values["distance"], (0.0, farthest * 1.05), number, run or None)
        outlined(right, values["loss"], (min(loss) - 0.05 * spread, max(loss) + 0.05 * spread), number, None)
        if run in clean:
            right.axvline(clean[run], color=COLOURS[number % 7], linestyle=LINES[number % 7], linewidth=1.6)
            right.annotate("clean", (clean[run], 0.97), xycoords=("data", "axes fraction"), rotation=90, ha="right", va="top", fontsize=8)
    left.set(xlabel="Euclidean distance [units of x]", ylabel="share of the pairs")
    right.set(xlabel="cross-entropy [nats]", ylabel="share of the solutions")
    legend_below(figure, left, 4)
    return figure


def draw_descent(table: Table) -> Figure:
    """A panel for each run: the largest loss along the direction of DDi (thick) and along single maximisers; Danskin's slope of DDi as a
    dotted line (Latorre et al.)."""
    parts = table.split("run")
    figure, axes = panels(len(parts), width=4.0, height=3.4, columns=2)
    for panel, (run, part) in zip(axes, parts.items(), strict=True):
        for number, (direction, own) in enumerate(part.split("direction").items()):
            panel.plot(own["t"], own["f"], **marks(number), linewidth=2.6 if number == 0 else 1.1, label=direction, zorder=5 - number)
        first = next(iter(part))
        slope, start = first["slope"], float(first["f"] or 0)
        if slope is not None:
            short = max(part["t"]) / 4
            panel.plot([0, short], [start, start + float(slope) * short], color="black", linestyle=":", label="predicted for DDi")
        panel.set(title=run, xlabel=table.label("t"))
    axes[0].set_ylabel(table.label("f"))
    legend_below(figure, axes[0], 3)
    return figure
