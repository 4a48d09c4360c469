"""Expressions of the syntax tree as formulas, in either notation. Names stay names: what they stand for is written beside the formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lossdsl.explain.notation import GREEK, Latex, Plain
from lossdsl.lang.specs import SETS
from lossdsl.syntax import tree as t

Notation = Plain | Latex
_OR, _AND, _NOT, _COMPARE, _ADD, _MUL, _NEG, _POW, _ATOM = range(1, 10)
_RANKS = {"or": _OR, "and": _AND, "+": _ADD, "-": _ADD, "*": _MUL, "/": _MUL, "^": _POW}
_BALLS = ("linf", "l2", "l1")


class Formulas:
    """Writes expressions. `functions`: names that the declaration gives to functions of its own; `renamed`: names shown otherwise (step as
    alpha)."""

    def __init__(self, notation: Notation, functions: frozenset[str] = frozenset(), renamed: dict[str, str] | None = None) -> None:
        self.n, self.functions, self.renamed = notation, functions, renamed or {}

    def of(self, e: t.Expr, outer: int = 0) -> str:
        """The expression as a formula, in parentheses where what stands around it binds tighter than `outer`."""
        text, rank = getattr(self, "_" + type(e).__name__.lower())(e)
        return self.n.group(text) if rank < outer else text

    def name(self, name: str) -> str:
        return self.n.name(self.renamed.get(name, name))

    # --- one method per node: the text and how tightly it binds ---

    def _number(self, e: t.Number) -> tuple[str, int]:
        return self.n.number(e.text), _ATOM

    def _name(self, e: t.Name) -> tuple[str, int]:
        if e.id == "rademacher":
            return self.n.above(self.n.elements("-1, 1"), "d"), _ATOM
        return self.name(e.id), _ATOM

    def _unary(self, e: t.Unary) -> tuple[str, int]:
        if e.op == "not":
            return f"{self.n.sign('not')} {self.of(e.operand, _NOT)}", _NOT
        return f"-{self.of(e.operand, _NEG)}", _NEG

    def _binary(self, e: t.Binary) -> tuple[str, int]:
        rank = _RANKS[e.op]
        if e.op == "/" and self.n.latex:
            return self.n.fraction(self.of(e.left), self.of(e.right)), _POW
        if e.op == "^":
            return self.n.above(self.of(e.left, _ATOM), self.of(e.right)), _POW
        if e.op == "/":
            return self.n.fraction(self.of(e.left, rank), self.of(e.right, rank + 1)), rank
        if e.op == "*":
            return self.n.product(self.of(e.left, rank), self.of(e.right, rank)), rank
        right = self.of(e.right, rank + (e.op == "-"))
        return f"{self.of(e.left, rank)} {self.n.sign(e.op)} {right}", rank

    def _compare(self, e: t.Compare) -> tuple[str, int]:
        parts = [self.of(e.operands[0], _ADD)]
        for op, operand in zip(e.ops, e.operands[1:], strict=True):
            parts += [self.n.sign(op), self.of(operand, _ADD)]
        return " ".join(parts), _COMPARE

    def _index(self, e: t.Index) -> tuple[str, int]:
        return self.n.below(self.of(e.base, _ATOM), self.of(e.index)), _ATOM

    def _iterate(self, e: t.Iterate) -> tuple[str, int]:
        return self.n.iterate(self.of(e.base, _ATOM), self.of(e.step)), _ATOM

    def _range(self, e: t.Range) -> tuple[str, int]:
        return f"{self.of(e.low)} {self.n.sign('..')} {self.of(e.high)}", _ATOM

    def _sequence(self, e: t.Sequence) -> tuple[str, int]:
        return f"[{', '.join(self.of(i) for i in e.items)}]", _ATOM

    def _binder(self, e: t.Binder) -> tuple[str, int]:
        header = e.header
        var = self.name(header.var)
        if e.func == "grad":
            point = self.of(header.domain) if header.relation == "=" and header.domain is not None else ""
            return self.n.gradient(var, self.of(e.body, _POW), point), _MUL
        if isinstance(header.domain, t.Range):
            low, high = f"{var} = {self.of(header.domain.low)}", self.of(header.domain.high)
        else:
            low, high = self.header(header), ""
        body = self.of(e.body, _MUL)
        if e.func in ("mean", "softmax", "sort"):
            return self.n.call(self.n.below(self.n.word(e.func), low), [self.of(e.body)]), _ATOM
        if e.func == "logsumexp":
            return self.n.word("log") + " " + self.n.big("sum", low, high, self.n.call(self.n.word("exp"), [self.of(e.body)])), _MUL
        return self.n.big(e.func, low, high, body), _MUL if e.func == "sum" else _NEG

    def header(self, header: t.Header) -> str:
        """j, j != y, or the classes it is one of."""
        var = self.name(header.var)
        if header.relation == "" or header.domain is None:
            return var
        sign = {"!=": "!=", "in": "in", "=": "=="}[header.relation]
        return f"{var} {self.n.sign(sign)} {self.of(header.domain)}"

    def _call(self, e: t.Call) -> tuple[str, int]:
        if isinstance(e.func, t.Index):
            return self._indexed_call(e, e.func), _ATOM
        name = e.func.id if isinstance(e.func, t.Name) else ""
        values = [a.value for a in e.args]
        writer = _WRITERS.get(name)
        if writer is not None:
            return writer(self, values, e)
        if name in _BALLS or name in SETS:
            return self.region(e), _ATOM
        own = name in ("f", "p") and name not in self.functions
        function = self.n.model(name, self.name("theta")) if own else self.function(name)
        where = self.n.words(" where ")
        args = [self.of(a.value) + (where + self._condition(a.where) if a.where is not None else "") for a in e.args]
        return self.n.call(function, args, self.n.sign("bars") if e.double_bar else ", "), _ATOM

    def _indexed_call(self, e: t.Call, func: t.Index) -> str:
        """f{w}(x), p[g](v), D[psi](p || q)."""
        letter = func.base.id if isinstance(func.base, t.Name) else self.of(func.base)
        function = self.n.model(letter, self.of(func.index))
        return self.n.call(function, [self.of(a.value) for a in e.args], self.n.sign("bars") if e.double_bar else ", ")

    def function(self, name: str) -> str:
        """The name of a function: a letter, or a word."""
        return self.name(name) if name in GREEK or len(name.rstrip("'")) == 1 else self.n.word(name)

    def region(self, e: t.Expr) -> str:
        """A set, without the input domain that it is met with."""
        if not (isinstance(e, t.Call) and isinstance(e.func, t.Name)):
            return self.of(e)
        args = [self.of(a.value) for a in e.args if a.name is None]
        if e.func.id in _BALLS and len(args) == 2:
            return self.n.ball(e.func.id, *args)
        if e.func.id == "simplex":
            return self.n.simplex(args[0])
        return self.n.call(self.n.word(e.func.id), args)

    # --- operations with a sign of their own ---

    def _norm(self, v: list[t.Expr], e: t.Call) -> tuple[str, int]:
        order = v[1].id if isinstance(v[1], t.Name) else self.of(v[1])
        return self.n.norm(self.of(v[0]), order), _ATOM

    def _root(self, v: list[t.Expr], e: t.Call) -> tuple[str, int]:
        return self.n.root(self.of(v[0])), _ATOM

    def _positive(self, v: list[t.Expr], e: t.Call) -> tuple[str, int]:
        return self.n.positive(self.of(v[0])), _ATOM

    def _mean(self, v: list[t.Expr], e: t.Call) -> tuple[str, int]:
        where = e.args[0].where
        given = "" if where is None else self._condition(where)
        return self.n.expectation(self.of(v[0]), given, self.n.letter("B")), _ATOM

    def _normal_draw(self, v: list[t.Expr], e: t.Call) -> tuple[str, int]:
        return self.n.normal(self.of(v[0])), _ATOM

    def _uniform_draw(self, v: list[t.Expr], e: t.Call) -> tuple[str, int]:
        letter = self.n.letter("U")
        return (f"{letter}{self.n.group(self.of(v[0]))}" if len(v) == 1 else f"{letter}[{self.of(v[0])}, {self.of(v[1])}]"), _ATOM

    def _corner(self, v: list[t.Expr], e: t.Call) -> tuple[str, int]:
        return self.n.call(self.n.words("corner of"), [self.of(v[0])]), _ATOM

    def _projected(self, v: list[t.Expr], e: t.Call) -> tuple[str, int]:
        return self.n.projection(self.region(v[1]), self.of(v[0])), _ATOM

    def _at(self, v: list[t.Expr], e: t.Call) -> tuple[str, int]:
        """onehot(y) is the unit vector of y."""
        return self.n.below("e", self.of(v[0])), _ATOM

    def _choice(self, v: list[t.Expr], e: t.Call) -> tuple[str, int]:
        return self.n.cases(*(self.of(part) for part in v)), _ATOM

    def _condition(self, e: t.Expr) -> str:
        known = isinstance(e, t.Call) and e.func == t.Name("known")
        return f"{self.of(e.args[0].value)}{self.n.words(' known')}" if isinstance(e, t.Call) and known else self.of(e)

    def _known(self, v: list[t.Expr], e: t.Call) -> tuple[str, int]:
        return self.n.indicator(self._condition(e)), _ATOM

    def _absolute(self, v: list[t.Expr], e: t.Call) -> tuple[str, int]:
        return self.n.absolute(self.of(v[0])), _ATOM

    def _inner(self, v: list[t.Expr], e: t.Call) -> tuple[str, int]:
        return self.n.inner(self.of(v[0]), self.of(v[1])), _ATOM

    def _stop(self, v: list[t.Expr], e: t.Call) -> tuple[str, int]:
        return self.n.call(self.n.word("sg"), [self.of(v[0])]), _ATOM


_WRITERS: dict[str, Callable[[Any, list[t.Expr], t.Call], tuple[str, int]]] = {
    "norm": Formulas._norm,
    "sqrt": Formulas._root,
    "relu": Formulas._positive,
    "batch_mean": Formulas._mean,
    "normal": Formulas._normal_draw,
    "uniform": Formulas._uniform_draw,
    "corner": Formulas._corner,
    "project": Formulas._projected,
    "onehot": Formulas._at,
    "if": Formulas._choice,
    "known": Formulas._known,
    "abs": Formulas._absolute,
    "dot": Formulas._inner,
    "stop": Formulas._stop,
}
