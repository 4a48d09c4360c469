"""Pass: equal values are computed once (common subexpressions), within one evaluation of an objective.

Within one evaluation every distinct point has one forward pass, whatever the mode: that is the language's rule.
Across evaluations (between levels) only what gives the same value whenever it is computed is shared.
"""

from __future__ import annotations

from dataclasses import replace

from lossdsl.plan.ir import Code, Plan, Solve, map_codes, rename, writes_statistics

_COMMUTATIVE = frozenset(("add", "mul", "eq", "ne", "and", "or"))
"""Operations that give the same bits when their two arguments change places (max and min differ in the gradient at a tie)."""


def share(plan: Plan) -> Plan:
    """Merge equal instructions inside each piece of code; draws are never equal, nor are variables of gradients (see points)."""
    same: dict[int, int] = {}

    def change(code: Code, where: str) -> Code:
        return _merged(code, {}, same)

    return rename(map_codes(plan, change), same)


def share_between_levels(plan: Plan) -> Plan:
    """Let later lower levels reuse what an earlier one computed before its updates; only repeatable values.

    Nothing is reused across a pass in train mode: it writes the statistics that a pass in eval mode reads. A level that gradients pass
    keeps its own values, which know where they come from; those of other levels are constants.
    """
    same: dict[int, int] = {}
    seen: dict[object, int] = {}

    def change(code: Code, where: str, alone: bool) -> Code:
        if writes_statistics(code):
            seen.clear()
            return code
        return _merged(code, seen, same, only_repeatable=True) if where == "before" and not alone else code

    solves = []
    for s in plan.solves:
        alone = isinstance(s, Solve) and s.through == "unrolling"
        solves.append(s.with_codes(lambda code, where, alone=alone: change(code, where, alone)))
    return rename(replace(plan, solves=tuple(solves)), same)


def _merged(code: Code, seen: dict[object, int], same: dict[int, int], only_repeatable: bool = False) -> Code:
    kept = []
    unrepeatable: set[int] = set()
    for i in code:
        args = tuple(same.get(a, a) for a in i.args)
        key = (i.op, tuple(sorted(args)) if i.op in _COMMUTATIVE else args, i.kind, i.axes, i.attrs)
        tainted = not i.repeatable or any(a in unrepeatable for a in args)
        if tainted:
            unrepeatable.add(i.id)
        if i.op in ("draw", "leaf") or (only_repeatable and tainted):
            kept.append(i)
            continue
        if key in seen:
            same[i.id] = seen[key]
        else:
            seen[key] = i.id
            kept.append(i)
    return Code(tuple(kept), code.results)
