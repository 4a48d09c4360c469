"""Numbers of any precision with derivatives: mpmath's reals, extended by both infinities, and dual numbers over them.

0 times infinity is 0, so that 0 log 0 = 0; infinity minus infinity is NaN. A dual number holds a value and its derivatives by the
coordinates of one point; the points of nested gradients are told apart by tags, the inner one the larger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mpmath import inf, isfinite, isinf, isnan, mp, mpf, nstr

Real = Any
"""An mpf, or a Dual."""


class Losses:
    """How often a number other than 0 left no trace in a sum, or a function its own limit: what is 0 afterwards need not be 0."""

    count = 0


def _kept(result: Any, *parts: Any) -> Any:
    """The result; counts if it is one of the parts though the other is not 0."""
    if len(parts) == 2 and result in parts and 0 not in parts and isfinite(result):
        Losses.count += 1
    return result


def _short_of(limit: int, result: Any, v: Any) -> Any:
    """The result; counts if rounding has made it its limit."""
    if abs(result) == limit and v != 0 and isfinite(v):
        Losses.count += 1
    return result


@dataclass(frozen=True)
class Dual:
    """a + sum_i b_i e_i with e_i e_j = 0."""

    tag: int
    a: Real
    b: tuple[Real, ...]


def base(x: Real) -> Any:
    """The number without derivatives."""
    while isinstance(x, Dual):
        x = x.a
    return x


def _tag(*xs: Real) -> int:
    return max((x.tag for x in xs if isinstance(x, Dual)), default=-1)


def _split(x: Real, tag: int, size: int) -> tuple[Real, tuple[Real, ...]]:
    if isinstance(x, Dual) and x.tag == tag:
        return x.a, x.b
    return x, (mpf(0),) * size


def _unary(x: Real, f: Callable[[Any], Any], df: Callable[[Real], Real]) -> Real:
    if not isinstance(x, Dual):
        return f(x)
    slope = df(x.a)
    return Dual(x.tag, _unary(x.a, f, df), tuple(mul(slope, b) for b in x.b))


def _binary(x: Real, y: Real, f: Callable[[Real, Real], Real], combine: Callable[[Real, Real, Real, Real], Real]) -> Real:
    """combine(x, y, dx, dy): the derivative."""
    tag = _tag(x, y)
    size = next(len(v.b) for v in (x, y) if isinstance(v, Dual) and v.tag == tag)
    (xa, xb), (ya, yb) = _split(x, tag, size), _split(y, tag, size)
    return Dual(tag, f(xa, ya), tuple(combine(xa, ya, p, q) for p, q in zip(xb, yb, strict=True)))


def add(x: Real, y: Real) -> Real:
    if _tag(x, y) < 0:
        return _kept(x + y, x, y)
    return _binary(x, y, add, lambda a, b, p, q: add(p, q))


def neg(x: Real) -> Real:
    return -x if not isinstance(x, Dual) else Dual(x.tag, neg(x.a), tuple(neg(b) for b in x.b))


def sub(x: Real, y: Real) -> Real:
    return add(x, neg(y))


def mul(x: Real, y: Real) -> Real:
    if _tag(x, y) < 0:
        return mpf(0) if x == 0 or y == 0 else x * y
    return _binary(x, y, mul, lambda a, b, p, q: add(mul(p, b), mul(a, q)))


def div(x: Real, y: Real) -> Real:
    """x / 0 is an infinity of the sign of x, 0 / 0 NaN."""
    if _tag(x, y) < 0:
        if y == 0:
            return mp.nan if x == 0 or isnan(x) else inf * (1 if x > 0 else -1)
        return x / y
    return _binary(x, y, div, lambda a, b, p, q: div(sub(mul(p, b), mul(a, q)), mul(b, b)))


def exp(x: Real) -> Real:
    return _unary(x, lambda v: _short_of(1, mp.exp(v), v), exp)


def log(x: Real) -> Real:
    """-inf at 0, NaN below."""
    return _unary(x, lambda v: -inf if v == 0 else mp.nan if v < 0 else mp.log(v), lambda v: div(mpf(1), v))


def log1p(x: Real) -> Real:
    """log(1 + x), with all digits for the smallest x."""
    return _unary(x, lambda v: -inf if v == -1 else mp.nan if v < -1 else mp.log1p(v), lambda v: div(mpf(1), add(mpf(1), v)))


def power(x: Real, y: Real) -> Real:
    """x^y; NaN for a negative number to a fractional power."""
    if _tag(y) < 0:
        exponent = base(y)
        return _unary(x, lambda v: _power(v, exponent), lambda v: mul(exponent, power(v, exponent - 1)) if exponent else mpf(0))
    return exp(mul(y, log(x)))


def _power(v: Any, exponent: Any) -> Any:
    if v == 0 and exponent < 0:
        return inf
    if v < 0 and exponent != int(exponent):
        return mp.nan
    return mp.power(v, exponent)


def sqrt(x: Real) -> Real:
    """Its derivative at 0 is taken as 0."""
    return _unary(x, lambda v: mp.nan if v < 0 else mp.sqrt(v), lambda v: mpf(0) if base(v) == 0 else div(mpf(1), mul(mpf(2), sqrt(v))))


def tanh(x: Real) -> Real:
    return _unary(x, lambda v: _short_of(1, mp.tanh(v), v), lambda v: sub(mpf(1), mul(tanh(v), tanh(v))))


def sin(x: Real) -> Real:
    return _unary(x, mp.sin, cosine)


def cosine(x: Real) -> Real:
    return _unary(x, mp.cos, lambda v: neg(sin(v)))


def softplus(x: Real) -> Real:
    return _unary(x, lambda v: mp.log1p(mp.exp(v)) if v < 0 else v + mp.log1p(mp.exp(-v)), _logistic)


def _logistic(x: Real) -> Real:
    return div(mpf(1), add(mpf(1), exp(neg(x))))


def absolute(x: Real) -> Real:
    return x if base(x) > 0 else neg(x) if base(x) < 0 else mul(mpf(0), x)


def relu(x: Real) -> Real:
    return x if base(x) > 0 else mp.nan if isnan(base(x)) else mul(mpf(0), x)


def total(xs: list[Real]) -> Real:
    found: Real = mpf(0)
    for x in xs:
        found = add(found, x)
    return found


def holds(condition: bool) -> Real:
    return mpf(1) if condition else mpf(0)


__all__ = ["Dual", "Real", "inf", "nstr", "isfinite", "isinf", "isnan", "mp", "mpf"]
