"""A recipe's lower levels against its upper one: what an exact attack would guarantee.

Every statement about a lower level speaks of its exact solution; solvers come near it. The modes of a level and of the upper level are not
told apart: f is one function.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from lossdsl.check.typed import Typed, TypedLevel, TypedRecipe, same, show, walk
from lossdsl.theory import ranges
from lossdsl.theory.bounds import Analysis, Bound, Reason, bound
from lossdsl.theory.events import Conditional, Event, EventKind, is_label, prediction
from lossdsl.theory.monotone import Dependence, core
from lossdsl.theory.ranges import Range
from lossdsl.theory.sums import Term, normal, summed, terms


@dataclass(frozen=True)
class Surrogate:
    """What a level maximises, as a function of its variable, against the error at its own point."""

    event: Event
    found: Conditional

    @property
    def exact(self) -> bool:
        """Does its maximiser misclassify wherever a point of the set does?"""
        return self.found.separates


class Facts:
    """What is known of a recipe or attack suite. `classes`: the number of classes, if it is known."""

    def __init__(self, recipe: TypedRecipe, classes: int | None = None) -> None:
        self.recipe, self.classes = recipe, classes
        self.objective = None if recipe.objective is None else normal(recipe.objective)
        self._effects: dict[str, int | None] = {}
        self._surrogates: dict[int, Surrogate | None] = {}

    @cached_property
    def states(self) -> Mapping[str, Range]:
        """Of what lives across batches the values that are never negative: at first, and after any update from such values."""
        found = {s.name: ranges.NONNEGATIVE for s in self.recipe.states}
        while True:
            analysis = Analysis(None, self.classes, found)
            kept = {s.name for s in self.recipe.states if s.name in found and min(analysis.of(e).no.low for e in (s.init, s.update)) >= 0}
            if kept == set(found):
                return found
            found = {name: found[name] for name in kept}

    @cached_property
    def plain(self) -> Analysis:
        """Ranges whatever happens."""
        return Analysis(None, self.classes, self.states)

    # --- levels ---

    @cached_property
    def attacks(self) -> tuple[TypedLevel, ...]:
        """The levels over inputs whose solution is used by the upper level (all runs of a suite)."""
        levels = [level for level in self.recipe.levels if level.set.over == "input"]
        return tuple(level for level in levels if self.objective is None or level.var in self.objective.depends)

    def points(self, root: Typed, level: TypedLevel) -> list[Typed]:
        """The points that depend on the solution of a level (not on its iterates) and at which f is evaluated, each once."""
        found: list[Typed] = []
        for e in walk(root):
            own = e.op == "logits" and (not e.attrs or e.attrs[0] == "f") and _holds(e.args[0], level.var)
            if own and not any(same(e.args[0], other) for other in found):
                found.append(e.args[0])
        return found

    def goal(self, level: TypedLevel) -> Typed:
        """What the level maximises."""
        objective = normal(level.objective)
        return objective if level.sense == "maximize" else normal(Typed("neg", (objective,), objective.kind, depends=objective.depends))

    def surrogate(self, level: TypedLevel) -> Surrogate | None:
        """The level's goal against the error at the one point of f that it moves; None where there is no such point."""
        if id(level) not in self._surrogates:
            self._surrogates[id(level)] = self._surrogate(level)
        return self._surrogates[id(level)]

    def _surrogate(self, level: TypedLevel) -> Surrogate | None:
        goal = self.goal(level)
        points = self.points(goal, level)
        found = core(goal, level.var)
        if len(points) != 1 or found is None:
            return None
        own, sign = found
        toward = points[0].args[1] if level.axis is not None and points[0].op == "pick" else None
        event = Event(points[0], _model(goal, points[0]), toward=toward)
        known = Analysis(event, self.classes, self.states).of(own)
        if sign < 0:
            known = replace(known, no=known.no.scaled(-1.0), yes=known.yes.scaled(-1.0))
        return Surrogate(event, known)

    def covers(self, level: TypedLevel) -> bool:
        """Of a family: is there a problem for every class but the label?"""
        domain = level.axis.domain if level.axis else None
        if domain is not None and domain.kind == "top" and self.classes is not None:
            return (domain.size or 0) >= self.classes - 1
        return domain is None or domain.kind == "all" or (domain.kind == "not" and domain.expr is not None and domain.expr.op == "label")

    def effect(self, level: TypedLevel) -> int | None:
        """How the upper objective depends on what the level maximises: 1 where it never falls with it, and depends on the solution
        through it alone."""
        if level.var not in self._effects:
            own = core(self.goal(level), level.var)
            known = None if own is None or self.objective is None else Dependence(level.var, own[0], self.plain).of(self.objective)
            self._effects[level.var] = known if known is None or own is None else int(known * own[1])
        return self._effects[level.var]

    # --- the upper level ---

    @cached_property
    def pointwise(self) -> list[Bound]:
        """The bounds of the upper objective by the error at every point at which it evaluates f, those without any left out."""
        if self.objective is None:
            return []
        seen: list[Typed] = []
        for e in walk(self.objective):
            if e.op == "logits" and (not e.attrs or e.attrs[0] == "f") and not any(same(e, s) for s in seen):
                seen.append(e)
        found = [self._bound(Event(e.args[0], e.attrs)) for e in seen]
        return sorted((b for b in found if b.constant > 0), key=lambda b: -b.constant)

    def _bound(self, event: Event) -> Bound:
        assert self.objective is not None
        return bound(self.objective, event, self.classes, self.states)

    @cached_property
    def robust(self) -> Bound | None:
        """The best bound of the upper objective by the robust 0-1 error; None where nothing ties the two, or without an attack."""
        levels = self.attacks if self.objective is not None else ()
        found = [b for level in levels for b in self._robust(level) if b.constant > 0]
        return max(found, key=lambda b: (not b.missing, b.constant), default=None)

    def _robust(self, level: TypedLevel) -> Iterator[Bound]:
        assert self.objective is not None
        for point in self.points(self.objective, level):
            model = _model(self.objective, point)
            for kind, why, laws in self._premises(level, point, model):
                own = self._bound(Event(point, model, kind))
                premise = Reason(why, "the lower level is solved exactly", laws)
                claim = f"{show(self.objective)} >= {own.text.replace(str(own.event), self.robust_name(level))}"
                yield replace(own, reason=Reason(claim, "", (), (premise, own.reason)))
        yield from (b for b in (self._maximised(level), self._smoothed(level)) if b is not None)

    def _maximised(self, level: TypedLevel) -> Bound | None:
        """Where the terms that depend on the solution only through what it maximises never fall with it, and the others are not negative:
        at the solution they are worth at least what they are at any misclassified point."""
        known, own = self.surrogate(level), core(self.goal(level), level.var)
        if known is None or own is None or self.objective is None or level.axis is not None or level.solver.until is not None:
            return None
        dependence = Dependence(level.var, own[0], self.plain)
        kept: list[Term] = []
        dropped: list[Term] = []
        for term in terms(self.objective):
            effect = dependence.term(term)
            (kept if effect == 0 or (effect is not None and effect * own[1] > 0) else dropped).append(term)
        if any(self.plain.of(t.e).no.scaled(t.factor).low < 0 for t in dropped) or not kept:
            return None
        found = bound(summed(kept), known.event, self.classes, self.states)
        why = f"{level.var} maximises this: it is at least what it is at any misclassified point of the set"
        premise = Reason(why, "the lower level is solved exactly", ("A09",))
        claim = f"{show(self.objective)} >= {found.text.replace(str(found.event), self.robust_name(level))}"
        rest = Reason(" + ".join(show(t.e) for t in dropped) + " >= 0", "left out", ()) if dropped else None
        parts = (premise, found.reason, *((rest,) if rest else ()))
        return replace(found, reason=Reason(claim, "", (), parts))

    def robust_name(self, level: TypedLevel) -> str:
        """The robust error on a level's set, as text."""
        return f"robust error on {level.set.name}({show(level.set.center)}, {show(level.set.radius)})"

    def _premises(self, level: TypedLevel, point: Typed, model: tuple[str, ...]) -> Iterator[tuple[EventKind, str, tuple[str, ...]]]:
        """What holds at a point of the upper level wherever the set holds a misclassified point: the event, why, and the laws."""
        var, known = level.var, self.surrogate(level)
        if level.solver.until is not None:
            yield "error", f"the attack on {var} ends at a misclassified point where it finds one", ()
            return
        if known is None or not (self.covers(level) and self._kept(level, point, known)):
            return
        if known.exact:
            laws = ("A13", "A10") if level.axis is None else ("A15", "A25")
            yield "error", f"{var} is misclassified wherever a point of the set is: what it maximises is larger there", laws
        if _is_cross_entropy(self.goal(level), known.event, level.var):
            why = f"CE({show(point)}) is at least log(2) wherever a point of the set is misclassified, since {var} maximises it"
            yield "half", why, ("A09",)

    def _kept(self, level: TypedLevel, point: Typed, known: Surrogate) -> bool:
        """Is the point of the upper level the solution that the premise speaks of? Of a family the member of the largest margin."""
        if level.axis is None:
            return same(point, known.event.point)
        if point.op != "pick":
            return False
        index = point.args[1].args[0] if point.args[1].op == "mode" else point.args[1]
        if index.op != "reduce" or index.attrs != ("argmax",) or index.axis is None:
            return False
        chosen = Event(_member(known.event.point, index), known.event.model, toward=_bound_class(index))
        scored = Analysis(chosen, self.classes, self.states).of(normal(index.args[0]))
        return scored.separates

    def _smoothed(self, level: TypedLevel) -> Bound | None:
        """sum(j: w[j] * e_j) over a family with softmax weights: the member of the largest score has at least its share."""
        if level.axis is None or self.objective is None or not self.covers(level):
            return None
        e, known = self.objective, self.surrogate(level)
        if e.op != "reduce" or e.attrs != ("sum",) or e.axis is None or e.args[0].op != "mul" or known is None or not known.exact:
            return None
        for weight, value in (e.args[0].args, e.args[0].args[::-1]):
            if _is_softmax(weight, self, known) and value.low >= 0:
                own = bound(value, Event(_member(known.event.point, e), known.event.model), self.classes, self.states)
                name = self.robust_name(level)
                share = Reason("the class of the largest score has a weight of at least 1/(K - 1)", "softmax weights")
                found = replace(own, per="K - 1")
                claim = f"{show(e)} >= {found.factor} * {name}"
                premise = Reason(f"one of {level.var} is misclassified wherever a point of the set is", "", ("A15", "A25"))
                return replace(found, reason=Reason(claim, "", (), (premise, share, own.reason)))
        return None


