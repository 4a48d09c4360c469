"""The arguments of a call, and how messages speak of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lossdsl.check.scope import Scope, is_error
from lossdsl.check.typed import Typed, show
from lossdsl.lang.ops import OVER_BATCH
from lossdsl.syntax import tree as t

if TYPE_CHECKING:
    from lossdsl.check.infer import Context, Inference


def positional(self: Inference, e: t.Call, scope: Scope, at: Context, names: str) -> list[Typed] | None:
    """The arguments of a call that takes no named ones; None after reporting."""
    values = []
    for arg in e.args:
        if arg.name is not None:
            self.report.error("E014", f"{names} has no argument named {arg.name}", arg.span, "its arguments go by position")
            return None
        if arg.where is not None and names not in OVER_BATCH:
            self.report.error(
                "E014",
                f"where belongs to batch_mean, batch_sum, class_mean and class_sum, not to {names}",
                arg.span,
                "write for example batch_mean(e where c), or if(c, a, b)",
            )
            return None
        values.append(self.infer(arg.value, scope, at))
    return None if is_error(*values) else values


def counted(count: int) -> str:
    return "1 argument" if count == 1 else f"{count} arguments"


def subject(value: Typed) -> str:

    text = show(value)
    return text if len(text) <= 40 else "this"
