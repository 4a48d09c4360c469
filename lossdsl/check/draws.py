"""Random draws: where they may stand and what they give."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from lossdsl.check import build
from lossdsl.check.arguments import counted
from lossdsl.check.flow import varies
from lossdsl.check.scope import Scope, Value, is_error
from lossdsl.check.typed import Typed, number_text
from lossdsl.diagnostics import did_you_mean, suggest
from lossdsl.lang.specs import SETS
from lossdsl.lang.types import DESCRIPTION, SCALARS, Kind
from lossdsl.syntax import tree as t

if TYPE_CHECKING:
    from lossdsl.check.infer import Context, Inference


def infer_draw(self: Inference, e: t.Call, scope: Scope, at: Context) -> Typed:
    """`normal(s)`, `uniform(lo, hi)`, `uniform(linf(0, eps))`, `corner(linf(0, eps))`, `rademacher()`."""
    assert isinstance(e.func, t.Name)
    name = e.func.id
    if not at.draws:
        return self.report.error(
            "E027", "random draws belong to sample statements and to a solver's arguments", e.span, f"declare it: sample eta ~ {name}(...)"
        )
    if name in ("uniform", "corner") and len(e.args) == 1:
        parts = infer_set(self, e.args[0].value, scope, at)
        if parts is None:
            return Typed("?", (), Kind.CONST, e.span)
        set_name, center, radius = parts
        boxed = ("boxed",) if built_on_x(center) else ()
        return Typed(
            "draw", (center, radius), Kind.INPUT, e.span, (name, set_name, *boxed), depends=build.depends(center, radius) | {"random"}
        )
    wanted = {"normal": 1, "uniform": 2, "rademacher": 0, "corner": 1}[name]
    if len(e.args) != wanted:
        forms = {"normal": "normal(s)", "uniform": "uniform(SET) or uniform(lo, hi)", "rademacher": "rademacher", "corner": "corner(SET)"}
        return self.report.error("E014", f"{name} takes {counted(wanted)} and got {len(e.args)}", e.span, f"write {forms[name]}")
    numbers = [self.scalar(a.value, scope, at, f"the argument of {name}") for a in e.args]
    if is_error(*numbers):
        return Typed("?", (), Kind.CONST, e.span)
    if name == "normal" and numbers[0].high < 0:
        return self.report.error("E016", "a standard deviation is not negative", e.args[0].span, "write for example normal(0.001)")
    if name == "uniform" and numbers[0].low > numbers[1].high:
        return self.report.error(
            "E016", "the lower end of uniform lies above the upper end", e.span, "write the lower end first: uniform(0, 1)"
        )
    kind = Kind.REAL if name == "uniform" else Kind.INPUT
    low, high = (-1.0, 1.0) if name == "rademacher" else (numbers[0].low, numbers[1].high) if name == "uniform" else (-inf, inf)
    return Typed("draw", tuple(numbers), kind, e.span, (name,), depends=build.depends(*numbers) | {"random"}, low=low, high=high)


def infer_set(self: Inference, e: t.Expr, scope: Scope, at: Context) -> tuple[str, Typed, Typed] | None:
    """The name, centre and radius of a ball; None after reporting."""
    if not (isinstance(e, t.Call) and isinstance(e.func, t.Name)):
        self.report.error("E020", "a set is expected here", e.span, "for example linf(x, eps)")
        return None
    name = e.func.id
    if name not in SETS:
        balls = [row.name for row in SETS.values() if row.over == "input"]
        plain = name.replace("_", "").lower()
        best = plain if plain in SETS else suggest(plain, SETS)
        self.report.misnamed("E020", f"there is no set {name}", e.func.span, best, f"balls around a point are {', '.join(balls)}")
        return None
    if SETS[name].over != "input":
        what = {"weights": "weights", "classes": "class weights"}[SETS[name].over]
        self.report.error("E020", f"{name} is a set of {what}, not of inputs", e.span, "for example linf(x, eps)")
        return None
    if len(e.args) != 2 or any(a.name for a in e.args):
        self.report.error("E014", f"{name} takes a centre and a radius", e.span, f"write {name}(x, eps)")
        return None
    center = self.infer(e.args[0].value, scope, at)
    radius = self.scalar(e.args[1].value, scope, at, "the radius of a set")
    if is_error(center, radius):
        return None
    if center.kind is not Kind.INPUT and center.value != 0:
        self.report.error(
            "E020",
            f"the centre of a set is an Input or 0, and this is {DESCRIPTION[center.kind]}",
            e.args[0].span,
            f"write {name}(x, eps), or {name}(0, eps) for perturbations",
        )
        return None
    if radius.high < 0:
        self.report.error(
            "E016",
            f"a radius is not negative, and this is {number_text(radius.high)}",
            e.args[1].span,
            "a radius is a distance in the units of x, such as 8/255",
        )
        return None
    return name, center, radius


def built_on_x(e: Typed) -> bool:
    """Is the expression built on the clean input or on a solution near it? Sets centred there are met with the input domain."""
    return e.op in ("input", "point", "pick") or any(built_on_x(a) for a in e.args)


def sample_kind(self: Inference, draw: Typed, over: t.Expr | None, scope: Scope) -> tuple[str, Kind] | None:
    """What a sampled value ranges over and its kind; None after reporting."""
    default = "example" if draw.kind is Kind.REAL else "x"
    if over is None:
        return default, draw.kind
    if isinstance(over, t.Call):
        self.report.error(
            "E027", "a draw over latent(n) feeds a model of a game", over.span, "in a recipe a draw is over x, example, classes or batch"
        )
        return None
    name = over.id if isinstance(over, t.Name) else ""
    kinds = {"x": Kind.INPUT, "example": Kind.REAL, "batch": Kind.CONST, "classes": Kind.VECTOR}
    if name not in kinds:
        self.report.error("E027", "a draw is over x, example, classes or batch", over.span, did_you_mean(name, kinds))
        return None
    if len(draw.attrs) > 1 and name != "x":
        self.report.error(
            "E027", f"a draw from a set of Inputs is over x, not over {name}", over.span, "use uniform(lo, hi), normal(s) or rademacher()"
        )
        return None
    return name, kinds[name]


def infer_sampler(self: Inference, given: list[t.Argument], scope: Scope, at: Context) -> Typed | None:
    """`sampler = classes(q)`: the law of the classes that a batch is drawn from; None after reporting."""
    if len(given) > 1:
        self.report.error("E011", "sampler is given twice", given[1].span, "keep one of them")
        return None
    e = given[0].value
    if not (isinstance(e, t.Call) and e.func == t.Name("classes") and len(e.args) == 1):
        self.report.error("E014", "a sampler draws classes", e.span, "write sampler = classes(q) with q a probability for each class")
        return None
    law = self.infer(e.args[0].value, scope, at)
    if is_error(law):
        return None
    help = "build it from states, for example softmax(j: w[j]) with state w = zeros(K) then ..."
    if law.kind not in (Kind.VECTOR, Kind.PROB):
        self.report.error("E013", f"a sampler has one number per class, and this is {DESCRIPTION[law.kind]}", e.args[0].span, help)
        return None
    if varies(law):
        self.report.error("E027", "a sampler is one law for the whole batch, and this differs between examples", e.args[0].span, help)
        return None
    if any(not _is_state(scope, name) for name in law.depends):
        self.report.error("E027", "a sampler is asked before the batch is there, and this depends on the batch", e.args[0].span, help)
        return None
    return law


def _is_state(scope: Scope, name: str) -> bool:
    binding = scope.get(name)
    return isinstance(binding, Value) and binding.what == "state"


__all__ = ["SCALARS", "infer_draw", "infer_set", "sample_kind"]
