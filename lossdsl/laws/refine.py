"""Points that satisfy hypotheses exactly, or to a hundred digits, from points that do so in float64."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from lossdsl.check.law_typed import Relation
from lossdsl.laws.exact import Run, power_of_ten
from lossdsl.laws.numbers import base, isfinite, mp, mpf
from lossdsl.laws.problem import Assignment, Problem

DIGITS = 200
"""Of the arithmetic; a point found keeps 180, more than the 160 with which equations are judged."""
KEPT, GOOD = 180, 170
STEPS = 8
LARGEST = 1e6
"""Newton's method takes no larger numbers: their exponentials are slow, and fractions are tried first."""
SLOPE = 1e-60
"""Of sides that agree to 170 digits: they meet within a step of 1e-110."""
AROUND, NEIGHBOUR = 6, Fraction(1, 10**25)
DENOMINATORS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 60, 100, 1000)


def refined(problem: Problem, assignment: Assignment) -> Assignment | None:
    """A nearby point that satisfies the hypotheses: a rational one if rounding leads to one, else by Newton's method."""
    tried = {tuple(assignment.values.items())}
    for near in rounded(assignment):
        if tuple(near.values.items()) in tried:
            continue
        tried.add(tuple(near.values.items()))
        if problem.confirm(near).hypotheses is True:
            return near
    return _newton(problem, assignment)


def rounded(assignment: Assignment) -> Iterator[Assignment]:
    """Numbers replaced by the decimals that they print as, and by fractions of small denominators near to them."""
    yield Assignment({name: tuple(map(_decimal, numbers)) for name, numbers in assignment.values.items()}, assignment.charts)
    for most in DENOMINATORS:
        values = {name: tuple(_fraction(v, most) for v in numbers) for name, numbers in assignment.values.items()}
        yield Assignment(values, assignment.charts)


def _decimal(v: Any) -> Any:
    return v if isinstance(v, int | Fraction) else Fraction(repr(v))


def _fraction(v: Any, most: int) -> Any:
    """v itself where no such fraction is within 1e-6 of it, relative to 1 + |v|."""
    if isinstance(v, int) or not abs(v) < 1e6:
        return v
    near = Fraction(v).limit_denominator(most)
    return near if abs(float(near) - float(v)) <= 1e-6 * (1 + abs(float(v))) else v


def _newton(problem: Problem, assignment: Assignment) -> Assignment | None:
    """One hypothesis after the other: the number that it depends on most is moved until the sides agree."""
    relations = [leaf for r in problem.where for leaf in _leaves(r)]
    if any(abs(float(v)) > LARGEST for numbers in assignment.values.values() for v in numbers):
        return None
    with mp.workdps(DIGITS):
        values = {name: [_exact(v) for v in numbers] for name, numbers in assignment.values.items()}
        for _ in range(STEPS):
            missed = [r for r in relations if _gap(problem, r, values, assignment.charts, DIGITS) > mpf(10) ** -GOOD]
            if not missed:
                break
            for r in missed:
                if not _step(problem, r, values, assignment.charts):
                    return None
        kept = {name: tuple(_kept(v) for v in numbers) for name, numbers in values.items()}
    found = Assignment(kept, assignment.charts, near=True)
    return found if problem.confirm(found).hypotheses is True else None


def stable(problem: Problem, found: Assignment) -> bool:
    """Does the relation fail all around a point? Then it fails where the hypotheses hold exactly, which is much nearer."""
    with mp.workdps(DIGITS):
        exact = {name: [_exact(v) for v in numbers] for name, numbers in found.values.items()}
        if not all(_solvable(problem, leaf, exact, found) for r in problem.where for leaf in _leaves(r)):
            return False
    for n in range(AROUND):
        values = {
            name: tuple(v if isinstance(v, int) else Fraction(v) + NEIGHBOUR * _sign(n, i) for i, v in enumerate(numbers))
            for name, numbers in found.values.items()
        }
        if not problem.exact.violated(values, found.charts):
            return False
    return True


def _solvable(problem: Problem, r: Relation, values: dict[str, list[Any]], found: Assignment) -> bool:
    """A hypothesis that holds beyond doubt, or exactly, or whose sides meet within a tiny step: not one that only holds at infinity,
    as e^-z == 0 does."""
    here = _difference(problem, r, values, found.charts, DIGITS)
    if not isfinite(here) or abs(here) > power_of_ten(-GOOD) or problem.exact.holds(r, found.values, found.charts):
        return True
    return any(abs(slope) > SLOPE for slope, _, _ in _slopes(problem, r, values, found.charts, here))


def _sign(n: int, i: int) -> int:
    """Up, down, and patterns of both."""
    return (1 if n % 2 else -1) * (1 if n < 2 or (i >> (n // 2 - 1)) & 1 else -1)


def _leaves(r: Relation) -> list[Relation]:
    """The comparisons of conjunctions; alternatives are left alone."""
    if r.op == "and":
        return [leaf for part in r.parts for leaf in _leaves(part)]
    return [] if r.parts else [r]


def _difference(problem: Problem, r: Relation, values: dict[str, list[Any]], charts: dict[str, str], digits: int) -> Any:
    run = Run(problem.exact, {name: tuple(v) for name, v in values.items()}, charts, digits)
    assert r.left is not None and r.right is not None
    return base(run.value(r.left)) - base(run.value(r.right))


def _gap(problem: Problem, r: Relation, values: dict[str, list[Any]], charts: dict[str, str], digits: int) -> Any:
    """By how much it is missed."""
    d = _difference(problem, r, values, charts, digits)
    if not isfinite(d):
        return mpf(0)
    return {"<=": max(d, 0), "<": max(d, 0), ">=": max(-d, 0), ">": max(-d, 0), "==": abs(d), "!=": mpf(0)}[r.op]


def _step(problem: Problem, r: Relation, values: dict[str, list[Any]], charts: dict[str, str]) -> bool:
    """Newton's step in the one number with the largest derivative; a strict hypothesis is overshot by a little."""
    here = _difference(problem, r, values, charts, DIGITS)
    slopes = _slopes(problem, r, values, charts, here)
    slope, name, i = max(slopes, key=lambda s: abs(s[0]) * (1 + abs(values[s[1]][s[2]])), default=(0, "", 0))
    if not slope:
        return False
    spare = {"<": -1, ">": 1}.get(r.op, 0) * (abs(here) + power_of_ten(-20))
    values[name][i] -= (here - spare) / slope
    return True


def _slopes(problem: Problem, r: Relation, values: dict[str, list[Any]], charts: dict[str, str], here: Any) -> list[tuple[Any, str, int]]:
    """The derivatives of the difference by every number, and which number; `here`: the difference."""
    h = power_of_ten(-(DIGITS // 2))
    slopes = []
    for name, numbers in values.items():
        for i, v in enumerate(numbers):
            if isinstance(v, int):
                continue
            numbers[i] = v + h
            slope = (_difference(problem, r, values, charts, DIGITS) - here) / h
            numbers[i] = v
            if isfinite(slope):
                slopes.append((slope, name, i))
    return slopes


def _exact(v: Any) -> Any:
    return v if isinstance(v, int) else mpf(v.numerator) / v.denominator if isinstance(v, Fraction) else mpf(v)


def _kept(v: Any) -> Any:
    """A decimal fraction."""
    if isinstance(v, int):
        return v
    unit = 10**KEPT
    return Fraction(int(mp.nint(v * unit)), unit) if abs(v) <= 2 * LARGEST else float(v)