def _holds(point: Typed, var: str) -> bool:
    """Is the point made of a level's solution itself?"""
    own = [e for e in walk(point) if e.op == "point" and e.attrs[0] == var]
    return any(len(e.attrs) == 1 for e in own) and not any(len(e.attrs) > 1 for e in own)


def _model(root: Typed, point: Typed) -> tuple[str, ...]:
    return next(e.attrs for e in walk(root) if e.op == "logits" and same(e.args[0], point))


def _is_cross_entropy(goal: Typed, event: Event, var: str) -> bool:
    own = core(goal, var)
    if own is None or own[1] < 0 or own[0].op != "CE" or not is_label(own[0].args[1]):
        return False
    logits = prediction(own[0].args[0])
    return logits is not None and same(logits.args[0], event.point)


def _bound_class(binder: Typed) -> Typed:
    """The class that a binder is at, as it stands in its body."""
    return next(e for e in walk(binder.args[0]) if e.op == "bound" and e.axis == binder.axis)


def _member(point: Typed, binder: Typed) -> Typed:
    """The member of a family at a binder's class."""
    return replace(point, args=(point.args[0], _bound_class(binder))) if point.op == "pick" else point


def _is_softmax(weight: Typed, facts: Facts, known: Surrogate) -> bool:
    """w[j] with w the softmax over the family of a positive multiple of what the members maximise."""
    if weight.op != "at":
        return False
    w = weight.args[0]
    while w.op in ("stop", "mode"):
        w = w.args[0]
    if w.op != "reduce" or w.attrs != ("softmax",):
        return False
    chosen = Event(_member(known.event.point, w), known.event.model, toward=_bound_class(w))
    return Analysis(chosen, facts.classes, facts.states).of(normal(w.args[0])).separates
