"""D[psi](p || q) by differentiating psi with respect to the probabilities at q."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lossdsl.check.typed import Typed, show
from lossdsl.lang.types import Kind

if TYPE_CHECKING:
    from lossdsl.plan.expressions import Emitter


def bregman(self: Emitter, e: Typed, mode: str) -> int:
    """psi(p) - psi(q) - <grad psi(q), p - q>; psi sees the probabilities in double precision."""
    p, q, psi = e.args
    first, second = (self.emit("probabilities", (self.lower(v, mode),), Kind.VECTOR, v, text=show(v)) for v in (p, q))
    outer, self.gates = self.gates, ()  # the conditions stand around the two arguments
    variable = self.emit("leaf", (second,), Kind.VECTOR, q, text=f"{show(q)} as a variable")
    at_first, at_second = (_at(self, e, mode, v) for v in (first, variable))
    slope = self.emit("grad", (variable, at_second), Kind.VECTOR, psi, text=f"the gradient of {e.attrs[-1]} at {show(q)}")
    self.gates = outer
    return self.emit("bregman", (at_first, at_second, slope, first, second), Kind.REAL, e)


def _at(self: Emitter, e: Typed, mode: str, probabilities: int) -> int:
    """The generator at probabilities; its argument is their logarithm, as every Prob is."""
    psi, leaf = e.args[2], ("leaf", e.attrs[:-1])
    outside = self.done
    self.done = {**outside, leaf: self.emit("log", (probabilities,), Kind.PROB, psi, text=f"log({e.attrs[0]})")}
    value = self.linear(psi, mode)
    self.done = outside
    return value
