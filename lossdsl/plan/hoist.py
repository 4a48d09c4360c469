"""Pass: what does not depend on the lower variable is computed once per batch instead of once per update."""

from __future__ import annotations

from dataclasses import replace

from lossdsl.plan.ir import Code, Find, Plan, Solve, writes_statistics


def hoist(plan: Plan) -> Plan:
    """Move instructions from a level's updates to before them.

    Nothing moves that draws random numbers or runs the model in train mode: dropout and BatchNorm statistics would differ.
    Where an update writes statistics, no pass moves at all: one in eval mode reads what the update before has written.
    """
    return replace(plan, solves=tuple(_hoist(s) for s in plan.solves))


def _hoist(solve: Solve | Find) -> Solve | Find:
    fixed: set[int] = set()
    stays = []
    moved = []
    written = writes_statistics(solve.body)
    for i in solve.body:
        own = i.op == "own_class" or (i.op in ("point", "family", "found", "weights") and i.attrs[:1] == (solve.var,))
        own = own or (i.op == "forward" and i.attrs[2:] == (solve.var,))
        if own or not i.repeatable or (written and i.op == "forward") or any(a in fixed for a in i.args):
            fixed.add(i.id)
            stays.append(i)
        else:
            moved.append(i)
    before = Code((*solve.before.instrs, *moved), solve.before.results)
    return replace(solve, before=before, body=Code(tuple(stays), solve.body.results))
