"""Pass: arithmetic with 0 and 1 disappears, so that equal points become equal values: (1 - 0) * x + 0 * x' is x."""

from __future__ import annotations

from lossdsl.lang.types import Kind
from lossdsl.plan.ir import Code, Instr, Plan, map_codes, rename


def simplify(plan: Plan) -> Plan:
    """1 * v, v / 1, v + 0, v - 0, -(-v) are v; 0 * v vanishes from a sum of Inputs.

    Only Inputs lose a zero multiple: they are finite, and no pass through the model disappears with them.
    """
    same: dict[int, int] = {}

    def change(code: Code, where: str) -> Code:
        by_id: dict[int, Instr] = {}
        for i in code:
            by_id[i.id] = i
            value = _same_as(i, by_id, same)
            if value is not None:
                same[i.id] = value
        return code

    map_codes(plan, change)
    return rename(plan, same)


def _same_as(i: Instr, by_id: dict[int, Instr], same: dict[int, int]) -> int | None:
    if i.op == "neg":
        inner = by_id.get(same.get(i.args[0], i.args[0]))
        return same.get(inner.args[0], inner.args[0]) if inner is not None and inner.op == "neg" else None
    if i.op not in ("add", "sub", "mul", "div"):
        return None
    ids = [same.get(a, a) for a in i.args]
    left, right = by_id.get(ids[0]), by_id.get(ids[1])
    if left is None or right is None:
        return None
    if i.op == "mul" and _is(left, 1) and right.kind is i.kind:
        return ids[1]
    if i.op in ("mul", "div") and _is(right, 1) and left.kind is i.kind:
        return ids[0]
    if i.op == "add" and _vanishes(left, by_id, same, i.kind) and right.kind is i.kind:
        return ids[1]
    if i.op in ("add", "sub") and _vanishes(right, by_id, same, i.kind) and left.kind is i.kind:
        return ids[0]
    return None


def _is(i: Instr, value: float) -> bool:
    return i.op == "number" and i.attrs[0] == value


def _vanishes(i: Instr, by_id: dict[int, Instr], same: dict[int, int], kind: Kind) -> bool:
    if _is(i, 0):
        return True
    if i.op != "mul" or kind is not Kind.INPUT or i.kind is not Kind.INPUT:
        return False
    parts = [by_id[same.get(a, a)] for a in i.args]
    return any(_is(p, 0) for p in parts) and all(p.op in ("number", "input", "point", "family", "select") for p in parts)
