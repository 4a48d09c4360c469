"""Pass: the last update of a level takes its gradient from the upper level's backward pass (Free-AT, Shafahi et al., 2019, alg. 1).

Where a term of the upper objective is the level's own objective at the iterate that the last update starts from, one pass through the
model gives both gradients. Nothing but the next batch may wait for the point that this update leads to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lossdsl.plan.gradients import depending
from lossdsl.plan.ir import Instr, Plan, Solve, codes

SCALE_FREE = ("pgd", "linear")
"""Solvers whose step does not see the length of the gradient: dividing by the batch size and multiplying again changes nothing."""


def fuse_backward(plan: Plan) -> Plan:
    """Mark the level, if there is one."""
    if plan.upper is None:
        return plan
    known = {i.id: i for code in codes(plan) for i in code}
    levels = [s for s in plan.solves if isinstance(s, Solve) and s.level.set.over == "input"]
    plain = all(s.through == "" for s in levels)
    chosen = next((s for s in levels if plain and _simple(s) and _met(s, plan, known)), None)
    return replace(plan, solves=tuple(replace(s, fused=True) if s is chosen else s for s in plan.solves))


def _simple(s: Solve) -> bool:
    """One run of plain updates, nothing drawn or asked within them, kept for the next batch."""
    options, kind = s.level.solver.options, s.level.solver.start_kind
    asks = s.until is not None or s.facts or s.noise.instrs or s.axis is not None
    kept = kind == "previous" and options.keep == "last" and options.restarts == 1
    return kept and not asks and s.mode == "untracked" and s.level.solver.name in SCALE_FREE and options.updates > 0


def _met(s: Solve, plan: Plan, known: Mapping[int, Instr]) -> bool:
    """One term is the objective at the last iterate but one, no other term depends on that, and nothing on the solution."""
    assert plan.upper is not None
    last = s.level.solver.options.updates - 1
    elsewhere = [code for code in codes(plan) if code is not s.body]
    if any(i.op == "point" and i.attrs == (s.var,) for code in elsewhere for i in code):
        return False
    code, count = plan.upper.code, len(plan.upper.terms)
    moving = depending(code, s.var, last)
    touched = [r for r in code.results[:count] if r in moving]
    return len(touched) == 1 and _same(touched[0], s.body.results[0], known, (s.var, last))


def _same(above: int, below: int, known: Mapping[int, Instr], point: tuple[str, int]) -> bool:
    """Does a value of the upper level equal one of the level's, its variable taken at this iterate? The modes are train or untracked."""
    a, b = known[above], known[below]
    if b.op == "point" and b.attrs == point[:1]:
        return a.op == "point" and a.attrs == point
    ours, theirs = a.attrs, b.attrs
    if a.op == b.op == "forward" and a.attrs[1] in ("train", "untracked"):
        ours, theirs = (ours[0], *ours[2:]), (theirs[0], *theirs[2:])
    if a.op == "draw" or (a.op, a.kind, a.axes, len(a.args)) != (b.op, b.kind, b.axes, len(b.args)) or ours != theirs:
        return False
    return all(_same(m, n, known, point) for m, n in zip(a.args, b.args, strict=True))
