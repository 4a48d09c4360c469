"""`project(v, SET)` and `interior(v, SET)`: sets as operations on points."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lossdsl.check import build, draws
from lossdsl.check.arguments import counted, subject
from lossdsl.check.scope import Scope, is_error
from lossdsl.check.typed import Typed
from lossdsl.lang.ops import OPERATIONS
from lossdsl.lang.types import DESCRIPTION, Kind
from lossdsl.syntax import tree as t

if TYPE_CHECKING:
    from lossdsl.check.infer import Context, Inference


def infer_projection(self: Inference, e: t.Call, scope: Scope, at: Context) -> Typed:
    """The nearest point of a set, or 1 where no constraint of the set holds a coordinate. A set around x is met with the input domain."""
    assert isinstance(e.func, t.Name)
    name = e.func.id
    row = OPERATIONS[name]
    if len(e.args) != 2 or e.double_bar or any(a.name or a.where for a in e.args):
        return self.report.error("E014", f"{name} takes a point and a set and got {counted(len(e.args))}", e.span, f"write {row.example}")
    point = self.infer(e.args[0].value, scope, at)
    parts = draws.infer_set(self, e.args[1].value, scope, at)
    if parts is None or is_error(point):
        return Typed("?", (), Kind.CONST, e.span)
    if point.kind is not Kind.INPUT:
        said = f"{name} speaks of an Input, and {subject(point)} is {DESCRIPTION[point.kind]}"
        return self.report.error("E012", said, e.args[0].span, f"for example {row.example}", label=str(point.kind))
    set_name, center, radius = parts
    boxed = ("boxed",) if draws.built_on_x(center) else ()
    own = build.depends(point, center, radius)
    return Typed(name, (point, center, radius), Kind.INPUT, e.span, (set_name, *boxed), depends=own, low=row.low, high=row.high)
