"""Types and facts of expressions: syntax in, typed graph out, findings into the report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, pi

from lossdsl.check import binders, build, calls
from lossdsl.check.scope import BUILT_IN, Function, Later, LevelName, ModelName, Report, Scope, Value, functions, is_error
from lossdsl.check.typed import Domain, Typed, same, show
from lossdsl.diagnostics import Edit
from lossdsl.lang.ops import OPERATIONS
from lossdsl.lang.types import CLASSES, DESCRIPTION, OVER_CLASSES, SCALARS, Kind
from lossdsl.syntax import tree as t

MAX_DEF_DEPTH = 50


@dataclass(frozen=True)
class Context:
    """Where an expression stands: how many binders and defs it is inside, whether it may draw random numbers, names declared later."""

    depth: int = 1
    defs: tuple[str, ...] = ()
    draws: bool = False
    later: frozenset[str] = frozenset()
    logged: bool = False
    """In a log statement, where gradients by the parameters may stand."""

    def deeper(self) -> Context:
        return replace(self, depth=self.depth + 1)


X = Typed("input", (), Kind.INPUT)
Y = Typed("label", (), Kind.LABEL)
CLASSES_COUNT = Typed("classes", (), Kind.CONST, low=2.0)


class Inference:
    """Infers expressions in a scope. One instance per file; it only collects findings."""

    grad_points = frozenset({Kind.INPUT, Kind.REAL})
    """Kinds of points that grad can be taken at."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self._left_out: list[Domain] = []
        self.tops: list[Domain] = []
        """The domains `top(...)` met so far."""
        self._leaves = 0

    def leaf(self, name: str, point: Typed) -> Typed:
        """A fresh variable at a point, for grad."""
        self._leaves += 1
        return Typed("leaf", (), point.kind, point.span, (name, self._leaves), depends=point.depends, low=point.low, high=point.high)

    def all_but(self, out: Typed) -> Domain:
        """The classes other than one; equal expressions give equal domains."""
        for known in self._left_out:
            if known.expr is not None and same(known.expr, out):
                return known
        domain = Domain("not", f"j != {show(out)}", len(self._left_out) + 1, out)
        self._left_out.append(domain)
        return domain

    def infer(self, e: t.Expr, scope: Scope, at: Context) -> Typed:
        """The typed form of an expression."""
        method = getattr(self, "_" + type(e).__name__.lower())
        return method(e, scope, at)  # type: ignore[no-any-return]

    def number(self, e: t.Expr, scope: Scope, at: Context, what: str) -> float | int | None:
        """A number known before the run, or None after reporting why it is not one."""
        value = self.infer(e, scope, at)
        if is_error(value):
            return None
        if value.value is None:
            self.report.error("E015", f"{what} must be a fixed number", e.span, "use numbers and params here")
            return None
        return value.value

    def scalar(self, e: t.Expr, scope: Scope, at: Context, what: str) -> Typed:
        """A Real or Const, or an error."""
        value = self.infer(e, scope, at)
        if is_error(value) or value.kind in SCALARS:
            return value
        return self.report.error(
            "E013", f"{what} is a number, and this is {DESCRIPTION[value.kind]}", e.span, scalar_help(value), label=str(value.kind)
        )

    def sorted_vector(self, *values: Typed) -> bool:
        """Report values that are sorted vectors: their places are not classes, and only [n] makes sense of them."""
        found = [v for v in values if _is_sorted(v)]
        for value in found:
            self.report.error(
                "E013", "a sorted vector has places, not classes", value.span, "take a place first: sort(j: e)[1] is the largest"
            )
        return bool(found)

    # --- leaves ---

    def _number(self, e: t.Number, scope: Scope, at: Context) -> Typed:
        return build.number(e.value, e.span, e.text)

    def _name(self, e: t.Name, scope: Scope, at: Context) -> Typed:
        binding = scope.get(e.id)
        if binding is not None:
            self.report.used.add(e.id)
        match binding:
            case Value(typed=typed):
                return typed if typed.op == "?" else replace(typed, span=e.span) if typed.op == "number" else typed
            case LevelName(domain=None, over=over):
                op, kind = {"input": ("point", Kind.INPUT), "weights": ("weights", Kind.WEIGHTS), "classes": ("point", Kind.VECTOR)}[over]
                limits = (0.0, 1.0) if over == "classes" else (-inf, inf)
                return Typed(op, (), kind, e.span, (e.id,), depends=frozenset({e.id}), low=limits[0], high=limits[1])
            case ModelName():
                return self.report.error("E014", f"{e.id} is a model, a function of a point", e.span, f"write {e.id}(x)")
            case LevelName(domain=domain):
                text = domain.text if domain else ""
                return self.report.error(
                    "E025",
                    f"{e.id} is one point per class [{text}]",
                    e.span,
                    f"write {e.id}[j] inside a binder, or {e.id}[c] with a Class c",
                )
            case Function():
                return self.report.error(
                    "E014", f"{e.id} is a def and needs its arguments", e.span, f"write {e.id}({', '.join(binding.node.args)})"
                )
            case Later():
                return Typed("?", (), Kind.CONST, e.span)
        return self._built_in(e, scope, at)

    def _built_in(self, e: t.Name, scope: Scope, at: Context) -> Typed:
        leaves = {"x": X, "y": Y, "K": CLASSES_COUNT}
        if e.id in leaves:
            return replace(leaves[e.id], span=e.span)
        if e.id == "pi":
            return build.number(pi, e.span, "pi")
        if e.id == "theta":
            return Typed("weights", (), Kind.WEIGHTS, e.span, ("theta",), depends=frozenset({"theta"}))
        if e.id == "rademacher" and at.draws:
            return self.infer(t.Call(e, (), span=e.span), scope, at)
        if e.id in ("f", "p"):
            return self.report.error("E014", f"{e.id} is a function of a point", e.span, f"write {e.id}(x)")
        if e.id in functions():
            example = OPERATIONS[e.id].example if e.id in OPERATIONS else f"{e.id}(...)"
            return self.report.error("E014", f"{e.id} is an operation and needs its arguments", e.span, f"write for example {example}")
        return self.report.unknown(e.id, scope, e.span, at.later)

    # --- arithmetic and logic ---

    def _binary(self, e: t.Binary, scope: Scope, at: Context) -> Typed:
        a, b = self.infer(e.left, scope, at), self.infer(e.right, scope, at)
        if is_error(a, b) or self.sorted_vector(a, b):
            return Typed("?", (), Kind.CONST, e.span)
        if e.op in ("and", "or"):
            if a.kind not in SCALARS or b.kind not in SCALARS:
                return self.report.error("E013", f"{e.op} joins conditions", e.span, "compare first, for example norm(g, 2) > 0")
            return build.logical(e.op, a, b, e.span)
        for part, side in ((a, e.left), (b, e.right)):
            if part.kind in CLASSES:
                what = "a bare Label" if part.kind is Kind.LABEL else "a bare Class"
                return self.report.error(
                    "E019",
                    f"{e.op} does not work on {what}",
                    side.span,
                    "write onehot(y) for the vector, or v[y] for an entry",
                    label=str(part.kind),
                )
        op = build.ARITHMETIC[e.op]
        if op == "div" and b.value == 0:
            return self.report.error("E016", "division by zero", e.right.span, "the divisor is 0 whatever the data: change it")
        kind = build.arithmetic_kind(op, a.kind, b.kind)
        if kind is None:
            return self.report.error(
                "E013", f"{e.op} does not combine {DESCRIPTION[a.kind]} and {DESCRIPTION[b.kind]}", e.span, _mismatch_help(op, a, b)
            )
        return build.combine(op, kind, a, b, e.span)

    def _unary(self, e: t.Unary, scope: Scope, at: Context) -> Typed:
        a = self.infer(e.operand, scope, at)
        if is_error(a) or self.sorted_vector(a):
            return Typed("?", (), Kind.CONST, e.span)
        if e.op == "not":
            if a.kind not in SCALARS:
                return self.report.error("E013", "not takes a condition", e.span, "compare first, for example not (a > 0)")
            return build.constant("not", e.span, a) or Typed("not", (a,), a.kind, e.span, depends=a.depends, low=0.0, high=1.0)
        if a.kind in CLASSES:
            return self.report.error("E019", "a bare Label has no arithmetic", e.span, "write onehot(y), or v[y]")
        return build.negate(a, e.span)

    def _compare(self, e: t.Compare, scope: Scope, at: Context) -> Typed:
        parts = [self.infer(o, scope, at) for o in e.operands]
        if is_error(*parts):
            return Typed("?", (), Kind.CONST, e.span)
        links: list[Typed] = []
        for op, a, b, where in zip(e.ops, parts, parts[1:], e.operands[1:], strict=False):
            name = build.COMPARISON[op]
            classes = {a.kind, b.kind} & CLASSES
            if classes and not ({a.kind, b.kind} <= CLASSES | {Kind.CONST} and name in ("eq", "ne")):
                return self.report.error(
                    "E013",
                    f"{op} does not compare {DESCRIPTION[a.kind]} and {DESCRIPTION[b.kind]}",
                    where.span,
                    "classes are compared with == and !=",
                )
            if not classes and not {a.kind, b.kind} <= SCALARS:
                side = a if a.kind not in SCALARS else b
                return self.report.error(
                    "E013", f"{op} compares numbers, and one side is {DESCRIPTION[side.kind]}", e.span, scalar_help(side)
                )
            links.append(build.compare(name, a, b, e.span))
        result = links[0]
        for link in links[1:]:
            result = build.logical("and", result, link, e.span)
        return result if not classes else replace(result, kind=Kind.REAL)

    # --- postfix forms ---

    def _index(self, e: t.Index, scope: Scope, at: Context) -> Typed:
        if e.bracket == "{" or (isinstance(e.base, t.Name) and e.base.id in ("f", "p") and scope.get(e.base.id) is None):
            return self.report.error("E014", "a model is a function of a point", e.span, "write for example f{w}(x) or p[g](x)")
        family = self._family(e.base, scope, at)
        if family is not None:
            return binders.pick(self, family, e, scope, at)
        base = self.infer(e.base, scope, at)
        if is_error(base):
            return base
        if _is_sorted(base):
            return binders.nth(self, base, e, scope, at)
        if base.kind not in OVER_CLASSES:
            return self.report.error(
                "E025",
                f"{DESCRIPTION[base.kind]} has no entries",
                e.base.span,
                "only Logits, Prob and Vectors are indexed by a class",
                label=str(base.kind),
            )
        return binders.entry(self, base, e, scope, at)

    def _family(self, base: t.Expr, scope: Scope, at: Context) -> Typed | None:
        """`x'` or `x'@k` where x' has one member per class."""
        name = base.base if isinstance(base, t.Iterate) else base
        binding = scope.get(name.id) if isinstance(name, t.Name) else None
        if not isinstance(binding, LevelName) or binding.domain is None:
            return None
        if isinstance(base, t.Iterate):
            self.report.error("E025", "the class comes before the iterate", base.span, f"write {binding.name}[j]@k")
            return Typed("?", (), Kind.CONST, base.span)
        self.report.used.add(binding.name)
        return Typed("point", (), Kind.INPUT, base.span, (binding.name,), depends=frozenset({binding.name}), family=binding.domain)

    def _iterate(self, e: t.Iterate, scope: Scope, at: Context) -> Typed:
        base = e.base
        member = base if isinstance(base, t.Index) else None
        name = member.base if member else base
        binding = scope.get(name.id) if isinstance(name, t.Name) else None
        if not isinstance(binding, LevelName):
            return self.report.error(
                "E017", "only the solution of a lower level has iterates", base.span, "write x'@k with x' declared by lower"
            )
        if isinstance(e.step, t.Index):
            help = f"the number of an iterate is fixed: write {binding.name}[j]@k with the class right behind {binding.name}"
            return self.report.error("E025", "the class comes before the iterate", e.span, help)
        if binding.search not in ("", "apgd"):
            said = f"{binding.search} does not number its iterates"
            return self.report.error("E017", said, e.span, "solve the level by pgd or apgd")
        point = self.infer(base, scope, at)
        step = self.number(e.step, scope, at, "the number of an iterate")
        if is_error(point) or step is None:
            return Typed("?", (), Kind.CONST, e.span)
        if not isinstance(step, int) or step < 0 or (binding.steps is not None and step > binding.steps):
            limit = f"0..{binding.steps}" if binding.steps is not None else "0, 1, 2, ..."
            return self.report.error(
                "E017",
                f"{binding.name} has no iterate {build.number(step).value}",
                e.step.span,
                f"the iterates of {binding.name} are {limit}; 0 is the start",
            )
        if point.op == "pick":
            return replace(point, args=(replace(point.args[0], attrs=(binding.name, step)), point.args[1]), span=e.span)
        return replace(point, attrs=(binding.name, step), span=e.span)

    def _call(self, e: t.Call, scope: Scope, at: Context) -> Typed:
        return calls.infer_call(self, e, scope, at)

    def _binder(self, e: t.Binder, scope: Scope, at: Context) -> Typed:
        return binders.infer_binder(self, e, scope, at)

    def _range(self, e: t.Range, scope: Scope, at: Context) -> Typed:
        return self.report.error("E034", "a range stands in a header or after in", e.span, "write for example sum(k in 0..m-1: e)")

    def _sequence(self, e: t.Sequence, scope: Scope, at: Context) -> Typed:
        return self.report.error(
            "E034",
            "a list is not a value",
            e.span,
            "lists stand in options, as in at = [75, 90], and as intervals; a target is onehot(y) or smooth(y, 0.1)",
        )

    def apply(self, function: Function, e: t.Call, args: list[Typed], at: Context) -> Typed:
        """A def, written out: its body with the arguments in place of the names."""
        node = function.node
        if len(at.defs) > MAX_DEF_DEPTH:
            return self.report.error("E026", f"{node.name} is nested too deeply", e.span, "write some of the defs out")
        scope = function.scope
        for name, value in zip(node.args, args, strict=True):
            scope = scope.declare(name, Value(value, e.span, "argument"))
        return self.infer(node.value, scope, replace(at, defs=(*at.defs, node.name)))


