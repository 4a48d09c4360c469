"""T01 to T06 and T09: what theory says about a recipe's levels, each finding with its reasons."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from lossdsl.check.flow import gradient_reaches
from lossdsl.check.gradients import of_model
from lossdsl.check.typed import Typed, TypedLevel, same, show, walk
from lossdsl.diagnostics import Diagnostic, Edit
from lossdsl.lang.ops import OPERATIONS
from lossdsl.theory.attacked import Facts
from lossdsl.theory.bounds import Reason
from lossdsl.theory.events import is_label, prediction
from lossdsl.theory.sums import Term, terms
from lossdsl.theory.table import LINTS


@dataclass(frozen=True)
class Finding:
    """One finding of theory: what `check` prints, and the tree of reasons that `theory` adds."""

    diagnostic: Diagnostic
    reason: Reason

    @property
    def code(self) -> str:
        return self.diagnostic.code


def _finding(code: str, message: str, place: Typed | TypedLevel, help: str, reason: Reason, edit: Edit | None = None) -> Finding:
    severity: Any = LINTS[code].severity
    return Finding(Diagnostic(code, message, place.span, help=help, edit=edit, severity=severity), reason)


def findings(facts: Facts) -> list[Finding]:
    """Everything that the lints of this module find, in the order of their codes."""
    return [f for rule in RULES for f in rule(facts)]


# --- T01: surrogates ---------------------------------------------------------------------------------------------------


_SURROGATES = frozenset(name for name, row in OPERATIONS.items() if row.surrogate is not None) | {"H", "bregman"}


def surrogate(facts: Facts) -> Iterator[Finding]:
    """T01."""
    for level in facts.attacks:
        known = facts.surrogate(level)
        if level.solver.until is not None or known is None or (known.exact and (facts.covers(level) or _targets(facts, level) >= MOST)):
            continue
        name = _surrogate_name(facts.goal(level), level.var)
        if name is None:
            continue
        if known.exact:
            what, why = (
                f"{level.var} leaves classes out",
                f"the classes of {level.var} are [{level.axis.domain.text if level.axis else ''}]",
            )
        else:
            what = f"the attacker maximises {name}, a surrogate of the 0-1 error"
            no, yes = known.found.no, known.found.yes
            why = f"{show(level.objective)} lies in {no} where {show(known.event.point)} is right and in {yes} where it is wrong"
        message = f"{what}: its maximiser can leave the example correctly classified although an adversarial example exists"
        margin = f"max(j != y: f({show(known.event.point)})[j]) - f({show(known.event.point)})[y]"
        reason = Reason("the ranges overlap, so that a right point can have the larger value", "", ("A07",), (Reason(why),))
        edit = Edit(level.objective.span, margin) if _replaceable(level, known.event.point) else None
        yield _finding("T01", message, level.objective, f"the margin {margin} is exact", reason, edit)


MOST = 9
"""Targets of AutoAttack's targeted attacks: all classes but the label for K = 10."""


def _targets(facts: Facts, level: TypedLevel) -> int:
    """How many classes a family attacks by their scores, where the number of classes is not known."""
    domain = level.axis.domain if level.axis else None
    return domain.size or 0 if domain is not None and facts.classes is None else 0


def _surrogate_name(goal: Typed, var: str) -> str | None:
    """The surrogate that a level's goal rises with; None where it is no such thing."""
    own = [t for t in terms(goal) if var in t.e.depends]
    if len(own) != 1 or own[0].factor <= 0:
        return "a sum of losses" if own and all(t.factor > 0 and t.e.op in _SURROGATES for t in own) else None
    e = own[0].e
    if e.op == "sub" and e.args[0].op == "reduce" and e.args[0].attrs == ("logsumexp",):
        return "a soft margin"
    return e.op if e.op in _SURROGATES else "a margin of some classes" if e.op == "sub" else None


