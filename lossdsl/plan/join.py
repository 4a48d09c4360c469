"""Pass: `with f in train joint` puts all points of the upper level into one batch, and so into one forward pass."""

from __future__ import annotations

from dataclasses import replace

from lossdsl.lang.types import Kind
from lossdsl.plan.ir import Code, Instr, Plan


def join(plan: Plan) -> Plan:
    """One pass for all points of the upper level that are seen in its own mode."""
    if plan.upper is None or not plan.joint:
        return plan
    counter = plan.size
    upper = plan.upper
    trained = _computing(upper.code, set(upper.code.results[: len(upper.terms)]))  # what is only recorded must not change the batch
    passes = [i for i in upper.code if i.op == "forward" and i.attrs[1] != "eval" and i.id in trained]
    groups: dict[tuple[object, ...], list[Instr]] = {}
    for i in passes:
        groups.setdefault(i.attrs, []).append(i)
    code = upper.code
    for members in groups.values():
        if len(members) > 1:
            code = _joined(code, members, counter)
            counter += len(members) + 1
    return replace(plan, upper=replace(upper, code=code))


def _joined(code: Code, members: list[Instr], counter: int) -> Code:
    """The points of the members, one after the other, in one pass; each result is its part of it."""
    first, ids = members[0], {m.id for m in members}
    points = [m.args[0] for m in members]
    batch = Instr(counter, "stack", tuple(points), Kind.INPUT, text="; ".join(m.text for m in members), span=first.span)
    whole = replace(first, id=counter + 1, args=(counter,), axes=(), text=f"f at {len(members)} points")
    parts = [Instr(m.id, "part", (counter + 1, *points), Kind.LOGITS, m.axes, (n,), m.text, m.span) for n, m in enumerate(members)]
    first_part = _computing(code, set(points))
    early = [i for i in code if i.id in first_part]
    late = [i for i in code if i.id not in first_part and i.id not in ids]
    return Code((*early, batch, whole, *parts, *late), code.results)


def _computing(code: Code, wanted: set[int]) -> set[int]:
    """The values that others are computed from, themselves included."""
    for i in reversed(code.instrs):
        if i.id in wanted:
            wanted.update(i.args)
    return wanted
