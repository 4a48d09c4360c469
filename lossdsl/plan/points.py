"""Pass: the variable of a gradient and the point it stands at share their forward passes.

grad(v = a: CE(f(v), y)) and CE(f(a), y) speak of one point, which has one pass: that at the variable. A pass at the point itself stays
where the body of the gradient holds it as a constant, since its derivative would be counted otherwise.
"""

from __future__ import annotations

from dataclasses import replace

from lossdsl.plan.ir import Code, Instr, Plan, map_codes, rename


def share_points(plan: Plan) -> Plan:
    """Merge variables at equal points, and move passes at a point to its variable."""
    same: dict[int, int] = {}
    moved = map_codes(plan, lambda code, where: _shared(code, same))
    return rename(moved, same)


def _shared(code: Code, same: dict[int, int]) -> Code:
    leaves = [i for i in code if i.op == "leaf"]
    if not leaves:
        return code
    above, bodies = _ancestors(code), {}
    for i in code:
        if i.op == "grad":
            bodies.setdefault(i.args[0], set()).update(above[i.args[1]])
    kept: dict[int, Instr] = {}
    for leaf in leaves:
        first = kept.get(leaf.args[0])
        if first is not None and _apart(first.id, leaf.id, bodies, above):
            same[leaf.id] = first.id
            bodies[first.id] = bodies.get(first.id, set()) | bodies.get(leaf.id, set())
        elif first is None:
            kept[leaf.args[0]] = leaf
    instrs = [i for i in code if i.id not in same or i.op != "leaf"]
    return Code(tuple(_early(_moved(instrs, kept, bodies), kept)), code.results)


def _ancestors(code: Code) -> dict[int, set[int]]:
    """For every value, itself and everything it is computed from in this code."""
    above: dict[int, set[int]] = {}
    for i in code:
        above[i.id] = {i.id}.union(*(above.get(a, set()) for a in i.args))
    return above


def _apart(one: int, other: int, bodies: dict[int, set[int]], above: dict[int, set[int]]) -> bool:
    """Does neither gradient's body hold anything computed from the other's variable?"""
    return other not in bodies.get(one, ()) and one not in bodies.get(other, ())


def _moved(instrs: list[Instr], kept: dict[int, Instr], bodies: dict[int, set[int]]) -> list[Instr]:
    """Passes at a point, taken at its variable."""
    out = []
    for i in instrs:
        leaf = kept.get(i.args[0]) if i.op == "forward" else None
        free = leaf is not None and i.id not in bodies.get(leaf.id, ())
        out.append(replace(i, args=(leaf.id,)) if free and leaf is not None else i)
    return out


def _early(instrs: list[Instr], kept: dict[int, Instr]) -> list[Instr]:
    """Every kept variable right after its point (or at the front, where the point comes from outside): passes keep their order."""
    inside = {i.id for i in instrs}
    leaves = {leaf.args[0]: leaf for leaf in kept.values()}
    out = [leaf for point, leaf in leaves.items() if point not in inside]
    for i in instrs:
        if i.op == "leaf" and leaves.get(i.args[0]) is i:
            continue
        out.append(i)
        if i.id in leaves:
            out.append(leaves[i.id])
    return out
