"""Projections on balls and boxes in high precision, with derivatives where the closed form has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lossdsl.check.typed import Typed
from lossdsl.laws import numbers as n
from lossdsl.laws.numbers import Real, base, inf, mp, mpf

if TYPE_CHECKING:
    from lossdsl.laws.exact import Run


def _parts(run: Run, e: Typed) -> tuple[list[Real], list[Real], Real, tuple[Any, Any]]:
    """The point, the centre, the radius, and the ends of the box."""
    point, center, radius = (run.value(a) for a in e.args)
    center = center if isinstance(center, list) else [center] * len(point)
    low, high = run.law.domain if "boxed" in e.attrs else (-inf, inf)
    return point, center, radius, (mpf(low), mpf(high))


def _clip(v: Real, low: Real, high: Real) -> Real:
    raised = low if base(v) < base(low) else v
    return high if base(raised) > base(high) else raised


def project(run: Run, e: Typed) -> list[Real]:
    """linf: the two clips. l2 and l1 without a box: the closed form; with one: the multiplier of the ball by bisection."""
    point, center, radius, box = _parts(run, e)
    name = e.attrs[0]
    if name == "linf":
        ends = [(_clip(n.sub(c, radius), *box), _clip(n.add(c, radius), *box)) for c in center]
        return [_clip(v, low, high) for v, (low, high) in zip(point, ends, strict=True)]
    boxed = [_clip(v, *box) for v in point]
    if base(_size(name, boxed, center)) <= base(radius):
        return boxed
    if box[0] == -inf and name == "l2":
        scale = n.div(radius, _size(name, point, center))
        return [n.add(c, n.mul(scale, n.sub(v, c))) for v, c in zip(point, center, strict=True)]
    least, most = mpf(0), mpf(2) ** 64 + sum(abs(base(v)) for v in point)
    for _ in range(4 * mp.prec):
        middle = (least + most) / 2
        outside = base(_size(name, _shrunk(name, point, center, middle, box), center)) > base(radius)
        least, most = (middle, most) if outside else (least, middle)
    return _shrunk(name, point, center, most, box)


def _size(name: str, point: list[Real], center: list[Real]) -> Real:
    offset = [n.sub(v, c) for v, c in zip(point, center, strict=True)]
    if name == "l1":
        return n.total([n.absolute(d) for d in offset])
    return n.sqrt(n.total([n.mul(d, d) for d in offset]))


def _shrunk(name: str, point: list[Real], center: list[Real], by: Any, box: tuple[Any, Any]) -> list[Real]:
    """The minimiser of |u - v|^2 / 2 + by * (|u - c|_1, or |u - c|_2^2 / 2), cut to the box."""
    out = []
    for v, c in zip(point, center, strict=True):
        d = base(v) - base(c)
        out.append(_clip(base(c) + (d / (1 + by) if name == "l2" else mp.sign(d) * max(abs(d) - by, mpf(0))), *box))
    return out


def interior(run: Run, e: Typed) -> list[Real]:
    """1 in the coordinates strictly inside the set."""
    point, center, radius, (low, high) = _parts(run, e)
    if e.attrs[0] == "linf":
        free = [abs(base(v) - base(c)) < base(radius) for v, c in zip(point, center, strict=True)]
    else:
        free = [base(_size(e.attrs[0], point, center)) < base(radius)] * len(point)
    return [n.holds(f and low < base(v) < high) for f, v in zip(free, point, strict=True)]
