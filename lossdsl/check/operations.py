"""Operations of the table: form, types, ranges."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING

from lossdsl.check import build
from lossdsl.check.arguments import counted, positional, subject
from lossdsl.check.scope import Scope, is_error
from lossdsl.check.typed import Typed
from lossdsl.diagnostics import Edit
from lossdsl.lang.ops import OVER_BATCH, Operation
from lossdsl.lang.types import CLASSES, DESCRIPTION, OVER_CLASSES, SCALARS, Kind
from lossdsl.source import Span
from lossdsl.syntax import tree as t

if TYPE_CHECKING:
    from lossdsl.check.infer import Context, Inference

_NORMS = (1, 2)


def infer_operation(self: Inference, row: Operation, e: t.Call, scope: Scope, at: Context) -> Typed:
    """An operation of the table."""
    if row.name == "norm" and len(e.args) == 2 and e.args[1].value == t.Name("inf"):
        e = replace(e, args=(e.args[0], replace(e.args[1], value=t.Number("1e999", span=e.args[1].span))))
    args = positional(self, e, scope, at, row.name)
    if args is None or self.sorted_vector(*args):
        return Typed("?", (), Kind.CONST, e.span)
    malformed = form(self, row, e, len(args))
    if malformed is not None:
        return malformed
    spans = [a.value.span for a in e.args]
    if e.double_bar and row.bars == "swap":
        args, spans = args[::-1], spans[::-1]
    wrong = [n for n, allowed in enumerate(row.params[: len(args)]) if args[n].kind not in allowed]
    if row.name == "CE" and args[0].kind in CLASSES:
        wrong = [0]
    if wrong:
        return [refuse(self, row, args, n, spans) for n in wrong][0]
    for position in row.static:
        if position < len(args) and args[position].value is None:
            return self.report.error(
                "E015", f"this argument of {row.name} must be a fixed number", spans[position], f"for example {row.example}"
            )
    return _operation_node(self, row, e, args, scope, at)


def form(self: Inference, row: Operation, e: t.Call, count: int) -> Typed | None:
    """The error of a call with the wrong separator or number of arguments."""
    if e.double_bar and row.bars == "no":
        return self.report.error("E014", f"{row.name} is written with a comma", e.span, f"write {row.example}")
    if not e.double_bar and row.bars == "only":
        return self.report.error(
            "E014", f"the arguments of {row.name} stand around ||", e.span, f"write {row.example}: the target comes first"
        )
    if not row.required <= count <= len(row.params):
        if row.name in ("max", "min") and count == 1:
            said = f"{row.name} takes two arguments, or a binder over the classes"
            return self.report.error("E014", said, e.span, f"write {row.name}(j: v[j]) for the entries of a Vector v")
        wanted = counted(row.required) if row.required == len(row.params) else f"{row.required} to {counted(len(row.params))}"
        return self.report.error("E014", f"{row.name} takes {wanted} and got {count}", e.span, f"write {row.example}")
    return None


def _values(self: Inference, row: Operation, e: t.Call, args: list[Typed]) -> Typed | None:
    """The error of arguments whose types are right and whose values are not."""
    if row.name in ("zeros", "ones") and args[0].op != "classes":
        return self.report.error("E016", f"{row.name} has one number per class", e.args[0].span, f"write {row.name}(K)")
    if row.name == "norm" and args[1].value not in (*_NORMS, float("inf")):
        return self.report.error("E016", f"there is no norm of order {args[1].value}", e.args[1].span, "the order is 1, 2 or inf")
    if row.name == "smooth" and not 0 <= (args[1].value or 0) <= 1:
        return self.report.error(
            "E016", "the share of label smoothing lies between 0 and 1", e.args[1].span, f"write for example {row.example}"
        )
    if row.name in ("dot", "cos") and any((args[0].kind is kind) != (args[1].kind is kind) for kind in (Kind.INPUT, Kind.WEIGHTS)):
        said = f"{row.name} takes two values of one space, and these are {DESCRIPTION[args[0].kind]} and {DESCRIPTION[args[1].kind]}"
        help = "both live in input space, both over the classes, or both are Weights: did you forget f(...) or grad(...)?"
        return self.report.error("E013", said, e.span, help)
    return None


def _operation_node(self: Inference, row: Operation, e: t.Call, args: list[Typed], scope: Scope, at: Context) -> Typed:
    impossible = _values(self, row, e, args)
    if impossible is not None:
        return impossible
    if row.name in ("max", "min"):
        return build.combine(row.name, build.scalar_kind(*args), args[0], args[1], e.span)
    kind = row.result or (Kind.VECTOR if args[0].kind in OVER_CLASSES else args[0].kind)
    if row.result is None and kind in SCALARS:
        kind = build.scalar_kind(*args)
    if row.name in ("norm", "dot", "cos") and args[0].kind is Kind.WEIGHTS:
        kind = Kind.CONST
    if row.name == "log" and args[0].high <= 1:
        row = replace(row, high=0.0)
    condition = _condition(self, e, scope, at)
    if condition is not None:
        if is_error(condition):
            return condition
        args = [*args, condition]
    if row.name in OVER_BATCH:
        return _over_batch(self, row, e, args, kind)
    return Typed(row.name, tuple(args), kind, e.span, depends=build.depends(*args), low=row.low, high=row.high)


def _over_batch(self: Inference, row: Operation, e: t.Call, args: list[Typed], kind: Kind) -> Typed:
    """Means and sums over the batch or over its examples of each class, with their range; 0 is in it where nothing may be left."""
    depends = build.depends(*args)
    if any(name.startswith("@") for name in depends):
        help = f"take it outside: {row.name}(max(j != y: e))"
        return self.report.error("E013", f"{row.name} cannot stand inside a binder over classes", e.span, help)
    low, high = args[0].low, args[0].high
    if row.name in ("batch_sum", "class_sum"):
        low, high = (-inf if low < 0 else 0.0), (inf if high > 0 else 0.0)
    elif len(args) > 1 or row.name == "class_mean":
        low, high = min(low, 0.0), max(high, 0.0)
    return Typed(row.name, tuple(args), kind, e.span, depends=depends | {"batch"}, low=low, high=high)


def _condition(self: Inference, e: t.Call, scope: Scope, at: Context) -> Typed | None:
    where = e.args[0].where if e.args else None
    return None if where is None else self.scalar(where, scope, at, "the condition after where")


def refuse(self: Inference, row: Operation, args: list[Typed], position: int, spans: list[Span]) -> Typed:
    """The wrong type for an operation, with the way out."""
    value, span = args[position], spans[position]
    said = row.refusal or "does not take this"
    what = DESCRIPTION[value.kind] if value.kind is not Kind.LOGITS else "logits"
    name = subject(value)
    help, edit = "", None
    if row.name == "CE" and value.kind in CLASSES and position == 0:
        help = f"the prediction comes first: write CE({subject(args[1])}, {name})"
    elif value.op == "logits" and any(Kind.PROB in p for p in row.params):
        fixed = f"p({subject(value.args[0])})"
        help, edit = f"write {fixed}", Edit(span, fixed)
    elif value.kind in CLASSES and Kind.PROB in row.params[0]:
        fixed = f"onehot({name})"
        help, edit = f"write {fixed}", Edit(span, fixed)
    elif value.kind is Kind.PROB and Kind.LOGITS in row.params[0] and value.op == "prob":
        fixed = f"f({subject(value.args[0].args[0])})" if value.args[0].op == "logits" else ""
        help = f"write {fixed}" if fixed else ""
    elif value.kind is Kind.INPUT:
        help = f"did you mean p({name}) or f({name})?"
    return self.report.error(
        "E012", f"{row.name} {said}, and {name} is {what}", span, help or f"for example {row.example}", label=str(value.kind), edit=edit
    )
