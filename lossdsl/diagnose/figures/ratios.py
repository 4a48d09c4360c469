"""Distributions of log-ratios and of entropies."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
from matplotlib.figure import Figure

from lossdsl.diagnose.figures.style import legend_below, outlined, panels
from lossdsl.diagnose.table import Table


def draw_ratios(table: Table) -> Figure:
    """A row of panels for each run, one for each radius: log a_y full, -log a_t dashed (Kim et al., fig. 5)."""
    parts = [(run, eps, own) for run, part in table.split("run").items() for eps, own in part.split("eps").items()]
    across = len({eps for _, eps, _ in parts})
    figure, axes = panels(len(parts), height=2.9, columns=across if across > 1 else 3, sharex=True)
    limits = min(*table["label"], *table["target"]), max(*table["label"], *table["target"])
    for panel, (run, eps, own) in zip(axes, parts, strict=True):
        for number, name in enumerate(("label", "target")):
            outlined(panel, own[name], limits, number, table.label(name))
        panel.axvline(0, color="black", linewidth=0.8)
        panel.set_title(f"{run}, radius {float(eps):.3g}".lstrip(", "), fontsize=10)
        panel.set_xlabel("log-ratio [nats]")
    axes[0].set_ylabel("share of the examples")
    legend_below(figure, axes[0], 2)
    return figure


def draw_entropies(table: Table) -> Figure:
    """A panel each for x, a point of the ball and x*; a step line for each run; how often two runs predict the same in the ball."""
    names = ("clean", "near", "attacked")
    figure, axes = panels(len(names), height=3.0, sharey=True)
    parts = table.split("run")
    classes = next((int(value) for key, value in table.facts.items() if key.endswith("classes") and value), 2)
    limits = 0.0, max(math.log(classes), *(max(table[name]) for name in names))
    for panel, name in zip(axes, names, strict=True):
        for number, (run, part) in enumerate(parts.items()):
            outlined(panel, part[name], limits, number, run or None)
        panel.axvline(math.log(classes), color="black", linewidth=0.8, linestyle=":")
        panel.set_xlabel(table.label(name))
    axes[0].set_ylabel("share of the examples")
    figure.suptitle("   ".join(_agreement(parts)), fontsize=9)
    legend_below(figure, axes[0], 4)
    return figure


def _agreement(parts: dict[str, Table]) -> list[str]:
    """For pairs of runs of equal length, how often they predict the same class at the point of the ball."""
    pairs = [(one, two) for one, two in combinations(parts, 2) if len(parts[one]) == len(parts[two])]
    same = [np.mean(np.asarray(parts[one]["predicted"]) == np.asarray(parts[two]["predicted"])) for one, two in pairs]
    return [f"{one} and {two} predict the same at u: {share:.1%}" for (one, two), share in zip(pairs, same, strict=True)][:3]
