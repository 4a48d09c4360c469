"""The set of a level: balls around inputs, balls around the weights, the simplex over the classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lossdsl.check import build, draws
from lossdsl.check.infer import CLASSES_COUNT
from lossdsl.check.scope import LevelName, Scope, is_error
from lossdsl.check.typed import TypedSet, number_text
from lossdsl.lang.specs import SETS
from lossdsl.lang.types import DESCRIPTION, Kind
from lossdsl.syntax import tree as t

if TYPE_CHECKING:
    from lossdsl.check.recipe import Checker

_WEIGHT_SETS = ("l2", *(row.name for row in SETS.values() if row.over == "weights"))


def variable_of(e: t.Expr, scope: Scope) -> str:
    """What a level over this set moves: "input", "weights" or "classes"."""
    if not (isinstance(e, t.Call) and isinstance(e.func, t.Name)):
        return "input"
    center = e.args[0].value if e.args else None
    if isinstance(center, t.Name) and scope.get(center.id) is None and center.id == "theta":
        return "weights"
    binding = scope.get(center.id) if isinstance(center, t.Name) else None
    if isinstance(binding, LevelName) and binding.over == "weights":
        return "weights"
    return SETS[e.func.id].over if e.func.id in SETS else "input"


def infer_region(self: Checker, e: t.Expr, over: str) -> TypedSet | None:
    """The set after `in`; None after reporting."""
    if over == "input":
        parts = draws.infer_set(self.inference, e, self.scope, self.at)
        return parts and TypedSet(parts[0], parts[1], parts[2], draws.built_on_x(parts[1]), e.span)
    assert isinstance(e, t.Call) and isinstance(e.func, t.Name)
    return _simplex(self, e) if over == "classes" else _weights(self, e, e.func.id)


def _simplex(self: Checker, e: t.Call) -> TypedSet | None:
    if len(e.args) != 1 or e.args[0].value != t.Name("K"):
        self.report.error("E014", "simplex takes the number of classes", e.span, "write simplex(K)")
        return None
    return TypedSet("simplex", CLASSES_COUNT, build.number(1), False, e.span)


def _weights(self: Checker, e: t.Call, name: str) -> TypedSet | None:
    """`l2(theta, rho)`, `layerwise(theta, gamma, only = matrices)`, `adaptive(theta, rho)`."""
    if name not in _WEIGHT_SETS:
        help = "sets of weights are " + ", ".join(f"{n}(theta, rho)" for n in _WEIGHT_SETS) + f"; inputs lie in {name}(x, eps)"
        self.report.error("E020", f"{name} is a set of inputs, and theta is weights", e.span, help)
        return None
    plain = [a.value for a in e.args if a.name is None]
    only = [a for a in e.args if a.name is not None]
    strange = [a for a in only if a.name != "only" or a.value not in (t.Name("matrices"), t.Name("all"))]
    if strange:
        help = "only = matrices leaves out tensors of one dimension, only = all none"
        self.report.error("E030", f"{name} takes only = matrices or only = all", strange[0].span, help)
        return None
    if len(plain) != 2 or len(only) > 1:
        help = f"write {name}(theta, rho) or {name}(theta, rho, only = matrices)"
        self.report.error("E014", f"{name} takes weights and a radius", e.span, help)
        return None
    center = self.inference.infer(plain[0], self.scope, self.at)
    radius = self.inference.scalar(plain[1], self.scope, self.at, "the radius of a set")
    if is_error(center, radius):
        return None
    if center.kind is not Kind.WEIGHTS or center.attrs != ("theta",):
        what = "other weights" if center.kind is Kind.WEIGHTS else DESCRIPTION[center.kind]
        help = f"write {name}(theta, rho), or a set of inputs: linf(x, eps)"
        self.report.error("E020", f"{name} is a set around theta, and this is {what}", plain[0].span, help)
        return None
    if radius.kind is not Kind.CONST or radius.high < 0:
        what = DESCRIPTION[radius.kind] if radius.kind is not Kind.CONST else number_text(radius.high)
        said = f"the radius of a set of weights is one number from 0, and this is {what}"
        self.report.error("E016", said, plain[1].span, f"write for example {name}(theta, 0.05)")
        return None
    word = only[0].value.id if only and isinstance(only[0].value, t.Name) else "all"
    return TypedSet(name, center, radius, False, e.span, word)
