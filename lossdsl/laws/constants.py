"""The numbers that occur in a statement: thresholds, and the places where laws tend to break."""

from __future__ import annotations

import math

from lossdsl.check.typed import Typed, walk
from lossdsl.laws.problem import Problem

MOST = 40
_ARITHMETIC = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "div": lambda a, b: a / b, "pow": lambda a, b: a**b,
    "neg": lambda a: -a, "exp": math.exp, "log": math.log, "sqrt": math.sqrt,
}  # fmt: skip


def constants(problem: Problem) -> tuple[float, ...]:
    """Every number of the hypotheses and of the relation, and what is computed from numbers only; with 0 and 1, at most 40."""
    found = {0.0: None, 1.0: None}
    known: dict[int, float | None] = {}
    for relation in (*problem.where, problem.relation):
        for side in relation.sides:
            for part in walk(side):
                value = _value(part, known)
                if value is not None and math.isfinite(value):
                    found.setdefault(value)
    return tuple(found)[:MOST]


def _value(e: Typed, known: dict[int, float | None]) -> float | None:
    if id(e) not in known:
        args = [_value(a, known) for a in e.args]
        known[id(e)] = _computed(e, args)
    return known[id(e)]


def _computed(e: Typed, args: list[float | None]) -> float | None:
    if e.op == "number":
        return float(e.value or 0)
    if e.op not in _ARITHMETIC or any(a is None for a in args):
        return None
    try:
        return float(_ARITHMETIC[e.op](*args))  # type: ignore[operator]
    except (ArithmeticError, ValueError, TypeError):
        return None
