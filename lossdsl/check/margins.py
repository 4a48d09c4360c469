"""The objective of attacks that have their own: how far the logit of another class is above that of the label."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lossdsl.check.typed import SolverSpec
from lossdsl.lang.specs import SOLVERS
from lossdsl.syntax import tree as t

if TYPE_CHECKING:
    from lossdsl.check.recipe import Checker

INNER = "i"


def own_objective(self: Checker, node: t.Level, solver: SolverSpec | None) -> t.Level | None:
    """The level with its objective, where the solver brings one; None after reporting that it cannot be."""
    if solver is None or not SOLVERS[solver.name].own_objective:
        return node
    if node.run is None:
        help = "write it as a run of an attack; in training use pgd or apgd"
        self.report.error("E021", f"{solver.name} looks for the nearest fooling point: it belongs to an attack", solver.span, help)
        return None
    if node.objective is not None:
        help = f"leave it out: {solver.name} moves to where another class has the larger logit"
        self.report.error("E021", f"{solver.name} has an objective of its own", node.objective.span, help)
        return None
    return replace(node, sense="maximize", objective=margin(node))


def margin(node: t.Level) -> t.Expr:
    """`f(x'[j])[j] - f(x'[j])[y]`, or without a family `max(i != y: f(x')[i] - f(x')[y])`."""
    place = node.span
    var: t.Expr = t.Name(node.var, span=place)

    def difference(at: t.Expr, index: str) -> t.Expr:
        logits = t.Call(t.Name("f", span=place), (t.Argument(at, span=place),), span=place)
        ours, label = (t.Index(logits, t.Name(name, span=place), span=place) for name in (index, "y"))
        return t.Binary("-", ours, label, span=place)

    if node.index is not None:
        name = node.index.var
        return difference(t.Index(var, t.Name(name, span=place), span=place), name)
    header = t.Header(INNER, "!=", t.Name("y", span=place), span=place)
    return t.Binder("max", header, difference(var, INNER), span=place)
