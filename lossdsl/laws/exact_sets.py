"""Projections on balls and boxes in high precision, with the derivatives of their closed forms."""

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
    """linf: the two clips. l2 and l1: what the box cuts off, or, if that lies outside the ball, shorter offsets from the centre."""
    point, center, radius, box = _parts(run, e)
    name = e.attrs[0]
    if name == "linf":
        ends = [(_clip(n.sub(c, radius), *box), _clip(n.add(c, radius), *box)) for c in center]
        return [_clip(v, low, high) for v, (low, high) in zip(point, ends, strict=True)]
    boxed = [_clip(v, *box) for v in point]
    if base(_size(name, boxed, center)) <= base(radius):
        return boxed
    offsets = [n.sub(v, c) for v, c in zip(point, center, strict=True)]
    signs = [mpf(-1) if base(d) < 0 else mpf(1) for d in offsets]
    rooms = [inf if mp.isinf(box[0]) else n.mul(s, n.sub(box[1] if s > 0 else box[0], c)) for s, c in zip(signs, center, strict=True)]
    lengths = (_on_l2 if name == "l2" else _on_l1)([n.absolute(d) for d in offsets], rooms, radius)
    return [n.add(c, n.mul(s, length)) for c, s, length in zip(center, signs, lengths, strict=True)]


def _on_l2(sizes: list[Real], rooms: list[Real], radius: Real) -> list[Real]:
    """min(t * size, room) with the one t that gives the radius: coordinates are held by their room, the nearest first."""
    held: set[int] = set()
    while True:
        free = [i for i in range(len(sizes)) if i not in held]
        left = n.sub(n.mul(radius, radius), n.total([n.mul(rooms[i], rooms[i]) for i in held]))
        square = n.total([n.mul(sizes[i], sizes[i]) for i in free])
        t = n.sqrt(n.div(left, square)) if base(square) > 0 and base(left) > 0 else mpf(0)
        over = [i for i in free if base(t) * base(sizes[i]) > base(rooms[i])]
        if not over:
            return [rooms[i] if i in held else n.mul(t, sizes[i]) for i in range(len(sizes))]
        held.add(min(over, key=lambda i: base(rooms[i]) / base(sizes[i])))


def _on_l1(sizes: list[Real], rooms: list[Real], radius: Real) -> list[Real]:
    """min(max(size - t, 0), room) with a t that gives the radius: the sum is linear in t between the places where a part changes."""
    ends = {base(s) for s in sizes} | {base(s) - base(r) for s, r in zip(sizes, rooms, strict=True) if base(s) > base(r)} | {mpf(0)}
    falling = sorted(ends, reverse=True)
    for top, bottom in zip(falling, falling[1:], strict=False):
        least = sum((min(max(base(s) - bottom, mpf(0)), base(r)) for s, r in zip(sizes, rooms, strict=True)), mpf(0))
        if least < base(radius):
            continue
        held = [i for i, s in enumerate(sizes) if base(s) - base(rooms[i]) >= top]
        moving = [i for i, s in enumerate(sizes) if base(s) >= top and i not in held]
        whole = n.total([sizes[i] for i in moving] + [rooms[i] for i in held])
        t = n.div(n.sub(whole, radius), mpf(max(len(moving), 1)))
        return [rooms[i] if i in held else n.sub(s, t) if i in moving else mpf(0) for i, s in enumerate(sizes)]
    return [mpf(0)] * len(sizes)


def _size(name: str, point: list[Real], center: list[Real]) -> Real:
    offset = [n.sub(v, c) for v, c in zip(point, center, strict=True)]
    if name == "l1":
        return n.total([n.absolute(d) for d in offset])
    return n.sqrt(n.total([n.mul(d, d) for d in offset]))


def interior(run: Run, e: Typed) -> list[Real]:
    """1 in the coordinates strictly inside the set."""
    point, center, radius, (low, high) = _parts(run, e)
    if e.attrs[0] == "linf":
        free = [abs(base(v) - base(c)) < base(radius) for v, c in zip(point, center, strict=True)]
    else:
        free = [base(_size(e.attrs[0], point, center)) < base(radius)] * len(point)
    return [n.holds(f and low < base(v) < high) for f, v in zip(free, point, strict=True)]