def _is_sorted(e: Typed) -> bool:
    """Is this sort(j: e), perhaps stopped or in a mode of its own? Its places are counted from 1."""
    return _is_sorted(e.args[0]) if e.op in ("mode", "stop") else e.op == "reduce" and e.attrs == ("sort",)


def scalar_help(value: Typed) -> str:
    if value.kind in OVER_CLASSES:
        return "take an entry, as in f(x)[y], or reduce it, as in max(j != y: f(x)[j])"
    if value.kind is Kind.INPUT:
        return "reduce it, for example norm(x' - x, 2)"
    return ""


def _mismatch_help(op: str, a: Typed, b: Typed) -> str:
    kinds = {a.kind, b.kind}
    if Kind.INPUT in kinds and kinds & OVER_CLASSES:
        return "one lives in input space, the other over classes: did you forget f(...) or p(...)?"
    return "the exponent is a number" if op == "pow" else "a number goes with anything, other values with their own type"


def prob_edit(value: Typed, text: str) -> tuple[str, Edit | None]:
    """How to turn Logits into a Prob: "p(x)" for "f(x)"."""
    if text.startswith("f(") and value.op == "logits":
        fixed = "p" + text[1:]
        return f"write {fixed}", Edit(value.span, fixed)
    if value.kind is Kind.LOGITS:
        return "did you mean the probabilities p(...)?", None
    return "", None


__all__ = ["BUILT_IN", "Context", "Inference", "prob_edit"]
