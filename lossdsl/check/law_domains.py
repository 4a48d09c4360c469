"""What a law quantifies over: `for NAME in DOMAIN`."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

from lossdsl.check import build, draws
from lossdsl.check.law_infer import Members, theta_of
from lossdsl.check.law_typed import Choice, Network, Quantity
from lossdsl.check.scope import Later, ModelName, Value, is_error
from lossdsl.check.typed import Typed
from lossdsl.diagnostics import suggest
from lossdsl.lang.specs import SETS
from lossdsl.lang.types import Kind
from lossdsl.source import Span
from lossdsl.syntax import tree as t

if TYPE_CHECKING:
    from lossdsl.check.law import LawChecker

DIMENSIONS = (2, 1, 3)
"""Of an input whose dimension the law does not say."""
CLASSES = (3, 2, 4)
"""Numbers of classes where a law has something over classes and does not say how many."""
SMOOTH, KINKED = ("tanh", "softplus"), ("relu",)
WORDS = ("input", "network", "reals", "label", "logits", "simplex", "vector", "matrix")
MOST_OPTIONS = 10_000
FREE = (build.number(-inf), build.number(inf))


def check_quantifier(self: LawChecker, node: t.Quantifier) -> None:
    """Declares the variable, or every member of a family."""
    indices = None if node.index is None else _whole_range(self, node.index)
    if node.index is not None and indices is None:
        self.declare(node.name, Value(_unknown(node.span), node.span), node.span, "quantifier")
        return
    if isinstance(node.domain, t.Range) or (isinstance(node.domain, t.Sequence) and node.domain.bracket == "{"):
        _enumerated(self, node)
        return
    head = _word(node.domain)
    if head == "network":
        _network(self, node)
    elif head == "matrix":
        _matrix(self, node)
    elif indices is None:
        value = _quantity(self, node.name, node)
        self.declare(node.name, Value(value, node.span, "quantifier"), node.span, "quantifier")
    else:
        _family(self, node, {i: _quantity(self, f"{node.name}[{i}]", node) for i in indices})


def _family(self: LawChecker, node: t.Quantifier, members: dict[int, Typed]) -> None:
    binding = Value(_unknown(node.span), node.span, "quantifier")
    self.declare(node.name, binding, node.span, "quantifier")
    if not is_error(*members.values()):
        self.inference.families[node.name] = Members(node.name, members, binding)


def _unknown(span: Span) -> Typed:
    return Typed("?", (), Kind.CONST, span)


def _word(e: t.Expr) -> str:
    """The name of a domain, with or without arguments."""
    head = e.func if isinstance(e, t.Call) else e
    return head.id if isinstance(head, t.Name) else ""


# --- what is enumerated ---


def _whole_range(self: LawChecker, e: t.Range) -> tuple[int, ...] | None:
    ends = [self.inference.number(end, self.scope, self.at, "the end of a range") for end in (e.low, e.high)]
    if None in ends:
        return None
    if any(not isinstance(end, int) for end in ends):
        self.report.error("E034", "the ends of a range are whole numbers", e.span, "write for example K in 2..20, or a in [0, 1] for reals")
        return None
    low, high = (int(end) for end in ends if end is not None)
    if high < low:
        self.report.error("E034", f"the range {low}..{high} is empty", e.span, "both ends are included: write the smaller one first")
        return None
    if high - low >= MOST_OPTIONS:
        self.report.error("E034", f"the range {low}..{high} has more than {MOST_OPTIONS} numbers", e.span, "take fewer")
        return None
    return tuple(range(low, high + 1))


def _enumerated(self: LawChecker, node: t.Quantifier) -> None:
    """`n in 2..5`, `m in {1, 2, 8}`: a number known before anything is evaluated."""
    options: tuple[Choice, ...] | None
    if isinstance(node.domain, t.Range):
        options = _whole_range(self, node.domain)
    else:
        assert isinstance(node.domain, t.Sequence)
        found = [self.inference.number(e, self.scope, self.at, "an element of a finite set") for e in node.domain.items]
        options = None if None in found else tuple(v for v in found if v is not None)
    if node.index is not None:
        help = "a family of reals is a[1..n] in [0, 1]; whole numbers are quantified one by one"
        self.report.error("E036", "whole numbers come in no families", node.span, help)
        options = None
    value: Typed = _unknown(node.span)
    if options is not None:
        chosen = self.choose(node.name, options)
        value = build.number(chosen, node.span)  # type: ignore[arg-type]
    self.declare(node.name, Value(value, node.span, "quantifier"), node.span, "quantifier")


def _argument(self: LawChecker, e: t.Expr, what: str) -> int | None:
    """The one whole number in `simplex(K)`, `vector(n)`; None after reporting."""
    if not isinstance(e, t.Call) or len(e.args) != 1 or e.args[0].name is not None:
        help = f"write {_word(e)}({'K' if 'class' in what else 'n'})"
        self.report.error("E014", f"{_word(e)} takes one whole number, {what}", e.span, help)
        return None
    value = self.inference.number(e.args[0].value, self.scope, self.at, what)
    if value is None or (isinstance(value, int) and value >= 1):
        return None if value is None else int(value)
    self.report.error("E016", f"{what} is a whole number from 1", e.args[0].value.span, "declare it: for n in 1..5")
    return None


def _classes(self: LawChecker, e: t.Expr) -> int | None:
    """The number of classes of `simplex(K)`: the first domain over classes says what binders run over, unless K is declared."""
    if isinstance(e, t.Call) and len(e.args) == 1 and e.args[0].value == t.Name("K") and self.scope.get("K") is None:
        _own_classes(self, e.args[0].value.span)
    count = _argument(self, e, "the number of classes")
    if count is not None and count < 2:
        self.report.error("E016", "there are at least 2 classes", e.span, "write for K in 2..20")
        return None
    declared = self.choices.get("K")
    if count is not None and not self.inference.classes:
        self.inference.classes = declared if isinstance(declared, int) else count
    return count


def _own_classes(self: LawChecker, span: Span) -> None:
    """K where the law does not say: a few small numbers are tried."""
    value = self.choose("K", CLASSES)
    assert isinstance(value, int)
    self.declare("K", Value(build.number(value, span), span, "quantifier"), span, "quantifier")
    self.inference.classes = value


# --- what is searched ---


def _quantity(self: LawChecker, name: str, node: t.Quantifier) -> Typed:
    """A variable over one of the domains, added to what the law quantifies over."""
    e = node.domain
    if isinstance(e, t.Sequence):
        return _reals(self, name, node, e)
    head = _word(e)
    maker = _MAKERS.get(head)
    if maker is not None:
        return maker(self, name, node)
    if head in SETS:
        return _ball(self, name, node)
    known = (*WORDS, *(row.name for row in SETS.values() if row.over == "input"))
    otherwise = "domains are 2..5, [0, 1], {1, 2, 8}, " + ", ".join(known)
    place = e.func.span if isinstance(e, t.Call) else e.span
    self.report.misnamed("E036", "this is nothing to quantify over", place, suggest(head, known) if head else None, otherwise)
    return _unknown(node.span)


def _add(self: LawChecker, q: Quantity, limits: tuple[float, float] = (-inf, inf)) -> Typed:
    """The quantity as an expression; x and y of a law are those of a recipe."""
    if q.args and not self.inference.one_size(*q.args):
        return _unknown(q.span)
    self.quantities.append(q)
    self.inference.sizes[q.name] = q.size
    own = {("x", "input"): "input", ("y", "label"): "label"}.get((q.name, "input" if "input" in q.attrs else q.form))
    attrs = () if own else (q.name,)
    return Typed(own or "sample", (), q.kind, q.span, attrs, depends=frozenset({q.name}), low=limits[0], high=limits[1])


def _over_classes(form: str, kind: Kind, limits: tuple[float, float] = (-inf, inf)) -> Callable[[LawChecker, str, t.Quantifier], Typed]:
    def make(self: LawChecker, name: str, node: t.Quantifier) -> Typed:
        count = _classes(self, node.domain)
        return _unknown(node.span) if count is None else _add(self, Quantity(name, form, kind, count, span=node.span), limits)

    return make


def _label(self: LawChecker, name: str, node: t.Quantifier) -> Typed:
    e = node.domain
    if isinstance(e, t.Name):  # `y in label`
        if self.scope.get("K") is None:
            _own_classes(self, e.span)
        e = t.Call(e, (t.Argument(t.Name("K", span=e.span), span=e.span),), span=e.span)
    count = _classes(self, e)
    if count is None:
        return _unknown(node.span)
    return _add(self, Quantity(name, "label", Kind.LABEL, 1, attrs=(str(count),), span=node.span))


def _reals(self: LawChecker, name: str, node: t.Quantifier, e: t.Sequence) -> Typed:
    """`a in [0, 1]`: both ends are tried; an end may depend on what stands before."""
    if len(e.items) != 2:
        self.report.error("E014", "an interval has two ends", e.span, "write a in [0, 1], or a in {0, 0.5, 1} for a finite set")
        return _unknown(node.span)
    ends = tuple(self.inference.scalar(_infinite(end), self.scope, self.at, "the end of an interval") for end in e.items)
    if is_error(*ends):
        return _unknown(node.span)
    if ends[0].low > ends[1].high:
        self.report.error("E016", "the interval is empty", e.span, "write the smaller end first")
        return _unknown(node.span)
    return _add(self, Quantity(name, "real", Kind.REAL, 1, ends, span=node.span), (ends[0].low, ends[1].high))


def _infinite(e: t.Expr) -> t.Expr:
    """`inf` and `-inf` as numbers."""
    if e == t.Name("inf"):
        return t.Number("1e999", span=e.span)
    if isinstance(e, t.Unary) and e.op == "-" and e.operand == t.Name("inf"):
        return t.Unary("-", t.Number("1e999", span=e.span), span=e.span)
    return e


def _real_line(self: LawChecker, name: str, node: t.Quantifier) -> Typed:
    return _add(self, Quantity(name, "real", Kind.REAL, 1, FREE, span=node.span))


def _vector(self: LawChecker, name: str, node: t.Quantifier) -> Typed:
    """`v in vector(n)`, `v in vector(n, 0, 1)`: entries in an interval."""
    e = node.domain
    limits = list(FREE)
    if isinstance(e, t.Call) and len(e.args) == 3:
        limits = [self.inference.scalar(a.value, self.scope, self.at, "the end of an interval") for a in e.args[1:]]
        e = t.Call(e.func, e.args[:1], span=e.span)
    size = _argument(self, e, "the number of entries")
    if size is None or is_error(*limits):
        return _unknown(node.span)
    return _add(self, Quantity(name, "vector", Kind.INPUT, size, tuple(limits), span=node.span), (limits[0].low, limits[1].high))


def _input(self: LawChecker, name: str, node: t.Quantifier) -> Typed:
    """A point of the input domain [0, 1]^d."""
    if isinstance(node.domain, t.Call):
        size = _argument(self, node.domain, "the number of entries")
    else:
        found = self.choices.get("dimension") or self.choose("dimension", DIMENSIONS)
        size = int(found)
    if size is None:
        return _unknown(node.span)
    box = (build.number(0.0), build.number(1.0))
    return _add(self, Quantity(name, "vector", Kind.INPUT, size, box, ("input",), node.span), (0.0, 1.0))


def _ball(self: LawChecker, name: str, node: t.Quantifier) -> Typed:
    """`x' in linf(x, eps)`, met with the input domain where the centre is built on x; `d in linf(0, eps)` has the dimension of x."""
    parts = draws.infer_set(self.inference, node.domain, self.scope, self.at)
    if parts is None:
        return _unknown(node.span)
    region, center, radius = parts
    size = self.inference.size(center) or self.inference.sizes.get("x")
    if size is None:
        help = "declare x before, or draw it around a vector: for z in vector(n), d in linf(0 * z, eps)"
        self.report.error("E036", f"the dimension of {name} is not known", node.domain.span, help)
        return _unknown(node.span)
    attrs = (region, "boxed") if draws.built_on_x(center) else (region,)
    return _add(self, Quantity(name, "ball", Kind.INPUT, size, (center, radius), attrs, node.span))


def _matrix(self: LawChecker, node: t.Quantifier) -> None:
    """`A in matrix(m, n)`: rows A[0] to A[m-1], vectors of n numbers."""
    e = node.domain
    args = e.args if isinstance(e, t.Call) else ()
    sizes = [self.inference.number(a.value, self.scope, self.at, "a size") for a in args]
    if len(sizes) != 2 or node.index is not None or any(not isinstance(s, int) or s < 1 for s in sizes):
        self.report.error("E014", "matrix takes its numbers of rows and columns", e.span, "write A in matrix(2, 3)")
        self.declare(node.name, Value(_unknown(node.span), node.span), node.span, "quantifier")
        return
    rows, columns = (int(s or 0) for s in sizes)
    quantities = [Quantity(f"{node.name}[{i}]", "vector", Kind.INPUT, columns, FREE, span=node.span) for i in range(rows)]
    _family(self, node, {i: _add(self, q) for i, q in enumerate(quantities)})


def _network(self: LawChecker, node: t.Quantifier) -> None:
    """`f in network`, `network(smooth)`, `network(relu)`, `network(linear)`, `network(hidden = 4)`."""
    e = node.domain
    args = e.args if isinstance(e, t.Call) else ()
    words = {a.value.id for a in args if a.name is None and isinstance(a.value, t.Name)}
    named = {a.name: self.inference.number(a.value, self.scope, self.at, str(a.name)) for a in args if a.name is not None}
    units = named.get("hidden", 2)
    if words - {"smooth", "relu", "linear"} or set(named) - {"hidden"} or len(args) != len(words) + len(named) or node.index is not None:
        help = "write f in network, network(smooth), network(relu), network(linear) or network(smooth, hidden = 4)"
        self.report.error("E036", "there is no such network", e.span, help)
        self.scope = self.scope.declare(node.name, Later("a wrong network"))
        return
    if not isinstance(units, int) or not 1 <= units <= 16:
        self.report.error("E036", "a network of a law has 1 to 16 hidden units", e.span, "laws are searched: small networks say the same")
        self.scope = self.scope.declare(node.name, Later("a wrong network"))
        return
    options = _architectures(words, units)
    chosen = str(self.choose(node.name, options))
    if self.scope.get("K") is None:
        _own_classes(self, e.span)
    classes = self.scope.get("K")
    assert isinstance(classes, Value)
    self.inference.classes = int(classes.typed.value or 2)
    inputs = self.inference.sizes.get("x") or int(self.choices.get("dimension") or self.choose("dimension", DIMENSIONS))
    activation, _, depth = chosen.partition(" ")
    network = Network(activation, inputs, units, int(depth or 0), self.inference.classes)
    self.declare(node.name, ModelName(node.name, False, node.span), node.span, "quantifier")
    self.inference.networks[node.name] = network
    theta = theta_of(node.name)
    value = _add(self, Quantity(theta, "weights", Kind.INPUT, network.size, attrs=(chosen,), span=node.span))
    self.declare(theta, Value(value, node.span, "quantifier"), node.span, "quantifier")


def _architectures(words: set[str], units: int) -> tuple[str, ...]:
    names = [n for word, group in (("smooth", SMOOTH), ("relu", KINKED)) if not words or word in words for n in group]
    deep = tuple(f"{name} 1" for name in names)
    return (*deep, "linear") if not words or "linear" in words else deep


_MAKERS: dict[str, Callable[[LawChecker, str, t.Quantifier], Typed]] = {
    "simplex": _over_classes("simplex", Kind.PROB, (0.0, 1.0)),
    "logits": _over_classes("logits", Kind.LOGITS),
    "label": _label,
    "reals": _real_line,
    "vector": _vector,
    "input": _input,
}
