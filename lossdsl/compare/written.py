"""Expressions as they are meant: lets and defs written out, and a normal form that tells whether two of them say the same.

Params keep their names, so that `lambda * KL(p(x) || p(x'))` of two recipes is one thing whatever the values of lambda.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from math import isfinite
from typing import Any, TypeVar

from lossdsl.diagnostics import UserError
from lossdsl.lang.ops import OPERATIONS
from lossdsl.syntax import tree as t
from lossdsl.syntax.format import format_expr

Key = tuple[Any, ...]
"""Nested tuples of strings; equal keys are equal meanings."""
N = TypeVar("N", bound=t.Node)
NOTHING: Mapping[str, Any] = {}
LARGEST = 4000
"""Nodes of one written-out expression; lets that use lets twice double it at every step."""
_MOST_TERMS = 64
_HIGHEST_POWER = 64


class Writer:
    """Writes out the lets and defs of a declaration."""

    def __init__(self, items: Iterable[t.Item], where: str = "") -> None:
        self.where = where
        self._lets = {i.name: i for i in items if isinstance(i, t.Let) and not i.recorded}
        self._defs = {i.name: i for i in items if isinstance(i, t.Def) and not i.generator and not i.model}
        self._written: dict[str, t.Expr] = {}
        self._binders = 0

    def write(self, e: N, env: Mapping[str, t.Expr] = NOTHING) -> N:
        """The node with every let and def in it written out; `env`: what local names stand for.

        Variables of binders get names that no text has ("j#1"), so that nothing is captured; `shown` gives readable ones back.
        Raises UserError if the result is too long to be compared.
        """
        if isinstance(e, t.Name):
            found = env.get(e.id) or self._let(e.id)
            return e if found is None else found  # type: ignore[return-value]
        if isinstance(e, t.Binder):
            return self._binder(e, env)  # type: ignore[return-value]
        if isinstance(e, t.Call) and isinstance(e.func, t.Name) and e.func.id in self._defs:
            function = self._defs[e.func.id]
            values = [self.write(a.value, env) for a in e.args]
            return self._short(self.write(function.value, dict(zip(function.args, values, strict=True))), function.name)  # type: ignore[return-value]
        return _mapped(e, lambda part: self.write(part, env))

    def bind(self, name: str) -> t.Name:
        """A new variable that is read like `name`."""
        self._binders += 1
        return t.Name(f"{name}#{self._binders}")

    def _let(self, name: str) -> t.Expr | None:
        if name not in self._lets:
            return None
        if name not in self._written:
            item = self._lets[name]
            value: t.Expr = self.write(item.value)
            if item.mode:
                value = t.Index(value, t.Name(f"with f in {item.mode}"))
            self._written[name] = self._short(value, name)
        return self._written[name]

    def _binder(self, e: t.Binder, env: Mapping[str, t.Expr]) -> t.Binder:
        var, domain = e.header.var, e.header.domain
        if e.func == "grad" and e.header.relation == "":
            point = env.get(var) or self._let(var)
            if point is None or isinstance(point, t.Name):
                named = replace(e.header, var=point.id) if point else e.header
                return replace(e, header=named, body=self.write(e.body, env))
            domain = point
        else:
            domain = None if domain is None else self.write(domain, env)
        own = self.bind(var)
        relation = e.header.relation or ("=" if e.func == "grad" else "")
        return replace(
            e, header=replace(e.header, var=own.id, relation=relation, domain=domain), body=self.write(e.body, {**env, var: own})
        )

    def _short(self, e: t.Expr, name: str) -> t.Expr:
        if len(t.walk(e)) > LARGEST:
            raise UserError(f"{name} is too long to compare when everything it stands for is written out", where=self.where)
        return e


def _mapped(node: N, change: Callable[[Any], Any]) -> N:
    """The node with its parts changed."""
    changes: dict[str, Any] = {}
    for f in fields(node):
        value = getattr(node, f.name)
        if isinstance(value, t.Node):
            changes[f.name] = change(value)
        elif isinstance(value, tuple) and any(isinstance(v, t.Node) for v in value):
            changes[f.name] = tuple(change(v) for v in value)
    return replace(node, **changes) if changes else node


# --- as text -----------------------------------------------------------------------------------------------------


def shown(e: t.Expr, names: Mapping[str, str] = NOTHING) -> str:
    """A written-out expression as text on one line. `names`: readable names of variables that are bound outside."""
    return format_expr(_readable(e, names))


def _readable(e: N, names: Mapping[str, str]) -> N:
    if isinstance(e, t.Name):
        return replace(e, id=names.get(e.id, e.id)) if e.id in names else e
    if isinstance(e, t.Binder) and "#" in e.header.var:
        free = {names.get(n.id, n.id) for n in t.walk(e.body) if isinstance(n, t.Name) and n.id != e.header.var}
        plain = e.header.var.partition("#")[0]
        name = next(n for n in (plain, *(f"{plain}{k}" for k in range(1, len(free) + 2))) if n not in free)
        domain = None if e.header.domain is None else _readable(e.header.domain, names)
        header = replace(e.header, var=name, domain=domain)
        return replace(e, header=header, body=_readable(e.body, {**names, e.header.var: name}))
    return _mapped(e, lambda part: _readable(part, names))


# --- normal form -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Term:
    """`number * over / under`: one addend of a sum."""

    number: Fraction
    over: tuple[t.Expr, ...] = ()
    under: tuple[t.Expr, ...] = ()

    def times(self, other: Term) -> Term:
        return Term(self.number * other.number, self.over + other.over, self.under + other.under)

    def expression(self) -> t.Expr:
        """The term with its number in front."""
        size = abs(self.number)
        front: list[t.Expr] = [_number(size)] if size != 1 or not self.over else []
        parts = [*front, *self.over]
        whole = t.Unary("-", parts[0]) if self.number < 0 else parts[0]
        for part in parts[1:]:
            whole = t.Binary("*", whole, part)
        for part in self.under:
            whole = t.Binary("/", whole, part)
        return whole


def _number(value: Fraction) -> t.Expr:
    """12, 0.5 or 8/255, exactly."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    text = f"{float(value):.15g}"
    if rest == 1 and Fraction(text) == value:
        return t.Number(text)
    return t.Binary("/", t.Number(str(value.numerator)), t.Number(str(value.denominator)))


