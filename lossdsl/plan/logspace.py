"""Logarithms of numbers built from probabilities, taken without leaving log space."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lossdsl.check.typed import Typed, show
from lossdsl.lang.types import Kind
from lossdsl.plan import presence

if TYPE_CHECKING:
    from lossdsl.plan.expressions import Emitter


def in_log_space(e: Typed) -> bool:
    """Is the logarithm of this positive number built from log-probabilities?"""
    if e.op == "at":
        return e.args[0].kind is Kind.PROB or (e.args[0].op == "reduce" and e.args[0].attrs == ("softmax",))
    if e.op == "sub":
        return _complement_in_log_space(e)
    if e.op in ("mul", "div", "add"):
        return all(in_log_space(a) or _positive(a) for a in e.args) and any(in_log_space(a) for a in e.args)
    if e.op == "pow":
        return in_log_space(e.args[0]) and e.args[1].kind in (Kind.CONST, Kind.REAL)
    if e.op == "if":
        return all(in_log_space(a) or _positive(a) for a in e.args[1:]) and any(in_log_space(a) for a in e.args[1:])
    if e.op == "reduce":
        return e.attrs[0] in ("max", "min", "sum", "mean") and in_log_space(e.args[0])
    return e.op in ("stop", "mode", "sqrt") and in_log_space(e.args[0])


def _positive(e: Typed) -> bool:
    return (e.value is not None and e.value > 0) or e.op == "classes"


def _complement_in_log_space(e: Typed) -> bool:
    """1 - q for a q that `log_one_minus` knows."""
    one, q = e.args
    if one.value != 1:
        return False
    if q.op == "at":
        return q.args[0].kind is Kind.PROB
    if q.op == "sub":
        return q.args[0].value == 1 and in_log_space(q.args[1])
    if q.op != "reduce" or q.attrs[0] not in ("max", "min", "sum"):
        return False
    body = q.args[0]
    own = body.op == "at" and body.args[0].kind is Kind.PROB and body.args[1].op == "bound" and body.args[1].axis == q.axis
    if not own or q.axis is None or f"@{q.axis.depth}" in body.args[0].depends:
        return False
    return q.attrs[0] != "sum" or q.axis.domain.kind == "not"


# --- one rule per form whose logarithm is known ---


def _log_at(self: Emitter, e: Typed, mode: str) -> int:
    vector = e.args[0]
    if vector.kind is Kind.PROB:
        return self.at(e, mode, "log_at", f"log({show(e)})")
    body = presence.body(self, vector, mode, lambda a: self.linear(a, mode))
    logs = self.reduce(vector, body, "log_softmax", mode, f"log({show(vector)})", Kind.PROB)
    index = e.args[1]
    if index.value is not None:
        return self.emit("log_at", (logs,), Kind.REAL, e, (int(index.value),), text=f"log({show(e)})")
    return self.emit("log_at", (logs, self.lower(index, mode)), Kind.REAL, e, text=f"log({show(e)})")


def _log_arithmetic(self: Emitter, e: Typed, mode: str) -> int:
    parts = tuple(self.log(a, mode) for a in e.args)
    op = {"mul": "add", "div": "sub", "add": "log_add"}[e.op]
    return self.emit(op, parts, e.kind, e, text=f"log({show(e)})")


def _log_pow(self: Emitter, e: Typed, mode: str) -> int:
    return self.emit("mul", (self.linear(e.args[1], mode), self.log(e.args[0], mode)), e.kind, e, text=f"log({show(e)})")


def _log_sqrt(self: Emitter, e: Typed, mode: str) -> int:
    two = self.emit("number", (), Kind.CONST, e, (2.0,), text="2")
    return self.emit("div", (self.log(e.args[0], mode), two), e.kind, e, text=f"log({show(e)})")


def _log_if(self: Emitter, e: Typed, mode: str) -> int:
    condition, *branches = self.branches(e, mode, lambda a: self.log(a, mode))
    return self.emit("if", (condition, *branches), e.kind, e, text=f"log({show(e)})")


def _log_reduce(self: Emitter, e: Typed, mode: str) -> int:
    assert e.axis is not None
    self.class_range(e.axis, mode)
    op = {"sum": "logsumexp", "mean": "logmeanexp"}.get(e.attrs[0], e.attrs[0])
    return self.reduce(e, presence.body(self, e, mode, lambda a: self.log(a, mode)), op, mode, f"log({show(e)})")


LOGS: dict[str, Callable[[Emitter, Typed, str], int]] = {
    "at": _log_at, "mul": _log_arithmetic, "div": _log_arithmetic, "add": _log_arithmetic, "pow": _log_pow, "sqrt": _log_sqrt,
    "if": _log_if, "reduce": _log_reduce,
    "sub": lambda self, e, mode: self.log_one_minus(e.args[1], mode),
    "mode": lambda self, e, mode: self.log(e.args[0], e.attrs[0]),
    "stop": lambda self, e, mode: self.emit("stop", (self.log(e.args[0], mode),), e.kind, e, text=f"log({show(e)})"),
}  # fmt: skip
