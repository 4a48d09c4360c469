"""Free numbers at random, many rows at once: plainly, and at the places where laws break.

Every function gives [rows, n]. A draw is a mixture: each row comes from one of several modes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from lossdsl.laws.layout import LARGEST, Block, Layout

Rows = NDArray[Any]
TINIEST, FINEST = 300, 17
"""Exponents of the smallest numbers, and of the smallest relative differences, that are tried."""


@dataclass(frozen=True)
class Line:
    """Numbers between two ends; `constants`: those that occur in the law."""

    low: float
    high: float
    constants: tuple[float, ...] = ()

    @property
    def bounded(self) -> bool:
        return bool(np.isfinite(self.low) and np.isfinite(self.high))

    def cut(self, v: Rows) -> Rows:
        return np.clip(v, self.low, self.high)


Mode = Callable[[Generator, int, int, Line], Rows]


def magnitudes(g: Generator, shape: Any, low: float, high: float) -> Rows:
    """Powers of ten, evenly in the exponent."""
    return np.asarray(10.0 ** g.uniform(low, high, shape))


def signs(g: Generator, shape: Any) -> Rows:
    return np.asarray(g.integers(0, 2, shape) * 2.0 - 1)


def mixed(g: Generator, rows: int, modes: Sequence[tuple[float, Callable[[int], Rows]]]) -> Rows:
    """Rows from several modes by weight, in random order."""
    weights = np.array([w for w, _ in modes])
    counts = g.multinomial(rows, weights / weights.sum())
    parts = [mode(int(count)) for count, (_, mode) in zip(counts, modes, strict=True) if count]
    return g.permutation(np.concatenate(parts))


# --- numbers between two ends ---


def plain(g: Generator, rows: int, n: int, line: Line) -> Rows:
    """Evenly between the ends; where there are none, normal."""
    if line.bounded:
        return g.uniform(line.low, line.high, (rows, n))
    if np.isfinite(line.low):
        return line.low + g.exponential(3.0, (rows, n))
    if np.isfinite(line.high):
        return line.high - g.exponential(3.0, (rows, n))
    return g.normal(0.0, 3.0, (rows, n))


def _scaled(g: Generator, rows: int, n: int, line: Line) -> Rows:
    """Of one scale per row, or of any scale between positive ends."""
    if line.low > 0 and line.bounded:
        return magnitudes(g, (rows, n), np.log10(line.low), np.log10(line.high))
    return g.normal(0.0, 1.0, (rows, n)) * magnitudes(g, (rows, 1), -4, 4)


def _near_ends(g: Generator, rows: int, n: int, line: Line) -> Rows:
    """At distances of any size from an end, or of any size where there is none."""
    if not line.bounded:
        return signs(g, (rows, n)) * magnitudes(g, (rows, n), -FINEST, 6)
    away = magnitudes(g, (rows, n), -FINEST, 0) * (line.high - line.low)
    return np.where(g.random((rows, n)) < 0.5, line.low + away, line.high - away)


def _extreme(g: Generator, rows: int, n: int, line: Line) -> Rows:
    return g.normal(0.0, 1.0, (rows, n)) * magnitudes(g, (rows, 1), -TINIEST, TINIEST - 1)


def _simple(g: Generator, rows: int, n: int, line: Line) -> Rows:
    """Small fractions of one denominator per row."""
    below = g.choice([1.0, 1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 10.0], (rows, 1))
    low = 0 if line.low >= 0 else -4
    return np.asarray(g.integers(low, 5, (rows, n)) / below)


def _ends(g: Generator, rows: int, n: int, line: Line) -> Rows:
    ends = [e for e in (line.low, line.high) if np.isfinite(e)] or [-1.0, 0.0, 1.0]
    return g.choice(np.array(ends), (rows, n))


def _known(g: Generator, rows: int, n: int, line: Line) -> Rows:
    """Numbers of the law, and their neighbours."""
    known = np.array(line.constants or (0.0, 1.0)) * 1.0
    found = g.choice(np.concatenate([known, -known]), (rows, n))
    near = 1 + signs(g, (rows, n)) * magnitudes(g, (rows, n), -FINEST, -0.5)
    return np.where(g.random((rows, n)) < 0.5, found, found * near)


def _few(g: Generator, rows: int, n: int, line: Line) -> Rows:
    """Ties: at most two values in a row."""
    values = one_kind(g, rows, 2, line)
    return np.asarray(np.take_along_axis(values, g.integers(0, 2, (rows, n)), 1))


def _one(g: Generator, rows: int, n: int, line: Line) -> Rows:
    """One value everywhere except in one place."""
    values = one_kind(g, rows, 2, line)
    return np.where(np.arange(n) == g.integers(0, n, (rows, 1)), values[:, :1], values[:, 1:])


def one_kind(g: Generator, rows: int, n: int, line: Line) -> Rows:
    modes = ((4, plain), (2, _scaled), (2, _near_ends), (1, _extreme), (3, _simple), (2, _ends), (2, _known))
    return mixed(g, rows, [(w, lambda count, mode=mode: mode(g, count, n, line)) for w, mode in modes])  # type: ignore[misc]


def numbers(g: Generator, rows: int, n: int, line: Line) -> Rows:
    """A mixture of everything above."""
    modes = ((3, one_kind), (1, _few), (1, _one)) if n > 1 else ((1, one_kind),)
    return line.cut(mixed(g, rows, [(w, lambda count, mode=mode: mode(g, count, n, line)) for w, mode in modes]))  # type: ignore[misc]


# --- masses, which are divided by their sum ---


def plain_masses(g: Generator, rows: int, n: int) -> Rows:
    """Evenly on the simplex."""
    return g.exponential(1.0, (rows, n))


def _whole_masses(g: Generator, rows: int, n: int) -> Rows:
    return np.asarray(g.integers(0, g.choice([2, 3, 6], (rows, 1)), (rows, n)) * 1.0)


def _corner(g: Generator, rows: int, n: int) -> Rows:
    """One-hot, and nearly so at any distance."""
    depth = g.choice([2.0, FINEST, TINIEST], (rows, 1))
    rest = 10.0 ** -(g.random((rows, n)) * depth) * (g.random((rows, n)) < g.choice([0.0, 0.5, 1.0], (rows, 1)))
    return np.where(np.arange(n) == g.integers(0, n, (rows, 1)), 1.0, rest)


def _two_levels(g: Generator, rows: int, n: int) -> Rows:
    """(a, b, ..., b)."""
    level = np.where(g.random((rows, 1)) < 0.5, 10.0 ** g.uniform(-2, 2, (rows, 1)), magnitudes(g, (rows, 1), -FINEST, FINEST))
    return np.where(np.arange(n) == g.integers(0, n, (rows, 1)), level, 1.0)


def _nearly_even(g: Generator, rows: int, n: int) -> Rows:
    return np.maximum(1 + g.normal(0.0, 1.0, (rows, n)) * magnitudes(g, (rows, 1), -FINEST, 0), 0.0)


def _uneven(g: Generator, rows: int, n: int) -> Rows:
    """Of any scale, some of them 0."""
    found = np.exp(g.normal(0.0, 1.0, (rows, n)) * magnitudes(g, (rows, 1), -1, 1.5))
    return found * (g.random((rows, n)) >= g.choice([0.0, 0.0, 0.5], (rows, 1)))


def masses(g: Generator, rows: int, n: int) -> Rows:
    modes = ((3, plain_masses), (2, _whole_masses), (2, _corner), (2, _two_levels), (1, _nearly_even), (3, _uneven))
    return mixed(g, rows, [(w, lambda count, mode=mode: mode(g, count, n)) for w, mode in modes])  # type: ignore[misc]


# --- all quantities of a law ---


def draw(g: Generator, rows: int, layout: Layout, constants: tuple[float, ...], structured: bool) -> Rows:
    """[rows, width]: all quantities independently, structured or plain."""
    parts = [draw_block(g, rows, b, constants, structured) for b in layout.blocks]
    return np.concatenate(parts, 1) if parts else np.zeros((rows, 0))


def draw_block(g: Generator, rows: int, b: Block, constants: tuple[float, ...], structured: bool) -> Rows:
    if b.whole:
        return g.integers(0, int(b.high) + 1, (rows, b.size)) * 1.0
    if b.masses:
        return masses(g, rows, b.size) if structured else plain_masses(g, rows, b.size)
    line = Line(max(b.low, -LARGEST) if b.low > -np.inf else b.low, b.high, constants)
    return numbers(g, rows, b.size, line) if structured else plain(g, rows, b.size, line)
