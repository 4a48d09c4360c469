"""Trajectories over the flow of -V for games of two numbers, and coordinates over the iterations for all others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context, style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from lossdsl.games.game import Game
from lossdsl.games.report import Played
from lossdsl.run.plots import STYLE, save_figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000")
"""Okabe and Ito: told apart without colour vision, and none is the grey of the flow."""
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = "os^Dv"
SHAPES = {"attracts": "P", "repels": "X", "saddle": "d", "centre": "*"}
"""Critical points by shape, so that the picture does without colours."""
GRID = 41
FARTHEST = 5.0
"""The picture reaches at most this many times as far as starts and solutions; plays that run away leave it."""
MOST_POINTS = 20000


def plot_plays(plays: list[Played], out: Path) -> list[Path]:
    """Writes `out` as PNG and SVG (its suffix is replaced) and returns both paths. Raises UserError where they cannot be written."""
    flat = len(plays[0].game.coordinates) == 2 and not plays[0].random
    with style.context(STYLE), rc_context({"svg.hashsalt": "lossdsl"}):
        figure = Figure(figsize=(7.5, 6.5) if flat else (8, 5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        (_plane if flat else _over_time)(axes, plays)
        axes.set_title(plays[0].game.recipe.title)
        handles, labels = axes.get_legend_handles_labels()
        columns = 2 if max(map(len, labels), default=0) < 45 else 1
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize="small")
        return [save_figure(figure, out.with_suffix(end)) for end in (".png", ".svg")]


# --- two numbers ---


def _plane(axes: Axes, plays: list[Played]) -> None:
    game = plays[0].game
    low, high = _frame(plays)
    _flow(axes, game, low, high)
    for number, played in enumerate(plays):
        colour, line, marker = COLOURS[number % len(COLOURS)], LINES[number % len(LINES)], MARKERS[number % len(MARKERS)]
        for n in range(played.trajectory.points.shape[1]):
            points = _thinned(played.trajectory.play(n))
            label = _label(played) if n == 0 else None
            axes.plot(points[:, 0], points[:, 1], linestyle=line, color=colour, linewidth=1.4, label=label, zorder=3)
            axes.plot(*points[0], marker, color="white", markeredgecolor=colour, markersize=7, zorder=4)
            axes.plot(*points[-1], marker, color=colour, markeredgecolor="black", markersize=7, zorder=5)
    for point in plays[0].critical:
        label = f"critical point, {point.character}"
        known = axes.get_legend_handles_labels()[1]
        axes.plot(
            *point.z, SHAPES[point.character], color="black", markeredgecolor="white", markersize=13, zorder=6, linestyle="none",
            label=None if label in known else label,
        )  # fmt: skip
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    axes.set(xlabel=_axis(game, 0), ylabel=_axis(game, 1))


def _axis(game: Game, place: int) -> str:
    verb = {"minimize": "minimises", "maximize": "maximises"}
    owner = game.players[min(place, len(game.players) - 1)]
    return f"{game.coordinates[place]} ({verb[owner.sense]})"


def _frame(plays: list[Played]) -> tuple[Tensor, Tensor]:
    """The corners of the picture: all points, but not much more than starts and solutions span if some play runs away."""
    solutions = [torch.tensor([c.z], dtype=torch.float64) for p in plays for c in p.critical]
    anchors = torch.cat([*(p.trajectory.points[0] for p in plays), *solutions])
    centre = (anchors.amin(0) + anchors.amax(0)) / 2
    reach = FARTHEST * float((anchors - centre).abs().max().clamp_min(0.5))
    points = torch.cat([p.trajectory.points.flatten(0, 1) for p in plays])
    low = torch.maximum(points.amin(0), centre - reach)
    high = torch.minimum(points.amax(0), centre + reach)
    low, high = torch.minimum(low, anchors.amin(0)), torch.maximum(high, anchors.amax(0))
    margin = 0.12 * float((high - low).max().clamp_min(1e-3))
    return low - margin, high + margin


def _flow(axes: Axes, game: Game, low: Tensor, high: Tensor) -> None:
    """Stream lines of -V, darker where it is longer."""
    xs, ys = (torch.linspace(float(low[i]), float(high[i]), GRID, dtype=torch.float64) for i in (0, 1))
    grid = torch.cartesian_prod(xs, ys)
    field = -game.field(grid).reshape(GRID, GRID, 2).transpose(0, 1)
    u, v = field[..., 0].numpy(), field[..., 1].numpy()
    strength = (u**2 + v**2) ** 0.25
    axes.streamplot(
        xs.numpy(), ys.numpy(), u, v, color=strength, cmap="Greys", density=1.3, linewidth=0.7, arrowsize=0.9,
        norm=_grey(float(strength.max())), zorder=1,
    )  # fmt: skip


def _grey(largest: float) -> Any:
    from matplotlib.colors import Normalize

    return Normalize(-1.0 * largest, 2.2 * largest)


def _label(played: Played) -> str:
    solver = played.game.solver
    given = [f"{k} = {v:g}" if isinstance(v, float) else f"{k} = {v}" for k, v in solver.options.model_dump(exclude_unset=True).items()]
    return f"{solver.name}({', '.join(given)})"


def _thinned(points: Tensor) -> Any:
    every = max(1, len(points) // MOST_POINTS)
    kept = torch.cat((points[::every], points[-1:]))
    return kept[kept.isfinite().all(1)].numpy()


# --- any number of coordinates ---


def _over_time(axes: Axes, plays: list[Played]) -> None:
    """Every coordinate of the first play of every solver: coordinates by marker and colour, solvers by line."""
    for number, played in enumerate(plays):
        points = played.trajectory.play(0)
        every = max(1, len(points) // 12)
        for place in range(len(played.game.coordinates)):
            colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
            first = (place * every // 4) % every if every > 1 else 0
            axes.plot(
                points[:, place].numpy(), linestyle=LINES[number % len(LINES)], color=colour, linewidth=1.3,
                marker=marker, markersize=5, markevery=(first, every),
            )  # fmt: skip
    for place, name in enumerate(plays[0].game.coordinates):
        axes.plot([], [], color=COLOURS[place % len(COLOURS)], marker=MARKERS[place % len(MARKERS)], label=name)
    for number, played in enumerate(plays):
        axes.plot([], [], color="black", linestyle=LINES[number % len(LINES)], label=_label(played))
    axes.set(xlabel="iteration", ylabel="coordinate")
    axes.grid(alpha=0.3)
