"""The classes of `j in top(n, ...)`: chosen in eval mode, and once: after a family's level they are those it was solved for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lossdsl.check.typed import Axis, Typed
from lossdsl.lang.types import Kind
from lossdsl.plan.ir import Code, Instr, Plan, Solve, map_codes

if TYPE_CHECKING:
    from lossdsl.plan.expressions import Emitter

CHOSEN = "classes"
"""The classes of a family x' are kept beside its solution, under (x', "classes")."""


def choose(self: Emitter, axis: Axis) -> int:
    """The classes by descending score, the lower class first at a tie."""
    domain = axis.domain
    assert domain.inner is not None and domain.expr is not None
    among = self.class_range(domain.inner, "eval")
    scores = self.linear(domain.expr, "eval")
    both = {*self.axes(among), *self.axes(scores)} - {domain.inner}
    axes = tuple(sorted({*both, axis}, key=lambda a: (a.depth, a.domain.text)))
    what = Typed("bound", (), Kind.CLASS, domain.expr.span, axis=axis)
    return self.emit("class_top", (scores, among), Kind.CLASS, what, (domain.size, domain.key), axes, domain.text)


def kept_choices(plan: Plan, alone: bool) -> Plan:
    """The naive plan with the classes of every family read, not chosen again, wherever later code speaks of them.

    alone: levels are the runs of an attack and know nothing of each other.
    """
    families: dict[int, str] = {}
    solves = []
    for s in plan.solves:
        before = {} if alone else dict(families)
        if isinstance(s, Solve) and s.axis is not None and s.axis.domain.kind == "top":
            families.setdefault(s.axis.domain.key, s.var)
        during = {s.axis.domain.key: s.var} | before if s.axis is not None else before
        solves.append(s.with_codes(lambda code, where, b=before, d=during: _kept(code, b if where == "before" else d)))
    rest = map_codes(replace(plan, solves=()), lambda code, where: _kept(code, families) if where == "upper" else code)
    return replace(rest, solves=tuple(solves))


def _kept(code: Code, families: dict[int, str]) -> Code:
    def change(i: Instr) -> Instr:
        if i.op != "class_top" or i.attrs[1] not in families:
            return i
        return replace(i, op="point", args=(), attrs=(families[i.attrs[1]], CHOSEN))

    return Code(tuple(change(i) for i in code), code.results)
