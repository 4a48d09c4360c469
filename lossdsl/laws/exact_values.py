"""What the quantities of an assignment are, for people: rational where a small fraction is exact, else to 6 digits."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from lossdsl.laws.exact import Run
from lossdsl.laws.numbers import base, isfinite, mp, mpf
from lossdsl.laws.problem import Assignment, Problem

LARGEST_DENOMINATOR = 1000


def shown(problem: Problem, assignment: Assignment) -> dict[str, Any]:
    """By name: a text, or a list of texts; a label as its number."""
    with mp.workdps(50):
        run = Run(problem.exact, assignment.values, assignment.charts, 50)
        return {name: _texts(v) for name, v in run.quantities.items()}


def _texts(v: Any) -> Any:
    return [_texts(e) for e in v] if isinstance(v, list) else v if isinstance(v, int) else number_text(base(v))


def number_text(v: Any) -> str:
    """ "1/3", "0.25" as "1/4", "7", "1.23457e-9"."""
    if not isfinite(v):
        return str(v)
    if abs(v) < 1e6:
        near = Fraction(float(v)).limit_denominator(LARGEST_DENOMINATOR)
        if abs(mpf(near.numerator) / near.denominator - v) <= mpf(10) ** -40 * abs(v):
            return str(near)
    whole = mp.nint(v)
    if whole != 0 and 0 < abs(v - whole) < mpf(10) ** -5 and abs(v) < 1e6:
        return f"{int(whole)} {'+' if v > whole else '-'} {mp.nstr(abs(v - whole), 3)}"
    return str(mp.nstr(v, 6))
