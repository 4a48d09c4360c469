"""Data that generators of a game learn from: a fresh batch for every evaluation of an objective."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lossdsl.diagnostics import UserError, did_you_mean

MODES, RADIUS, STD = 8, 2.0, 0.05
"""Of the ring: the number of Gaussians, the radius of the circle of their means, and their standard deviation."""


@dataclass(frozen=True)
class Source:
    """A distribution to draw from. `draw(n, generator)` gives n independent examples [n, *shape], float32 on the CPU.

    `unit`: all values lie in [0, 1].
    """

    name: str
    shape: tuple[int, ...]
    unit: bool
    draw: Callable[[int, torch.Generator], Tensor]


def ring_means() -> Tensor:
    """The means of the Gaussians of the ring [8, 2], counter-clockwise from (2, 0)."""
    angles = torch.arange(MODES) * (2 * math.pi / MODES)
    return RADIUS * torch.stack([angles.cos(), angles.sin()], dim=1)


def _ring() -> Source:
    means = ring_means()

    def draw(n: int, generator: torch.Generator) -> Tensor:
        which = torch.randint(MODES, (n,), generator=generator)
        return means[which] + STD * torch.randn(n, 2, generator=generator)

    return Source("ring", (2,), False, draw)


def _digits() -> Source:
    """The training part of scikit-learn's digits, drawn with replacement."""
    from lossdsl.run.data import DataRequest, load_data

    split = load_data(DataRequest("digits")).train
    images = next(split.batches([torch.arange(len(split))])).x

    def draw(n: int, generator: torch.Generator) -> Tensor:
        return images[torch.randint(len(images), (n,), generator=generator)]

    return Source("digits", tuple(images.shape[1:]), True, draw)


SOURCES: dict[str, tuple[str, Callable[[], Source]]] = {
    "ring": ("8 Gaussians on a circle of radius 2, standard deviation 0.05", _ring),
    "digits": ("scikit-learn's handwritten digits, 1x8x8 in [0, 1]", _digits),
}


def load_source(name: str) -> Source:
    """The data of that name. Raises UserError for another one."""
    if name not in SOURCES:
        raise UserError(f"there are no data {name!r} for a game", where="--data", fix=did_you_mean(name, SOURCES))
    return SOURCES[name][1]()
