"""Expressions of a game: numbers, vectors with entries, and models; no batch of labelled images, no classes."""

from __future__ import annotations

from dataclasses import replace

from lossdsl.check import build
from lossdsl.check.arguments import positional
from lossdsl.check.gradients import infer_gradient
from lossdsl.check.infer import Context, Inference, X
from lossdsl.check.scope import ModelName, Report, Scope, Value, is_error
from lossdsl.check.typed import Typed
from lossdsl.diagnostics import suggest
from lossdsl.lang.ops import BINDERS, OPERATIONS, OVER_BATCH
from lossdsl.lang.types import DESCRIPTION, Kind
from lossdsl.source import Span
from lossdsl.syntax import tree as t

PLAIN = frozenset(
    ("norm", "dot", "cos", "unit", "sign", "abs", "exp", "log", "sqrt", "relu", "tanh", "sin", "clip", "max", "min")
)  # fmt: skip
"""Operations that need neither classes nor labels nor a batch."""
MEANS = frozenset(("batch_mean", "batch_sum"))
SIGNATURE = {"Input": Kind.INPUT, "Latent": Kind.VECTOR, "Real": Kind.REAL}
"""The types in `model h : Latent -> Input`; a Latent is a vector of numbers drawn by sample."""
_WHAT = {Kind.VECTOR: "a vector of numbers", Kind.REAL: "a number", Kind.CONST: "a number"}
_BOUND = " of grad"


