"""The solver of a lower level: its options, its start, and the expressions among its arguments."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lossdsl.check import binders
from lossdsl.check.infer import Context, Inference
from lossdsl.check.options import binder_as_call, validated
from lossdsl.check.scope import LevelName, Report, Scope, Value, is_error
from lossdsl.check.typed import Axis, SolverSpec, Through, Typed
from lossdsl.diagnostics import suggest
from lossdsl.lang.options import Options
from lossdsl.lang.specs import SOLVERS, THROUGH
from lossdsl.lang.types import DESCRIPTION, SCALARS, Kind
from lossdsl.syntax import tree as t

if TYPE_CHECKING:
    from lossdsl.check.recipe import Checker

_START_WORDS = ("uniform", "corner", "previous", "sphere")
_EXPRESSIONS = ("start", "noise", "until", "at")
"""Arguments that are expressions and no options."""
_MOVING_STEP = ("pgd", "ascent", "momentum")
_OVER_WEIGHTS = ("linear", "pgd", "ascent", "momentum", "sgd", "adam", "rmsprop")


def check_solver(self: Checker, node: t.Level, over: str) -> SolverSpec | None:
    """`by pgd(steps = 10, step = step, start = x)`."""
    call = node.solver
    if call is not None and binder_as_call(self.inference, call.func):
        return None
    if call is None:
        if not self.report.lost_words:
            example = "by linear" if over == "weights" else "by pgd(steps = 10, step = 2/255, start = x)"
            self.report.error("E018", f"the level of {node.var} names no solver", node.span, f"add: {example}")
        return None
    name = call.func.id if isinstance(call.func, t.Name) else ""
    if name not in SOLVERS:
        self.report.misnamed(
            "E023", f"there is no solver {name}".rstrip(), call.func.span, suggest(name, SOLVERS), "the solvers are " + ", ".join(SOLVERS)
        )
        return None
    if over != "input" and name not in _OVER_WEIGHTS:
        what = {"weights": "weights", "classes": "class weights"}[over]
        self.report.error("E023", f"{name} is for inputs, and {node.var} is {what}", call.func.span, "use " + ", ".join(_OVER_WEIGHTS))
        return None
    return _spec(self, node, call, name, over)


def _spec(self: Checker, node: t.Level, call: t.Call, name: str, over: str) -> SolverSpec | None:
    own = {key: [a for a in call.args if a.name == key] for key in _EXPRESSIONS if key != "at" or name == "prox"}
    for key, found in own.items():
        if len(found) > 1:
            self.report.error("E011", f"{key} is given twice", found[1].span, "keep one of them")
    sound, per_example = _step(self, call, name, over)
    if not sound:
        return None
    taken = {id(a) for found in own.values() for a in found}
    rest = tuple(_settled(a) if a is per_example else a for a in call.args if id(a) not in taken)
    names = tuple(str(a.name) for found in own.values() for a in found)
    options = validated(self.inference, SOLVERS[name].options, name, rest, call.span, self.scope, self.at, names)
    strange = any(a.name not in SOLVERS[name].options.model_fields for a in rest)
    if not own["start"] and strange:
        return None
    at = _point_of_prox(self, own["at"], call) if name == "prox" else None
    if name == "prox" and at is None:
        return None
    if at is not None:
        start: tuple[Typed, str] | None = (at, "raw")
    elif not SOLVERS[name].needs_start:
        start = Typed("input", (), Kind.INPUT, call.span, depends=frozenset({"random"})), "own"
    else:
        start = _start(self, own["start"], call, node, name, over)
    if options is None or start is None or not _sound(self, own, name, over):
        return None
    step = None if per_example is None else self.inference.infer(per_example.value, self.scope, self.at)
    return SolverSpec(
        name, options, start[0], start[1], call.span, step, at, _noise(self, own["noise"], over), _until(self, own["until"], over)
    )  # fmt: skip


def _sound(self: Checker, own: dict[str, list[t.Argument]], name: str, over: str) -> bool:
    """Arguments that this solver cannot have."""
    for key, allowed in (("noise", ("pgd", "ascent", "momentum")), ("until", ("pgd", "ascent", "momentum", "sgd", "adam", "rmsprop"))):
        if own[key] and (name not in allowed or over != "input"):
            said, help = f"{name} has no argument {key}", f"{key} works with " + ", ".join(allowed)
            if over != "input":
                said, help = f"{key} is for levels over inputs", f"remove it: this level is one problem for the whole batch, over {over}"
            self.report.error("E030", said, own[key][0].span, help)
            return False
    if own["start"] and not SOLVERS[name].needs_start:
        help = "it steps from the point given by at" if name == "prox" else "it has a start of its own, as published"
        self.report.error("E030", f"{name} has no argument start", own["start"][0].span, help)
        return False
    return True


def _point_of_prox(self: Checker, given: list[t.Argument], call: t.Call) -> Typed | None:
    if not given:
        self.report.error("E018", "prox needs the point at", call.span, "write prox(at = z, weight = lambda)")
        return None
    point = self.inference.infer(given[0].value, self.scope, self.at)
    if is_error(point):
        return None
    if point.kind is not Kind.INPUT:
        said = f"prox steps from an Input, and this is {DESCRIPTION[point.kind]}"
        self.report.error("E013", said, given[0].value.span, "write for example at = z", label=str(point.kind))
        return None
    return point


def _noise(self: Checker, given: list[t.Argument], over: str) -> Typed | None:
    """`noise = normal(0.001)`: a draw, made anew in every update."""
    if not given:
        return None
    drawn = self.inference.infer(given[0].value, self.scope, Context(draws=True, later=self.at.later))
    if is_error(drawn):
        return None
    if drawn.kind is not Kind.INPUT or "random" not in drawn.depends:
        self.report.error("E027", "noise is a random draw of the shape of x", given[0].span, "write for example noise = normal(0.001)")
        return None
    return drawn


def _until(self: Checker, given: list[t.Argument], over: str) -> Typed | None:
    """`until fooled(tau)`."""
    if not given:
        return None
    e = given[0].value
    if not (isinstance(e, t.Call) and e.func == t.Name("fooled") and len(e.args) == 1):
        help = "write for example until fooled(1): an example leaves when it is misclassified and has had 1 further update"
        self.report.error("E014", "until takes fooled(tau) and nothing else", given[0].span, help)
        return None
    tau = self.inference.scalar(e.args[0].value, self.scope, self.at, "the number of further updates")
    if is_error(tau):
        return None
    if tau.low < 0 or (tau.value is not None and not isinstance(tau.value, int)):
        self.report.error("E016", "the number of further updates is a whole number from 0", e.args[0].span, "write for example fooled(1)")
        return None
    return tau


def _step(self: Checker, call: t.Call, name: str, over: str) -> tuple[bool, t.Argument | None]:
    """The step where it is no fixed number; False after reporting that it can be no step."""
    given = next((a for a in call.args if a.name == "step"), None)
    if given is None or "step" not in SOLVERS[name].options.model_fields:
        return True, None
    value = Inference(Report()).infer(given.value, self.scope, self.at)
    if is_error(value) or value.value is not None:
        return True, None  # a number: its range is the table's
    place = given.value.span
    if value.kind not in SCALARS:
        said = f"a step is a number, and this is {DESCRIPTION[value.kind]}"
        help = "write a number, or one per example such as eps * p(x)[y]"
        self.report.error("E013", said, place, help, label=str(value.kind))
    elif name not in _MOVING_STEP:
        self.report.error("E015", f"{name} takes a fixed step", place, "use " + ", ".join(_MOVING_STEP) + " for a step per example")
    elif over != "input" and value.kind is Kind.REAL:
        said = f"a level over {over} is one problem, and this is one step per example"
        self.report.error("E013", said, place, "write one number, or reduce it: batch_mean(e)", label=str(value.kind))
    elif value.low < 0 and value.high <= 0:
        self.report.error("E016", "a step is not negative", place, "to descend write minimize, not a negative step")
    else:
        return True, given
    return False, None


def _settled(arg: t.Argument) -> t.Argument:
    """A step per example counts as given, whatever its number."""
    return replace(arg, value=t.Number("0", span=arg.value.span))


def _start(self: Checker, starts: list[t.Argument], call: t.Call, node: t.Level, name: str, over: str) -> tuple[Typed, str] | None:
    """The start expression and how it is used."""
    if not starts:
        if over == "weights":
            return Typed("weights", (), Kind.WEIGHTS, call.span, ("theta",), depends=frozenset({"theta"})), "raw"
        help = "write start = x, start = x + normal(0.001) or start = uniform: there is no default start"
        if over == "classes":
            help = "write start = ones(K) / K: there is no default start"
        self.report.error("E018", f"{name} needs a start", call.span, help)
        return None
    e = starts[-1].value
    if isinstance(e, t.Name) and e.id in _START_WORDS and self.scope.get(e.id) is None:
        return _word(self, e, node, over)
    raw = isinstance(e, t.Call) and e.func == t.Name("raw")
    if isinstance(e, t.Call) and raw:
        if len(e.args) != 1:
            self.report.error("E014", "raw takes one point", e.span, "write raw(x + normal(0.001))")
            return None
        e = e.args[0].value
    typed = self.inference.infer(e, _with_class(self, node), Context(draws=True, later=self.at.later))
    if is_error(typed):
        return None
    wanted, word = {
        "input": (Kind.INPUT, "an Input"), "weights": (Kind.WEIGHTS, "Weights"), "classes": (Kind.VECTOR, "a Vector over classes"),
    }[over]  # fmt: skip
    if typed.kind is not wanted and not (over == "input" and typed.value == 0):
        example = {"input": "x", "weights": "theta", "classes": "ones(K) / K"}[over]
        said = f"a start is {word}, and this is {DESCRIPTION[typed.kind]}"
        self.report.error("E013", said, e.span, f"write for example start = {example}", label=str(typed.kind))
        return None
    return typed, "raw" if raw or over == "weights" else "expression"


def _word(self: Checker, e: t.Name, node: t.Level, over: str) -> tuple[Typed, str] | None:
    """`uniform`, `corner`, `sphere`, `previous`."""
    if e.id == "previous" and node.run is not None:
        self.report.error("E027", "an attack has no previous batch", e.span, "start at x, at a random point, or uniform")
        return None
    if over != "input":
        example = "theta" if over == "weights" else "ones(K) / K"
        self.report.error("E027", f"{e.id} is a start for inputs", e.span, f"write for example start = {example}")
        return None
    random = frozenset({"random"} if e.id != "previous" else ())
    return Typed("draw", (), Kind.INPUT, e.span, (e.id,), depends=random), e.id


def _with_class(self: Checker, node: t.Level) -> Scope:
    """The scope of a start: in a family it may speak of the class."""
    if node.index is None:
        return self.scope
    domain = binders.infer_domain(self.inference, node.index, self.scope, self.at)
    if domain is None:
        return self.scope
    return self.scope.declare(node.index.var, Value(binders.bound(Axis(0, domain), node.index.span), node.index.span, "binder"))


def check_through(self: Checker, node: t.Level, over: str, region: str, solver: SolverSpec) -> tuple[bool, Through | None]:
    """`through nothing | unrolling | implicit(...) | danskin(...)`; False after reporting why it cannot be."""
    e = node.through
    if e is None or e == t.Name("nothing"):
        return True, None
    call = e if isinstance(e, t.Call) else t.Call(e, (), span=e.span)
    name = call.func.id if isinstance(call.func, t.Name) else ""
    if name not in THROUGH:
        otherwise = "the ways through a level are nothing, " + ", ".join(THROUGH)
        self.report.misnamed("E023", f"there is no gradient flow {name}".rstrip(), call.func.span, suggest(name, THROUGH), otherwise)
        return False, None
    options: Options | None = validated(self.inference, THROUGH[name], name, call.args, call.span, self.scope, self.at)
    if options is None:
        return False, None
    why = _no_way(node, name, over, region, solver)
    if why is not None:
        self.report.error("E021", why[0], e.span, why[1])
        return False, None
    return True, Through(name, options, e.span)


_UNROLLED = ("pgd", "ascent", "linear", "momentum", "prox")


def _no_way(node: t.Level, name: str, over: str, region: str, solver: SolverSpec) -> tuple[str, str] | None:
    """Why a gradient cannot pass this level in this way, and what to do; None if it can."""
    if over != "input":
        return f"a level over {over} is a constant of the upper level", "remove through"
    if node.run is not None:
        return "an attack has no upper level", "remove through"
    if node.index is not None:
        return "a gradient does not pass a family", "declare one lower variable, or remove through"
    if name == "implicit" and region != "linf":
        return f"the optimality conditions are differentiated on boxes, and {region} has a curved border", "use linf, or through unrolling"
    if name == "unrolling" and solver.name not in _UNROLLED:
        return f"the updates of {solver.name} are not differentiated", "use " + ", ".join(_UNROLLED)
    if name == "danskin" and solver.options.restarts > 1:
        return "danskin makes runs of its own", "remove restarts: starts says how many"
    return None


__all__ = ["LevelName", "check_solver", "check_through"]
