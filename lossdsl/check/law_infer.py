"""Expressions of a law: names are what the law quantifies over; vectors have entries, families members, and limits values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

from lossdsl.check import build
from lossdsl.check.arguments import positional
from lossdsl.check.binders import over_integers
from lossdsl.check.gradients import infer_gradient
from lossdsl.check.infer import CLASSES_COUNT, Context, Inference
from lossdsl.check.law_recipes import WORDS, Load, infer_of_recipe
from lossdsl.check.law_typed import Network
from lossdsl.check.scope import ModelName, Report, Scope, Value, functions, is_error
from lossdsl.check.typed import Typed
from lossdsl.diagnostics import suggest
from lossdsl.lang.types import OVER_CLASSES, Kind
from lossdsl.source import Span
from lossdsl.syntax import tree as t

LONG = OVER_CLASSES | {Kind.INPUT}
_BOUND = " of grad"


@dataclass(frozen=True)
class Members:
    """A family: its members by index, in order, and what its name is bound to (a def's argument may have the same name)."""

    name: str
    members: dict[int, Typed]
    binding: Value


class LawInference(Inference):
    """Infers expressions of one law. `sizes`: of its vectors by name; `families` and `networks` by name."""

    grad_points = frozenset({Kind.INPUT, Kind.REAL, Kind.LOGITS})

    def __init__(self, report: Report, load: Load) -> None:
        super().__init__(report)
        self.load = load
        self.sizes: dict[object, int] = {}
        self.families: dict[str, Members] = {}
        self.networks: dict[str, Network] = {}
        self.classes = 0
        """K; 0 until something over classes is declared."""

    def leaf(self, name: str, point: Typed) -> Typed:
        found = super().leaf(name, point)
        size = self.size(point)
        if size is not None:
            self.sizes[found.attrs] = size
        return found

    # --- names ---

    def _name(self, e: t.Name, scope: Scope, at: Context) -> Typed:
        family = self._family_named(e, scope)
        if family is not None:
            self.report.used.add(e.id)
            indices = list(family.members)
            help = f"write {e.id}[i] with i in {indices[0]}..{indices[-1]}"
            return self.report.error("E025", f"{e.id} is a family, and one of its members is meant", e.span, help)
        return super()._name(e, scope, at)

    def _family_named(self, e: t.Expr, scope: Scope) -> Members | None:
        family = self.families.get(e.id) if isinstance(e, t.Name) else None
        return family if family is not None and scope.get(family.name) is family.binding else None

    def _built_in(self, e: t.Name, scope: Scope, at: Context) -> Typed:
        if e.id in ("x", "y", "K", "theta", "f", "p"):
            given = {"x": "x in input", "y": "y in label(K)", "K": "K in 2..5"}.get(e.id, "f in network")
            return self.report.error("E010", f"this law does not say what {e.id} is", e.span, f"write: for {given}")
        if e.id == "pi" or e.id in functions() or e.id in self.report.lost_words or e.id in at.later:
            return super()._built_in(e, scope, at)
        known = {*scope.names, "pi"}
        self.report.misnamed("E010", f"this law has no {e.id}", e.span, suggest(e.id, known), "known here: " + ", ".join(sorted(known)))
        return Typed("?", (), Kind.CONST, e.span)

    # --- calls ---

    def _call(self, e: t.Call, scope: Scope, at: Context) -> Typed:
        network = self._network_of(e.func, scope)
        if network is not None:
            return self._apply_network(*network, e, scope, at)
        name = e.func.id if isinstance(e.func, t.Name) else ""
        if scope.get(name) is not None:
            return super()._call(e, scope, at)
        if name == "softmax":
            return self._softmax(e, scope, at)
        if name in WORDS:
            return infer_of_recipe(self, name, e, scope, at)
        if name in ("zeros", "ones") and len(e.args) == 1 and e.args[0].value == t.Name("K"):
            self.report.used.add("K")
            entry = float(name == "ones")
            return Typed(name, (replace(CLASSES_COUNT, span=e.span),), Kind.VECTOR, e.span, low=entry, high=entry)
        if name in ("f", "p"):
            return self._built_in(t.Name(name, span=e.func.span), scope, at)
        return super()._call(e, scope, at)

    def _softmax(self, e: t.Call, scope: Scope, at: Context) -> Typed:
        """`softmax(z)`: the probabilities of Logits, or of a Vector read as such."""
        args = positional(self, e, scope, at, "softmax")
        if args is None:
            return Typed("?", (), Kind.CONST, e.span)
        if len(args) != 1 or args[0].kind not in (Kind.LOGITS, Kind.VECTOR):
            help = "write softmax(z) with Logits z; softmax(j: e) gives the weights of classes as a Vector"
            return self.report.error("E013", "softmax takes Logits or a Vector over classes", e.span, help)
        return Typed("prob", (args[0],), Kind.PROB, e.span, depends=args[0].depends, low=0.0, high=1.0)

    def _network_of(self, func: t.Expr, scope: Scope) -> tuple[str, str, t.Expr | None] | None:
        """Of f(v), p(v), g(v), p[g](v), f{w}(v), p{w}(v): the network, whether its probabilities are meant ("p"), and the weights."""
        base = func.base if isinstance(func, t.Index) else func
        if not isinstance(base, t.Name):
            return None
        if isinstance(func, t.Index) and func.bracket == "[":
            name = func.index.id if isinstance(func.index, t.Name) else ""
            return (name, "p", None) if base.id == "p" and name in self.networks else None
        what = "p" if base.id == "p" and scope.get("p") is None else "f"
        name = "f" if what == "p" else base.id
        if name not in self.networks or not isinstance(scope.get(name), ModelName):
            return None
        return name, what, func.index if isinstance(func, t.Index) else None

    def _apply_network(self, name: str, what: str, weights: t.Expr | None, e: t.Call, scope: Scope, at: Context) -> Typed:
        self.report.used.add(name)
        network = self.networks[name]
        args = positional(self, e, scope, at, name)
        theta = self.infer(weights or t.Name(theta_of(name), span=e.span), scope, at)
        if args is None or is_error(theta):
            return Typed("?", (), Kind.CONST, e.span)
        if len(args) != 1 or args[0].kind is not Kind.INPUT or self.size(args[0]) != network.inputs:
            help = f"it takes one Input of {network.inputs} numbers, such as x in input"
            return self.report.error("E013", f"this is no point of the network {name}", e.span, help)
        if theta.kind is not Kind.INPUT or self.size(theta) != network.size:
            return self.report.error("E013", f"these are no weights of {name}", e.func.span, f"they are a vector of {network.size} numbers")
        logits = Typed("network", (theta, args[0]), Kind.LOGITS, e.span, (network,), depends=build.depends(theta, args[0]))
        if what == "f":
            return logits
        return Typed("prob", (logits,), Kind.PROB, e.span, depends=logits.depends, low=0.0, high=1.0)

    # --- entries and members ---

    def _index(self, e: t.Index, scope: Scope, at: Context) -> Typed:
        family = self._family_named(e.base, scope)
        if family is not None:
            return self._member(family, e, scope, at)
        base = self.infer(e.base, scope, at)
        if is_error(base) or e.bracket != "[":
            return base if is_error(base) else super()._index(e, scope, at)
        if base.kind is Kind.INPUT or (base.kind in OVER_CLASSES and self.size(base) not in (None, self.classes)):
            return self._coordinate(base, e, scope, at)
        found = super()._index(e, scope, at)
        size = self.size(base)
        place = found.args[1].value if found.op == "at" else None
        if place is not None and size is not None and place >= size:
            return self.report.error("E025", f"there is no class {place}", e.index.span, f"classes are 0..{size - 1} here")
        return found

    def _coordinate(self, base: Typed, e: t.Index, scope: Scope, at: Context) -> Typed:
        """`v[0]`: an entry of a vector that is not over the classes."""
        place = self.number(e.index, scope, at, "the place of an entry")
        if place is None:
            return Typed("?", (), Kind.CONST, e.span)
        size = self.size(base)
        if not isinstance(place, int) or place < 0 or (size is not None and place >= size):
            limits = f"its entries are 0..{size - 1}" if size is not None else "entries are counted from 0"
            return self.report.error("E025", f"there is no entry {place} in this vector", e.index.span, limits)
        index = build.number(place, e.index.span)
        return Typed("at", (base, index), Kind.REAL, e.span, depends=base.depends, low=base.low, high=base.high)

    def _member(self, family: Members, e: t.Index, scope: Scope, at: Context) -> Typed:
        """`z[i]`, also with an i found by argmax over the indices."""
        self.report.used.add(family.name)
        index = self.infer(e.index, scope, at)
        if is_error(index):
            return index
        if index.attrs == ("member",):
            *others, found = family.members.items()
            value = found[1]
            for i, member in reversed(others):
                here = build.compare("eq", index, build.number(i), e.span)
                depends = build.depends(here, member, value)
                value = Typed("if", (here, member, value), value.kind, e.span, depends=depends, low=value.low, high=value.high)
            return value
        if index.value not in family.members:
            indices = list(family.members)
            help = f"its members are {family.name}[{indices[0]}] to {family.name}[{indices[-1]}]; argmax(i in 1..n: e) gives an index too"
            return self.report.error("E025", f"{family.name} has no such member", e.index.span, help)
        return family.members[int(index.value or 0)]

    # --- binders ---

    def _binder(self, e: t.Binder, scope: Scope, at: Context) -> Typed:
        if e.func == "limit" and scope.get("limit") is None:
            return self._limit(e, scope, at)
        if e.func == "grad":
            return self._grad(e, scope, at)
        if isinstance(e.header.domain, t.Range) and e.func in ("argmax", "argmin", "logsumexp"):
            return self._over_members(e, scope, at)
        return super()._binder(e, scope, at)

    def _grad(self, e: t.Binder, scope: Scope, at: Context) -> Typed:
        """theta is a point like any other in a law."""
        binding = scope.get("theta")
        if e.header.var != "theta" or e.header.relation != "" or not isinstance(binding, Value):
            return infer_gradient(self, e, scope, at)
        self.report.used.add("theta")
        other = scope.declare("theta" + _BOUND, binding)
        return infer_gradient(self, replace(e, header=replace(e.header, var="theta" + _BOUND)), other, at)

    def _terms(self, e: t.Binder, scope: Scope, at: Context) -> dict[int, Typed] | None:
        """The body at every whole number of the header; None after reporting."""
        whole = over_integers(self, replace(e, func="sum"), scope, at)
        if is_error(whole) or not isinstance(e.header.domain, t.Range):
            return None
        low, high = (self.number(end, scope, at, "the end of a range") for end in (e.header.domain.low, e.header.domain.high))
        found = {}
        for k in range(int(low or 0), int(high or 0) + 1):
            inner = scope.declare(e.header.var, Value(build.number(k, e.header.span), e.header.span, "binder"))
            found[k] = self.scalar(e.body, inner, at, "the body of " + e.func)
        return found

    def _over_members(self, e: t.Binder, scope: Scope, at: Context) -> Typed:
        """argmax and argmin give an index of a family (the lowest at a tie); logsumexp is written out around the largest term."""
        terms = self._terms(e, scope, at)
        if terms is None:
            return Typed("?", (), Kind.CONST, e.span)
        choose = "min" if e.func == "argmin" else "max"
        best = fold(choose, list(terms.values()), e.span)
        if e.func == "logsumexp":
            powers = [_exp(build.combine("sub", build.scalar_kind(v, best), v, best, e.span)) for v in terms.values()]
            total = fold("add", powers, e.span)
            return build.combine("add", best.kind, best, Typed("log", (total,), total.kind, e.span, depends=total.depends), e.span)
        *others, last = terms
        value = build.number(last, e.span)
        for k in reversed(others):
            here = build.compare("eq", terms[k], best, e.span)
            value = Typed("if", (here, build.number(k, e.span), value), Kind.REAL, e.span, ("member",), depends=here.depends)
        return value if value.op == "number" else replace(value, attrs=("member",))

    def _limit(self, e: t.Binder, scope: Scope, at: Context) -> Typed:
        """`limit(t = 0: e)` from above, `limit(t = inf: e)`: t is a positive number on its way there."""
        header = e.header
        ends = {t.Number("0"): "zero", t.Name("inf"): "infinity"}
        if header.relation != "=" or header.domain not in ends:
            return self.report.error("E034", "a limit goes to 0 or to inf", header.span, "write limit(t = 0: e) or limit(mu = inf: e)")
        towards = ends[header.domain]
        leaf = super().leaf(header.var, Typed("number", (), Kind.REAL, header.span, low=0.0, high=inf))
        leaf = replace(leaf, op="vanishing", attrs=(*leaf.attrs, towards))
        body = self.scalar(e.body, scope.declare(header.var, Value(leaf, header.span, "binder")), at, "the body of limit")
        if is_error(body):
            return body
        return Typed("limit", (body,), Kind.REAL, e.span, leaf.attrs, depends=body.depends, low=body.low, high=body.high)

    # --- sizes ---

    def size(self, e: Typed) -> int | None:
        """The number of entries of a vector of any kind; None for numbers."""
        if e.kind not in LONG:
            return None
        if e.op in ("sample", "input", "leaf"):
            return self.sizes.get(e.attrs if e.op == "leaf" else e.attrs[0] if e.attrs else "x")
        if e.op == "solution":
            return self.size(e.args[1])
        if e.op == "final":
            return int(e.attrs[4])
        if e.op in ("onehot", "smooth", "zeros", "ones", "reduce", "network"):
            return e.attrs[0].classes if e.op == "network" else self.classes
        found = [s for a in e.args if (s := self.size(a)) is not None]
        return found[0] if found else None

    def one_size(self, *expressions: Typed) -> bool:
        """Report a part that puts vectors of different lengths together, or takes one that is not over the classes for one that is."""
        seen: set[int] = set()
        stack = list(expressions)
        while stack:
            node = stack.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            stack.extend(node.args)
            if node.op == "reduce" and not self.classes:
                help = f"declare something over classes, such as z in logits(K), or write {node.attrs[0]}(i in 1..n: ...)"
                self.report.error("E034", f"{node.attrs[0]} runs over classes here, and this law has none", node.span, help)
                return False
            sizes = [s for a in node.args if (s := self.size(a)) is not None]
            if len(set(sizes)) > 1 and node.op not in ("network", "solution"):
                said = f"vectors of {sizes[0]} and of {sizes[1]} numbers do not go together"
                self.report.error("E013", said, node.span, "entries are v[0], v[1], ...; norm(v, 2) and dot(u, v) are numbers")
                return False
        return True


def theta_of(network: str) -> str:
    """The name of a network's weights."""
    return "theta" if network == "f" else f"theta_{network}"


def fold(op: str, terms: list[Typed], span: Span) -> Typed:
    total = terms[0]
    for term in terms[1:]:
        total = build.combine(op, build.scalar_kind(total, term), total, term, span)
    return total


def _exp(e: Typed) -> Typed:
    return Typed("exp", (e,), e.kind, e.span, depends=e.depends, low=0.0)