class GameInference(Inference):
    """Infers expressions of one game. `sizes`: of its vectors by name; `models`: what each takes and gives."""

    def __init__(self, report: Report) -> None:
        super().__init__(report)
        self.sizes: dict[str, int] = {}
        self.models: dict[str, tuple[str, str]] = {}

    def _built_in(self, e: t.Name, scope: Scope, at: Context) -> Typed:
        if e.id == "x" and self.models:
            return replace(X, span=e.span)
        if e.id in ("x", "y", "K", "theta", "f", "p") or not (e.id == "pi" or e.id in OPERATIONS or e.id in BINDERS):
            return self._unknown(e.id, scope, e.span, at)
        return super()._built_in(e, scope, at)

    def _unknown(self, name: str, scope: Scope, span: Span, at: Context) -> Typed:
        if name in self.report.lost_words:
            return Typed("?", (), Kind.CONST, span)
        if name in at.later:
            return self.report.error("E010", f"{name} is used before it is declared", span, f"declare {name} above this line")
        known = {*scope.names, "pi"}
        self.report.misnamed("E010", f"this game has no {name}", span, suggest(name, known), "known here: " + ", ".join(sorted(known)))
        return Typed("?", (), Kind.CONST, span)

    # --- calls ---

    def _call(self, e: t.Call, scope: Scope, at: Context) -> Typed:
        if not isinstance(e.func, t.Name):
            help = "only operations, defs and models take arguments in parentheses"
            return self.report.error("E014", "this cannot be called in a game", e.func.span, help)
        name = e.func.id
        binding = scope.get(name)
        if isinstance(binding, ModelName):
            return self._apply(name, e, scope, at)
        if binding is not None or name in ("if", "stop") or name in PLAIN or (name in MEANS and self.models):
            return super()._call(e, scope, at)
        if name in OVER_BATCH:
            help = "an objective is averaged over the data by itself"
            return self.report.error("E014", f"{name} is for games with models, and this one has none", e.func.span, help)
        if name in at.later or name in self.report.lost_words:
            return self._unknown(name, scope, e.func.span, at)
        known = {*PLAIN, *(n for n, b in scope.names.items() if not isinstance(b, Value)), "if", "stop"}
        what = f"{name} needs classes or labels, and a game has none" if name in OPERATIONS else f"this game has no operation {name}"
        otherwise = "operations of games are " + ", ".join(sorted(known))
        self.report.misnamed("E024", what, e.func.span, suggest(name, known), otherwise)
        return Typed("?", (), Kind.CONST, e.span)

    def _apply(self, name: str, e: t.Call, scope: Scope, at: Context) -> Typed:
        """`h(z)`: a model at a point."""
        self.report.used.add(name)
        takes, gives = self.models[name]
        args = positional(self, e, scope, at, name)
        if args is None:
            return Typed("?", (), Kind.CONST, e.span)
        if len(args) != 1 or args[0].kind is not SIGNATURE[takes]:
            got = f"{len(args)} arguments" if len(args) != 1 else _WHAT.get(args[0].kind) or DESCRIPTION[args[0].kind]
            return self.report.error(
                "E013", f"{name} takes one {takes} and got {got}", e.span, f"it is declared {name} : {takes} -> {gives}"
            )
        return Typed("apply", tuple(args), SIGNATURE[gives], e.span, (name,), depends=args[0].depends | {name})

    # --- binders and entries ---

    def _binder(self, e: t.Binder, scope: Scope, at: Context) -> Typed:
        if e.func == "grad":
            return self._grad(e, scope, at)
        if e.func in BINDERS and not isinstance(e.header.domain, t.Range):
            help = f"write {e.func}(k in 0..1: ...) over the entries of a vector"
            return self.report.error("E034", f"{e.func} runs over classes here, and a game has none", e.header.span, help)
        return super()._binder(e, scope, at)

    def _grad(self, e: t.Binder, scope: Scope, at: Context) -> Typed:
        """`grad(a: e)` of a player or of data; theta is a name like any other."""
        binding = scope.get("theta")
        if e.header.var != "theta" or e.header.relation != "" or not isinstance(binding, Value):
            return infer_gradient(self, e, scope, at)
        self.report.used.add("theta")
        other = scope.declare("theta" + _BOUND, binding)
        return infer_gradient(self, replace(e, header=replace(e.header, var="theta" + _BOUND)), other, at)

    def _index(self, e: t.Index, scope: Scope, at: Context) -> Typed:
        base = self.infer(e.base, scope, at)
        if is_error(base):
            return base
        if e.bracket == "{" or base.kind is not Kind.VECTOR:
            what = _WHAT.get(base.kind) or DESCRIPTION[base.kind]
            return self.report.error(
                "E025", f"only vectors have entries in a game, and this is {what}", e.base.span, "write u[0] with u = [1, 0]"
            )
        index = self.number(e.index, scope, at, "the place of an entry")
        if index is None:
            return Typed("?", (), Kind.CONST, e.span)
        size = self.size(base)
        if not isinstance(index, int) or index < 0 or (size is not None and index >= size):
            limits = f"its entries are 0..{size - 1}" if size is not None else "entries are counted from 0"
            return self.report.error("E025", f"this vector has no entry {index}", e.index.span, limits)
        return Typed("at", (base, build.number(index, e.index.span)), Kind.REAL, e.span, depends=base.depends, low=base.low, high=base.high)

    def size(self, e: Typed) -> int | None:
        """The number of entries of a vector; None where it is not known before the run (what a model gives)."""
        if e.op in ("state", "sample"):
            return self.sizes.get(e.attrs[0])
        found = {self.size(a) for a in e.args if a.kind is Kind.VECTOR} - {None}
        return found.pop() if e.op != "apply" and found else None

    def one_size(self, e: Typed) -> bool:
        """Report a part that puts vectors of different lengths together."""
        seen: set[int] = set()
        stack = [e]
        while stack:
            node = stack.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            stack.extend(node.args)
            sizes = [s for a in node.args if a.kind is Kind.VECTOR and (s := self.size(a)) is not None]
            if len(set(sizes)) > 1:
                said = f"vectors of {sizes[0]} and of {sizes[1]} numbers do not go together"
                self.report.error("E013", said, node.span, "entries are u[0], u[1], ...; norm(u, 2) and dot(u, v) are numbers")
                return False
        return True
