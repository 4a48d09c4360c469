"""Counterexamples made small: zeros, whole numbers and small fractions, ties; every step is confirmed exactly."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from lossdsl.check.law_typed import Quantity
from lossdsl.laws.exact import Run
from lossdsl.laws.numbers import base, isfinite, mp
from lossdsl.laws.problem import Assignment, Free, Problem

LOOKS = 400
"""Exact evaluations that a counterexample may take."""
KEPT = 0.1
"""A smaller counterexample must keep this share of the violation."""
DENOMINATORS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 50, 100, 1000, 10**4, 10**6)


def shrunk(problem: Problem, found: Assignment) -> Assignment:
    """A counterexample that is at most as complicated."""
    return _Shrinker(problem, found).run()


class _Shrinker:
    def __init__(self, problem: Problem, found: Assignment) -> None:
        self.problem, self.best = problem, found
        self.least = problem.confirm(found).violation * KEPT
        self.left = LOOKS

    def run(self) -> Assignment:
        self._offer(_as_masses(self.problem, self.best))
        for most in DENOMINATORS:
            if self._offer(_all_rounded(self.best, most)):
                break
        changed = True
        while changed and self.left > 0:
            changed = any([self._number(name, i) for name, i in self._places()])
        return self.best

    def _places(self) -> list[tuple[str, int]]:
        return [(q.name, i) for q in self.problem.quantities for i in range(q.size)]

    def _offer(self, a: Assignment | None) -> bool:
        """Take it if it is simpler and refutes too."""
        if a is None or self.left <= 0 or complexity(a) >= complexity(self.best):
            return False
        self.left -= 1
        confirmation = self.problem.confirm(a)
        if not confirmation.refuted or confirmation.violation < self.least:
            return False
        self.best = a
        return True

    def _number(self, name: str, i: int) -> bool:
        numbers = self.best.values[name]
        for v in _simpler(numbers[i], self._others(name, i)):
            values = {**self.best.values, name: (*numbers[:i], v, *numbers[i + 1 :])}
            if self._offer(Assignment(values, self.best.charts)):
                return True
        return False

    def _others(self, name: str, i: int) -> list[Any]:
        """What stands at the same place of other quantities, and elsewhere in this one."""
        q = next(q for q in self.problem.quantities if q.name == name)
        if q.form == "label":
            return []
        own = [v for j, v in enumerate(self.best.values[name]) if j != i]
        like = [self.best.values[o.name][i] for o in self.problem.quantities if o is not q and o.form == q.form and o.size == q.size]
        return [*own, *like]


def _simpler(v: Any, others: list[Any]) -> Iterator[Any]:
    """Simpler numbers than v, the simplest first."""
    if isinstance(v, int):
        yield from range(v)
        return
    seen = {v}
    plain = (Fraction(sign * n, d) for n, d in ((0, 1), (1, 1), (1, 2), (2, 1), (1, 10), (10, 1), (1, 100)) for sign in (1, -1))
    for w in (*plain, *(Fraction(v).limit_denominator(d) for d in DENOMINATORS), *_powers(v), *others):
        if w not in seen and size(w) < size(v):
            seen.add(w)
            yield w


def _powers(v: Any) -> Iterator[Fraction]:
    """v to one and two digits, its power of ten, and a small fraction plus or minus one of 1/10, 1/100, ..."""
    if not v or not isfinite(v):
        return
    for digits in ("{:.0e}", "{:.1e}"):
        yield Fraction(digits.format(float(v)))
    exponent = digits_of(v)
    yield Fraction(10) ** exponent * (1 if v > 0 else -1)
    near = Fraction(v).limit_denominator(10)
    if near not in (0, v):
        sign = 1 if v > near else -1
        yield from (near + sign * Fraction(1, 10**k) for k in (1, 2, 3, 4, 6, 9, 12))


def digits_of(v: Any) -> int:
    return int(f"{abs(float(v)):e}".partition("e")[2]) if float(v) else 0


def _all_rounded(a: Assignment, most: int) -> Assignment:
    values: dict[str, tuple[Free, ...]] = {
        n: tuple(v if isinstance(v, int) else Fraction(v).limit_denominator(most) for v in vs) for n, vs in a.values.items()
    }
    return Assignment(values, a.charts)


def _as_masses(problem: Problem, a: Assignment) -> Assignment | None:
    """Every simplex by its probabilities, to nine digits, where it was read through softmax."""
    if "logits" not in a.charts.values():
        return None
    with mp.workdps(50):
        run = Run(problem.exact, a.values, a.charts, 50)
        masses = {q.name: _masses(q, run.quantities[q.name]) for q in problem.quantities if q.form == "simplex"}
    return Assignment({**a.values, **masses}, {name: "coordinates" for name in a.charts})


def _masses(q: Quantity, values: list[Any]) -> tuple[Fraction, ...]:
    return tuple(Fraction(mp.nstr(base(v), 9)) if base(v) > 1e-300 else Fraction(0) for v in values)


def _digits(number: int) -> int:
    """Of a whole number without its sign; about, where Python would refuse to write it."""
    return len(str(abs(number))) if number.bit_length() < 4000 else int(number.bit_length() * 0.30103) + 1


def size(v: Any) -> float:
    """How long a number is to read: of its digits as a fraction, or as a decimal with an exponent."""
    if isinstance(v, int):
        return float(v)
    f = Fraction(v)
    as_fraction = _digits(f.numerator) + (_digits(f.denominator) + 1 if f.denominator > 1 else 0)
    mantissa, _, exponent = f"{float(f):.15e}".partition("e") if abs(f) < 10**300 else ("1." + "9" * 15, "e", "300")
    exact = Fraction(f"{mantissa}e{exponent}") == f
    as_decimal = len(mantissa.lstrip("-").rstrip("0").replace(".", "")) + 2 + len(exponent.lstrip("+-0")) if exact else 400
    return min(as_fraction, as_decimal) + (0.5 if f < 0 else 0) + (0 if f == 0 else 0.25 + abs(digits_of(f)) * 0.01)


def complexity(a: Assignment) -> tuple[float, int]:
    """Of all numbers; distinct numbers count more than ties."""
    numbers = [v for values in a.values.values() for v in values]
    return sum(map(size, numbers)), len({Fraction(v) for v in numbers})
