"""The passes in their order, and the check made after each."""

from __future__ import annotations

from collections.abc import Callable

from lossdsl.check.typed import TypedRecipe
from lossdsl.plan.fuse import fuse_backward
from lossdsl.plan.gradients import mark_gradients
from lossdsl.plan.hoist import hoist
from lossdsl.plan.ir import Code, Plan, Solve
from lossdsl.plan.join import join
from lossdsl.plan.lower import lower_recipe
from lossdsl.plan.order import eval_first
from lossdsl.plan.points import share_points
from lossdsl.plan.prune import prune
from lossdsl.plan.share import share, share_between_levels
from lossdsl.plan.simplify import simplify

Pass = Callable[[Plan], Plan]

PASSES: tuple[Pass, ...] = (
    simplify, share, share_points, share, hoist, share_between_levels, join, eval_first, prune, mark_gradients, fuse_backward,
)  # fmt: skip


def make_plan(recipe: TypedRecipe, passes: tuple[Pass, ...] = PASSES) -> Plan:
    """The plan of a recipe after the given passes (all of them unless a test asks for fewer).

    The runs of an attack share nothing: each can be made alone, and later ones see fewer examples.
    """
    plan = lower_recipe(recipe)
    verify(plan)
    for change in passes:
        if recipe.kind == "attack" and change is share_between_levels:
            continue
        plan = change(plan)
        verify(plan)
    return plan


def verify(plan: Plan) -> None:
    """Every value is computed once, before it is used, where its user can see it. A violation is a fault of a pass."""
    seen: set[int] = set()
    everywhere = _check(plan.samples, set(), seen, "samples")
    for s in plan.solves:
        everywhere = _check(s.before, everywhere, seen, f"before {s.var}")
        _check(s.start, everywhere, seen, f"start of {s.var}")
        _check(s.body, everywhere, seen, f"updates of {s.var}")
        if isinstance(s, Solve):
            _check(s.noise, everywhere, seen, f"noise of {s.var}")
            _check(s.optimality, set(), seen, f"optimality of {s.var}")
    if plan.upper:
        _check(plan.upper.code, set(), seen, "upper")
    _check(plan.inits, set(), seen, "first values")
    _check(plan.sampling, set(), seen, "sampler")


def _check(code: Code, visible: set[int], seen: set[int], where: str) -> set[int]:
    known = set(visible)
    for i in code:
        missing = [a for a in i.args if a not in known]
        if missing or i.id in seen:
            raise AssertionError(f"plan: value {i.id} ({i.op}) in {where} is computed twice or uses {missing}")
        known.add(i.id)
        seen.add(i.id)
    if any(r not in known for r in code.results):
        raise AssertionError(f"plan: a result of {where} is not computed")
    return known