def expanded(e: t.Expr, spreads: Callable[[t.Expr], bool] = lambda e: True) -> list[Term]:
    """The addends of an expression, products with sums multiplied out where `spreads` holds for the factor before the sum."""
    if isinstance(e, t.Number):
        value = _fraction(e)
        return [Term(Fraction(1), (e,))] if value is None else [Term(value)]
    if isinstance(e, t.Unary) and e.op == "-":
        return [replace(term, number=-term.number) for term in expanded(e.operand, spreads)]
    if isinstance(e, t.Binary) and e.op in ("+", "-"):
        left, right = expanded(e.left, spreads), expanded(e.right, spreads)
        return left + (right if e.op == "+" else [replace(term, number=-term.number) for term in right])
    if isinstance(e, t.Binary) and e.op == "*":
        return _product(e, spreads)
    if isinstance(e, t.Binary) and e.op == "/":
        return _quotient(e, spreads)
    power = _power(e) if isinstance(e, t.Binary) and e.op == "^" else None
    return [Term(Fraction(1), (e,))] if power is None else [Term(power)]


def _fraction(e: t.Number) -> Fraction | None:
    """The exact value; None for one that no float holds."""
    value = float(e.text)
    return Fraction(e.text) if isfinite(value) and (value != 0 or Fraction(e.text.lower().partition("e")[0]) == 0) else None


def _power(e: t.Binary) -> Fraction | None:
    base, exponent = expanded(e.left), expanded(e.right)
    if any(len(side) != 1 or side[0].over or side[0].under for side in (base, exponent)):
        return None
    value, n = base[0].number, exponent[0].number
    return value ** int(n) if n.denominator == 1 and abs(n) <= _HIGHEST_POWER and value != 0 else None


def _product(e: t.Binary, spreads: Callable[[t.Expr], bool]) -> list[Term]:
    left, right = expanded(e.left, spreads), expanded(e.right, spreads)
    if (len(right) > 1 and not spreads(e.left)) or (len(left) > 1 and not spreads(e.right)) or len(left) * len(right) > _MOST_TERMS:
        left, right = _whole(left, e.left), _whole(right, e.right)
    return [a.times(b) for a in left for b in right]


