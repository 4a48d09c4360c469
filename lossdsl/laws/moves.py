"""Changes of rows that lead to where laws break: ties within and between quantities, zeros, borders, scales, steps of any size.

They give structured examples when applied to random rows, and a search without derivatives when applied to the best ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.random import Generator

from lossdsl.laws.draws import FINEST, Rows, draw_block, magnitudes, signs
from lossdsl.laws.layout import Block, Layout


@dataclass(frozen=True)
class Moves:
    """Moves of rows of one layout. Every move takes [B, width] and gives new rows, not yet tidy."""

    layout: Layout
    constants: tuple[float, ...]

    def some(self, g: Generator, x: Rows, least: int = 1, most: int = 3) -> torch.Tensor:
        """`least` to `most` random moves of every row, tidied."""
        found = x.copy()
        for n in range(most):
            if n < least:
                found = self.one(g, found)
            else:
                chosen = g.random(len(found)) < 0.5
                found[chosen] = self.one(g, found[chosen])
        return self.layout.tidy(torch.from_numpy(found))

    def one(self, g: Generator, x: Rows) -> Rows:
        """A random move of every row."""
        if not len(x) or not self.layout.width:
            return x
        weights = np.array([w for w, _ in _MOVES], dtype=float)
        kinds = g.choice(len(_MOVES), len(x), p=weights / weights.sum())
        found = x.copy()
        with np.errstate(over="ignore", invalid="ignore"):  # what is too large is cut by the layout
            for kind in np.unique(kinds):
                rows = kinds == kind
                found[rows] = _MOVES[kind][1](self, g, x[rows], x)
        return found

    # --- what moves choose ---

    @property
    def blocks(self) -> list[Block]:
        return self.layout.blocks

    def block(self, g: Generator, long: bool = False) -> Block:
        """A random quantity; `long`: rather one of several numbers."""
        several = [b for b in self.blocks if b.size > 1]
        among = several if long and several else self.blocks
        return among[int(g.integers(len(among)))]

    def pair(self, g: Generator) -> tuple[Block, Block]:
        """Two quantities of one kind and size where there are such; else one, twice."""
        groups = [list(group) for _, group in groupby(sorted(self.blocks, key=lambda b: b.family), key=lambda b: b.family)]
        among = [group for group in groups if len(group) > 1] or groups
        group = among[int(g.integers(len(among)))]
        first, second = g.choice(len(group), 2, replace=len(group) < 2)
        return group[int(first)], group[int(second)]

    def columns(self, g: Generator, rows: int) -> tuple[Rows, Rows]:
        """Two columns for every row."""
        return g.integers(0, self.layout.width, rows), g.integers(0, self.layout.width, rows)


def _jitter(m: Moves, g: Generator, x: Rows, others: Rows) -> Rows:
    """Some numbers move by a step of any size, relative or absolute."""
    moved = g.random(x.shape) < g.choice([0.1, 0.4, 1.0], (len(x), 1))
    size = magnitudes(g, (len(x), 1), -FINEST, 0.5)
    base = np.where(g.random((len(x), 1)) < 0.6, np.abs(x), 1.0)
    return np.where(moved, x + g.normal(0.0, 1.0, x.shape) * size * base, x)


def _difference(m: Moves, g: Generator, x: Rows, others: Rows) -> Rows:
    """A step along the difference of two other rows, as differential evolution takes it."""
    a, b = others[g.integers(0, len(others), len(x))], others[g.integers(0, len(others), len(x))]
    return np.asarray(x + g.choice([0.1, 0.5, 0.9], (len(x), 1)) * (a - b))


def _crossed(m: Moves, g: Generator, x: Rows, others: Rows) -> Rows:
    """Some quantities are those of another row."""
    other = others[g.integers(0, len(others), len(x))]
    found = x.copy()
    for b in m.blocks:
        rows = g.random(len(x)) < 0.4
        found[rows, b.place] = other[rows, b.place]
    return found


def _redrawn(m: Moves, g: Generator, x: Rows, others: Rows) -> Rows:
    b, found = m.block(g), x.copy()
    found[:, b.place] = draw_block(g, len(x), b, m.constants, bool(g.random() < 0.8))
    return found


def _one_redrawn(m: Moves, g: Generator, x: Rows, others: Rows) -> Rows:
    """One number of a quantity anew: a scan of its line."""
    b, found = m.block(g, long=True), x.copy()
    new = draw_block(g, len(x), b, m.constants, True)
    found[:, b.place] = np.where(np.arange(b.size) == g.integers(0, b.size, (len(x), 1)), new, x[:, b.place])
    return found


def _copied(m: Moves, g: Generator, x: Rows, others: Rows) -> Rows:
    """One quantity becomes another one, exactly, nearly, or up to the order of its entries."""
    (a, b), found = m.pair(g), x.copy()
    source = x[:, a.place]
    size = magnitudes(g, (len(x), 1), -FINEST, 0) * (g.random((len(x), 1)) < 0.5)
    noise = g.normal(0.0, 1.0, source.shape) * size * np.where(g.random((len(x), 1)) < 0.5, np.abs(source), 1.0)
    order = g.permuted(np.tile(np.arange(b.size), (len(x), 1)), axis=1)
    shuffled = (g.random((len(x), 1)) < 0.2) & (b.size > 1)
    found[:, b.place] = np.where(shuffled, np.take_along_axis(source, order, 1), source) + noise
    return found


def _mixed(m: Moves, g: Generator, x: Rows, others: Rows) -> Rows:
    """One quantity moves towards another one, or towards one of its own corners."""
    (a, b), found = m.pair(g), x.copy()
    share = np.where(g.random((len(x), 1)) < 0.5, g.random((len(x), 1)), magnitudes(g, (len(x), 1), -FINEST, 0))
    corner = (np.arange(b.size) == g.integers(0, b.size, (len(x), 1))) * 1.0
    target = np.where(g.random((len(x), 1)) < 0.5, corner, x[:, a.place])
    found[:, b.place] = (1 - share) * x[:, b.place] + share * target
    return found


def _tied(m: Moves, g: Generator, x: Rows, others: Rows) -> Rows:
    """One number becomes another one: the same, its negative, what is left of 1, or a little more."""
    i, j = m.columns(g, len(x))
    rows, found = np.arange(len(x)), x.copy()
    value = x[rows, j]
    variants = np.stack([value, value, value, -value, 1 - value, value + signs(g, len(x)) * magnitudes(g, len(x), -FINEST, 0)])
    found[rows, i] = variants[g.integers(0, len(variants), len(x)), rows]
    return found


def _tied_within(m: Moves, g: Generator, x: Rows, others: Rows) -> Rows:
    """An entry of a quantity becomes another entry of it, or its largest one, exactly or nearly."""
    b, found, rows = m.block(g, long=True), x.copy(), np.arange(len(x))
    part = x[:, b.place]
    value = np.where(g.random(len(x)) < 0.5, part.max(1), part[rows, g.integers(0, b.size, len(x))])
    value = value + np.where(g.random(len(x)) < 0.6, 0.0, signs(g, len(x)) * magnitudes(g, len(x), -FINEST, 0) * (1 + np.abs(value)))
    found[rows, b.place.start + g.integers(0, b.size, len(x))] = value
    return found


def _known(m: Moves, g: Generator, x: Rows, others: Rows) -> Rows:
    """One number becomes one of the law, one of its ends, or a neighbour of these."""
    i, _ = m.columns(g, len(x))
    rows, found = np.arange(len(x)), x.copy()
    low, high = (np.nan_to_num(end.numpy()[i], posinf=1.0, neginf=-1.0) for end in (m.layout.low, m.layout.high))
    known = g.choice(np.array(m.constants), len(x))
    value = np.stack([known, -known, low, high])[g.choice(4, len(x), p=[0.5, 0.1, 0.2, 0.2]), rows]
    near = signs(g, len(x)) * magnitudes(g, len(x), -FINEST, -0.5) * np.where(value == 0, 1.0, np.abs(value))
    found[rows, i] = value + np.where(g.random(len(x)) < 0.5, 0.0, near)
    return found


def _zeroed(m: Moves, g: Generator, x: Rows, others: Rows) -> Rows:
    return np.where(g.random(x.shape) < g.choice([0.1, 0.5, 0.9], (len(x), 1)), 0.0, x)


def _scaled(m: Moves, g: Generator, x: Rows, others: Rows) -> Rows:
    """A quantity, or everything, is multiplied by a number of any size."""
    factor = magnitudes(g, (len(x), 1), -8, 8) if g.random() < 0.5 else magnitudes(g, (len(x), 1), -1, 1)
    found = x * factor
    if g.random() < 0.5:
        b, found = m.block(g), x.copy()
        found[:, b.place] = x[:, b.place] * factor
    return found


def _rounded(m: Moves, g: Generator, x: Rows, others: Rows) -> Rows:
    """To few digits, which makes ties."""
    unit = g.choice([1.0, 0.5, 0.25, 0.1, 0.01], (len(x), 1))
    return np.asarray(np.round(x / unit) * unit)


def _sorted(m: Moves, g: Generator, x: Rows, others: Rows) -> Rows:
    """The members of a family of numbers, or the entries of a quantity, in order."""
    b, found = m.block(g, long=True), x.copy()
    if b.size > 1 and g.random() < 0.5:
        places = list(range(b.place.start, b.place.stop))
    else:
        head = b.quantity.name.partition("[")[0]
        members = [o for o in m.blocks if o.size == 1 and o.quantity.name.partition("[")[0] == head]
        numbers = members if b.size == 1 and len(members) > 1 else [o for o in m.blocks if o.size == 1 and not o.whole]
        places = [o.place.start for o in numbers]
    order = np.sort(x[:, places], 1)
    found[:, places] = order if g.random() < 0.5 else order[:, ::-1]
    return found


def _swapped(m: Moves, g: Generator, x: Rows, others: Rows) -> Rows:
    """Two quantities of one kind change places, or two entries of one."""
    (a, b), found = m.pair(g), x.copy()
    if a is not b and g.random() < 0.5:
        found[:, a.place], found[:, b.place] = x[:, b.place], x[:, a.place]
        return found
    rows = np.arange(len(x))
    i, j = (b.place.start + g.integers(0, b.size, len(x)) for _ in range(2))
    found[rows, i], found[rows, j] = x[rows, j], x[rows, i]
    return found


_Move = Callable[[Moves, Generator, Rows, Rows], Rows]
_MOVES: tuple[tuple[float, _Move], ...] = (
    (5, _jitter), (3, _difference), (2, _crossed), (1, _redrawn), (3, _one_redrawn), (2, _copied), (2, _mixed), (2, _tied),
    (2, _tied_within), (2, _known), (1, _zeroed), (2, _scaled), (1, _rounded), (1, _sorted), (1, _swapped),
)  # fmt: skip
"""With weights."""
