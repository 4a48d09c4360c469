"""Calls: the model, operations of the table, defs, conditions, and facts about lower levels."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING

from lossdsl.check import build, draws
from lossdsl.check.scope import DRAWS, ELSEWHERE, Function, Later, LevelName, Scope, Value, functions, is_error
from lossdsl.check.typed import Typed
from lossdsl.diagnostics import Edit, suggest
from lossdsl.lang.ops import FACTS_OF_A_LEVEL, NOT_YET, OPERATIONS, Operation
from lossdsl.lang.specs import SETS
from lossdsl.lang.types import CLASSES, DESCRIPTION, OVER_CLASSES, SCALARS, Kind
from lossdsl.source import Span
from lossdsl.syntax import tree as t

if TYPE_CHECKING:
    from lossdsl.check.infer import Context, Inference

_NORMS = (1, 2)


def infer_call(self: Inference, e: t.Call, scope: Scope, at: Context) -> Typed:
    """One call; its name decides which rule applies."""
    if isinstance(e.func, t.Index):
        return _indexed_call(self, e, scope, at)
    if not isinstance(e.func, t.Name):
        return self.report.error("E014", "this cannot be called", e.func.span, "only operations, defs, f and p take arguments in parentheses")
    name = e.func.id
    binding = scope.get(name)
    if isinstance(binding, Function):
        self.report.used.add(name)
        return _apply_def(self, binding, e, scope, at)
    if isinstance(binding, Later):
        return Typed("?", (), Kind.CONST, e.span)
    if isinstance(binding, Value | LevelName):
        return self.report.error("E014", f"{name} is a value, not a function", e.func.span, f"for an entry write {name}[...]; for a product {name} * (...)")
    if name in ("f", "p"):
        return _model(self, name, e, scope, at)
    if name in FACTS_OF_A_LEVEL:
        return _fact(self, name, e, scope)
    special = {"if": _if, "stop": _stop}.get(name)
    if special:
        return special(self, e, scope, at)
    if name == "inf":
        return self.report.error("E014", "inf is a number", e.span, "it is the order of a norm: norm(v, inf)")
    if name in OPERATIONS:
        return _operation(self, OPERATIONS[name], e, scope, at)
    if name in DRAWS:
        return draws.infer_draw(self, e, scope, at)
    if name in NOT_YET:
        return _not_yet(self, name, e, scope, at)
    if name in SETS:
        return self.report.error("E020", f"{name}(...) is a set, not a value", e.span, "sets stand after in, and inside uniform(...) and corner(...)")
    if name in self.report.lost_words:
        return Typed("?", (), Kind.CONST, e.span)
    if name in at.later:
        return self.report.unknown(name, scope, e.func.span, at.later)
    known = {n for n in scope.names if isinstance(scope.names[n], Function)} | functions()
    best = ELSEWHERE.get(name) or suggest(name, known)
    otherwise = "a function of your own is a def; docs/language.md lists the operations"
    self.report.misnamed("E024", f"there is no operation {name}", e.func.span, best, otherwise)
    return Typed("?", (), Kind.CONST, e.span)


def _indexed_call(self: Inference, e: t.Call, scope: Scope, at: Context) -> Typed:
    """`f{w}(x)`, `p[g](v)`, `D[psi](p || q)`."""
    assert isinstance(e.func, t.Index)
    base, index = e.func.base, e.func.index
    for arg in e.args:
        self.infer(arg.value, scope, at)
    if e.func.bracket == "{":
        return self.report.not_yet("models at other weights, f{w}", e.span)
    if base == t.Name("D"):
        return self.report.not_yet(NOT_YET["D"], e.span)
    if base in (t.Name("p"), t.Name("f")) and isinstance(index, t.Name):
        if scope.get(index.id) is None:
            return self.report.unknown(index.id, scope, index.span)
        return self.report.not_yet("other models", e.span)
    return self.report.error("E014", "this cannot be called", e.func.span, "p[g](v) is model g's probability, D[psi](p || q) a Bregman divergence")


def positional(self: Inference, e: t.Call, scope: Scope, at: Context, names: str) -> list[Typed] | None:
    """The arguments of a call that takes no named ones; None after reporting."""
    values = []
    for arg in e.args:
        if arg.name is not None:
            self.report.error("E014", f"{names} has no argument named {arg.name}", arg.span, "its arguments go by position")
            return None
        if arg.where is not None and names not in ("batch_mean", "batch_sum"):
            self.report.error("E014", f"where belongs to batch_mean and batch_sum, not to {names}", arg.span, "write for example batch_mean(e where c), or if(c, a, b)")
            return None
        values.append(self.infer(arg.value, scope, at))
    return None if is_error(*values) else values


def _apply_def(self: Inference, function: Function, e: t.Call, scope: Scope, at: Context) -> Typed:
    node = function.node
    if node.name in at.defs:
        return self.report.error("E026", f"{node.name} calls itself", e.span, "defs are not recursive")
    args = positional(self, e, scope, at, node.name)
    if args is None:
        return Typed("?", (), Kind.CONST, e.span)
    if len(args) != len(node.args):
        return self.report.error("E014", f"{node.name} takes {_arguments(len(node.args))} and got {len(args)}", e.span, f"write {node.name}({', '.join(node.args)})")
    return self.apply(function, e, args, at)


def _arguments(count: int) -> str:
    return "1 argument" if count == 1 else f"{count} arguments"


def _model(self: Inference, name: str, e: t.Call, scope: Scope, at: Context) -> Typed:
    """`f(v)` and `p(v)`."""
    args = positional(self, e, scope, at, name)
    if args is None:
        return Typed("?", (), Kind.CONST, e.span)
    if len(args) != 1:
        return self.report.error("E014", f"{name} takes one point and got {len(args)}", e.span, f"write {name}(x)")
    point = args[0]
    if point.kind is not Kind.INPUT:
        help = f"write for example {name}(x)"
        if name == "p" and point.op == "logits":
            help = f"p is already the softmax of f: write p({_subject(point.args[0])})"
        return self.report.error("E013", f"{name} takes an Input, and this is {DESCRIPTION[point.kind]}", e.args[0].span, help, label=str(point.kind))
    logits = Typed("logits", (point,), Kind.LOGITS, e.span, depends=point.depends | {"theta"})
    if name == "f":
        return logits
    return Typed("prob", (logits,), Kind.PROB, e.span, depends=logits.depends, low=0.0, high=1.0)


def _fact(self: Inference, name: str, e: t.Call, scope: Scope) -> Typed:
    arg = e.args[0].value if len(e.args) == 1 else None
    binding = scope.get(arg.id) if isinstance(arg, t.Name) else None
    if not isinstance(binding, LevelName):
        return self.report.error("E017", f"{name} speaks of the solution of a lower level", e.span, f"write {name}(x') with x' declared by lower")
    self.report.used.add(binding.name)
    if binding.domain is not None:
        return self.report.not_yet(f"{name} of a family", e.span)
    if name != "fooled":
        return self.report.not_yet(f"{name}(x')", e.span)
    high = 1.0 if name == "fooled" else float(binding.steps or 0)
    return Typed("fact", (), Kind.REAL, e.span, (name, binding.name), depends=frozenset({binding.name, "theta"}), low=0.0, high=high)


def _if(self: Inference, e: t.Call, scope: Scope, at: Context) -> Typed:
    args = positional(self, e, scope, at, "if")
    if args is None:
        return Typed("?", (), Kind.CONST, e.span)
    if len(args) != 3:
        return self.report.error("E014", f"if takes a condition and two values and got {len(args)} arguments", e.span, "write if(c, a, b)")
    c, a, b = args
    if c.kind not in SCALARS:
        return self.report.error("E013", "the condition of if is a number", e.args[0].span, "compare first", label=str(c.kind))
    if a.kind in SCALARS and b.kind in SCALARS:
        kind = build.scalar_kind(c, a, b)
    elif a.kind is b.kind:
        kind = a.kind
    else:
        return self.report.error("E013", f"the branches of if are {DESCRIPTION[a.kind]} and {DESCRIPTION[b.kind]}", e.span, "both branches need one type")
    return Typed("if", (c, a, b), kind, e.span, depends=build.depends(c, a, b), low=min(a.low, b.low), high=max(a.high, b.high))


def _stop(self: Inference, e: t.Call, scope: Scope, at: Context) -> Typed:
    args = positional(self, e, scope, at, "stop")
    if args is None:
        return Typed("?", (), Kind.CONST, e.span)
    if len(args) != 1:
        return self.report.error("E014", f"stop takes one value and got {len(args)}", e.span, "write stop(e)")
    return replace(args[0], op="stop", args=(args[0],), attrs=(), value=None, axis=None, span=e.span) if args[0].op != "number" else args[0]


def _operation(self: Inference, row: Operation, e: t.Call, scope: Scope, at: Context) -> Typed:
    """An operation of the table."""
    if row.name == "norm" and len(e.args) == 2 and e.args[1].value == t.Name("inf"):
        e = replace(e, args=(e.args[0], replace(e.args[1], value=t.Number("1e999", span=e.args[1].span))))
    args = positional(self, e, scope, at, row.name)
    if args is None:
        return Typed("?", (), Kind.CONST, e.span)
    if e.double_bar and row.bars == "no":
        return self.report.error("E014", f"{row.name} is written with a comma", e.span, f"write {row.example}")
    if not e.double_bar and row.bars == "only":
        return self.report.error("E014", f"the arguments of {row.name} stand around ||", e.span, f"write {row.example}: the target comes first")
    if not row.required <= len(args) <= len(row.params):
        wanted = _arguments(row.required) if row.required == len(row.params) else f"{row.required} to {_arguments(len(row.params))}"
        return self.report.error("E014", f"{row.name} takes {wanted} and got {len(args)}", e.span, f"write {row.example}")
    spans = [a.value.span for a in e.args]
    if e.double_bar and row.bars == "swap":
        args, spans = args[::-1], spans[::-1]
    wrong = [n for n, allowed in enumerate(row.params[: len(args)]) if args[n].kind not in allowed]
    if row.name == "CE" and args[0].kind in CLASSES:
        wrong = [0]
    if wrong:
        return [_refuse(self, row, args, n, spans) for n in wrong][0]
    for position in row.static:
        if position < len(args) and args[position].value is None:
            return self.report.error("E015", f"this argument of {row.name} must be a fixed number", spans[position], f"for example {row.example}")
    return _operation_node(self, row, e, args, scope, at)


def _operation_node(self: Inference, row: Operation, e: t.Call, args: list[Typed], scope: Scope, at: Context) -> Typed:
    if row.name == "norm" and args[1].value not in (*_NORMS, float("inf")):
        return self.report.error("E016", f"there is no norm of order {args[1].value}", e.args[1].span, "the order is 1, 2 or inf")
    if row.name == "smooth" and not 0 <= (args[1].value or 0) <= 1:
        return self.report.error("E016", "the share of label smoothing lies between 0 and 1", e.args[1].span, f"write for example {row.example}")
    if row.name in ("dot", "cos") and (args[0].kind is Kind.INPUT) != (args[1].kind is Kind.INPUT):
        return self.report.error("E013", f"{row.name} takes two Inputs or two Vectors", e.span, f"these are {DESCRIPTION[args[0].kind]} and {DESCRIPTION[args[1].kind]}")
    if row.name in ("max", "min"):
        return build.combine(row.name, build.scalar_kind(*args), args[0], args[1], e.span)
    kind = row.result or (Kind.VECTOR if args[0].kind in OVER_CLASSES else args[0].kind)
    if row.result is None and kind in SCALARS:
        kind = build.scalar_kind(*args)
    if row.name == "log" and args[0].high <= 1:
        row = replace(row, high=0.0)
    condition = _condition(self, e, scope, at)
    if condition is not None:
        if is_error(condition):
            return condition
        args = [*args, condition]
    depends = build.depends(*args)
    low, high = row.low, row.high
    if row.name in ("batch_mean", "batch_sum"):
        if any(name.startswith("@") for name in depends):
            return self.report.error("E013", f"{row.name} cannot stand inside a binder over classes", e.span, "take the batch mean outside: batch_mean(max(j != y: e))")
        depends |= {"batch"}
        low, high = (args[0].low, args[0].high) if row.name == "batch_mean" else (min(0.0, args[0].low), max(0.0, args[0].high))
        low, high = (min(low, 0.0), max(high, 0.0)) if condition is not None else (low, high)
        low, high = (low, high) if row.name == "batch_mean" else (low and -inf, high and inf)
    return Typed(row.name, tuple(args), kind, e.span, depends=depends, low=low, high=high)


def _condition(self: Inference, e: t.Call, scope: Scope, at: Context) -> Typed | None:
    where = e.args[0].where if e.args else None
    return None if where is None else self.scalar(where, scope, at, "the condition after where")


def _refuse(self: Inference, row: Operation, args: list[Typed], position: int, spans: list[Span]) -> Typed:
    """The wrong type for an operation, with the way out."""
    value, span = args[position], spans[position]
    said = row.refusal or "does not take this"
    what = DESCRIPTION[value.kind] if value.kind is not Kind.LOGITS else "logits"
    subject = _subject(value)
    help, edit = "", None
    if row.name == "CE" and value.kind in CLASSES and position == 0:
        help = f"the prediction comes first: write CE({_subject(args[1])}, {subject})"
    elif value.op == "logits" and any(Kind.PROB in p for p in row.params):
        fixed = f"p({_subject(value.args[0])})"
        help, edit = f"write {fixed}", Edit(span, fixed)
    elif value.kind in CLASSES and Kind.PROB in row.params[0]:
        fixed = f"onehot({subject})"
        help, edit = f"write {fixed}", Edit(span, fixed)
    elif value.kind is Kind.PROB and Kind.LOGITS in row.params[0] and value.op == "prob":
        fixed = f"f({_subject(value.args[0].args[0])})" if value.args[0].op == "logits" else ""
        help = f"write {fixed}" if fixed else ""
    elif value.kind is Kind.INPUT:
        help = f"did you mean p({subject}) or f({subject})?"
    return self.report.error("E012", f"{row.name} {said}, and {subject} is {what}", span, help or f"for example {row.example}", label=str(value.kind), edit=edit)


def _subject(value: Typed) -> str:
    from lossdsl.check.typed import show

    text = show(value)
    return text if len(text) <= 40 else "this"


def _not_yet(self: Inference, name: str, e: t.Call, scope: Scope, at: Context) -> Typed:
    """Constructs whose kernel comes later: their arguments are checked, and one finding says so."""
    sets = [a for a in e.args if isinstance(a.value, t.Call) and isinstance(a.value.func, t.Name) and a.value.func.id in SETS]
    for arg in e.args:
        if arg not in sets:
            self.infer(arg.value, scope, at)
    return self.report.not_yet(NOT_YET[name], e.span)
