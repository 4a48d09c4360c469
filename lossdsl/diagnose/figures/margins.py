"""Histograms of margins and smoothness, the quadrant scatter, and the bars of the error decomposition."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from lossdsl.diagnose.figures.style import BINS, COLOURS, HATCHES, MARKERS, SEQUENTIAL, legend_below, outlined, panels
from lossdsl.diagnose.margins import QUADRANTS
from lossdsl.diagnose.table import Table

_HISTOGRAMS = ("margin", "adversarial margin", "kl")


def draw_margins(table: Table) -> Figure:
    """One panel each for M(x), M(x*) and KL; a step line for each run (Kim et al., fig. 2)."""
    figure, axes = panels(len(_HISTOGRAMS), height=3.0)
    for panel, name in zip(axes, _HISTOGRAMS, strict=True):
        low, high = (-1.0, 1.0) if name != "kl" else (0.0, max(*table[name], 1e-9))
        for number, (run, part) in enumerate(table.split("run").items()):
            outlined(panel, part[name], (low, high), number, run or None)
        panel.set(xlabel=table.label(name))
    axes[0].set_ylabel("share of the examples")
    legend_below(figure, axes[0])
    return figure


def draw_quadrants(table: Table) -> Figure:
    """M(x*) over M(x), a marker for each quadrant, KL as colour, marginal histograms at the edges (Kim et al., fig. 8)."""
    parts = table.split("run")
    figure, axes = panels(len(parts), width=4.2, height=3.9, columns=2)
    largest = max(*table["kl"], 1e-9)
    for panel, (run, part) in zip(axes, parts.items(), strict=True):
        _scatter(panel, part, largest)
        _edges(panel, part, run)
    mappable = axes[0].collections[0]
    figure.colorbar(mappable, ax=axes, label=table.label("kl"), shrink=0.7)
    for marker, (name, meaning) in zip(MARKERS, QUADRANTS.items(), strict=False):
        axes[0].scatter([], [], marker=marker, color="0.3", label=f"{name}: {meaning}")
    legend_below(figure, axes[0], 4)
    return figure


def _scatter(panel: Axes, part: Table, largest: float) -> None:
    for marker, quadrant in zip(MARKERS, QUADRANTS, strict=False):
        own = part.where(lambda row, q=quadrant: row["quadrant"] == q)  # type: ignore[misc]
        panel.scatter(
            own["margin"], own["adversarial margin"], c=own["kl"], cmap=SEQUENTIAL, vmin=0, vmax=largest, marker=marker, s=16,
            edgecolors="white", linewidths=0.3, zorder=3,
        )  # fmt: skip
    panel.axhline(0, color="black", linewidth=0.8)
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal", xlabel=part.label("margin"), ylabel=part.label("adversarial margin"))
    for quadrant, (right, top) in {"I": (True, True), "II": (False, True), "III": (False, False), "IV": (True, False)}.items():
        share = part["quadrant"].count(quadrant) / len(part)
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
        panel.text(
            0.97 if right else 0.03, 0.97 if top else 0.03, f"{quadrant}: {share:.1%}", transform=panel.transAxes, bbox=box, zorder=4,
            ha="right" if right else "left", va="top" if top else "bottom",
        )  # fmt: skip


def _edges(panel: Axes, part: Table, run: str) -> None:
    """The distribution of each margin along its axis."""
    top = panel.inset_axes((0, 1.02, 1, 0.16), sharex=panel)
    side = panel.inset_axes((1.02, 0, 0.16, 1), sharey=panel)
    top.hist(part["margin"], BINS, range=(-1, 1), color="0.6")
    side.hist(part["adversarial margin"], BINS, range=(-1, 1), color="0.6", orientation="horizontal")
    for inset in (top, side):
        inset.axis("off")
    if run:
        top.set_title(run, fontsize=11)


def draw_decomposition(table: Table) -> Figure:
    """A bar for each run: the natural error below, the boundary error on top, the robust error as the sum."""
    parts = table.split("run")
    figure, (panel,) = panels(1, width=1.8 + 1.1 * len(parts), height=3.8)
    names = list(parts)
    shares = [dict(zip(part["error"], part["share"], strict=True)) for part in parts.values()]
    natural, boundary = [s["R_nat"] for s in shares], [s["R_bdy"] for s in shares]
    places = range(len(names))
    panel.bar(places, natural, 0.6, color=COLOURS[0], edgecolor="white", label="natural error $R_{nat}$")
    panel.bar(places, boundary, 0.6, natural, color=COLOURS[1], hatch=HATCHES[1], edgecolor="white", label="boundary error $R_{bdy}$")
    for place, share in zip(places, shares, strict=True):
        panel.annotate(f"{share['R_rob']:.1%}", (place, share["R_rob"]), (0, 3), textcoords="offset points", ha="center")
    panel.set_xticks(list(places), names)
    panel.set(ylabel="share of the examples", ylim=(0, max(s["R_rob"] for s in shares) * 1.12 + 1e-3))
    panel.yaxis.set_major_formatter(PercentFormatter(1))
    panel.grid(axis="x", visible=False)
    legend_below(figure, panel, 1)
    return figure
