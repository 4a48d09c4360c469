"""Pass: values that nothing uses are not computed."""

from __future__ import annotations

from lossdsl.plan.ir import Code, Instr, Plan, Upper, codes, map_codes


def prune(plan: Plan) -> Plan:
    """Drop instructions without users. A forward pass in train mode goes too: no objective speaks of its value."""
    used = _used([i for code in codes(plan) for i in code], {a for code in codes(plan) for a in code.results})
    return map_codes(plan, lambda code, where: Code(tuple(i for i in code if i.id in used), code.results))


def logs_only(upper: Upper) -> Code:
    """What of the upper level its logged values need."""
    first = len(upper.terms)
    results = upper.code.results[first : first + len(upper.logs)]
    used = _used(list(upper.code), set(results))
    return Code(tuple(i for i in upper.code if i.id in used), results)


def _used(instrs: list[Instr], results: set[int]) -> set[int]:
    """The values that the results come from, themselves among them."""
    used = set(results)
    for i in reversed(instrs):
        if i.id in used:
            used.update(i.args)
    return used
