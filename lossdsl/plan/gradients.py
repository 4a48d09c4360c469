"""Pass: every forward pass says what its result is differentiated by: the parameters, the input, or nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from lossdsl.plan.ir import Code, Find, Instr, Plan, Solve

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
        "class_top",
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
        "known",
        "present",
        "interior",
    )
)
"""Operations whose value has zero gradient."""


def mark_gradients(plan: Plan) -> Plan:
    """Lower levels need input gradients only; in the upper level a pass that only a stop or an argmax uses needs none."""
    solves = tuple(_mark_level(s) for s in plan.solves)
    upper = plan.upper and replace(plan.upper, code=_mark_upper(plan.upper.code, len(plan.upper.terms)))
    samples, inits, sampling = (_marked(c, set(), "none") for c in (plan.samples, plan.inits, plan.sampling))
    return replace(plan, samples=samples, inits=inits, solves=solves, upper=upper, sampling=sampling)


def _mark_level(s: Solve | Find) -> Solve | Find:
    everything = _inside([*s.before, *s.start, *s.body])  # a gradient's point may be computed before the updates that take it

    def free(code: Code) -> Code:
        return _marked(code, set(), "none", everything)

    if isinstance(s, Find):
        return replace(s, before=free(s.before), body=free(s.body))
    if s.through == "unrolling":
        wanted = _wanted(Code((*s.before, *s.start, *s.body)), (*s.before.results, *s.start.results, *s.body.results))
        before, start, body = (_marked(c, wanted, "parameters", everything) for c in (s.before, s.start, s.body))
        return replace(s, before=before, start=start, noise=free(s.noise), body=body)
    if s.level.set.over == "weights":
        body = _marked(s.body, _wanted(s.body, s.body.results), "parameters", everything)
    else:
        moving = depending(s.body, s.var)
        body = _marked(s.body, moving & _wanted(s.body, s.body.results[:1]), "input", everything)
    optimality = _all_wanted(s.optimality) if s.optimality.instrs else s.optimality
    return replace(s, before=free(s.before), start=free(s.start), noise=free(s.noise), body=body, optimality=optimality)


def depending(code: Code, *point: str | int) -> set[int]:
    """What depends on the variable of a level (its name), or on one of its iterates (name and number)."""
    moving = {i.id for i in code if i.op == "point" and i.attrs == point}
    for i in code:
        if any(a in moving for a in i.args):
            moving.add(i.id)
    return moving


def _all_wanted(code: Code) -> Code:
    return _marked(code, _wanted(code, code.results), "parameters")


def _mark_upper(code: Code, terms: int) -> Code:
    wanted = _wanted(code, code.results[:terms])
    by_theta = [i.args[0] for i in code if i.op == "grad_theta"]
    return _marked(code, wanted | _wanted(code, by_theta), "parameters")


def _marked(code: Code, wanted: set[int], by: str, around: tuple[set[int], set[int]] | None = None) -> Code:
    """Passes in `wanted` are differentiated by `by`, those between a gradient's point and its body by the input, others by nothing.

    A gradient is differentiated again ("graph") where it is wanted itself or lies inside another gradient's body.
    """
    inside, twice = around or _inside(code.instrs)

    def mark(i: Instr) -> Instr:
        if i.op == "forward":
            return replace(i, gradient=by if i.id in wanted else "input" if i.id in inside else "none")
        if i.op == "grad":
            return replace(i, gradient="graph" if i.id in wanted or i.id in twice else "value")
        return replace(i, gradient="input") if i.id in inside else i

    return Code(tuple(mark(i) for i in code), code.results)


def _inside(instrs: Sequence[Instr]) -> tuple[set[int], set[int]]:
    """Values between the point of some gradient and its body; values that some body holds."""
    below: dict[int, set[int]] = {}
    above: dict[int, set[int]] = {}
    inside: set[int] = set()
    twice: set[int] = set()
    for i in instrs:
        above[i.id] = {i.id}.union(*(above.get(a, set()) for a in i.args))
        below[i.id] = ({i.id} if i.op == "leaf" else set()).union(*(below.get(a, set()) for a in i.args))
        if i.op in ("grad", "grad_theta"):
            body = i.args[-1]
            twice |= above.get(body, set())
            if i.op == "grad":
                inside |= {v for v in above.get(body, set()) if i.args[0] in below.get(v, set())} | {i.args[0], i.id}
    return inside, twice


def _wanted(code: Code, results: Iterable[int]) -> set[int]:
    """Values whose gradient the results depend on."""
    wanted = set(results)
    for i in reversed(code.instrs):
        if i.id in wanted and i.op not in _FLAT:
            wanted.update(i.args[1:] if i.op == "if" else i.args)
    return wanted
