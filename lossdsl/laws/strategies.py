"""Examples by hypothesis: borders, zeros, ties, duplicates, one-hot and nearly one-hot, tiny and huge scales. Its only importer."""

from __future__ import annotations

import math
from collections.abc import Callable

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings, target
from hypothesis import strategies as st

from lossdsl.check.law_typed import Quantity
from lossdsl.laws.problem import Assignment, Problem

Numbers = tuple[float | int, ...]
Strategy = st.SearchStrategy[Numbers]

_SMALL = st.integers(-4, 4).map(float)
_PLAIN = st.floats(-8, 8, allow_nan=False)
_SCALES = st.sampled_from((1e-300, 1e-15, 1e-8, 1e-4, 1e-2, 1.0, 30.0, 1e3, 1e6, 1e15))
_ANY = st.one_of(_SMALL, _PLAIN, st.builds(lambda v, s: v * s, _PLAIN, _SCALES))


def _vector(size: int, entry: st.SearchStrategy[float]) -> Strategy:
    """Entries of one kind, at one scale, or drawn from a few values so that ties are frequent."""
    equal = st.lists(entry, min_size=1, max_size=2).flatmap(lambda few: st.tuples(*(st.sampled_from(few) for _ in range(size))))
    spread = st.tuples(*(entry for _ in range(size)))
    scaled = st.builds(lambda v, s: tuple(e * s for e in v), st.tuples(*(_PLAIN for _ in range(size))), _SCALES)
    one = st.builds(lambda i, v: tuple(v if j == i else 0.0 for j in range(size)), st.integers(0, size - 1), _ANY)
    return st.one_of(st.tuples(*(_SMALL for _ in range(size))), equal, spread, scaled, one)


def _masses(size: int) -> Strategy:
    """Rational points, ties, zeros, one-hot and nearly one-hot."""
    whole = st.tuples(*(st.integers(0, 5).map(float) for _ in range(size)))
    plain = st.tuples(*(st.floats(0, 1) for _ in range(size)))
    tiny = st.sampled_from((0.0, 1e-300, 1e-30, 1e-15, 1e-8, 1e-4, 1e-2))
    rest = st.tuples(*(tiny for _ in range(size)))
    corner = st.builds(lambda i, v: tuple(1.0 if j == i else e for j, e in enumerate(v)), st.integers(0, size - 1), rest)
    return st.one_of(whole, plain, corner)


def _between(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers of an interval, its ends among them; where an end is infinite or not a fixed number, any numbers."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return _ANY if not math.isfinite(low) else st.one_of(st.just(low), _ANY.map(lambda v: low + abs(v)))
    width = high - low
    near = st.sampled_from((0.0, 1e-15, 1e-8, 1e-4, 1e-2, 0.5)).flatmap(lambda s: st.sampled_from((low + s * width, high - s * width)))
    return st.one_of(st.sampled_from((low, high, (low + high) / 2)), st.floats(low, high), near)


def numbers(quantity: Quantity) -> Strategy:
    """The free numbers of a quantity."""
    if quantity.form == "label":
        return st.tuples(st.integers(0, int(quantity.attrs[0]) - 1))
    if quantity.form in ("real", "vector"):
        ends = (quantity.args[0].low, quantity.args[1].high)
        return _vector(quantity.size, _between(*ends)) if quantity.form == "vector" else st.tuples(_between(*ends))
    return _vector(quantity.size, _ANY)


def assignments(problem: Problem) -> st.SearchStrategy[Assignment]:
    """Free numbers for everything the law quantifies over."""
    parts = {}
    for q in problem.quantities:
        charts = [st.tuples(st.just(c), numbers(q) if c != "coordinates" else _masses(q.size)) for c in problem.charts(q)]
        parts[q.name] = st.one_of(charts)
    return st.fixed_dictionaries(parts).map(
        lambda found: Assignment({name: v for name, (_, v) in found.items()}, {name: c for name, (c, _) in found.items() if c})
    )


class _FoundError(Exception):
    """A counterexample."""


def explore(problem: Problem, start: int, count: int, judge: Callable[[Assignment], tuple[float | None, bool]]) -> Assignment | None:
    """Up to `count` examples; the first counterexample that was found. judge: the violation (None: hypotheses fail), and whether it
    is a counterexample."""
    first: list[Assignment] = []
    judged: dict[str, tuple[float | None, bool]] = {}  # a judge that tires must not make an example unreliable

    @seed(start)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.target),
        verbosity=Verbosity.quiet,
        report_multiple_bugs=False,
    )
    @given(assignments(problem))
    def trial(assignment: Assignment) -> None:
        key = repr(assignment)
        if key not in judged:
            judged[key] = judge(assignment)
        violation, refutes = judged[key]
        if refutes:
            first[:] = [assignment]
            raise _FoundError
        if violation is not None and math.isfinite(violation):
            target(violation)

    try:
        trial()
    except _FoundError:
        return first[0]
    return None
