"""New words for the language from Python: one decorator for an operation, a solver or a set."""

from __future__ import annotations

import keyword
from collections.abc import Callable
from math import inf
from typing import Any, TypeVar

from lossdsl.diagnostics import UserError
from lossdsl.engine.kernels import COMPARISONS, KERNELS, REGISTERED
from lossdsl.front import taken_names
from lossdsl.lang.ops import OPERATIONS, Operation
from lossdsl.solve import register_set as input_set
from lossdsl.solve import register_solver as solver

F = TypeVar("F", bound=Callable[..., Any])


def operation(
    name: str,
    signature: str,
    *,
    formula: str = "",
    about: str = "",
    example: str = "",
    low: float = -inf,
    high: float = inf,
    source: str = "",
) -> Callable[[F], F]:
    """Make a torch function an operation of the language.

        @lossdsl.operation("focal", "Logits, Label -> Real", formula="-(1 - p_y)^2 log p_y", low=0)
        def focal(z, y):
            logs = z.log_softmax(-1).gather(-1, y.unsqueeze(-1)).squeeze(-1)
            return -(1 - logs.exp()) ** 2 * logs

    signature: kinds of the arguments and of the value; `|` separates alternatives, `Number` is Real or Const.
    The function gets tensors: Logits and Vector [..., K], Prob as log-probabilities [..., K], Label and Class [...] (long),
    Real [...], Const [], Input [..., *input], with the same leading dimensions, and returns a value of the kind promised.
    low, high: proven range of the value. Raises UserError for a taken name or a signature that cannot be read.
    """
    where = f"operation {name}"
    if not name.isidentifier() or keyword.iskeyword(name):
        raise UserError(f"{name!r} is not a name", where=where, fix="use letters, digits and _")
    if name in taken_names() or name in KERNELS or name in COMPARISONS:
        raise UserError("the name is taken", where=where, fix="choose another name")
    row = Operation(name, signature, formula, about, example or f"{name}(...)", low, high, source=source)
    try:
        params, result = row.params, row.result
    except (KeyError, ValueError) as error:
        raise UserError(
            f"the signature {signature!r} cannot be read: {error}", where=where, fix='write for example "Logits, Label -> Real"'
        ) from None
    if "->" not in signature or not params or result is None and "same" not in signature:
        raise UserError(f"the signature {signature!r} cannot be read", where=where, fix='write for example "Logits, Label -> Real"')

    def register(function: F) -> F:
        OPERATIONS[name] = row
        KERNELS[name] = function
        REGISTERED.add(name)
        return function

    return register


__all__ = ["input_set", "operation", "solver"]
