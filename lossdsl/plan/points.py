"""Pass: the variable of a gradient and the point it stands at share their forward passes.

grad(v = a: CE(f(v), y)) and CE(f(a), y) speak of one point, which has one pass: that at the variable. A pass at the point itself stays
where the body of the gradient holds it as a constant, since its derivative would be counted otherwise.
"""

from __future__ import annotations

from dataclasses import replace

from lossdsl.plan.ir import Code, Instr, Plan, map_codes, rename
from lossdsl.plan.share import share


def share_points(plan: Plan) -> Plan:
    """Merge variables at equal points, and move passes at a point to its variable; again, as long as that makes more points equal."""
    while True:
        same: dict[int, int] = {}
        moved = map_codes(plan, lambda code, where, same=same: _shared(code, same))
        moved = share(rename(moved, same))
        if moved == plan:
            return plan
        plan = moved


def _shared(code: Code, same: dict[int, int]) -> Code:
    leaves = [i for i in code if i.op == "leaf"]
    if not leaves:
        return code
    above = _ancestors(code)
    bodies: dict[int, set[int]] = {}
    for i in code:
        if i.op == "grad":
            bodies.setdefault(i.args[0], set()).update(above[i.args[1]])
    kept: dict[int, Instr] = {}
    merged: dict[int, set[int]] = {}
    for leaf in leaves:
        first, body = kept.setdefault(leaf.args[0], leaf), bodies.get(leaf.id, set())
        members, held = merged.setdefault(first.id, {first.id}), bodies.setdefault(first.id, set())
        if first is not leaf and leaf.id not in held and not members & body:  # no gradient's body holds the other's variable
            same[leaf.id] = first.id
            members.add(leaf.id)
            held |= body
    instrs = [i for i in code if i.id not in same or i.op != "leaf"]
    return Code(tuple(_early(_moved(instrs, kept, bodies), kept)), code.results)


def _ancestors(code: Code) -> dict[int, set[int]]:
    """For every value, itself and everything it is computed from in this code."""
    above: dict[int, set[int]] = {}
    for i in code:
        above[i.id] = {i.id}.union(*(above.get(a, set()) for a in i.args))
    return above


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
    out: list[Instr] = []

    def place(i: Instr | None) -> None:
        """An instruction, then the variable at its value, then the one at that variable."""
        while i is not None:
            out.append(i)
            i = leaves.get(i.id)

    for point, leaf in leaves.items():
        if point not in inside:
            place(leaf)
    for i in instrs:
        if i.op != "leaf" or leaves.get(i.args[0]) is not i:
            place(i)
    return out
