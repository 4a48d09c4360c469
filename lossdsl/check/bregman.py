"""Bregman divergences: `generator psi(p) = EXPR` and `D[psi](p || q)`.

D is linear in psi, and terms linear in p drop out. So a generator is taken apart: multiples of -H become KL, multiples of
sum_j p_j^2 become SE, and only what is left is differentiated when the divergence is evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lossdsl.check import build, operations
from lossdsl.check.arguments import positional
from lossdsl.check.flow import gradient_reaches
from lossdsl.check.scope import Function, Later, Scope, Value, is_error
from lossdsl.check.typed import OWN, Typed, same, show, walk
from lossdsl.diagnostics import did_you_mean
from lossdsl.lang.ops import Operation
from lossdsl.lang.types import SCALARS, Kind
from lossdsl.syntax import tree as t

if TYPE_CHECKING:
    from lossdsl.check.infer import Context, Inference
    from lossdsl.check.recipe import Checker

_ALONE = frozenset(("number", "classes", "bound", "zeros", "ones"))
"""Leaves that a generator may hold besides its argument."""
_ONE = build.number(1)


@dataclass(frozen=True)
class Generator(Function):
    """A generator: also a def of one argument. `known` are multiples of divergences, `rest` is what must be differentiated."""

    leaf: Typed
    known: tuple[tuple[Typed, str], ...]
    rest: Typed | None


def define(self: Checker, node: t.Def) -> None:
    """`generator psi(p) = EXPR`."""
    scope = self._try_def(node, self.scope)
    leaf = replace(self.inference.leaf(node.args[0], Typed("leaf", (), Kind.PROB, node.span)), low=0.0, high=1.0)
    inner = scope.declare(node.args[0], Value(leaf, node.span, "argument"))
    body = self.inference.scalar(node.value, inner, replace(self.at, depth=OWN), f"the generator {node.name}")
    parts = None if is_error(body) else _parts(self, node, leaf, body)
    if parts is None:
        self.declare(node.name, Later("a wrong generator"), node.span, "generator")
        return
    own = scope.declare(node.name, Later("recursion"))
    self.declare(node.name, Generator(node, own, leaf, *parts), node.span, "generator")


def _parts(self: Checker, node: t.Def, leaf: Typed, body: Typed) -> tuple[tuple[tuple[Typed, str], ...], Typed | None] | None:
    """The generator taken apart; None after reporting that it is none."""
    name, arg = node.name, node.args[0]
    parts = walk(body)
    strange = [show(e) for e in parts if (not e.args and e is not leaf and e.op not in _ALONE) or e.op == "bregman"]
    strange += [e.axis.domain.text for e in parts if e.axis is not None and e.axis.domain.kind != "all"]
    if strange:
        said = f"the generator {name} is a function of {arg} alone, and this depends on {strange[0]}"
        self.report.error("E013", said, node.value.span, f"use {arg}, numbers, params and K")
        return None
    known: dict[str, Typed] = {}
    rest: Typed | None = None
    for weight, term in _terms(body, _ONE, leaf):
        found = _recognised(term, leaf)
        if found is None:
            scaled = _times(weight, term)
            rest = scaled if rest is None else build.combine("add", build.scalar_kind(rest, scaled), rest, scaled, body.span)
        elif found[1]:
            scaled = _times(build.number(found[0]), weight)
            before = known.get(found[1])
            known[found[1]] = scaled if before is None else build.combine("add", Kind.CONST, before, scaled, body.span)
    if (not known and rest is None) or (rest is not None and not gradient_reaches(rest, lambda e: e is leaf)):
        what = f"passes no gradient to {arg}" if rest is not None else f"is linear in {arg}: its divergence is 0 everywhere"
        self.report.error("E021", f"the generator {name} {what}", node.value.span, f"for example generator {name}({arg}) = -H({arg})")
        return None
    return tuple((weight, op) for op, weight in known.items()), rest


def infer_divergence(self: Inference, e: t.Call, scope: Scope, at: Context) -> Typed:
    """`D[psi](p || q)` = psi(p) - psi(q) - <grad psi(q), p - q>."""
    generator = _named(self, e.func, scope) if isinstance(e.func, t.Index) else None
    if generator is None:
        if not isinstance(e.func, t.Index):
            self.report.error("E014", "D needs a generator", e.span, "write D[psi](p(x) || p(x')) and generator psi(p) = -H(p)")
        return Typed("?", (), Kind.CONST, e.span)
    name = f"D[{generator.node.name}]"
    row = Operation(name, "Prob, Prob -> Real", "", "", f"{name}(p(x) || p(x'))", bars="only", refusal="compares probabilities")
    args = positional(self, e, scope, at, name)
    if args is None or self.sorted_vector(*args):
        return Typed("?", (), Kind.CONST, e.span)
    malformed = operations.form(self, row, e, len(args))
    if malformed is not None:
        return malformed
    for n, value in enumerate(args):
        if value.kind is not Kind.PROB:
            return operations.refuse(self, row, args, n, [a.value.span for a in e.args])
    return _divergence(generator, args[0], args[1], e)


def _named(self: Inference, func: t.Index, scope: Scope) -> Generator | None:
    """The generator in brackets; None after reporting, or silently for one that was reported where it stands."""
    index = func.index
    binding = scope.get(index.id) if isinstance(index, t.Name) else None
    if isinstance(index, t.Name) and binding is not None:
        self.report.used.add(index.id)
    if isinstance(binding, Generator | Later):
        return binding if isinstance(binding, Generator) else None
    if isinstance(index, t.Name) and binding is None:
        generators = [name for name, b in scope.names.items() if isinstance(b, Generator)]
        help = did_you_mean(index.id, generators) if generators else f"declare it: generator {index.id}(p) = -H(p)"
        self.report.error("E010", f"there is no generator {index.id}", index.span, help)
        return None
    help = "write generator psi(p) = ... above, and D[psi](p(x) || p(x'))"
    self.report.error("E014", "D takes the name of a generator in brackets", index.span, help)
    return None


def _divergence(generator: Generator, p: Typed, q: Typed, e: t.Call) -> Typed:
    parts = []
    both = build.depends(p, q)
    for weight, op in generator.known:
        high = 2.0 if op == "SE" else float("inf")
        parts.append(_times(weight, Typed(op, (p, q), Kind.REAL, e.span, depends=both, low=0.0, high=high)))
    if generator.rest is not None:
        attrs = (*generator.leaf.attrs, generator.node.name)
        parts.append(Typed("bregman", (p, q, generator.rest), Kind.REAL, e.span, attrs, depends=both))
    total = parts[0]
    for part in parts[1:]:
        total = build.combine("add", Kind.REAL, total, part, e.span)
    return total


def _times(weight: Typed, value: Typed) -> Typed:
    if 1 in (weight.value, value.value):
        return value if weight.value == 1 else weight
    return build.combine("mul", build.scalar_kind(weight, value), weight, value, value.span)


# --- taking a generator apart ---


def _uses(e: Typed, leaf: Typed) -> bool:
    return any(part is leaf for part in walk(e))


def _terms(e: Typed, weight: Typed, leaf: Typed) -> list[tuple[Typed, Typed]]:
    """The addends that hold the argument, each with what it is multiplied by (which does not)."""
    if not _uses(e, leaf):
        return []
    if e.op in ("add", "sub"):
        second = weight if e.op == "add" else build.negate(weight, e.span)
        return _terms(e.args[0], weight, leaf) + _terms(e.args[1], second, leaf)
    if e.op == "neg":
        return _terms(e.args[0], build.negate(weight, e.span), leaf)
    if e.op == "div" and not _uses(e.args[1], leaf) and e.kind in SCALARS:
        return _terms(e.args[0], build.combine("div", build.scalar_kind(weight, e.args[1]), weight, e.args[1], e.span), leaf)
    if e.op == "mul" and e.kind in SCALARS:
        return _product(e, weight, leaf)
    if e.op == "mode":
        return _terms(e.args[0], weight, leaf)
    if e.op == "reduce" and e.attrs[0] in ("sum", "mean") and e.axis is not None and e.axis.domain.kind == "all":
        return _sums(e, weight, leaf)
    return [(weight, e)]


def _product(e: Typed, weight: Typed, leaf: Typed) -> list[tuple[Typed, Typed]]:
    """c * a * d * b is (c * d) * (a * b) for c and d without the argument."""
    factors: list[Typed] = []
    stack = [e]
    while stack:
        part = stack.pop()
        if part.op == "mul":
            stack += reversed(part.args)
        else:
            factors.append(part)
    own = [f for f in factors if _uses(f, leaf)]
    for factor in factors:
        weight = weight if _uses(factor, leaf) else _times(weight, factor)
    if len(own) == 1:
        return _terms(own[0], weight, leaf)
    product = own[0]
    for factor in own[1:]:
        product = build.combine("mul", build.scalar_kind(product, factor), product, factor, e.span)
    return [(weight, product)]


def _sums(e: Typed, weight: Typed, leaf: Typed) -> list[tuple[Typed, Typed]]:
    """sum(j: a + c * b) is sum(j: a) + c * sum(j: b) for a c that is the same for all classes; a mean is a sum divided by K."""
    assert e.axis is not None
    if e.attrs[0] == "mean":
        weight = build.combine("div", Kind.CONST, weight, Typed("classes", (), Kind.CONST, e.span, low=2.0), e.span)
    out = []
    for inner, term in _terms(e.args[0], _ONE, leaf):
        each = f"@{e.axis.depth}" in inner.depends
        body = _times(inner, term) if each else term
        whole = replace(e, args=(body,), attrs=("sum",), low=-float("inf"), high=float("inf"))
        out.append((weight if each else _times(weight, inner), whole))
    return out


def _recognised(term: Typed, leaf: Typed) -> tuple[float, str] | None:
    """A factor and the divergence that this addend generates ("" for none: the addend is linear), or None."""
    if _linear(term, leaf):
        return 0.0, ""
    if term.op in ("H", "CE") and all(a is leaf for a in term.args):
        return -1.0, "KL"
    if term.op in ("KL", "SE") and _once(term, leaf):
        return (1.0, term.op) if term.op == "SE" or term.args[0] is leaf else None
    if term.op == "reduce" and term.attrs == ("sum",) and term.axis is not None and term.axis.domain.kind == "all":
        return _recognised_sum(term, leaf)
    return None


def _once(term: Typed, leaf: Typed) -> bool:
    """Is one of the two arguments the argument of the generator itself, and the other without it?"""
    a, b = term.args
    return (a is leaf and not _uses(b, leaf)) or (b is leaf and not _uses(a, leaf))


def _recognised_sum(term: Typed, leaf: Typed) -> tuple[float, str] | None:
    body = term.args[0]

    def entry(e: Typed) -> bool:
        return e.op == "at" and e.args[0] is leaf and e.args[1].op == "bound" and e.args[1].axis == term.axis

    if body.op == "pow" and entry(body.args[0]) and body.args[1].value == 2:
        return 1.0, "SE"
    if body.op != "mul":
        return None
    a, b = body.args
    if entry(a) and entry(b) and same(a, b):
        return 1.0, "SE"
    if any(entry(v) and w.op == "log" and entry(w.args[0]) for v, w in ((a, b), (b, a))):
        return 1.0, "KL"
    return None


def _linear(term: Typed, leaf: Typed) -> bool:
    """An entry of the argument, a multiple of one, or a sum of such."""
    if term.op == "at":
        return term.args[0] is leaf
    if term.op == "mul":
        a, b = term.args
        return (not _uses(a, leaf) and _linear(b, leaf)) or (not _uses(b, leaf) and _linear(a, leaf))
    if term.op == "reduce" and term.attrs == ("sum",):
        return _linear(term.args[0], leaf)
    return term.op == "CE" and term.args[1] is leaf and not _uses(term.args[0], leaf)