def _replaceable(level: TypedLevel, point: Typed) -> bool:
    """Is the whole objective one operation of f at the variable itself, written where it stands?"""
    e = level.objective
    return level.axis is None and level.sense == "maximize" and e.op in ("CE", "KL", "SE") and point.op == "point"


# --- T02: upper bounds -------------------------------------------------------------------------------------------------


def upper_bound(facts: Facts) -> Iterator[Finding]:
    """T02."""
    objective = facts.recipe.objective
    if objective is None or not facts.attacks:
        return
    found = facts.robust
    if found is None:
        points = facts.pointwise
        known = (
            "; ".join(f"it bounds the error at {show(b.event.point)} ({b.factor})" for b in points) or "no multiple of it bounds an error"
        )
        message = f"nothing makes the upper objective an upper bound of the robust 0-1 error: {known}"
        help = "attack what the upper level minimises, or the margin; keep weights away from 0"
        parts = tuple(b.reason for b in points) + tuple(_untied(facts, level) for level in facts.attacks)
        yield _finding("T02", message, objective, help, Reason("nothing ties these points to the worst one of the set", "", (), parts))
    elif found.missing:
        message = (
            f"the upper objective plus {found.missing} is at least {found.factor} times the robust 0-1 error, not the objective itself"
        )
        yield _finding("T02", message, objective, f"add {found.missing}: its gradient does not change", found.reason)
    elif found.constant < 1 or found.per:
        missing = f"1/({found.factor})" if "/" in found.factor else f"1/{found.factor}"
        message = f"the upper objective is at least {found.factor} times the robust 0-1 error: a bound of the error itself needs {missing}"
        help = "multiply it to read its value as a bound; training changes only by the scale of the loss"
        yield _finding("T02", message, objective, help, found.reason)


def _untied(facts: Facts, level: TypedLevel) -> Reason:
    if facts.surrogate(level) is None:
        return Reason(f"what {level.var} {level.sense}s is not a function of one prediction at {level.var}")
    return Reason(f"{level.var} {level.sense}s {show(level.objective)}, and the upper objective does not rise with it")


# --- T03, T04: gradient flow -----------------------------------------------------------------------------------------------


def implicit(facts: Facts) -> Iterator[Finding]:
    """T03."""
    for level in facts.attacks:
        if facts.objective is None or level.through is not None or facts.effect(level) in (0, 1) or _locally_constant(level):
            continue
        if not _solution_moves(facts.objective, level.var) or _by_distance(facts, level.var):
            continue
        own = f"{level.var} {level.sense}s {show(level.objective)}, and the upper level minimises {show(facts.objective)}"
        message = (
            f"{level.var} is not the worst point for the upper objective, and a constant of it: "
            f"the implicit gradient d {level.var} / d theta is dropped"
        )
        help = "through implicit adds it (linf), through unrolling differentiates the updates; or attack what is minimised"
        reason = Reason("the total derivative has a second term (chain rule)", "", ("F16",), (Reason(own),))
        yield _finding("T03", message, level, help, reason)


def _locally_constant(level: TypedLevel) -> bool:
    """One sign step: its result has zero derivative wherever no coordinate of the gradient is zero."""
    one = level.solver.name in ("linear", "pgd") and level.solver.options.updates * level.solver.options.restarts <= 1
    return one and level.set.name == "linf"


def _solution_moves(objective: Typed, var: str) -> bool:
    """Does a gradient of the objective reach the solution itself, not only its iterates?"""
    return gradient_reaches(objective, lambda e: e.op == "point" and e.attrs == (var,))


def _by_distance(facts: Facts, var: str) -> bool:
    """Does the solution only give a direction, along which a root sets the distance?"""
    assert facts.objective is not None
    roots = {e.attrs[0] for e in walk(facts.objective) if e.op == "found"}
    return any(s.var in roots and var in e.depends for s in facts.recipe.stages for e in s.expressions if s.var != var)


