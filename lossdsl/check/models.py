"""Models at points: f(v), p(v), another model g(v) and p[g](v), and f{w}(v) at other weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lossdsl.check.arguments import positional, subject
from lossdsl.check.scope import Later, LevelName, ModelName, Scope
from lossdsl.check.typed import Typed
from lossdsl.lang.types import DESCRIPTION, Kind
from lossdsl.syntax import tree as t

if TYPE_CHECKING:
    from lossdsl.check.infer import Context, Inference


def call(self: Inference, name: str, e: t.Call, scope: Scope, at: Context, which: tuple[str, ...] = (), frozen: bool = False) -> Typed:
    """Logits (name f) or probabilities (name p) of a model at a point; `which` is (), (model,) or (f, weights)."""
    shown = name if not which else f"{name}[{which[0]}]" if len(which) == 1 and name == "p" else which[0]
    args = positional(self, e, scope, at, shown)
    if args is None:
        return Typed("?", (), Kind.CONST, e.span)
    if len(args) != 1:
        return self.report.error("E014", f"{shown} takes one point and got {len(args)}", e.span, f"write {shown}(x)")
    point = args[0]
    if point.kind is not Kind.INPUT:
        help = f"write for example {shown}(x)"
        if name == "p" and point.op == "logits":
            help = f"p is already the softmax of f: write p({subject(point.args[0])})"
        return self.report.error(
            "E013", f"{shown} takes an Input, and this is {DESCRIPTION[point.kind]}", e.args[0].span, help, label=str(point.kind)
        )
    own = frozenset() if frozen else frozenset({"theta", *which[1:]}) if not which or which[0] == "f" else frozenset({which[0]})
    logits = Typed("logits", (point,), Kind.LOGITS, e.span, which, depends=point.depends | own)
    if name == "f":
        return logits
    return Typed("prob", (logits,), Kind.PROB, e.span, depends=logits.depends, low=0.0, high=1.0)


def named(self: Inference, binding: ModelName, e: t.Call, scope: Scope, at: Context) -> Typed:
    """`g(v)`: the logits of another model."""
    self.report.used.add(binding.name)
    return call(self, "f", e, scope, at, (binding.name,), binding.frozen)


def indexed(self: Inference, name: str, e: t.Call, scope: Scope, at: Context) -> Typed:
    """`p[g](v)` and `f{w}(v)`, `p{w}(v)`."""
    assert isinstance(e.func, t.Index) and isinstance(e.func.index, t.Name)
    index, weights = e.func.index, e.func.bracket == "{"
    binding = scope.get(index.id)
    if weights and index.id == "theta" and binding is None:
        return call(self, name, e, scope, at, ("f", "theta"))
    if isinstance(binding, ModelName) and not weights:
        self.report.used.add(index.id)
        return call(self, name, e, scope, at, (index.id,), binding.frozen)
    if isinstance(binding, LevelName) and binding.over == "weights" and weights:
        self.report.used.add(index.id)
        return call(self, name, e, scope, at, ("f", index.id))
    if isinstance(binding, Later):
        return Typed("?", (), Kind.CONST, e.span)
    if binding is None:
        if weights:
            known = sorted(n for n, b in scope.names.items() if isinstance(b, LevelName) and b.over == "weights")
            help = "weights are theta" + "".join(f" or {n}" for n in known) + "; declare others: lower w in l2(theta, rho) ..."
            return self.report.error("E010", f"there are no weights {index.id} here", index.span, help)
        help = f"declare it: model {index.id} frozen"
        return self.report.error("E010", f"there is no model {index.id} here", index.span, help)
    what, wanted = ("weights", f"{name}{{w}}(x) takes the variable of a level over weights") if weights else (
        "a model", f"{name}[g](x) takes a model declared by: model g frozen",
    )  # fmt: skip
    if isinstance(binding, ModelName):
        wanted = f"the model {index.id} at x is written " + (f"p[{index.id}](x)" if name == "p" else f"{index.id}(x)")
    elif isinstance(binding, LevelName) and binding.over == "weights":
        wanted = f"the model at the weights {index.id} is written {name}{{{index.id}}}(x)"
    return self.report.error("E025", f"{index.id} is not {what}", index.span, wanted)
