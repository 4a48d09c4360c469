"""Lower levels and the input domain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lossdsl.check import binders
from lossdsl.check.flow import gradient_reaches
from lossdsl.check.margins import own_objective
from lossdsl.check.regions import infer_region, variable_of
from lossdsl.check.scope import Later, LevelName, Value, is_error
from lossdsl.check.solvers import check_solver, check_through
from lossdsl.check.typed import Axis, SolverSpec, Typed, TypedLevel, TypedSet
from lossdsl.diagnostics import Edit
from lossdsl.lang.specs import SOLVERS
from lossdsl.syntax import tree as t

if TYPE_CHECKING:
    from lossdsl.check.recipe import Checker


def check_level(self: Checker, node: t.Level) -> tuple[TypedLevel | None, LevelName | Later]:
    """The typed level (None if wrong), and what its variable is for the statements that follow (Later: nobody knows, be silent)."""
    over = variable_of(node.set, self.scope)
    domain = binders.infer_domain(self.inference, node.index, self.scope, self.at) if node.index else None
    if node.index is not None and domain is not None and domain.kind != "top" and "theta" in domain.depends:
        help = "write [j != y]; the model is in one mode here and in another in the upper level"
        self.report.error("E025", f"the classes of {node.var} depend on the model", node.index.span, help)
    if node.index is not None and over != "input":
        self.report.error("E025", f"{node.var} is one point: a family is over inputs", node.index.span, "leave out the brackets")
    axis = Axis(0, domain) if domain else None
    region = infer_region(self, node.set, over)
    if region is None and over == "weights":  # perhaps a set of inputs around weights, or the other way round
        return None, Later("a level whose set does not fit")
    solver = check_solver(self, node, over)
    steps = solver.options.updates if solver else None
    search = solver.name if solver is not None and SOLVERS[solver.name].searches else ""
    found = LevelName(node.var, steps, domain, node.span, over=over, search=search)
    whole = own_objective(self, node, solver)
    objective = _objective(self, whole, axis, found) if whole is not None and (node.index is None or domain is not None) else None
    good, through = check_through(self, node, over, region.name, solver) if region and solver else (False, None)
    if region is None or solver is None or objective is None or is_error(objective) or (node.index and axis is None) or not good:
        return None, found
    if not _differentiable(self, node, objective, over, solver) or not _inside_domain(self, region) or not _works_on(self, region, solver):
        return None, found
    _lint_radius(self, node, region, solver)
    mode = node.mode or "eval"
    level = TypedLevel(node.var, axis, region, (whole or node).sense or "maximize", objective, solver, mode, node.span, node.run, through)
    return level, found


def _works_on(self: Checker, region: TypedSet, solver: SolverSpec) -> bool:
    allowed = SOLVERS[solver.name].sets
    if not allowed or region.name in allowed:
        return True
    self.report.error("E021", f"{solver.name} does not work on {region.name}", solver.span, f"{solver.name} works on " + ", ".join(allowed))
    return False


def _example(var: str, over: str) -> str:
    """An objective of a variable."""
    return {"input": f"CE(f({var}), y)", "weights": f"CE(f{{{var}}}(x), y)", "classes": f"{var}[y] * CE(f(x), y)"}[over]


def _differentiable(self: Checker, node: t.Level, objective: Typed, over: str, solver: SolverSpec) -> bool:
    """Does the objective depend on the variable, and pass it the gradient that the solver needs?"""
    if node.var not in objective.depends:
        said, help = f"the objective does not depend on {node.var}", f"use {node.var} in it, for example {_example(node.var, over)}"
        self.report.error("E021", said, objective.span, help)
        return False
    if solver.name != "square" and not gradient_reaches(objective, lambda e: _is_variable(e, node.var)):
        help = "its gradient is zero everywhere: attack a surrogate such as CE or the margin"
        self.report.error("E021", f"the objective passes no gradient to {node.var}", objective.span, help)
        return False
    return True


def _is_variable(e: Typed, name: str) -> bool:
    if e.op == "logits":
        return e.attrs == ("f", name)
    return e.op in ("point", "pick", "weights") and name in e.depends


def _inside_domain(self: Checker, region: TypedSet) -> bool:
    if not region.boxed or self.domain is None or region.name == "linf" or region.center.op in ("input", "point", "pick"):
        return True
    help = f"centre it at x or at a lower solution, or use linf: {region.name} is met with the domain around its centre"
    self.report.error("E020", f"the centre of {region.name} may lie outside the input domain", region.center.span, help)
    return False


def _objective(self: Checker, node: t.Level, axis: Axis | None, name: LevelName) -> Typed | None:
    if node.objective is None:
        if not self.report.lost_words:
            help = f"add: maximize {_example(node.var, name.over)}"
            self.report.error("E018", f"the level of {node.var} has no objective", node.span, help)
        return None
    scope = self.scope
    own = axis if axis is not None and node.index is not None else None
    domain = axis.domain if own is not None and axis is not None else None
    scope = scope.declare(node.var, LevelName(node.var, name.steps, domain, node.span, own, name.over, facts=False))
    if own is not None and node.index is not None:
        scope = scope.declare(node.index.var, Value(binders.bound(own, node.index.span), node.index.span, "binder"))
    iterates = [part for part in t.walk(node.objective) if isinstance(part, t.Iterate)]
    inside = [part for part in iterates if any(isinstance(n, t.Name) and n.id == node.var for n in t.walk(part.base))]
    if inside:
        help = "use iterates in later levels or in the upper level"
        return self.report.error("E017", f"{node.var} has no iterates inside its own objective", inside[0].span, help)
    objective = self.inference.scalar(node.objective, scope, self.at, "the objective of a level")
    if "batch" in objective.depends and name.over == "input":
        return self.report.error(
            "E021",
            "the objective of an input level speaks of one example at a time",
            node.objective.span,
            "leave out batch_mean and batch_sum: each example is attacked on its own",
        )
    return objective


def _lint_radius(self: Checker, node: t.Level, region: TypedSet, solver: SolverSpec) -> None:
    """T07 and T08: radii and steps that cannot be meant."""
    radius, step = region.radius.value, getattr(solver.options, "step", None)
    if radius is None:
        return
    if region.boxed and self.domain is not None and region.name == "linf":
        low, high = self.domain
        width = max(h - b for b, h in zip(_list(low), _list(high), strict=False))
        given = node.set.args[1].value if isinstance(node.set, t.Call) else None
        own = next((a.value for a in node.solver.args if a.name == "step"), None) if node.solver is not None else None
        for what, value, where, span in (
            ("radius", radius, given, region.radius.span),
            ("step", step, own, own.span if own else solver.span),
        ):
            if value is not None and value > width and (what == "radius" or solver.name == "pgd"):
                said = f"the {what} {value:g} is larger than the whole input domain"
                help = f"{'radii' if what == 'radius' else 'steps'} are in the units of x: in [0, 1] write {value:g}/255"
                self.report.warn("T08", said, span, help, _in_255ths(self, where, value))
    reach = solver.options.updates * step if step is not None and solver.name == "pgd" else 0
    if 0 < reach < radius * (1 - 1e-9) and solver.start_kind == "expression" and not _drawn_from_a_set(solver.start):
        said = f"{solver.options.updates} steps of {step:g} cannot reach the border of the set at {radius:g}"
        self.report.warn("T07", said, solver.span, "raise step or steps")


def _in_255ths(self: Checker, e: t.Expr | None, value: float) -> Edit | None:
    """The correction of a number in pixel units, where it is written as such: in its place, or in the param that it is."""
    if isinstance(e, t.Name):
        e = next((i.value for i in self.items if isinstance(i, t.Param) and i.name == e.id and not i.stages), None)
    return Edit(e.span, f"{e.text}/255") if isinstance(e, t.Number) and float(e.text) == value else None


def _drawn_from_a_set(e: Typed) -> bool:
    """Can the start lie anywhere in a set? (a little normal noise does not carry it to the border)"""
    return (e.op == "draw" and e.attrs[0] != "normal") or any(_drawn_from_a_set(a) for a in e.args)


def _list(value: Any) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)


def input_domain(self: Checker, e: t.Expr) -> tuple[Any, Any] | None:
    """`[0, 1]`, `[[0, 0, 0], [1, 1, 1]]` (per channel) or `reals`."""
    if e == t.Name("reals"):
        return None
    if not isinstance(e, t.Sequence) or len(e.items) != 2:
        self.report.error("E031", "the input domain is an interval or reals", e.span, "write input x in [0, 1]")
        return (0.0, 1.0)
    ends: list[Any] = []
    for end in e.items:
        if isinstance(end, t.Sequence):
            numbers = tuple(self.inference.number(i, self.scope, self.at, "an end of the domain") for i in end.items)
            ends.append(None if None in numbers else numbers)
        else:
            ends.append(self.inference.number(end, self.scope, self.at, "an end of the domain"))
    if None in ends:
        return (0.0, 1.0)
    low, high = ends
    if len({len(_list(v)) for v in ends if isinstance(v, tuple)}) > 1 or any(b >= h for b, h in zip(_list(low), _list(high), strict=False)):
        self.report.error(
            "E031", "the lower end of the input domain lies below the upper end, channel by channel", e.span, "write input x in [0, 1]"
        )
        return (0.0, 1.0)
    return low, high


__all__ = ["check_level", "input_domain"]