def maximisers(facts: Facts) -> Iterator[Finding]:
    """T04."""
    for level in facts.attacks:
        solver = level.solver
        if facts.objective is None or level.through is not None or facts.effect(level) != 1 or solver.until is not None:
            continue
        if solver.options.updates < 2 or not (_random(level) or solver.options.restarts > 1) or facts.surrogate(level) is None:
            continue
        message = f"other starts of {level.var} can end at other maximisers, and the gradient at one of them can be an ascent direction"
        help = "through danskin(starts = 10) takes the min-norm convex combination of the gradients at several of them"
        parts = (
            Reason(
                f"{show(level.objective)} is not concave in {level.var}: a model lies between", "Latorre et al.: distinct perturbations"
            ),
            Reason("the directional derivative of a maximum is the largest over all maximisers", "Danskin", ("C01",)),
            Reason("the gradient at any one maximiser need not descend", "refuted", ("C03",)),
        )
        yield _finding(
            "T04", message, level, help, Reason("the maximum is not differentiable where it has several maximisers", "", (), parts)
        )


def _random(level: TypedLevel) -> bool:
    return "random" in level.solver.start.depends or level.solver.noise is not None


# --- T05: one step ------------------------------------------------------------------------------------------------------------


FIXED_START, RANDOM_START = 0.03, 8.5 / 255
"""Radii, as shares of the input range, from which one step is known to fail: 8/255 (in codes also 0.031) from a fixed start, more than
8/255 from a random one."""


def one_step(facts: Facts) -> Iterator[Finding]:
    """T05."""
    for level in facts.attacks:
        if facts.objective is None or level.through is not None or level.set.name != "linf" or level.solver.options.updates != 1:
            continue
        if level.solver.start_kind == "previous" or level.sense != "maximize" or facts.surrogate(level) is None:
            continue
        radius, share = level.set.radius.value, _input_range(facts)
        limit = RANDOM_START if _random(level) else FIXED_START
        if radius is None or share is None or radius < limit * share or _linearity(facts.objective, level.var):
            continue
        start = "a random" if _random(level) else "a fixed"
        message = f"one step of radius {radius:.4g} from {start} start and no term for local linearity: catastrophic overfitting is likely"
        help = "take more steps (pgd_at), or add a term as gradalign or elle do; watch the accuracy under PGD during training"
        reason = Reason(
            "one step is exact where the loss is affine on the set, and only there",
            "training can make it far from affine",
            ("C07",),
            (Reason(f"{radius:.4g} of an input range of {share:.4g}; from {start} start one step fails from {limit * share:.4g} on"),),
        )
        yield _finding("T05", message, level, help, reason)


def _input_range(facts: Facts) -> float | None:
    if facts.recipe.domain is None:
        return None
    ends = [v if isinstance(v, tuple) else (v,) for v in facts.recipe.domain]
    return float(min(h - b for b, h in zip(*ends, strict=False)))


def _linearity(objective: Typed, var: str) -> bool:
    """Is there a term of input gradients, or one that compares losses at several points that the attack does not set?"""
    for term in terms(objective):
        parts = walk(term.e)
        if any(e.op == "grad" for e in parts):
            return True
        scored: list[Typed] = []
        for e in parts:
            if e.op == "logits" and not any(same(e, other) for other in scored):
                scored.append(e)
        compared = any(e.op in ("sub", "add") and e.kind.name == "REAL" for e in parts)
        if len(scored) >= 2 and compared and var not in term.e.depends:
            return True
    return False


# --- T06: smoothness against the margin ------------------------------------------------------------------------------------


