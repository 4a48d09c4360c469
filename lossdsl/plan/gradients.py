"""Pass: every forward pass says what its result is differentiated by: the parameters, the input, or nothing."""

from __future__ import annotations

from dataclasses import replace

from lossdsl.plan.ir import Code, Instr, Plan, Solve

_FLAT = frozenset(
    (
        "reduce_argmax",
        "reduce_argmin",
        "error",
        "misclassified",
        "sign",
        "onehot",
        "smooth",
        "class_range",
        "lt",
        "le",
        "gt",
        "ge",
        "eq",
        "ne",
        "and",
        "or",
        "not",
        "stop",
    )
)
"""Operations whose value has zero gradient."""


def mark_gradients(plan: Plan) -> Plan:
    """Lower levels need input gradients only; in the upper level a pass that only a stop or an argmax uses needs none."""
    solves = tuple(_mark_level(s) for s in plan.solves)
    upper = plan.upper and replace(plan.upper, code=_mark_upper(plan.upper.code, len(plan.upper.terms)))
    return replace(plan, samples=_all_none(plan.samples), solves=solves, upper=upper)


def _all_none(code: Code) -> Code:
    return Code(tuple(_with(i, "none") for i in code), code.results)


def _with(i: Instr, gradient: str) -> Instr:
    return replace(i, gradient=gradient) if i.op == "forward" else i


def _mark_level(s: Solve) -> Solve:
    moving = {i.id for i in s.body if i.op == "point" and i.attrs == (s.level.var,)}
    for i in s.body:
        if any(a in moving for a in i.args):
            moving.add(i.id)
    wanted = _wanted(s.body, s.body.results)
    body = tuple(_with(i, "input" if i.id in moving and i.id in wanted else "none") for i in s.body)
    return replace(s, before=_all_none(s.before), start=_all_none(s.start), body=Code(body, s.body.results))


def _mark_upper(code: Code, terms: int) -> Code:
    wanted = _wanted(code, code.results[:terms])
    return Code(tuple(_with(i, "parameters" if i.id in wanted else "none") for i in code), code.results)


def _wanted(code: Code, results: tuple[int, ...]) -> set[int]:
    """Values whose gradient the results depend on."""
    wanted = set(results)
    for i in reversed(code.instrs):
        if i.id in wanted and i.op not in _FLAT:
            wanted.update(i.args[1:] if i.op == "if" else i.args)
    return wanted
