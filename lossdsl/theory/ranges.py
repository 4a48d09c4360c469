"""Ranges of values: intervals that know whether their ends are taken, and what operations make of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from math import inf

from lossdsl.check import build
from lossdsl.check.typed import Typed


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`; an open end is approached and not taken."""

    low: float = -inf
    high: float = inf
    open_low: bool = False
    open_high: bool = False

    def __str__(self) -> str:
        left = "(" if self.open_low or self.low == -inf else "["
        right = ")" if self.open_high or self.high == inf else "]"
        return f"{left}{number(self.low)}, {number(self.high)}{right}"

    def within(self, other: Range) -> Range:
        """Both at once."""
        low, high = max(self.low, other.low), min(self.high, other.high)
        open_low = any(r.open_low for r in (self, other) if r.low == low)
        return Range(low, high, open_low, any(r.open_high for r in (self, other) if r.high == high))

    def joined(self, other: Range) -> Range:
        """The smallest range that holds both."""
        low, high = min(self.low, other.low), max(self.high, other.high)
        open_low = all(r.open_low for r in (self, other) if r.low == low)
        return Range(low, high, open_low, all(r.open_high for r in (self, other) if r.high == high))

    def below(self, other: Range) -> bool:
        """Is every number of this range smaller than every number of the other?"""
        return self.high < other.low or (abs(self.high) < inf and self.high == other.low and (self.open_high or other.open_low))

    def scaled(self, factor: float) -> Range:
        """Every number times a factor."""
        if factor == 0:
            return Range(0.0, 0.0)
        ends = self.low * factor, self.high * factor
        return Range(*ends, self.open_low, self.open_high) if factor > 0 else Range(*ends[::-1], self.open_high, self.open_low)

    def plus(self, other: Range) -> Range:
        """Sums of two numbers that nothing ties to each other."""
        return Range(
            self.low + other.low, self.high + other.high, self.open_low or other.open_low, self.open_high or other.open_high
        )  # fmt: skip


ALL, NONNEGATIVE, UNIT = Range(), Range(0.0), Range(0.0, 1.0)


def number(value: float) -> str:
    """A number as a reader knows it: multiples of log(2), small fractions, else six digits."""
    if abs(value) == inf:
        return "inf" if value > 0 else "-inf"
    share = value / math.log(2)
    if round(share) and abs(share - round(share)) < 1e-12:
        return ("-" if value < 0 else "") + f"log({2 ** abs(round(share))})"
    return f"{value + 0.0:.6g}"


def of(e: Typed) -> Range:
    """What the checker knows of a value, whatever the point."""
    return Range(e.low, e.high)


def combined(op: str, a: Range, b: Range) -> Range:
    """The range of `a op b`; an open end stays open under sums and under products with one positive number."""
    if op == "add":
        return a.plus(b)
    if op == "sub":
        return a.plus(b.scaled(-1.0))
    for one, other in ((a, b), (b, a)):
        if op == "mul" and one.low == one.high and abs(one.low) < inf:
            return other.scaled(one.low)
    if op == "div" and b.low == b.high and 0 < abs(b.low) < inf:
        return a.scaled(1 / b.low)
    if op in ("max", "min"):
        return _extreme(op, a, b)
    return Range(*build.interval(op, a, b))


def _extreme(op: str, a: Range, b: Range) -> Range:
    """The larger or the smaller of two."""
    if op == "min":
        return _extreme("max", a.scaled(-1.0), b.scaled(-1.0)).scaled(-1.0)
    low, high = max(a.low, b.low), max(a.high, b.high)
    open_high = all(r.open_high for r in (a, b) if r.high == high)
    return Range(low, high, any(r.open_low for r in (a, b) if r.low == low), open_high)


def _log(v: float) -> float:
    return -inf if v <= 0 else math.log(v) if v < inf else inf


def _exp(v: float) -> float:
    return math.exp(v) if v < 700 else inf


_RISING = {"exp": _exp, "log": _log, "sqrt": lambda v: math.sqrt(max(v, 0.0)) if v < inf else inf, "tanh": math.tanh}
"""Strictly rising functions of one number: an open end stays open."""


def applied(op: str, a: Range) -> Range | None:
    """The range of a function of one number; None for one that is not known here."""
    if op in _RISING:
        low, high = _RISING[op](a.low), _RISING[op](a.high)
        return Range(low, high, a.open_low, a.open_high)
    if op == "relu":
        return Range(max(a.low, 0.0), max(a.high, 0.0), a.open_low and a.low >= 0, a.open_high and a.high > 0)
    if op == "abs":
        least = 0.0 if a.low <= 0 <= a.high else min(abs(a.low), abs(a.high))
        return Range(least, max(abs(a.low), abs(a.high)))
    return None
