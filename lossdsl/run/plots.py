"""One figure from one or more runs: clean and robust validation accuracy per epoch, the best epoch marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context, style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lossdsl.diagnostics import UserError
from lossdsl.run import metrics
from lossdsl.run.files import read_json, write_error
from lossdsl.run.loop import METRICS
from lossdsl.run.stored import MANIFEST

STYLE = "tableau-colorblind10"
MARKERS = "os^Dv"


def plot_runs(runs: Sequence[Path], out: Path) -> list[Path]:
    """Write `out` as PNG and SVG (its suffix is replaced); solid lines are robust, dashed ones clean accuracy, a dot marks the best
    checkpoint. Returns both paths. Raises UserError: no run, no finished epoch, directory not writable."""
    if not runs:
        raise UserError("no run to plot", fix="name one or more directories that lossdsl train has written")
    with style.context(STYLE), rc_context({"svg.hashsalt": "lossdsl"}):
        figure = Figure(figsize=(7, 4.5 + 0.25 * len(runs)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for number, run in enumerate(runs):
            _draw(axes, run, f"C{number}", MARKERS[number % len(MARKERS)])
        axes.set(xlabel="epoch", ylabel="accuracy on the validation split", ylim=(0, 1))
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        handles, labels = axes.get_legend_handles_labels()
        order = [*range(0, len(labels), 3), *range(1, len(labels), 3), *range(2, len(labels), 3)]  # columns: robust, clean, best
        figure.legend([handles[n] for n in order], [labels[n] for n in order], fontsize="small", loc="outside lower center", ncols=3)
        return [save_figure(figure, out.with_suffix(end)) for end in (".png", ".svg")]


def _draw(axes: Axes, run: Path, colour: str, marker: str) -> None:
    about = read_json(run / MANIFEST, "manifest of a run")
    records = metrics.read(run / METRICS)
    if not records:
        raise UserError("has no finished epoch yet", where=str(run / METRICS), fix="plot it after its first epoch")
    label = f"{run.name} ({about['recipe']['name']})"
    epochs = [record["epoch"] for record in records]
    for kind, line in (("robust", "-"), ("clean", "--")):
        axes.plot(epochs, [record["validation"][kind] for record in records], line, color=colour, label=f"{label}, {kind}")
    best = [record for record in records if record["best"]][-1]
    axes.plot(
        [best["epoch"]], [best["validation"]["robust"]], marker, color=colour, markersize=8, label=f"{label}, best (epoch {best['epoch']})"
    )


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure, the same bytes for the same content. Raises UserError where the file cannot be written."""
    metadata: dict[str, Any] = {"Date": None} if path.suffix == ".svg" else {}
    try:
        figure.savefig(path, dpi=150, metadata=metadata)
    except OSError as error:
        raise write_error(path, error) from error
    return path
