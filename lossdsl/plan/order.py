"""Pass: in the upper level, what is seen in eval mode is computed first, before a pass in train mode writes the statistics it reads."""

from __future__ import annotations

from dataclasses import replace

from lossdsl.plan.ir import Code, Plan


def eval_first(plan: Plan) -> Plan:
    """Move passes in eval mode, and what they need, before the first pass in another mode, where they do not need its value.

    The value of `fooled(x')` or of a let with f in eval then does not depend on where it stands in the objective.
    """
    if plan.upper is None:
        return plan
    return replace(plan, upper=replace(plan.upper, code=_ordered(plan.upper.code)))


def _ordered(code: Code) -> Code:
    moving: set[int] = set()
    for i in code:  # what follows from a pass in train mode has to wait for it
        if (i.op == "forward" and i.attrs[1] != "eval") or any(a in moving for a in i.args):
            moving.add(i.id)
    first: set[int] = {i.id for i in code if i.op == "forward" and i.id not in moving}
    for i in reversed(code.instrs):
        if i.id in first:
            first.update(i.args)
    early = tuple(i for i in code if i.id in first)
    return Code((*early, *(i for i in code if i.id not in first)), code.results)
