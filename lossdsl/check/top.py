"""Headers `j in top(n, i != y: score)`: the n classes with the largest scores at the clean input."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lossdsl.check.scope import LevelName, Scope, Value, is_error
from lossdsl.check.typed import INNER, Axis, Domain, Typed, same, show, walk
from lossdsl.source import Span
from lossdsl.syntax import tree as t

if TYPE_CHECKING:
    from lossdsl.check.infer import Context, Inference

_EXAMPLE = "write for example j in top(9, i != y: f(x)[i])"


def infer_top(self: Inference, header: t.Header, scope: Scope, at: Context) -> Domain | None:
    """The classes of `top`; equal headers give equal domains. None after reporting."""
    from lossdsl.check.binders import bound, infer_domain

    call = header.domain
    assert isinstance(call, t.Call)
    last = call.args[-1].value if len(call.args) == 2 else None
    if not isinstance(last, t.Binder) or last.func:
        self.report.error("E034", "top takes a number and a score over the classes", call.span, _EXAMPLE)
        return None
    count = _count(self, call.args[0].value, scope, at)
    if last.header.relation == "in":
        self.report.error("E034", "the score of top runs over all classes or all but one", last.header.span, _EXAMPLE)
        return None
    classes = infer_domain(self, last.header, scope, at)
    if count is None or classes is None:
        return None
    axis = Axis(INNER, classes)
    inner = scope.declare(last.header.var, Value(bound(axis, last.header.span), last.header.span, "binder"))
    score = self.scalar(last.body, inner, replace(at, depth=INNER + 1), "the score of top")
    if is_error(score) or not _of_clean_input(self, score, scope, last.body.span):
        return None
    return _interned(self, count, score, axis)


def _count(self: Inference, e: t.Expr, scope: Scope, at: Context) -> int | None:
    count = self.number(e, scope, at, "the number of classes in top")
    if count is None or (isinstance(count, int) and count >= 1):
        return None if count is None else int(count)
    self.report.error("E034", f"top takes a whole number of classes from 1, not {count:g}", e.span, _EXAMPLE)
    return None


def _of_clean_input(self: Inference, score: Typed, scope: Scope, span: Span) -> bool:
    """The classes are chosen once per batch, before any level has run."""
    solved = {name for name, binding in scope.names.items() if isinstance(binding, LevelName)}
    parts = walk(score)
    solved |= {str(e.attrs[0]) for e in parts if e.op == "found"}
    used = sorted(score.depends & solved)
    if used or "batch" in score.depends:
        what = used[0] if used else "the other examples of the batch"
        help = "score the clean input, for example i != y: f(x)[i]"
        self.report.error("E025", f"the classes of top are chosen by example, before any level, and this depends on {what}", span, help)
        return False
    if any(e.axis is not None and e.axis.domain.kind == "top" for e in parts):
        self.report.error("E034", "the score of top cannot itself hold a top", span, _EXAMPLE)
        return False
    return True


def _interned(self: Inference, count: int, score: Typed, axis: Axis) -> Domain:
    for known in self.tops:
        if known.size == count and known.inner == axis and known.expr is not None and same(known.expr, score):
            return known
    header = axis.domain.text.replace("j", "i", 1)
    domain = Domain("top", f"j in top({count}, {header}: {show(score)})", len(self.tops) + 1, score, count, axis)
    self.tops.append(domain)
    return domain
