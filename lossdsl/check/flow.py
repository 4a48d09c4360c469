"""Where gradients can go: whether anything of an expression passes one on."""

from __future__ import annotations

from collections.abc import Callable

from lossdsl.check.typed import Domain, Typed
from lossdsl.lang.ops import OPERATIONS
from lossdsl.lang.types import Kind

_FLAT = frozenset(("stop", "fact", "bound", "lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not"))
"""Core forms whose value has zero gradient."""


def is_flat(e: Typed) -> bool:
    """Does the value have zero gradient wherever it is defined?"""
    return (
        e.op in _FLAT or (e.op == "reduce" and e.attrs[0] in ("argmax", "argmin")) or (e.op in OPERATIONS and not OPERATIONS[e.op].gradient)
    )


def gradient_reaches(e: Typed, source: Callable[[Typed], bool]) -> bool:
    """Does a gradient of e flow to a node that `source` recognises?"""
    seen: set[int] = set()
    stack = [e]
    while stack:
        node = stack.pop()
        if id(node) in seen or is_flat(node):
            continue
        seen.add(id(node))
        if source(node):
            return True
        stack.extend(node.args[1:] if node.op == "if" else node.args)
    return False


_SHARED = frozenset(("number", "classes", "weights", "batch_mean", "batch_sum", "class_mean", "class_sum", "zeros", "ones", "grad_theta"))
_OWN = frozenset(("input", "label", "point", "pick", "found", "fact", "logits", "leaf", "grad", "draw"))


def varies(e: Typed) -> bool:
    """Can the value differ between the examples of a batch?"""
    if e.op in _SHARED:
        return False
    if e.op in _OWN or (e.op in ("sample", "state") and e.kind is not Kind.CONST and not (e.op == "state" and e.kind is Kind.VECTOR)):
        return True
    return any(varies(a) for a in e.args) or (e.axis is not None and _differ(e.axis.domain))


def _differ(domain: Domain) -> bool:
    """Can the classes differ between examples?"""
    own = domain.expr is not None and varies(domain.expr)
    return own or (domain.inner is not None and _differ(domain.inner.domain))
