"""`state`, `memory` and `find`: numbers that live across batches, and roots per example."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from lossdsl.check import build
from lossdsl.check.flow import varies
from lossdsl.check.infer import Inference
from lossdsl.check.options import validated
from lossdsl.check.scope import Function, Later, Report, Value, is_error
from lossdsl.check.typed import Typed, TypedFind, TypedState
from lossdsl.diagnostics import suggest
from lossdsl.lang.options import Options
from lossdsl.lang.specs import FINDERS
from lossdsl.lang.types import DESCRIPTION, SCALARS, Kind
from lossdsl.source import Span
from lossdsl.syntax import tree as t

if TYPE_CHECKING:
    from lossdsl.check.recipe import Checker


def foretell(self: Checker, node: t.Declaration) -> None:
    """States are known from the first statement on: levels read what the last batch left, whatever the order of writing."""
    quiet, scope = Inference(Report()), self.scope
    for item in node.items:
        if isinstance(item, t.Param):
            scope = scope.declare(item.name, Value(build.number(1), item.span, "param"))
        elif isinstance(item, t.Let):
            scope = scope.declare(item.name, Value(quiet.infer(item.value, scope, self.at), item.span))
        elif isinstance(item, t.Def):
            scope = scope.declare(item.name, Function(item, scope))
        elif isinstance(item, t.State):
            first = quiet.infer(item.init, scope, self.at)
            kind = Kind.REAL if item.per_example else Kind.VECTOR if first.kind is Kind.VECTOR else Kind.CONST
            own, op = frozenset({item.name}), "?" if is_error(first) else "state"
            value = Typed(op, (), kind, item.span, (item.name,), depends=own, low=-inf, high=inf)
            self.declare(item.name, Value(value, item.span, "state"), item.span, "state")


def check_state(self: Checker, node: t.State) -> None:
    """`state n = 0 then n + 1`, `memory r = 0 then t`."""
    what = "memory" if node.per_example else "state"
    init, update = self.inference.infer(node.init, self.scope, self.at), self.inference.infer(node.update, self.scope, self.at)
    foretold = self.scope.get(node.name)
    unknown = isinstance(foretold, Value) and is_error(foretold.typed)
    wanted = Kind.VECTOR if init.kind is Kind.VECTOR and not node.per_example else Kind.CONST
    if not is_error(init) and (unknown or (init.kind is wanted and (init.depends or varies(init)))):
        help = "write numbers, params, zeros(K) and ones(K)"
        self.report.error("E015", f"the first value of {node.name} is not known before the run", node.init.span, help)
        return
    if is_error(init, update):
        return
    if init.kind is not wanted:
        help = "write for example state n = 0 then n + 1, or state w = zeros(K) then ..."
        if node.per_example:
            help = "write for example memory r = 0 then CE(f(x), y)"
        said = f"the first value of a {what} is a fixed number" + ("" if node.per_example else " or class vector")
        self.report.error("E013", f"{said}, and this is {DESCRIPTION[init.kind]}", node.init.span, help)
        return
    if not _fits(update, wanted, node.per_example):
        said = f"the {what} {node.name} holds {_held(wanted, node.per_example)}, and this is {DESCRIPTION[update.kind]}"
        self.report.error("E013", said, node.update.span, _mended(node, update, wanted), label=str(update.kind))
        return
    self.states.append(TypedState(node.name, init, update, node.per_example, node.mode, node.span))


def _fits(update: Typed, wanted: Kind, per_example: bool) -> bool:
    if per_example:
        return update.kind in SCALARS
    if wanted is Kind.CONST:
        return update.kind is Kind.CONST or (update.kind is Kind.REAL and not varies(update))
    return update.kind in (Kind.VECTOR, Kind.PROB) and not varies(update)


def _mended(node: t.State, update: Typed, wanted: Kind) -> str:
    """What to write for a new value of another kind."""
    if node.per_example:
        return "reduce it to one number per example, such as CE(f(x), y)"
    if wanted is Kind.VECTOR:
        return "take one number per class: class_mean(e) or class_sum(e)"
    if update.kind in (Kind.VECTOR, Kind.PROB) and not varies(update):
        return f"start with one number per class: state {node.name} = zeros(K) then ..."
    return f"reduce it over the batch: batch_mean(e); or keep one number per example: memory {node.name} = ..."


def _held(wanted: Kind, per_example: bool) -> str:
    return "one number per example" if per_example else "one number" if wanted is Kind.CONST else "one number per class"


def check_find(self: Checker, node: t.Find) -> TypedFind | None:
    """`find t in [lo, hi] where EXPR == 0 by bisection(steps = 10)`."""
    ends = node.interval.items if isinstance(node.interval, t.Sequence) else ()
    if len(ends) != 2:
        self.report.error("E020", "find looks in an interval", node.interval.span, "write find t in [0, 1] where ... == 0")
        return None
    low, high = (self.inference.scalar(end, self.scope, self.at, "an end of the interval") for end in ends)
    bounds = () if is_error(low, high) else (low.low, high.high)
    found = Typed(
        "found",
        (),
        Kind.REAL,
        node.span,
        (node.name,),
        depends=frozenset({node.name}),
        low=min(bounds, default=-inf),
        high=max(bounds, default=inf),
    )
    inner = self.scope.declare(node.name, Value(found, node.span, "find"))
    condition = node.condition
    if not (isinstance(condition, t.Compare) and condition.ops == ("==",)):
        what = f"{condition.ops[0]} stands here" if isinstance(condition, t.Compare) else "there is no == here"
        self.report.error("E020", f"find solves an equation, and {what}", condition.span, "write where EXPR == 0")
        return None
    left, right = (self.inference.scalar(o, inner, self.at, "a side of the equation") for o in condition.operands)
    options = _finder(self, node.solver)
    if options is None or is_error(low, high, left, right):
        return None
    if low.low > high.high:
        self.report.error("E016", "the lower end of the interval lies above the upper end", node.interval.span, "write the lower end first")
        return None
    value = left if right.value == 0 else build.combine("sub", build.scalar_kind(left, right), left, right, condition.span)
    if node.name not in value.depends:
        help = f"use {node.name} in it, for example where CE(f(x + {node.name} * (x' - x)), y) == 1"
        self.report.error("E021", f"the equation does not depend on {node.name}", condition.span, help)
        return None
    if "batch" in value.depends:
        help = "leave out batch_mean and batch_sum: each example has its own equation"
        self.report.error("E021", f"{node.name} is one number per example, and the equation is one of the batch", condition.span, help)
        return None
    return TypedFind(node.name, low, high, value, options, "eval", node.span)


def _finder(self: Checker, call: t.Call) -> Options | None:
    name = call.func.id if isinstance(call.func, t.Name) else ""
    if name not in FINDERS:
        otherwise = "roots are found by " + ", ".join(FINDERS)
        self.report.misnamed("E023", f"there is no root finder {name}".rstrip(), call.func.span, suggest(name, FINDERS), otherwise)
        return None
    options: Options | None = validated(self.inference, FINDERS[name], name, call.args, call.span, self.scope, self.at)
    return options


def found_value(self: Checker, node: t.Find, typed: TypedFind | None) -> Value | Later:
    """What the name of a find stands for after it."""
    if typed is None:
        return Later("a wrong find")
    depends = frozenset({node.name}) | typed.value.depends
    own = Typed("found", (), Kind.REAL, node.span, (node.name,), depends=depends, low=typed.low.low, high=typed.high.high)
    return Value(own, Span(node.span.start, node.span.end, node.span.file), "find")
