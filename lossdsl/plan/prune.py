"""Pass: values that nothing uses are not computed."""

from __future__ import annotations

from lossdsl.plan.ir import Code, Plan, codes, map_codes


def prune(plan: Plan) -> Plan:
    """Drop instructions without users. A forward pass in train mode goes too: no objective speaks of its value."""
    used = {a for code in codes(plan) for a in code.results}
    instrs = [i for code in codes(plan) for i in code]
    for i in reversed(instrs):
        if i.id in used:
            used.update(i.args)
    return map_codes(plan, lambda code, where: Code(tuple(i for i in code if i.id in used), code.results))
