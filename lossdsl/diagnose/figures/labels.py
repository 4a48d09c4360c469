"""Texts beside points, where they hide neither points nor each other."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

PLACES = tuple((dx, dy) for dy in (9, -10, 22, -23, 35, -36) for dx in (8, -8))
"""Where a text may stand, in points from what it names, the best place first."""


def write_beside(figure: Figure, axes: Axes, points: list[tuple[tuple[float, float], str]]) -> None:
    """A text beside each point, at the first of PLACES where it hides no point and no other text. Call it when all is drawn."""
    figure.draw_without_rendering()
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in axes.transData.transform([point for point, _ in points])]
    for point, text in points:
        note = axes.annotate(text, point, PLACES[0], textcoords="offset points", fontsize=9, va="center", zorder=6)
        note.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
        note.set_in_layout(False)
        for place in PLACES:
            note.set_position(place)
            note.set_horizontalalignment("left" if place[0] > 0 else "right")
            box = note.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
