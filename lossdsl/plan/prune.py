"""Pass: values that nothing uses are not computed."""

from __future__ import annotations

from dataclasses import replace

from lossdsl.plan.ir import Code, Plan, codes


def prune(plan: Plan) -> Plan:
    """Drop instructions without users. A forward pass in train mode goes too: no objective speaks of its value."""
    used = {a for code in codes(plan) for a in code.results}
    used |= {v for s in plan.solves for v in (s.center, s.radius, s.classes) if v is not None}
    instrs = [i for code in codes(plan) for i in code]
    for i in reversed(instrs):
        if i.id in used:
            used.update(i.args)

    def keep(code: Code) -> Code:
        return Code(tuple(i for i in code if i.id in used), code.results)

    solves = tuple(replace(s, before=keep(s.before), start=keep(s.start), body=keep(s.body)) for s in plan.solves)
    upper = replace(plan.upper, code=keep(plan.upper.code)) if plan.upper else None
    return Plan(plan.name, keep(plan.samples), solves, upper)
