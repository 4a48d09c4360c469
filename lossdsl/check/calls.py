"""Calls: the model, operations of the table, defs, conditions, and facts about lower levels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from lossdsl.check import bregman, build, draws, models, operations, projection
from lossdsl.check.arguments import counted, positional
from lossdsl.check.scope import DRAWS, ELSEWHERE, Binding, Function, Later, LevelName, ModelName, Scope, functions, is_error
from lossdsl.check.typed import Typed
from lossdsl.diagnostics import suggest
from lossdsl.lang.ops import BINDERS, FACTS_OF_A_LEVEL, OPERATIONS
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
        return _fact(self, name, e, scope, at)
    if name in OPERATIONS:
        return operations.infer_operation(self, OPERATIONS[name], e, scope, at)
    return _unknown_call(self, name, e, scope, at)


def _named_call(self: Inference, name: str, binding: Binding, e: t.Call, scope: Scope, at: Context) -> Typed:
    """A call of a name that the file declares."""
    if isinstance(binding, Function):
        self.report.used.add(name)
        return _apply_def(self, binding, e, scope, at)
    if isinstance(binding, ModelName):
        return models.named(self, binding, e, scope, at)
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
    if name == "grad":
        help = "write grad(x: CE(f(x), y)), or grad(v = x + eta: CE(f(v), y))"
        return self.report.error("E034", "grad names its point before a colon", e.span, help)
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
    otherwise = f"a function of your own is a def; another model is declared: model {name} frozen; docs/language.md lists the operations"
    self.report.misnamed("E024", f"there is no operation {name}", e.func.span, best, otherwise)
    return Typed("?", (), Kind.CONST, e.span)


def _indexed_call(self: Inference, e: t.Call, scope: Scope, at: Context) -> Typed:
    """`f{w}(x)`, `p[g](v)`, `D[psi](p || q)`."""
    assert isinstance(e.func, t.Index)
    base, index = e.func.base, e.func.index
    if base == t.Name("D"):
        return bregman.infer_divergence(self, e, scope, at)
    if base in (t.Name("p"), t.Name("f")) and isinstance(index, t.Name):
        return models.indexed(self, base.id, e, scope, at)
    return self.report.error(
        "E014", "this cannot be called", e.func.span, "p[g](v) is model g's probability, D[psi](p || q) a Bregman divergence"
    )


def _apply_def(self: Inference, function: Function, e: t.Call, scope: Scope, at: Context) -> Typed:
    node = function.node
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


def _fact(self: Inference, name: str, e: t.Call, scope: Scope, at: Context) -> Typed:
    arg = e.args[0].value if len(e.args) == 1 else None
    if isinstance(arg, t.Index) and isinstance(arg.base, t.Name) and isinstance(scope.get(arg.base.id), LevelName):
        member = self.infer(arg, scope, at)
        family = scope.get(arg.base.id)
        if is_error(member) or not isinstance(family, LevelName):
            return member
        return _fact_of(self, name, e, family, member)
    binding = scope.get(arg.id) if isinstance(arg, t.Name) else None
    if isinstance(binding, LevelName) and binding.domain is not None:
        return self.infer(t.Name(binding.name, span=e.args[0].span), scope, at)
    if not isinstance(binding, LevelName):
        return self.report.error(
            "E017", f"{name} speaks of the solution of a lower level", e.span, f"write {name}(x') with x' declared by lower"
        )
    self.report.used.add(binding.name)
    return _fact_of(self, name, e, binding)


def _fact_of(self: Inference, name: str, e: t.Call, binding: LevelName, member: Typed | None = None) -> Typed:
    """A fact about a level's solution, for a family about its member at a class."""
    if binding.over != "input" or not binding.facts:
        help = f"{name} speaks of perturbed inputs after the level that finds them"
        return self.report.error("E017", f"{name} says nothing about {binding.name} here", e.span, help)
    if binding.search and name != "fooled":
        said = f"{name} counts the iterates of a gradient method, and {binding.name} is found by {binding.search}"
        return self.report.error("E017", said, e.span, "solve the level by pgd, or ask for fooled")
    high = 1.0 if name == "fooled" else float(binding.steps or 0)
    depends = frozenset({binding.name, "theta"}) | (member.depends if member else frozenset())
    args = () if member is None else (member,)
    return Typed("fact", args, Kind.REAL, e.span, (name, binding.name), depends=depends, low=0.0, high=high)


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


_BUILT_IN: dict[str, Callable[[Inference, t.Call, Scope, Context], Typed]] = {
    "f": lambda self, e, scope, at: models.call(self, "f", e, scope, at),
    "p": lambda self, e, scope, at: models.call(self, "p", e, scope, at),
    "if": _if,
    "stop": _stop,
    "D": bregman.infer_divergence,
    "project": projection.infer_projection,
    "interior": projection.infer_projection,
    **dict.fromkeys(DRAWS, draws.infer_draw),
}
