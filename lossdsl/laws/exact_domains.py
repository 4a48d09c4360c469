"""From the free numbers of an assignment to the values of a law, in high precision: the same map as lossdsl.laws.domains."""

from __future__ import annotations

from typing import Any

from lossdsl.check.law_typed import Quantity
from lossdsl.laws.numbers import inf, mp, mpf, total


def value_of(q: Quantity, free: list[Any], args: list[Any], chart: str, domain: tuple[float, float]) -> Any:
    """A number, a list of numbers, or the number of a class."""
    if q.form == "label":
        return free[0]
    if q.form == "simplex":
        return _probabilities(free, chart)
    if q.form == "real":
        return _between(free[0], args[0], args[1])
    if q.form == "vector":
        return [_between(v, args[0], args[1]) for v in free]
    return _in_ball(q, free, args, domain) if q.form == "ball" else free


def _probabilities(free: list[Any], chart: str) -> list[Any]:
    if chart == "logits":
        top = max(free)
        mass = [mp.exp(v - top) for v in free]
    else:
        mass = [max(v, mpf(0)) for v in free]
        mass = mass if any(mass) else [mpf(1)] * len(free)
    whole = total(mass)
    return [m / whole for m in mass]


def _between(v: Any, low: Any, high: Any) -> Any:
    return min(max(v, low), high)


def _in_ball(q: Quantity, free: list[Any], args: list[Any], domain: tuple[float, float]) -> list[Any]:
    center, radius = args
    center = center if isinstance(center, list) else [center] * len(free)
    low, high = (mpf(domain[0]), mpf(domain[1])) if "boxed" in q.attrs else (-inf, inf)
    point = [_between(v, low, high) for v in free]
    offset = [v - c for v, c in zip(point, center, strict=True)]
    if q.attrs[0] == "linf":
        return [c + _between(d, -radius, radius) for c, d in zip(center, offset, strict=True)]
    size = mp.sqrt(mp.fsum(d * d for d in offset)) if q.attrs[0] == "l2" else mp.fsum(abs(d) for d in offset)
    return point if size <= radius else [c + d * radius / size for c, d in zip(center, offset, strict=True)]
