"""Calls: the model, operations of the table, defs, conditions, and facts about lower levels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from lossdsl.check import build, draws, operations
from lossdsl.check.arguments import counted, positional, subject
from lossdsl.check.scope import DRAWS, ELSEWHERE, Binding, Function, Later, LevelName, Scope, functions
from lossdsl.check.typed import Typed
from lossdsl.diagnostics import suggest
from lossdsl.lang.ops import BINDERS, FACTS_OF_A_LEVEL, NOT_YET, OPERATIONS
from lossdsl.lang.specs import SETS
from lossdsl.lang.types import CLASSES, DESCRIPTION, SCALARS, Kind
from lossdsl.syntax import tree as t

if TYPE_CHECKING:
    from lossdsl.check.infer import Context, Inference

_NORMS = (1, 2)


def infer_call(self: Inference, e: t.Call, scope: Scope, at: Context) -> Typed:
    """One call; its name decides which rule applies."""
    if isinstance(e.func, t.Index):
        return _indexed_call(self, e, scope, at)
    if not isinstance(e.func, t.Name):
        return self.report.error(
            "E014", "this cannot be called", e.func.span, "only operations, defs, f and p take arguments in parentheses"
        )
    name = e.func.id
    binding = scope.get(name)
    if binding is not None:
        return _named_call(self, name, binding, e, scope, at)
    if name in _BUILT_IN:
        return _BUILT_IN[name](self, e, scope, at)
    if name in FACTS_OF_A_LEVEL:
        return _fact(self, name, e, scope)
    if name in OPERATIONS:
        return operations.infer_operation(self, OPERATIONS[name], e, scope, at)
    if name in NOT_YET:
        return _not_yet(self, name, e, scope, at)
    return _unknown_call(self, name, e, scope, at)


def _named_call(self: Inference, name: str, binding: Binding, e: t.Call, scope: Scope, at: Context) -> Typed:
    """A call of a name that the file declares."""
    if isinstance(binding, Function):
        self.report.used.add(name)
        return _apply_def(self, binding, e, scope, at)
    if isinstance(binding, Later):
        return Typed("?", (), Kind.CONST, e.span)
    return self.report.error(
        "E014", f"{name} is a value, not a function", e.func.span, f"for an entry write {name}[...]; for a product {name} * (...)"
    )


def _unknown_call(self: Inference, name: str, e: t.Call, scope: Scope, at: Context) -> Typed:
    """A name that is no operation: something else of the language, or a slip."""
    if name in BINDERS:
        over_batch = f"; over the batch: batch_{name}(e)" if name in ("mean", "sum") else ""
        return self.report.error("E034", f"{name} runs over classes", e.span, f"write {name}(j: e) or {name}(j != y: e){over_batch}")
    if name == "inf":
        return self.report.error("E014", "inf is a number", e.span, "it is the order of a norm: norm(v, inf)")
    if name in SETS:
        return self.report.error(
            "E020", f"{name}(...) is a set, not a value", e.span, "sets stand after in, and inside uniform(...) and corner(...)"
        )
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
    return self.report.error(
        "E014", "this cannot be called", e.func.span, "p[g](v) is model g's probability, D[psi](p || q) a Bregman divergence"
    )


def _apply_def(self: Inference, function: Function, e: t.Call, scope: Scope, at: Context) -> Typed:
    node = function.node
    if node.name in at.defs:
        return self.report.error("E026", f"{node.name} calls itself", e.span, "defs are not recursive")
    args = positional(self, e, scope, at, node.name)
    if args is None:
        return Typed("?", (), Kind.CONST, e.span)
    if len(args) != len(node.args):
        return self.report.error(
            "E014",
            f"{node.name} takes {counted(len(node.args))} and got {len(args)}",
            e.span,
            f"write {node.name}({', '.join(node.args)})",
        )
    return self.apply(function, e, args, at)


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
            help = f"p is already the softmax of f: write p({subject(point.args[0])})"
        return self.report.error(
            "E013", f"{name} takes an Input, and this is {DESCRIPTION[point.kind]}", e.args[0].span, help, label=str(point.kind)
        )
    logits = Typed("logits", (point,), Kind.LOGITS, e.span, depends=point.depends | {"theta"})
    if name == "f":
        return logits
    return Typed("prob", (logits,), Kind.PROB, e.span, depends=logits.depends, low=0.0, high=1.0)


def _fact(self: Inference, name: str, e: t.Call, scope: Scope) -> Typed:
    arg = e.args[0].value if len(e.args) == 1 else None
    binding = scope.get(arg.id) if isinstance(arg, t.Name) else None
    if not isinstance(binding, LevelName):
        return self.report.error(
            "E017", f"{name} speaks of the solution of a lower level", e.span, f"write {name}(x') with x' declared by lower"
        )
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
    elif {a.kind, b.kind} <= CLASSES:
        kind = Kind.CLASS
    elif a.kind is b.kind:
        kind = a.kind
    else:
        return self.report.error(
            "E013", f"the branches of if are {DESCRIPTION[a.kind]} and {DESCRIPTION[b.kind]}", e.span, "both branches need one type"
        )
    return Typed("if", (c, a, b), kind, e.span, depends=build.depends(c, a, b), low=min(a.low, b.low), high=max(a.high, b.high))


def _stop(self: Inference, e: t.Call, scope: Scope, at: Context) -> Typed:
    args = positional(self, e, scope, at, "stop")
    if args is None:
        return Typed("?", (), Kind.CONST, e.span)
    if len(args) != 1:
        return self.report.error("E014", f"stop takes one value and got {len(args)}", e.span, "write stop(e)")
    return replace(args[0], op="stop", args=(args[0],), attrs=(), value=None, axis=None, span=e.span) if args[0].op != "number" else args[0]


def _not_yet(self: Inference, name: str, e: t.Call, scope: Scope, at: Context) -> Typed:
    """Constructs whose kernel comes later: their arguments are checked, and one finding says so."""
    sets = [a for a in e.args if isinstance(a.value, t.Call) and isinstance(a.value.func, t.Name) and a.value.func.id in SETS]
    for arg in e.args:
        if arg not in sets:
            self.infer(arg.value, scope, at)
    return self.report.not_yet(NOT_YET[name], e.span)


_BUILT_IN: dict[str, Callable[[Inference, t.Call, Scope, Context], Typed]] = {
    "f": lambda self, e, scope, at: _model(self, "f", e, scope, at),
    "p": lambda self, e, scope, at: _model(self, "p", e, scope, at),
    "if": _if,
    "stop": _stop,
    **dict.fromkeys(DRAWS, draws.infer_draw),
}
