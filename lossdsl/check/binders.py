"""Binders over classes and whole numbers, and indexing by a class."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from lossdsl.check import build
from lossdsl.check.gradients import infer_gradient
from lossdsl.check.scope import LevelName, Scope, Value, is_error
from lossdsl.check.top import infer_top
from lossdsl.check.typed import Axis, Domain, Typed, number_text, walk
from lossdsl.diagnostics import did_you_mean
from lossdsl.lang.ops import BINDERS, OPERATIONS
from lossdsl.lang.types import CLASSES, DESCRIPTION, SCALARS, Kind
from lossdsl.source import Span
from lossdsl.syntax import tree as t

if TYPE_CHECKING:
    from lossdsl.check.infer import Context, Inference

MAX_TERMS = 1000
_OVER_INTEGERS = {"sum": "add", "mean": "add", "max": "max", "min": "min"}


def infer_binder(self: Inference, e: t.Binder, scope: Scope, at: Context) -> Typed:
    """`max(j != y: e)`, `sum(k in 0..m-1: e)`."""
    if e.func == "grad":
        return infer_gradient(self, e, scope, at)
    if not e.func:
        return self.report.error("E034", "a binder is the only argument of its operation", e.span, "write for example max(j != y: e)")
    if e.func not in BINDERS:
        if e.func in OPERATIONS or e.func in scope.names:
            return self.report.error("E034", f"{e.func} binds no variable", e.span, "binders are " + ", ".join(BINDERS))
        return self.report.error("E010", f"there is no binder {e.func}", e.span, did_you_mean(e.func, (*BINDERS, "grad")))
    if isinstance(e.header.domain, t.Range):
        return over_integers(self, e, scope, at)
    domain = infer_domain(self, e.header, scope, at)
    if domain is None:
        return Typed("?", (), Kind.CONST, e.span)
    axis = Axis(at.depth, domain)
    inner = scope.declare(e.header.var, Value(bound(axis, e.header.span), e.header.span, "binder"))
    body = self.scalar(e.body, inner, at.deeper(), "the body of " + e.func)
    if is_error(body):
        return body
    kind = {"argmax": Kind.CLASS, "argmin": Kind.CLASS, "softmax": Kind.VECTOR, "sort": Kind.VECTOR}.get(e.func, Kind.REAL)
    low, high = (0.0, 1.0) if e.func == "softmax" else (body.low, body.high) if e.func in ("max", "min", "mean", "sort") else (-inf, inf)
    if e.func != "softmax" and any(part.op in ("class_mean", "class_sum") for part in walk(body)):
        low, high = min(low, 0.0), max(high, 0.0)  # 0 where no class has an example
    if e.func == "sum" and body.low >= 0:
        low = 0.0
    outer = (body.depends | domain.depends) - {f"@{axis.depth}"}
    return Typed(
        "reduce",
        (body,),
        kind,
        e.span,
        (e.func,),
        axis=axis,
        depends=outer,
        low=low,
        high=high,
        family=domain if kind is Kind.CLASS else None,
    )


def bound(axis: Axis, span: Span) -> Typed:
    depends = axis.domain.depends | {f"@{axis.depth}"}
    return Typed("bound", (), Kind.CLASS, span, axis=axis, depends=depends, family=axis.domain)


def infer_domain(self: Inference, header: t.Header, scope: Scope, at: Context) -> Domain | None:
    """The classes of a header; None after reporting a bad one."""
    if header.relation == "":
        return Domain("all", "j")
    if header.relation == "=":
        self.report.error("E034", "v = e binds the point of grad", header.span, "here a header is j, j != e or j in S")
        return None
    if header.relation == "!=":
        assert header.domain is not None
        out = self.infer(header.domain, scope, at)
        if is_error(out):
            return None
        if out.kind not in CLASSES:
            self.report.error(
                "E034", f"j != e leaves out a class, and this is {DESCRIPTION[out.kind]}", header.domain.span, "write for example j != y"
            )
            return None
        return self.all_but(out)
    if not (isinstance(header.domain, t.Call) and header.domain.func == t.Name("top")):
        span = header.domain.span if header.domain is not None else header.span
        self.report.error(
            "E034", "a header runs over classes or whole numbers", span, "write j, j != y, k in 0..m-1 or j in top(9, i != y: f(x)[i])"
        )
        return None
    return infer_top(self, header, scope, at)


def over_integers(self: Inference, e: t.Binder, scope: Scope, at: Context) -> Typed:
    """A binder over whole numbers, written out term by term."""
    assert isinstance(e.header.domain, t.Range)
    if e.func not in _OVER_INTEGERS:
        return self.report.error(
            "E034", f"{e.func} runs over classes, not over whole numbers", e.header.span, "over whole numbers: sum, mean, max, min"
        )
    ends = [self.number(end, scope, at, "the end of a range") for end in (e.header.domain.low, e.header.domain.high)]
    if ends[0] is None or ends[1] is None:
        return Typed("?", (), Kind.CONST, e.span)
    if any(not isinstance(end, int) for end in ends):
        return self.report.error("E034", "the ends of a range are whole numbers", e.header.domain.span, "write for example k in 0..m-1")
    low, high = int(ends[0]), int(ends[1])
    if high < low:
        return self.report.error(
            "E034", f"the range {low}..{high} is empty", e.header.domain.span, "both ends are included: write the smaller one first"
        )
    if high - low >= MAX_TERMS:
        return self.report.error(
            "E034",
            f"the range {low}..{high} has more than {MAX_TERMS} terms",
            e.header.domain.span,
            "every term is a part of the loss: take fewer",
        )
    total: Typed | None = None
    for k in range(low, high + 1):
        inner = scope.declare(e.header.var, Value(build.number(k, e.header.span), e.header.span, "binder"))
        term = self.scalar(e.body, inner, at, "the body of " + e.func)
        if is_error(term):
            return term
        op = _OVER_INTEGERS[e.func]
        total = term if total is None else build.combine(op, build.scalar_kind(total, term), total, term, e.span)
    assert total is not None
    if e.func == "mean":
        total = build.combine("div", total.kind, total, build.number(high - low + 1), e.span)
    return total


def entry(self: Inference, base: Typed, e: t.Index, scope: Scope, at: Context) -> Typed:
    """`v[c]` for a vector over classes."""
    index = self.infer(e.index, scope, at)
    if is_error(index):
        return index
    whole = index.kind is Kind.CONST and isinstance(index.value, int)
    if index.kind not in CLASSES and not whole:
        return self.report.error(
            "E025",
            f"classes index this, and this is {DESCRIPTION[index.kind]}",
            e.index.span,
            "write v[y], v[j] inside a binder, or v[0] for class 0",
            label=str(index.kind),
        )
    if whole and index.value is not None and index.value < 0:
        return self.report.error("E025", f"there is no class {index.value}", e.index.span, "classes are 0..K-1")
    low, high = (0.0, 1.0) if base.kind is Kind.PROB else (base.low, base.high)
    return Typed("at", (base, index), Kind.REAL, e.span, depends=build.depends(base, index), low=low, high=high)


def nth(self: Inference, base: Typed, e: t.Index, scope: Scope, at: Context) -> Typed:
    """`sort(j: e)[3]`: the third largest."""
    n = self.number(e.index, scope, at, "the place in a sorted vector")
    if n is None:
        return Typed("?", (), Kind.CONST, e.span)
    if not isinstance(n, int) or n < 1:
        return self.report.error(
            "E025", f"a sorted vector has no place {number_text(n)}", e.index.span, "places are 1, 2, ...: [1] is the largest"
        )
    ordered = base
    while ordered.axis is None:
        ordered = ordered.args[0]
    size = ordered.axis.domain.size
    if size is not None and n > size:
        said = f"{size} classes are sorted, and there is no place {n}"
        return self.report.error("E025", said, e.index.span, f"places are 1..{size}; fewer where there are fewer classes")
    return Typed("nth", (base,), Kind.REAL, e.span, (n,), depends=base.depends, low=base.low, high=base.high)


def pick(self: Inference, family: Typed, e: t.Index, scope: Scope, at: Context) -> Typed:
    """`x'[c]` for a lower variable with one member per class."""
    if is_error(family):
        return family
    index = self.infer(e.index, scope, at)
    if is_error(index):
        return index
    name = family.attrs[0]
    assert family.family is not None
    if index.kind not in CLASSES:
        return self.report.error(
            "E025",
            f"{name} is indexed by a class, and this is {DESCRIPTION[index.kind]}",
            e.index.span,
            f"write {name}[j] inside a binder over {family.family.text}",
        )
    binding = scope.get(name)
    own = binding.own if isinstance(binding, LevelName) else None
    if own is not None and index.axis != own:
        return self.report.error(
            "E025",
            f"inside its own level {name} is one point, that of the level's own class",
            e.index.span,
            f"write {name}[j] with the j of the level's header",
        )
    if family.family.kind != "all" and index.family != family.family:
        known = f"this class is one of [{index.family.text}]" if index.family else "this class may be another"
        return self.report.error(
            "E025",
            f"{name} exists for [{family.family.text}], and {known}",
            e.index.span,
            f"use the class of a binder or an argmax over {family.family.text}",
        )
    return Typed("pick", (family, index), Kind.INPUT, e.span, depends=build.depends(family, index))


__all__ = ["SCALARS", "entry", "infer_binder", "nth", "pick"]
