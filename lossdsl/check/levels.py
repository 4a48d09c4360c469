"""Lower levels, the upper level, and the input domain."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lossdsl.check import binders, draws
from lossdsl.check.flow import gradient_reaches
from lossdsl.check.infer import Context, Inference
from lossdsl.check.options import binder_as_call, validated
from lossdsl.check.scope import Later, LevelName, Report, Scope, Value, is_error
from lossdsl.check.typed import Axis, Domain, SolverSpec, Typed, TypedLevel, TypedSet
from lossdsl.diagnostics import suggest
from lossdsl.lang.specs import OPTIMIZERS, SETS, SOLVERS, OptimizerSpec
from lossdsl.lang.types import DESCRIPTION, SCALARS, Kind
from lossdsl.syntax import tree as t

if TYPE_CHECKING:
    from lossdsl.check.recipe import Checker

_START_WORDS = ("uniform", "corner", "previous")
LATER_SOLVERS = ("prox", "apgd", "fab", "square", "cw", "power")
LATER_OPTIONS = {"noise": "noise inside the step", "until": "early stopping per example", "probe": "power iteration"}


def check_level(self: Checker, node: t.Level) -> tuple[TypedLevel | None, int | None, Domain | None]:
    """The typed level (None if wrong), its number of steps, and its classes if it is a family."""
    set_name = node.set.func.id if isinstance(node.set, t.Call) and isinstance(node.set.func, t.Name) else ""
    if set_name in SETS and SETS[set_name].over != "input":
        self.report.not_yet(f"levels over {SETS[set_name].over}", node.set.span)
        self.scope = self.scope.declare(node.var, Later(f"levels over {SETS[set_name].over}"))
        return None, None, None
    domain = binders.infer_domain(self.inference, node.index, self.scope, self.at) if node.index else None
    if node.index is not None and domain is not None and domain.expr is not None and "theta" in domain.expr.depends:
        help = "write [j != y]; the model is in one mode here and in another in the upper level"
        self.report.error("E025", f"the classes of {node.var} depend on the model", node.index.span, help)
    axis = Axis(0, domain) if domain else None
    parts = draws.infer_set(self.inference, node.set, self.scope, self.at)
    solver = check_solver(self, node)
    steps = solver.options.steps if solver else None
    objective = _objective(self, node, axis, steps)
    if node.through is not None and node.through != t.Name("nothing"):
        self.report.not_yet("gradients through a lower level", node.through.span)
    if parts is None or solver is None or objective is None or is_error(objective) or (node.index and axis is None):
        return None, steps, domain
    region = TypedSet(parts[0], parts[1], parts[2], draws.built_on_x(parts[1]), node.set.span)
    if node.var not in objective.depends:
        self.report.error(
            "E021",
            f"the objective does not depend on {node.var}",
            objective.span,
            f"use {node.var} in it, for example CE(f({node.var}), y)",
        )
        return None, steps, domain
    if not gradient_reaches(objective, lambda e: e.op in ("point", "pick") and node.var in e.depends):
        help = "its gradient is zero everywhere: attack a surrogate such as CE or the margin"
        self.report.error("E021", f"the objective passes no gradient to {node.var}", objective.span, help)
        return None, steps, domain
    if region.boxed and self.domain is not None and region.name != "linf" and region.center.op not in ("input", "point", "pick"):
        self.report.error(
            "E020",
            f"the centre of {region.name} may lie outside the input domain",
            region.center.span,
            f"centre it at x or at a lower solution, or use linf: {region.name} is met with the domain around its centre",
        )
        return None, steps, domain
    _lint_radius(self, node, region, solver)
    level = TypedLevel(node.var, axis, region, node.sense or "maximize", objective, solver, node.mode or "eval", node.span, node.run)
    return level, steps, domain


def _objective(self: Checker, node: t.Level, axis: Axis | None, steps: int | None) -> Typed | None:
    if node.objective is None:
        if not self.report.lost_words:
            self.report.error("E018", f"the level of {node.var} has no objective", node.span, "add: maximize CE(f(" + node.var + "), y)")
        return None
    scope = self.scope
    if axis is None or node.index is None:
        scope = scope.declare(node.var, LevelName(node.var, steps, None, node.span))
    else:
        scope = scope.declare(node.var, LevelName(node.var, steps, axis.domain, node.span, own=axis))
        scope = scope.declare(node.index.var, Value(binders.bound(axis, node.index.span), node.index.span, "binder"))
    iterates = [part for part in t.walk(node.objective) if isinstance(part, t.Iterate)]
    own = [part for part in iterates if any(isinstance(n, t.Name) and n.id == node.var for n in t.walk(part.base))]
    if own:
        return self.report.error(
            "E017",
            f"{node.var} has no iterates inside its own objective",
            own[0].span,
            "use iterates in later levels or in the upper level",
        )
    objective = self.inference.scalar(node.objective, scope, self.at, "the objective of a level")
    if "batch" in objective.depends:
        return self.report.error(
            "E021",
            "the objective of an input level speaks of one example at a time",
            node.objective.span,
            "leave out batch_mean and batch_sum: each example is attacked on its own",
        )
    return objective


def check_solver(self: Checker, node: t.Level) -> SolverSpec | None:
    """`by pgd(steps = 10, step = step, start = x)`."""
    call = node.solver
    if call is not None and binder_as_call(self.inference, call.func):
        return None
    if call is None:
        if not self.report.lost_words:
            self.report.error(
                "E018", f"the level of {node.var} names no solver", node.span, "add: by pgd(steps = 10, step = 2/255, start = x)"
            )
        return None
    name = call.func.id if isinstance(call.func, t.Name) else ""
    if name in LATER_SOLVERS:
        self.report.not_yet(f"the solver {name}", call.span)
        return None
    if name not in SOLVERS:
        self.report.misnamed(
            "E023", f"there is no solver {name}".rstrip(), call.func.span, suggest(name, SOLVERS), "the solvers are " + ", ".join(SOLVERS)
        )
        return None
    later = _later_options(self, call)
    starts = [a for a in call.args if a.name == "start"]
    if len(starts) > 1:
        self.report.error("E011", "start is given twice", starts[1].span, "keep one of them")
    rest = tuple(_settled(a, later) for a in call.args if a.name != "start" and (a not in later or a.name == "step"))
    taken = tuple(str(a.name) for a in (*starts, *later))
    options = validated(self.inference, SOLVERS[name].options, name, rest, call.span, self.scope, self.at, taken)
    strange = any(a.name not in SOLVERS[name].options.model_fields for a in rest)
    if not starts and strange:
        return None
    start = _start(self, starts, call, node, name)
    if options is None or start is None:
        return None
    return SolverSpec(name, options, start[0], start[1], call.span)


def _start(self: Checker, starts: list[t.Argument], call: t.Call, node: t.Level, name: str) -> tuple[Typed, str] | None:
    """The start expression and how it is used."""
    if not starts:
        help = "write start = x, start = x + normal(0.001) or start = uniform: there is no default start"
        self.report.error("E018", f"{name} needs a start", call.span, help)
        return None
    e = starts[-1].value
    if isinstance(e, t.Name) and e.id in _START_WORDS and self.scope.get(e.id) is None:
        if e.id == "previous" and node.run is not None:
            self.report.error("E027", "an attack has no previous batch", e.span, "start at x, at a random point, or uniform")
            return None
        random = frozenset({"random"} if e.id != "previous" else ())
        return Typed("draw", (), Kind.INPUT, e.span, (e.id,), depends=random), e.id
    raw = isinstance(e, t.Call) and e.func == t.Name("raw")
    if isinstance(e, t.Call) and raw:
        if len(e.args) != 1:
            self.report.error("E014", "raw takes one point", e.span, "write raw(x + normal(0.001))")
            return None
        e = e.args[0].value
    scope = self.scope
    if node.index is not None:
        domain = binders.infer_domain(self.inference, node.index, scope, self.at)
        if domain is not None:
            scope = scope.declare(node.index.var, Value(binders.bound(Axis(0, domain), node.index.span), node.index.span, "binder"))
    typed = self.inference.infer(e, scope, Context(draws=True, later=self.at.later))
    if is_error(typed):
        return None
    if typed.kind is not Kind.INPUT and typed.value != 0:
        self.report.error(
            "E013",
            f"a start is an Input, and this is {DESCRIPTION[typed.kind]}",
            e.span,
            "write for example start = x",
            label=str(typed.kind),
        )
        return None
    return typed, "raw" if raw else "expression"


def _lint_radius(self: Checker, node: t.Level, region: TypedSet, solver: SolverSpec) -> None:
    """T07 and T08: radii and steps that cannot be meant."""
    radius = region.radius.value
    if radius is None:
        return
    if region.boxed and self.domain is not None and region.name == "linf":
        low, high = self.domain
        width = max(h - b for b, h in zip(_list(low), _list(high), strict=False))
        if radius > width:
            self.report.warn(
                "T08",
                f"the radius {radius:g} is larger than the whole input domain",
                region.radius.span,
                f"radii are in the units of x: in [0, 1] write {radius:g}/255",
            )
    step = getattr(solver.options, "step", None)
    if (
        step is not None
        and solver.name == "pgd"
        and 0 < solver.options.steps * step < radius * (1 - 1e-9)
        and solver.start_kind == "expression"
        and not _drawn_from_a_set(solver.start)
    ):
        self.report.warn(
            "T07",
            f"{solver.options.steps} steps of {step:g} cannot reach the border of the set at {radius:g}",
            solver.span,
            "raise step or steps",
        )


def _later_options(self: Checker, call: t.Call) -> list[t.Argument]:
    """Options that come later, reported."""
    later = [a for a in call.args if a.name in LATER_OPTIONS]
    for arg in later:
        self.report.not_yet(LATER_OPTIONS[str(arg.name)], arg.span)
    changing = [a for a in call.args if a.name == "step" and _per_example(self, a.value)]
    for arg in changing:
        self.report.not_yet("a step per example", arg.span)
    return [*later, *changing]


def _settled(arg: t.Argument, later: list[t.Argument]) -> t.Argument:
    """A step that is not supported yet counts as given."""
    return replace(arg, value=t.Number("0", span=arg.value.span)) if arg in later else arg


def _per_example(self: Checker, e: t.Expr) -> bool:
    """Is this a number that differs between examples?"""
    quiet = Inference(Report())
    value = quiet.infer(e, self.scope, self.at)
    return not is_error(value) and value.kind is Kind.REAL


def _drawn_from_a_set(e: Typed) -> bool:
    """Can the start lie anywhere in a set? (a little normal noise does not carry it to the border)"""
    return (e.op == "draw" and e.attrs[0] != "normal") or any(_drawn_from_a_set(a) for a in e.args)


def _list(value: Any) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)


def check_upper(self: Checker, node: t.Upper) -> None:
    """`upper minimize EXPR by OPTIMIZER(...)`."""
    if node.at is not None:
        self.report.not_yet("upper at other weights", node.span)
    if node.joint:
        self.report.not_yet("joint forward passes", node.span)
    if node.mode not in (None, "train"):
        self.report.error(
            "E029",
            f"the upper level runs in train mode, not in {node.mode}",
            node.span,
            "let NAME = e with f in eval evaluates e in eval mode",
        )
    objective = self.inference.scalar(node.objective, self.scope, self.at, "the upper objective")
    if not is_error(objective) and "theta" not in objective.depends:
        self.report.error("E021", "the upper objective does not depend on the model", node.objective.span, "use f(...) or p(...) in it")
    elif not is_error(objective) and not gradient_reaches(objective, lambda e: e.op == "logits"):
        help = "its gradient is zero everywhere: minimize a surrogate such as CE, and stop less"
        self.report.error("E021", "the upper objective passes no gradient to the model", node.objective.span, help)
    self.objective = objective
    if not node.optimizers:
        if not self.report.lost_words:
            self.report.error("E018", "the upper level names no optimizer", node.span, "add: by sgd(lr = 0.1, momentum = 0.9)")
        return
    if len(node.optimizers) > 1 or node.optimizers[0].model is not None:
        self.report.not_yet("optimizers for other models", node.optimizers[-1].span)
        return
    self.optimizer = optimizer(self, node.optimizers[0].call)


def optimizer(self: Checker, call: t.Call) -> OptimizerSpec | None:
    if binder_as_call(self.inference, call.func):
        return None
    name = call.func.id if isinstance(call.func, t.Name) else ""
    if name not in OPTIMIZERS:
        otherwise = "the optimizers are " + ", ".join(OPTIMIZERS)
        self.report.misnamed("E023", f"there is no optimizer {name}".rstrip(), call.func.span, suggest(name, OPTIMIZERS), otherwise)
        return None
    args = []
    for arg in call.args:
        if arg.name == "normalize":
            self.report.not_yet("normalised updates", arg.span)
        else:
            args.append(arg)
    options = validated(self.inference, OPTIMIZERS[name], name, tuple(args), call.span, self.scope, self.at)
    return None if options is None else OptimizerSpec(name, options)


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


__all__ = ["SCALARS", "Scope", "check_level", "check_upper", "input_domain"]
