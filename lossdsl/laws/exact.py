"""The high-precision evaluator: what the sides of a relation are, one assignment at a time, and which of them is larger.

It walks the typed graph, never the plan, with textbook formulas over mpmath's numbers, and shares no code with the engine. A Prob is
its probabilities; mpmath's exponents are unbounded, so that e^-1e15 is a number like any other. Differences are taken with ever
more digits until their sign is beyond doubt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

from lossdsl.check.law_typed import Quantity, Relation, TypedLaw
from lossdsl.check.typed import Axis, Domain, Typed, walk
from lossdsl.lang.types import CLASSES
from lossdsl.laws.exact_domains import value_of
from lossdsl.laws.exact_forms import CORE, FORMS
from lossdsl.laws.numbers import Losses, base, inf, isfinite, isnan, mp, mpf

DIGITS = (50, 160, 400, 1200)
"""Tried one after the other until the sign of a difference is certain."""
ENOUGH = 160
"""Digits that a difference of 0 takes: those of order eps^4 show, with eps from 1e-16 on."""
MEASURED = 1e-9
"""Sides that hold a solver's answer are equal up to this, relative to 1 + |left| + |right|: it is only known in float64."""
STEPS = ("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "if", "sign", "error", "grad")
"""Operations whose value can jump where a number lost in a sum would have tipped a comparison."""
STRICT = ("<", ">", "!=")
"""A tie breaks these, so that it must be beyond doubt."""
TIES = (*STRICT, "<=", ">=", "==")
SETTLED = 1e-12
"""A limit differs from a number if, relative to 1 + |left| + |right|, by more than this at the end of its sequence."""


@dataclass(frozen=True)
class Comparison:
    """left op right: whether it holds (None: not decided), and both sides to 50 digits or more."""

    holds: bool | None
    left: Any
    right: Any
    digits: int
    doubtful: bool = False
    """It holds for want of digits: as a hypothesis it is not decided."""


@dataclass(frozen=True)
class Confirmation:
    """hypotheses: whether all of them hold; holds: whether the relation does. None: not within 1200 digits, or a side is no number."""

    hypotheses: bool | None
    holds: bool | None
    comparisons: tuple[Comparison, ...]
    """Of the relation's links, in order."""

    @property
    def refuted(self) -> bool:
        """A counterexample beyond rounding."""
        return self.hypotheses is True and self.holds is False

    @property
    def violation(self) -> float:
        """The largest difference of the sides among the links that do not hold, divided by 1 + |left| + |right|; 0 if all hold."""
        sizes = [float(_relative(c)) for c in self.comparisons if c.holds is False]
        return max(sizes, default=0.0)


def _relative(c: Comparison) -> Any:
    if not (isfinite(c.left) and isfinite(c.right)):
        return mpf(1)
    return abs(c.left - c.right) / (1 + abs(c.left) + abs(c.right))


class _Runs(dict[int, "Run"]):
    """The evaluations of one assignment, by their digits. sure: one precision decides nothing alone."""

    sure = False


class Exact:
    """The relations of one statement, evaluated for one assignment at a time."""

    def __init__(self, law: TypedLaw, where: tuple[Relation, ...], relation: Relation) -> None:
        self.law, self.where, self.relation = law, where, relation
        self._frees: dict[int, frozenset[Any]] = {}
        self._kept: list[Typed] = []

    def confirm(self, values: Mapping[str, tuple[Any, ...]], charts: Mapping[str, str], near: bool = False) -> Confirmation:
        """near: hypotheses may be missed by 1e-100 of their sides, as Newton's method leaves them. A counterexample is one at two
        precisions: how far rounding carries through squares and quotients is not followed, and it gets smaller with more digits."""
        runs = _Runs()
        found = self._confirmed(values, charts, near, runs)
        if not found.refuted:
            return found
        runs.sure = True
        return self._confirmed(values, charts, near, runs)

    def _confirmed(self, values: Mapping[str, tuple[Any, ...]], charts: Mapping[str, str], near: bool, runs: _Runs) -> Confirmation:
        hypotheses: bool | None = True
        for r in self.where:
            found: list[Comparison] = []
            held = self._decide(r, values, charts, runs, found, TIES if not near else ())
            held = None if held and any(c.doubtful for c in found) else held
            hypotheses = False if held is False else None if held is None and hypotheses is not False else hypotheses
        if hypotheses is False:
            return Confirmation(False, None, ())
        comparisons: list[Comparison] = []
        holds = self._decide(self.relation, values, charts, runs, comparisons)
        return Confirmation(hypotheses, holds, tuple(comparisons))

    def holds(self, r: Relation, values: Mapping[str, tuple[Any, ...]], charts: Mapping[str, str]) -> bool:
        """Does a hypothesis hold beyond doubt?"""
        found: list[Comparison] = []
        return self._decide(r, values, charts, _Runs(), found, TIES) is True and not any(c.doubtful for c in found)

    def violated(self, values: Mapping[str, tuple[Any, ...]], charts: Mapping[str, str]) -> bool:
        """Does the relation fail, whether or not the hypotheses hold?"""
        return self._decide(self.relation, values, charts, _Runs(), []) is False

    def _decide(
        self, r: Relation, values: Any, charts: Any, runs: _Runs, found: list[Comparison], ties: tuple[str, ...] = STRICT
    ) -> bool | None:
        if r.parts:
            parts = [self._decide(p, values, charts, runs, found, ties) for p in r.parts]
            absorbing = r.op == "or"
            return absorbing if absorbing in parts else None if None in parts else not absorbing
        assert r.left is not None and r.right is not None
        comparison = self._compare(r.op, r.left, r.right, values, charts, runs, ties)
        found.append(comparison)
        return comparison.holds

    def _compare(self, op: str, left: Typed, right: Typed, values: Any, charts: Any, runs: _Runs, ties: tuple[str, ...]) -> Comparison:
        """More digits until the difference is larger than its own error, or so small that it is 0; all digits for a tie if the
        relation is one of `ties`. It breaks no relation where numbers were too far apart for any digits (1 + e^-1e15 > 1 and
        log(1 + e^-1e15) == e^-1e15 - e^-2e15 / 2 + ... hold)."""
        settles, measured = (self.holds_a(left, *ops) or self.holds_a(right, *ops) for ops in (("limit",), ("solution", "final")))
        jumps = _jumps(left) or _jumps(right)
        before = agreed = None
        comparison = Comparison(None, mp.nan, mp.nan, 0)
        for digits in DIGITS:
            with mp.workdps(digits):
                try:
                    if digits not in runs:
                        runs[digits] = Run(self, values, charts, digits)
                    run = runs[digits]
                    a, b = run.number(left), run.number(right)
                except (OverflowError, MemoryError):
                    return comparison
                if isnan(a) or isnan(b):
                    return Comparison(None, a, b, digits)
                slack = run.largest * power_of_ten(5 - digits)
                sign = _sign_up_to(a, b) if measured else _sign_at_limit(a, b, before) if settles else _sign(a, b, before, slack, run)
                tied = (sign == 0 and op in ties) or bool(runs.sure and sign and (sign != agreed or run.lost))
                doubtful = run.lost and (sign is None or (sign == 0 and op in STRICT))
                comparison = Comparison(doubtful or (None if sign is None else _holds(op, sign)), a, b, digits, doubtful)
                before, agreed = (a, b, slack), sign
            if sign is not None and not doubtful and not (jumps and run.lost) and (not tied or settles or measured):
                return comparison
        return comparison

    def holds_a(self, e: Typed, *operations: str) -> bool:
        """Is one of the operations in the expression?"""
        return any(part.op in operations for part in walk(e))

    def free(self, e: Typed) -> frozenset[Any]:
        """The axes, and the variables of gradients and limits, that a value depends on."""
        if id(e) not in self._frees:
            self._kept.append(e)
            inside = frozenset().union(*(self.free(a) for a in e.args))
            if e.axis is not None:
                inside |= _of_domain(self, e.axis.domain)
                inside = inside | {e.axis} if e.op == "bound" else inside - {e.axis}
            if e.op in ("leaf", "vanishing"):
                inside |= {e.attrs}
            elif e.op in ("grad", "limit"):
                inside -= {e.attrs}
            elif e.op == "bregman":
                inside -= {e.attrs[:-1]}
            self._frees[id(e)] = inside
        return self._frees[id(e)]


@cache
def power_of_ten(exponent: int) -> Any:
    """To 30 digits: for thresholds, where mpmath's own would take a millisecond."""
    with mp.workdps(30):
        return mpf(10) ** exponent


def _jumps(e: Typed) -> bool:
    return any(part.op in STEPS or (part.op == "reduce" and part.attrs[0] in ("argmax", "argmin")) for part in walk(e))


def _of_domain(exact: Exact, domain: Domain) -> frozenset[Any]:
    return exact.free(domain.expr) if domain.expr is not None else frozenset()


def _sign(a: Any, b: Any, before: tuple[Any, Any, Any] | None, slack: Any, run: Run) -> int | None:
    """Of a - b, where the difference is larger than its own rounding, or with the most digits the same as with fewer. 0 where it vanishes
    with more digits: it is nothing, less than 1e-100 of the sides, or far less than before. None if more digits are needed.
    before: the sides and the rounding at the last precision."""
    if not (isfinite(a) and isfinite(b)):
        return int(a > b) - int(a < b)
    difference = a - b
    sign = (difference > 0) - (difference < 0)
    earlier, known = (before[0] - before[1], before[2]) if before is not None else (mpf(0), mpf(0))
    shrinks = abs(earlier) > known and abs(difference) < abs(earlier) * power_of_ten(-10)
    if abs(difference) > slack and not shrinks:
        return int(sign)
    if before is None or run.digits < ENOUGH:
        return None
    if sign and not run.lost and run.digits == DIGITS[-1] and abs(difference - earlier) <= abs(difference) * power_of_ten(-10):
        return int(sign)
    nothing = max(max(abs(a), abs(b)) * power_of_ten(-100), abs(earlier) * power_of_ten(-30))
    return 0 if abs(difference) <= nothing else None


def _sign_up_to(a: Any, b: Any) -> int:
    """Of a - b where a side is only known in float64."""
    close = a == b or (isfinite(a) and isfinite(b) and abs(a - b) <= MEASURED * (1 + abs(a) + abs(b)))
    return 0 if close else 1 if a > b else -1


def _sign_at_limit(a: Any, b: Any, before: tuple[Any, Any, Any] | None) -> int | None:
    """Sides that are limits are compared at two points of their sequence: what has settled, and what is still on its way."""
    if before is None or not (isfinite(a) and isfinite(b)):
        return None if before is None else (a > b) - (a < b)
    scale = 1 + abs(a) + abs(b)
    difference, earlier = (a - b) / scale, (before[0] - before[1]) / scale
    if not isfinite(earlier):
        return None
    drift = abs(difference - earlier)
    if abs(difference) <= SETTLED and drift <= SETTLED:
        return 0
    return None if drift > abs(difference) * 1e-6 else 1 if difference > 0 else -1


def _holds(op: str, sign: int) -> bool:
    return {"<=": sign <= 0, ">=": sign >= 0, "<": sign < 0, ">": sign > 0, "==": sign == 0, "!=": sign != 0}[op]


class Run:
    """One evaluation at one precision. `largest`: the largest finite number met on the way, at least 1e-300."""

    def __init__(self, exact: Exact, values: Mapping[str, tuple[Any, ...]], charts: Mapping[str, str], digits: int) -> None:
        self.exact, self.digits = exact, digits
        self.law: TypedLaw = exact.law
        self.classes: dict[Axis, int] = {}
        self.leaves: dict[Any, tuple[int, Any]] = {}
        """Variables of gradients and limits, each with a number that tells its values apart."""
        self.largest: Any = mpf("1e-300")
        self.lost = False
        """Did a number leave no trace in a sum?"""
        self._bound = 0
        self._done: dict[Any, Any] = {}
        self.quantities: dict[str, Any] = {}
        before = Losses.count
        for q in self.law.quantities:
            self.quantities[q.name] = self._quantity(q, values[q.name], charts.get(q.name, ""))
        self.lost = Losses.count > before

    def _quantity(self, q: Quantity, free: tuple[Any, ...], chart: str) -> Any:
        numbers = [int(v) if q.form == "label" else _exactly(v) for v in free]
        found = value_of(q, numbers, [self.value(a) for a in q.args], chart, self.law.domain)
        for v in found if isinstance(found, list) else [found] if q.form != "label" else []:
            self.note(v)
        return found

    def number(self, e: Typed) -> Any:
        """The value of a side, without derivatives; notes whether anything was lost in it."""
        before = Losses.count
        found = base(self.value(e))
        self.lost |= Losses.count > before
        return found

    def value(self, e: Typed) -> Any:
        """A number, a list of numbers, or the number of a class."""
        free = self.exact.free(e)
        key = (id(e), frozenset((f, self.classes[f] if isinstance(f, Axis) else self.leaves[f][0]) for f in free))
        if key not in self._done:
            rule = CORE.get(e.op)
            found = rule(self, e) if rule else FORMS[e.op](*(self.value(a) for a in e.args))
            if e.kind not in CLASSES:
                for v in found if isinstance(found, list) else [found]:
                    self.note(v)
            self._done[key] = found
        return self._done[key]

    def note(self, v: Any) -> None:
        size = abs(base(v))
        if size > self.largest and size != inf:
            self.largest = size

    def domain(self, domain: Domain) -> list[int]:
        """The classes of a header, in ascending order."""
        out = None if domain.expr is None else self.value(domain.expr)
        return [c for c in range(self.law.classes) if c != out]

    def bind(self, leaf: Any, value: Any) -> None:
        """Give a variable of a gradient or of a limit its value."""
        self._bound += 1
        self.leaves[leaf] = self._bound, value

    def fresh_tag(self) -> int:
        """A tag larger than every one before."""
        self._bound += 1
        return self._bound


def _exactly(v: Any) -> Any:
    return mpf(v.numerator) / mpf(v.denominator) if isinstance(v, Fraction) else mpf(v)
