"""Typed nodes from typed parts: kinds, dependence and value ranges of arithmetic, in one place."""

from __future__ import annotations

import operator
from collections.abc import Callable
from math import inf, isfinite, isnan
from typing import Any, Protocol

from lossdsl.check.typed import Typed, same
from lossdsl.lang.types import OVER_CLASSES, SCALARS, Kind
from lossdsl.source import NOWHERE, Span

ARITHMETIC = {"+": "add", "-": "sub", "*": "mul", "/": "div", "^": "pow"}
COMPARISON = {"==": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}
_PYTHON: dict[str, Callable[..., Any]] = {
    "neg": operator.neg, "not": lambda a: not a,
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv, "pow": operator.pow,
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "max": max, "min": min, "and": lambda a, b: bool(a) and bool(b), "or": lambda a, b: bool(a) or bool(b),
}  # fmt: skip


class Ranged(Protocol):
    """What has a range."""

    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def number(value: float | int, span: Span = NOWHERE, written: str | tuple[str, tuple[Typed, ...]] | None = None) -> Typed:
    return Typed("number", (), Kind.CONST, span, value=value, low=value, high=value, written=written)


def depends(*parts: Typed) -> frozenset[str]:
    return frozenset().union(*(p.depends for p in parts))


def scalar_kind(*parts: Typed) -> Kind:
    return Kind.REAL if any(p.kind is Kind.REAL for p in parts) else Kind.CONST


def arithmetic_kind(op: str, a: Kind, b: Kind) -> Kind | None:
    """The kind of `a op b`, or None where it has no meaning."""
    pair = {a, b}
    if pair <= SCALARS:
        return Kind.REAL if Kind.REAL in pair else Kind.CONST
    if op == "pow":
        wide = {Kind.LOGITS, Kind.PROB, Kind.VECTOR}
        return (Kind.VECTOR if a in wide else a) if b in SCALARS and a in wide | {Kind.INPUT} else None
    if pair <= SCALARS | {Kind.INPUT}:
        return Kind.INPUT
    if not pair <= SCALARS | OVER_CLASSES:
        return None
    if Kind.LOGITS in pair and Kind.PROB not in pair and (op in ("add", "sub") or pair & SCALARS):
        return Kind.LOGITS
    return Kind.VECTOR


def constant(op: str, span: Span, *args: Typed) -> Typed | None:
    """The folded number if all parts are numbers and the result is one."""
    if any(a.op != "number" for a in args):
        return None
    values: list[Any] = [a.value for a in args]
    try:
        result = _PYTHON[op](*values)
    except (KeyError, ZeroDivisionError, OverflowError):
        return None
    if isinstance(result, complex) or isnan(result) or not isfinite(result):
        return None
    return number(int(result) if isinstance(result, bool) else result, span, (op, args))


def combine(op: str, kind: Kind, a: Typed, b: Typed, span: Span) -> Typed:
    """`a op b` for arithmetic, with its range; folded if constant; a convex mix of two Probs stays a Prob."""
    folded = constant(op, span, a, b)
    if folded is not None:
        return folded
    low, high = interval(op, a, b)
    node = Typed(op, (a, b), kind, span, depends=depends(a, b), low=low, high=high)
    return _mixture(node) or node


def compare(op: str, a: Typed, b: Typed, span: Span) -> Typed:
    folded = constant(op, span, a, b)
    kind = Kind.CONST if {a.kind, b.kind} == {Kind.CONST} else Kind.REAL
    return folded or Typed(op, (a, b), kind, span, depends=depends(a, b), low=0.0, high=1.0)


def logical(op: str, a: Typed, b: Typed, span: Span) -> Typed:
    return constant(op, span, a, b) or Typed(op, (a, b), scalar_kind(a, b), span, depends=depends(a, b), low=0.0, high=1.0)


def negate(a: Typed, span: Span) -> Typed:
    kind = Kind.VECTOR if a.kind is Kind.PROB else a.kind
    return constant("neg", span, a) or Typed("neg", (a,), kind, span, depends=a.depends, low=-a.high, high=-a.low)


def interval(op: str, a: Ranged, b: Ranged) -> tuple[float, float]:
    """Interval arithmetic of add, sub, mul, div, pow, max and min; infinite where it would be undefined."""
    if op == "add":
        return a.low + b.low, a.high + b.high
    if op == "sub":
        return a.low - b.high, a.high - b.low
    if op == "mul":
        corners = [0.0 if 0 in (p, q) else p * q for p in (a.low, a.high) for q in (b.low, b.high)]
        return min(corners), max(corners)
    if op == "div" and b.low > 0:
        corners = [0.0 if p == 0 or abs(q) == inf else p / q for p in (a.low, a.high) for q in (b.low, b.high)]
        return (-inf if abs(a.low) == inf and a.low < 0 else min(corners)), (inf if a.high == inf else max(corners))
    if op == "pow" and b.low == b.high and abs(b.low) < inf and b.low % 2 == 0:
        return 0.0, inf
    if op == "pow" and a.low >= 0:
        return 0.0, inf
    if op in ("max", "min"):
        choose = max if op == "max" else min
        return choose(a.low, b.low), choose(a.high, b.high)
    return -inf, inf


def _mixture(node: Typed) -> Typed | None:
    """`(1 - a) * P + a * Q` with a in [0, 1] and P, Q probabilities."""
    if node.op != "add" or any(part.op != "mul" for part in node.args):
        return None
    first_term, second_term = (_weighted(part) for part in node.args)
    if first_term is None or second_term is None:
        return None
    (c1, p1), (c2, p2) = first_term, second_term
    if _complement(c1, c2):
        weight, first, second = c2, p1, p2
    elif _complement(c2, c1):
        weight, first, second = c1, p2, p1
    else:
        return None
    if weight.low < 0 or weight.high > 1:
        return None
    return Typed("mix", (weight, first, second), Kind.PROB, node.span, depends=node.depends, low=0.0, high=1.0)


def _weighted(part: Typed) -> tuple[Typed, Typed] | None:
    a, b = part.args
    if a.kind in SCALARS and b.kind is Kind.PROB:
        return a, b
    if b.kind in SCALARS and a.kind is Kind.PROB:
        return b, a
    return None


def _complement(one_minus: Typed, weight: Typed) -> bool:
    """Is the first 1 minus the second?"""
    if one_minus.value is not None and weight.value is not None:
        return abs(one_minus.value + weight.value - 1) < 1e-12
    return one_minus.op == "sub" and one_minus.args[0].value == 1 and same(one_minus.args[1], weight)
