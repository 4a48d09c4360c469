"""What a generator makes beside the data, and how the critic's gap went: one figure, readable without colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context, style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lossdsl.diagnostics import UserError
from lossdsl.games.neural import ModelPlay
from lossdsl.games.neural_measure import critics, generators, held_batch, samples, scores
from lossdsl.run.plots import STYLE, save_figure

SHOWN, SIDE, REACH, GRID = 600, 8, 3.0, 121
"""Points of each kind in a plane, images along a side of a grid, half the width of the plane, and the critic's values along it."""


def draw_play(play: ModelPlay, out: Path) -> list[Path]:
    """Write `out` as PNG and SVG (its suffix is replaced) and return both paths.

    In the plane: examples (circles), samples (crosses) and the critic's level lines; of images: a grid of samples and one of examples. On
    the right the critic's gap, and W1 where it is measured. Raises UserError for a game without one generator, or a directory that is
    not writable.
    """
    trainer = play.trainer
    makers = generators(trainer.game.game)
    if len(makers) != 1:
        raise UserError("only games with one model : Latent -> Input are drawn", where=trainer.game.game.name, fix="leave out --plot")
    batch = held_batch(trainer, play.seed)
    made, data = samples(trainer, makers[0], batch).cpu(), batch.x.cpu()
    flat = made.dim() == 2 and made.shape[1] == 2
    with style.context(STYLE), rc_context({"svg.hashsalt": "lossdsl"}):
        figure = Figure(figsize=(11, 5.2) if flat else (13, 4.8), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, 2 if flat else 3, width_ratios=[1.15, 1] if flat else [1, 1, 1.2])
        if flat:
            _plane(axes[0], play, made, data)
        else:
            _images(axes[0], made, "samples")
            _images(axes[1], data, "data")
        _curves(axes[-1], play.records)
        figure.suptitle(f"{play.recipe.title}: {trainer.source.name}, {trainer.solver.name}, {trainer.iteration} iterations")
        return [save_figure(figure, out.with_suffix(end)) for end in (".png", ".svg")]


def _plane(axes: Axes, play: ModelPlay, made: Tensor, data: Tensor) -> None:
    for critic in critics(play.trainer.game.game)[:1]:
        line = torch.linspace(-REACH, REACH, GRID)
        grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1).reshape(-1, 2).to(play.trainer.device, play.trainer.dtype)
        values = scores(play.trainer, critic, grid).cpu().reshape(GRID, GRID).numpy()
        levels = axes.contour(line.numpy(), line.numpy(), values, 9, colors="0.45", linewidths=0.8)
        axes.clabel(levels, fontsize=7)
        axes.plot([], [], color="0.45", linewidth=0.8, label="critic (dashed: below 0)")
    axes.plot(*data[:SHOWN].T.numpy(), "o", color="C0", markersize=5, markerfacecolor="none", alpha=0.5, label="data")
    axes.plot(*made[:SHOWN].T.numpy(), "x", color="C1", markersize=4, label="samples")
    axes.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=3, fontsize="small", frameon=False)


def _images(axes: Axes, images: Tensor, title: str) -> None:
    """A square of images in grey, side by side."""
    shown = images[: SIDE * SIDE].double()
    shown = shown.mean(1) if shown.dim() == 4 else shown
    height, width = shown.shape[-2:]
    framed = torch.nn.functional.pad(shown, (1, 1, 1, 1), value=0.5).reshape(SIDE, SIDE, height + 2, width + 2)
    axes.imshow(framed.permute(0, 2, 1, 3).reshape(SIDE * (height + 2), -1).numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(title)


def _curves(axes: Axes, records: Sequence[dict[str, Any]]) -> None:
    kinds = (("gap", "-o", "critic gap"), ("w1", "--s", "W1 of 400 samples"))
    for name, marks, label in kinds:
        points = [(r["iteration"], r[name]) for r in records if r.get(name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), marks, markersize=4, label=label)
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.set(xlabel="iteration")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
