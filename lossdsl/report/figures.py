"""Figures of diagnostics inside a page: as data, so that one file holds everything."""

from __future__ import annotations

import base64
import io

from matplotlib.figure import Figure

from lossdsl.diagnose.api import draw
from lossdsl.diagnose.figures.style import drawing
from lossdsl.diagnose.table import Table

LARGEST_SVG = 400_000
"""Bytes; a figure with more marks than that becomes a PNG."""
DOTS = 160


def data_uri(table: Table) -> str:
    """The figure of a table as the source of an <img>: SVG where it is small, else PNG; the same bytes for the same table."""
    with drawing():
        figure = draw(table)
        drawn = _saved(figure, "svg")
        if len(drawn) <= LARGEST_SVG:
            return "data:image/svg+xml;base64," + base64.b64encode(drawn).decode()
        return "data:image/png;base64," + base64.b64encode(_saved(figure, "png")).decode()


def _saved(figure: Figure, kind: str) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format=kind, dpi=DOTS, metadata={"Date": None} if kind == "svg" else None)
    return out.getvalue()