def _quotient(e: t.Binary, spreads: Callable[[t.Expr], bool]) -> list[Term]:
    left, right = expanded(e.left, spreads), _whole(expanded(e.right, spreads), e.right)[0]
    if len(left) > 1 and not spreads(e.right):
        left = _whole(left, e.left)
    if right.number == 0:
        return [a.times(Term(Fraction(1), (), (e.right,))) for a in left]
    return [a.times(Term(1 / right.number, right.under, right.over)) for a in left]


def _whole(terms: list[Term], e: t.Expr) -> list[Term]:
    """A sum as one factor."""
    return terms if len(terms) == 1 else [Term(Fraction(1), (e,))]


def key(e: t.Expr, env: Mapping[str, int] = NOTHING) -> Key:
    """What the expression says, whatever the order of addends, factors and conditions and the names of its binders' variables.

    `env`: how many binders stand outside the one of a variable.
    """
    sums: dict[Key, Fraction] = {}
    for term in expanded(e):
        factors = [_atom(part, env) for part in term.over] + [("/", _atom(part, env)) for part in term.under]
        product = _sorted(factors)
        sums[product] = sums.get(product, Fraction(0)) + term.number
    addends = _sorted([(str(number), product) for product, number in sums.items()])
    if len(addends) == 1 and addends[0][0] == "1" and len(addends[0][1]) == 1 and addends[0][1][0][0] != "/":
        return addends[0][1][0]  # type: ignore[no-any-return]
    return "+", *addends


def _sorted(parts: list[Key]) -> Key:
    return tuple(sorted(parts, key=repr))


def _atom(e: t.Expr, env: Mapping[str, int]) -> Key:
    """The key of an expression that is no sum, product or quotient (or of a sum that was not multiplied out)."""
    match e:
        case t.Number(text=text):
            return "number", text
        case t.Name(id=name):
            return ("bound", str(env[name])) if name in env else ("name", name)
        case t.Unary(op="not", operand=operand):
            return "not", key(operand, env)
        case t.Binary(op="and" | "or" as op):
            return op, *_sorted([key(part, env) for part in _chain(e, op)])
        case t.Binary(op="^", left=left, right=right):
            return "^", key(left, env), key(right, env)
        case t.Compare():
            return _comparison(e, env)
        case t.Call():
            return _call(e, env)
        case t.Binder():
            return _bound(e, env)
        case t.Binary() | t.Unary():
            return key(e, env)
    parts = [part for part in t.children(e) if not isinstance(part, t.Header | t.Argument)]
    sign = e.bracket if isinstance(e, t.Index) else ""
    return type(e).__name__, sign, *(key(part, env) for part in parts)  # type: ignore[arg-type]


def _chain(e: t.Expr, op: str) -> list[t.Expr]:
    return [*_chain(e.left, op), *_chain(e.right, op)] if isinstance(e, t.Binary) and e.op == op else [e]


def _comparison(e: t.Compare, env: Mapping[str, int]) -> Key:
    links = []
    for op, left, right in zip(e.ops, e.operands, e.operands[1:], strict=False):
        sides = key(left, env), key(right, env)
        if op in ("==", "!="):
            links.append((op, *_sorted(list(sides))))
        else:
            links.append((op.replace(">", "<"), *(sides[::-1] if op[0] == ">" else sides)))
    return links[0] if len(links) == 1 else ("and", *_sorted(links))


def _call(e: t.Call, env: Mapping[str, int]) -> Key:
    """Arguments with names in alphabetical order; CE(p || q) as CE(q, p)."""
    plain = [a for a in e.args if a.name is None]
    row = OPERATIONS.get(e.func.id) if isinstance(e.func, t.Name) else None
    if e.double_bar and row is not None and row.bars == "swap":
        plain = plain[::-1]
    ordered = [*plain, *sorted((a for a in e.args if a.name is not None), key=lambda a: str(a.name))]
    args = [(str(a.name or ""), key(a.value, env), () if a.where is None else key(a.where, env)) for a in ordered]
    return "call", key(e.func, env), *args


def _bound(e: t.Binder, env: Mapping[str, int]) -> Key:
    """`grad(x: e)` is `grad(v = x: e)` with v for x."""
    header = e.header
    domain = header.domain
    if e.func == "grad" and header.relation == "" and header.var != "theta":
        domain = t.Name(header.var)
    outside = () if domain is None else key(domain, env)
    inner = env if e.func == "grad" and domain is None else {**env, header.var: len(env)}
    return "binder", e.func, "=" if e.func == "grad" and domain is not None else header.relation, outside, key(e.body, inner)
