"""A typed game to a plan: the objectives of all players as one piece of code, with common parts computed once."""

from __future__ import annotations

from lossdsl.check.game_typed import TypedGame
from lossdsl.check.typed import show
from lossdsl.plan.expressions import Emitter
from lossdsl.plan.gradients import mark_gradients
from lossdsl.plan.ir import Code, Plan, Upper
from lossdsl.plan.pipeline import verify
from lossdsl.plan.prune import prune
from lossdsl.plan.share import share
from lossdsl.plan.simplify import simplify


def lower_game(game: TypedGame) -> Plan:
    """The upper code's results are the players' objectives in their order, then the logged values."""
    code = Emitter([0])
    results = tuple(code.linear(e, "train") for e in (*(p.objective for p in game.players), *(e for _, e in game.logs)))
    upper = Upper(Code(tuple(code.instrs), results), tuple(show(p.objective) for p in game.players), tuple(name for name, _ in game.logs))
    plan = Plan(game.name, Code(), (), upper)
    for change in (simplify, share, prune, mark_gradients):
        plan = change(plan)
        verify(plan)
    return plan
