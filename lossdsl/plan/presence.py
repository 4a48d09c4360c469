"""Class vectors of a batch, and the classes that binders over them skip because no example of the batch counts for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lossdsl.check.typed import Typed, show
from lossdsl.lang.ops import OVER_BATCH
from lossdsl.lang.types import Kind

if TYPE_CHECKING:
    from lossdsl.plan.expressions import Emitter

CLASS_VECTORS = ("class_mean", "class_sum")


def class_vector(self: Emitter, e: Typed, mode: str) -> int:
    """class_mean(e where c): examples outside c give no value and no gradient. Conditions around it do not reach in: it is of all."""
    outer, self.gates = self.gates, ()
    if len(e.args) > 1:
        self.lower(e.args[0], mode)  # written before the condition, as in batch_mean
    label, *condition = _counted(self, e, mode)
    value = self.under(condition[0], e.args[0], lambda a: self.linear(a, mode)) if condition else self.linear(e.args[0], mode)
    vector = self.emit(e.op, (value, label, *condition), Kind.VECTOR, e, axes=())
    self.gates = outer
    return self.gated(vector, e)


def class_entry(self: Emitter, e: Typed, mode: str) -> int:
    """An entry of a class vector; what stands around it is put behind the entry, which is smaller than the vector."""
    outer, self.gates = self.gates, ()
    entry = self.at(e, mode, "at")
    self.gates = outer
    return self.gated(entry, e)


def presence(self: Emitter, e: Typed, mode: str) -> int | None:
    """1 for the classes of a binder that have examples in all class vectors its body takes at its own class; None if there are none."""
    if e.attrs[0] == "sum" or e.axis is None:
        return None
    vectors = _vectors(e, mode)
    if not vectors:
        return None
    classes = self.class_range(e.axis, mode)
    outer, self.gates = self.gates, ()
    found = []
    for vector, its_mode in vectors:
        args = tuple(_counted(self, vector, its_mode))
        there = self.emit("present", args, Kind.VECTOR, vector, axes=(), text=f"classes in {show(vector)}")
        found.append(self.emit("at", (there, classes), Kind.REAL, e, text="1 where the class has examples"))
    both = found[0]
    for other in found[1:]:
        both = self.emit("and", (both, other), Kind.REAL, e, text="1 where the class has examples")
    self.gates = outer
    return both


def body(self: Emitter, e: Typed, mode: str, value: Callable[[Typed], int]) -> int:
    """The body of a binder; behind a gate for the classes that it skips."""
    there = presence(self, e, mode)
    return value(e.args[0]) if there is None else self.under(there, e.args[0], value)


def _counted(self: Emitter, vector: Typed, mode: str) -> list[int]:
    """The labels of a class vector, and its condition."""
    label = self.emit("label", (), Kind.LABEL, vector, text="y")
    return [label] if len(vector.args) == 1 else [label, self.linear(vector.args[1], mode)]


def _vectors(e: Typed, mode: str) -> list[tuple[Typed, str]]:
    """The class vectors that the body of a binder takes at its own class, each with its mode."""
    found: dict[tuple[int, str], tuple[Typed, str]] = {}
    seen: set[tuple[int, str]] = set()
    stack = [(e.args[0], mode)]
    while stack:
        part, at = stack.pop()
        if (id(part), at) in seen or part.op in OVER_BATCH:
            continue
        seen.add((id(part), at))
        at = part.attrs[0] if part.op == "mode" else at
        stack += [(a, at) for a in part.args]
        if part.op == "at" and part.args[1].op == "bound" and part.args[1].axis == e.axis:
            found.update({(id(v), m): (v, m) for v, m in _inside(part.args[0], at)})
    return list(found.values())


def _inside(vector: Typed, mode: str) -> list[tuple[Typed, str]]:
    """The class vectors that a vector is computed from entry by entry."""
    if vector.op in CLASS_VECTORS:
        return [(vector, mode)]
    if vector.op in OVER_BATCH or vector.op in ("reduce", "at", "logits", "prob"):
        return []
    mode = vector.attrs[0] if vector.op == "mode" else mode
    return [v for a in vector.args for v in _inside(a, mode)]
