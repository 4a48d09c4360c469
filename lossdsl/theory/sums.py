"""Expressions as sums of numbers times terms, and margins brought into one form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lossdsl.check import build
from lossdsl.check.typed import Axis, Typed, same
from lossdsl.lang.types import SCALARS, Kind


@dataclass(frozen=True)
class Term:
    """`factor` times `e`. `mean`: e stands inside a mean over the batch, of which the sum is a lower bound."""

    factor: float
    e: Typed
    mean: bool = False


def terms(e: Typed) -> list[Term]:
    """The addends of a number, outermost first, in the order written. Means over the batch are taken apart; a mean over the examples with a
    label, or the largest of the classes' means, is at least the mean over all examples where the terms are not negative."""
    return _margins(_terms(normal(e), 1.0, False))


def _margins(found: list[Term]) -> list[Term]:
    """f(v)[y] joined to the entry of f(v), or to the value over its entries, that has the opposite factor: a margin is one term."""
    out: list[Term | None] = list(found)
    for n, label in enumerate(found):
        if label.e.op != "at" or label.e.args[1].op != "label":
            continue
        for m, other in enumerate(found):
            if out[m] is not None and out[n] is not None and m != n and other.factor == -label.factor and _over(other.e, label.e.args[0]):
                joined = Typed("sub", (other.e, label.e), Kind.REAL, other.e.span, depends=other.e.depends | label.e.depends)
                out[min(m, n)], out[max(m, n)] = Term(other.factor, joined, other.mean), None
    return [t for t in out if t is not None]


def _over(e: Typed, vector: Typed) -> bool:
    """An entry of a vector, or a binder over its entries."""
    inner = e.args[0] if e.op == "reduce" and e.attrs[0] in ("max", "logsumexp") else e
    return inner.op == "at" and same(inner.args[0], vector)


def _terms(e: Typed, factor: float, mean: bool) -> list[Term]:
    if e.op in ("add", "sub") and e.kind in SCALARS:
        return _terms(e.args[0], factor, mean) + _terms(e.args[1], factor if e.op == "add" else -factor, mean)
    if e.op == "neg" and e.kind in SCALARS:
        return _terms(e.args[0], -factor, mean)
    if e.op == "mul":
        for one, other in (e.args, e.args[::-1]):
            if one.value is not None:
                return _terms(other, factor * one.value, mean)
    if e.op == "div" and e.args[1].value:
        return _terms(e.args[0], factor / e.args[1].value, mean)
    if e.op == "mode":
        return _terms(e.args[0], factor, mean)
    inner = _averaged(e)
    if inner is not None and (len(e.args) == 1 or (factor > 0 and inner.low >= 0)):
        return _terms(inner, factor, True)
    worst = _worst_class(e)
    if worst is not None and factor > 0 and worst.low >= 0:
        return _terms(worst, factor, True)
    return [Term(factor, e, mean)]


def _averaged(e: Typed) -> Typed | None:
    """What batch_mean(e) or batch_mean(e where known(y)) is the mean of."""
    if e.op != "batch_mean" or (len(e.args) == 2 and e.args[1].op != "known"):
        return None
    return e.args[0]


def _worst_class(e: Typed) -> Typed | None:
    """What max(j: class_mean(e)[j]) is made of."""
    if e.op != "reduce" or e.attrs != ("max",) or e.axis is None or e.axis.domain.kind != "all":
        return None
    body = e.args[0]
    own = body.op == "at" and body.args[0].op == "class_mean" and body.args[1].op == "bound" and body.args[1].axis == e.axis
    return body.args[0].args[0] if own and len(body.args[0].args) == 1 else None


def summed(parts: Sequence[Term]) -> Typed:
    """The sum of some terms as one expression."""
    scaled = [t.e if t.factor == 1 else build.combine("mul", t.e.kind, build.number(t.factor), t.e, t.e.span) for t in parts]
    total = scaled[0]
    for e in scaled[1:]:
        total = build.combine("add", build.scalar_kind(total, e), total, e, e.span)
    return total


