"""Labels that may be missing: in recipes with `data = mix(...)` an example without a label has y = -1.

There, what takes such a label has no value and no gradient: CE, hinge, error, DLR, v[y], binders over j != y and logarithms of
numbers that hold the last two are 0, `y == c` is 0, onehot(y) and smooth(y, s) have no mass. The recipe is rewritten so that every such
operation stands in if(known(y), ..., 0) and sees class 0 in place of -1; the plan of other recipes is untouched.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from lossdsl.check.typed import Axis, Domain, Typed, TypedFind, TypedLevel, TypedRecipe
from lossdsl.lang.types import CLASSES, Kind

_TAKES_LABEL = {"CE": 1, "hinge": 1, "error": 1, "DLR": 1, "at": 1, "onehot": 0, "smooth": 0, "eq": 0, "ne": 0}
"""Operations, and the first of their arguments that may be a label."""
_ARITHMETIC = frozenset(("add", "sub", "mul", "div", "pow", "neg", "if", "stop", "mode", "sqrt"))


def guarded(recipe: TypedRecipe) -> TypedRecipe:
    """The recipe with every use of a label behind known(y), if labels may be missing."""
    if recipe.train is None or recipe.train.data is None:
        return recipe
    change = _Guard()
    return replace(
        recipe,
        samples=tuple(replace(s, draw=change(s.draw)) for s in recipe.samples),
        stages=tuple(_stage(s, change) for s in recipe.stages),
        objective=None if recipe.objective is None else change(recipe.objective),
        logs=tuple((name, change(e)) for name, e in recipe.logs),
        states=tuple(replace(s, init=change(s.init), update=change(s.update)) for s in recipe.states),
        sampler=None if recipe.sampler is None else change(recipe.sampler),
    )


def _stage(stage: TypedLevel | TypedFind, change: _Guard) -> TypedLevel | TypedFind:
    if isinstance(stage, TypedFind):
        return replace(stage, low=change(stage.low), high=change(stage.high), value=change(stage.value))
    solver = stage.solver
    names = [n for n in ("start", "step", "at", "noise", "until") if getattr(solver, n) is not None]
    parts: dict[str, Any] = {n: change(getattr(solver, n)) for n in names}
    return replace(
        stage,
        axis=change.axis(stage.axis),
        set=replace(stage.set, center=change(stage.set.center), radius=change(stage.set.radius)),
        objective=change(stage.objective),
        solver=replace(solver, **parts),
    )


@dataclass
class _Guard:
    """Rewrites expressions; what is one node stays one node."""

    done: dict[tuple[int, bool], Typed] = field(default_factory=dict)
    kept: list[Typed | Domain] = field(default_factory=list)
    domains: dict[int, Domain] = field(default_factory=dict)

    def __call__(self, e: Typed, bare: bool = False) -> Typed:
        """`bare`: the guard stands further out, around the logarithm that this is in."""
        key = (id(e), bare)
        if key not in self.done:
            self.kept.append(e)
            self.done[key] = self._changed(e, bare)
        return self.done[key]

    def _changed(self, e: Typed, bare: bool) -> Typed:
        if e.op == "known":
            return e
        if e.op == "label":
            return replace(e, attrs=("or class 0",))
        inside = bare and e.op in _ARITHMETIC
        there = self.log_known(e.args[0]) if e.op == "log" else None
        args = tuple(self(a, inside or there is not None) for a in e.args)
        family = None if e.family is None else self.domain(e.family)
        out = replace(e, args=args, axis=self.axis(e.axis), family=family)
        if there is None and not (bare and e.op in ("at", "reduce")):
            there = self.known(e)
        return out if there is None else _behind(there, out)

    def axis(self, axis: Axis | None) -> Axis | None:
        return None if axis is None else Axis(axis.depth, self.domain(axis.domain))

    def domain(self, domain: Domain) -> Domain:
        if id(domain) not in self.domains:
            self.kept.append(domain)
            expr = None if domain.expr is None else self(domain.expr)
            self.domains[id(domain)] = replace(domain, expr=expr, inner=self.axis(domain.inner))
        return self.domains[id(domain)]

    def known(self, e: Typed) -> Typed | None:
        """A number that is 0 where an operation takes a missing label; None if it takes none."""
        if e.op == "reduce":
            domain = e.axis.domain if e.axis is not None and e.kind is not Kind.CLASS else None
            domain = domain.inner.domain if domain is not None and domain.inner is not None else domain
            return None if domain is None or domain.expr is None else self.given(domain.expr)
        if e.op not in _TAKES_LABEL:
            return None
        return _all(self.given(a) for a in e.args[_TAKES_LABEL[e.op] :] if a.kind in CLASSES)

    def given(self, c: Typed) -> Typed | None:
        """A number that is 0 where a class is a missing label; None if it cannot be one."""
        if c.op == "label":
            return Typed("known", (c,), Kind.REAL, c.span)
        if c.op in ("stop", "mode"):
            return self.given(c.args[0])
        if c.op == "if":
            branches = [self.given(a) for a in c.args[1:]]
            if any(b is not None for b in branches):
                one = _number(1, c)
                return Typed("if", (self(c.args[0]), *(b or one for b in branches)), Kind.REAL, c.span)
        return None

    def log_known(self, e: Typed) -> Typed | None:
        """For the argument of a logarithm: 0 where an entry or a binder inside it takes a missing label."""
        if e.op in ("at", "reduce"):
            return self.known(e)
        return _all(self.log_known(a) for a in e.args) if e.op in _ARITHMETIC else None


def _number(value: float, e: Typed) -> Typed:
    return Typed("number", (), Kind.CONST, e.span, value=value, low=value, high=value)


def _all(conditions: Any) -> Typed | None:
    """The conjunction of those that are there."""
    found = None
    for c in conditions:
        if c is not None:
            found = c if found is None else Typed("and", (found, c), Kind.REAL, c.span)
    return found


def _behind(there: Typed, e: Typed) -> Typed:
    if e.kind is Kind.PROB:
        return replace(e, op="no_mass", args=(e, there), attrs=())
    otherwise = _number(1 if e.op == "ne" else 0, e)
    return replace(e, op="if", args=(there, e, otherwise), attrs=(), axis=None, family=None, value=None)