def smoothness(facts: Facts) -> Iterator[Finding]:
    """T06."""
    if facts.objective is None:
        return
    names = {level.var for level in facts.attacks}
    for root in [t.e for t in terms(facts.objective) if t.factor > 0]:
        for e in walk(root):
            if e.op == "KL" and _clean_to_attacked(e, names):
                text = show(e)
                message = f"{text} can oppose the margin: a step that lowers it through the clean point can lower the margin there"
                a, b = (show(prediction(v).args[0]) for v in e.args)  # type: ignore[union-attr]
                middle = f"p(0.5 * ({a}) + 0.5 * ({b}))" if not (a + b).replace("'", "").isalnum() else f"p(0.5 * {a} + 0.5 * {b})"
                bridge = f"(KL({show(e.args[0])} || {middle}) + KL({middle} || {show(e.args[1])}))"
                reason = Reason(
                    "its gradient through the clean point is sum_i grad p_i log(p_i / p'_i)", "Bridged AT, eq. A.1", ("E04",),
                    (Reason("with two classes that part never raises the margin where the attack lowers p[y]", "", ("E07",)),),
                )  # fmt: skip
                yield _finding("T06", message, e, f"a bridge splits it: {bridge[1:-1]}", reason, Edit(e.span, bridge))


def _clean_to_attacked(e: Typed, names: set[str]) -> bool:
    """Is one side taken at an attack's solution, and the other at a point without any lower variable, both of f?"""
    sides = [prediction(v) for v in e.args]
    if any(v is None or v.attrs[:1] not in ((), ("f",)) for v in sides):
        return False
    spoken = [names & (v.args[0].depends if v is not None else frozenset()) for v in sides]
    whole = [v is not None and v.args[0].op in ("point", "pick") and len((v.args[0].args or (v.args[0],))[0].attrs) == 1 for v in sides]
    return (not spoken[0] and bool(spoken[1]) and whole[1]) or (not spoken[1] and bool(spoken[0]) and whole[0])


# --- T09: no effect -----------------------------------------------------------------------------------------------------------


def no_effect(facts: Facts) -> Iterator[Finding]:
    """T09: terms that are constant in theta, and ascents from a stationary start (unused names are found by the checker)."""
    if facts.recipe.objective is not None:
        for term in terms(facts.recipe.objective):
            if term.factor and not gradient_reaches(term.e, _trained) and not _weights_others(term):
                message = f"the term {show(term.e)} passes no gradient to the model"
                yield _finding("T09", message, term.e, "remove it, or log it: log NAME = e", Reason("it is constant in theta"))
    for level in facts.recipe.levels:
        goal = level.objective
        if level.set.over == "input" and level.solver.start_kind == "expression" and _stationary(goal, level):
            message = (
                f"the ascent of {show(goal)} starts at {show(level.solver.start)}, where its gradient is zero: {level.var} never moves"
            )
            edit = Edit(level.solver.start.span, f"{show(level.solver.start)} + normal(0.001)")
            reason = Reason("a divergence is least, and smooth, where its arguments are equal", "", ("E03",))
            yield _finding("T09", message, level.solver.start, "start a little away", reason, edit)


def _trained(e: Typed) -> bool:
    return of_model(e) or e.op == "logits"


def _weights_others(term: Term) -> bool:
    return term.e.op == "number" and term.e.value == 0


def _stationary(goal: Typed, level: TypedLevel) -> bool:
    """A divergence between predictions at the variable and at its start."""
    own = [t.e for t in terms(goal) if level.var in t.e.depends]
    if not own or level.solver.noise is not None or "random" in level.solver.start.depends:
        return False
    return all(_divergence_from(e, level) for e in own)


def _divergence_from(e: Typed, level: TypedLevel) -> bool:
    if e.op not in ("KL", "SE", "JS", "bregman"):
        return False
    sides = [prediction(v) for v in e.args[:2]]
    if any(v is None for v in sides) or is_label(e.args[0]) or is_label(e.args[1]):
        return False
    points = [v.args[0] for v in sides if v is not None]
    equal = [replace(p, span=level.solver.start.span) for p in points]
    other = [p for p in equal if level.var not in p.depends]
    return (
        len(other) == 1
        and sides[0] is not None
        and sides[1] is not None
        and sides[0].attrs == sides[1].attrs
        and same(other[0], level.solver.start)
    )


RULES: tuple[Callable[[Facts], Iterator[Finding]], ...] = (surrogate, upper_bound, implicit, maximisers, one_step, smoothness, no_effect)