def normal(e: Typed) -> Typed:
    """The same value with entries taken of Logits and Probs themselves, and shifts outside maxima:
    (f(v) - f(v)[y])[j] is f(v)[j] - f(v)[y], and max(j != y: f(v)[j] - c) is max(j != y: f(v)[j]) - c. Ends of a path are points:
    1 * x + 0 * x' is x."""
    done: dict[int, Typed] = {}

    def visit(node: Typed) -> Typed:
        if id(node) not in done:
            args = tuple(visit(a) for a in node.args)
            same_args = all(a is b for a, b in zip(args, node.args, strict=True))
            done[id(node)] = _point(_reordered(_outside(_entry(node if same_args else replace(node, args=args)))))
        return done[id(node)]

    return visit(e)


def _point(e: Typed) -> Typed:
    """1 * x + 0 * x' is x."""
    if e.kind is not Kind.INPUT:
        return e
    if e.op == "mul":
        for factor, v in (e.args, e.args[::-1]):
            if factor.value in (0, 1) and v.kind is Kind.INPUT:
                return (
                    v
                    if factor.value == 1
                    else replace(v, op="number", args=(), attrs=(), value=0, depends=frozenset(), axis=None, family=None)
                )
    if e.op in ("add", "sub"):
        a, b = e.args
        if b.value == 0:
            return a
        if a.value == 0 and e.op == "add":
            return b
    return e


def _reordered(e: Typed) -> Typed:
    """-a + b is b - a: a margin is written in several ways."""
    if e.op == "add" and e.kind in SCALARS and e.args[0].op == "neg":
        return replace(e, op="sub", args=(e.args[1], e.args[0].args[0]))
    if e.op == "add" and e.kind in SCALARS and e.args[1].op == "neg":
        return replace(e, op="sub", args=(e.args[0], e.args[1].args[0]))
    if e.op == "neg" and e.args[0].op == "sub" and e.kind in SCALARS:
        return replace(e.args[0], args=e.args[0].args[::-1], low=-e.args[0].high, high=-e.args[0].low)
    return e


def _entry(e: Typed) -> Typed:
    """(v + c)[j] is v[j] + c for a number c, and (v - w)[j] is v[j] - w[j]."""
    if e.op != "at" or e.args[0].op not in ("add", "sub"):
        return e
    base, index = e.args
    parts = tuple(p if p.kind in SCALARS else _entry(replace(e, args=(p, index), low=_low(p), high=_high(p))) for p in base.args)
    return replace(base, args=parts, kind=Kind.REAL, depends=e.depends)


def _low(p: Typed) -> float:
    return 0.0 if p.kind is Kind.PROB else p.low


def _high(p: Typed) -> float:
    return 1.0 if p.kind is Kind.PROB else p.high


def _outside(e: Typed) -> Typed:
    """A number that is the same for all classes goes outside max and min."""
    if e.op != "reduce" or e.attrs[0] not in ("max", "min") or e.axis is None or e.args[0].op not in ("add", "sub"):
        return e
    body = e.args[0]
    first, second = body.args
    if not uses(second, e.axis):
        inner = _outside(replace(e, args=(first,), low=first.low, high=first.high))
        return replace(body, args=(inner, second), depends=e.depends)
    if body.op == "add" and not uses(first, e.axis):
        inner = _outside(replace(e, args=(second,), low=second.low, high=second.high))
        return replace(body, args=(inner, first), depends=e.depends)
    return e


def uses(e: Typed, axis: Axis) -> bool:
    """Does the value depend on the class that a binder is at?"""
    return f"@{axis.depth}" in e.depends


def alike(a: Typed, b: Typed) -> bool:
    """Do two expressions say the same, up to the order of the arguments of a symmetric divergence?"""
    if same(a, b):
        return True
    return a.op == b.op and a.op in ("SE", "JS", "TV") and same(a.args[0], b.args[1]) and same(a.args[1], b.args[0])
