"""Where gradients can go: whether anything of an expression passes one on."""

from __future__ import annotations

from collections.abc import Callable

from lossdsl.check.typed import Typed
from lossdsl.lang.ops import OPERATIONS

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
