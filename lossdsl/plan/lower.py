"""Typed recipe to the naive plan: levels, their starts and objectives, the upper level's terms."""

from __future__ import annotations

from lossdsl.check.typed import Typed, TypedFind, TypedLevel, TypedRecipe, TypedState, show, walk
from lossdsl.lang.specs import SOLVERS
from lossdsl.lang.types import Kind
from lossdsl.plan.expressions import Emitter
from lossdsl.plan.ir import Code, Find, Plan, Solve, Upper
from lossdsl.plan.labels import guarded
from lossdsl.plan.top import kept_choices


def lower_recipe(recipe: TypedRecipe) -> Plan:
    """The naive plan of a recipe."""
    recipe, counter = guarded(recipe), [0]
    samples = Emitter(counter)
    results = []
    for s in recipe.samples:
        args = tuple(samples.lower(a, "eval") for a in s.draw.args)
        kind = {"x": Kind.INPUT, "example": Kind.REAL, "batch": Kind.CONST, "classes": Kind.VECTOR}[s.over]
        results.append(samples.emit("draw", args, kind, s.draw, (*s.draw.attrs, "as", s.name), axes=()))
    inits = _all(Emitter(counter), [(s.init, "eval") for s in recipe.states])
    frozen = frozenset(name for name, is_frozen in recipe.models.items() if is_frozen)
    still = frozenset(level.var for level in recipe.levels if level.set.over == "weights" and level.set.radius.value == 0)
    solves = tuple(
        _find(stage, counter, frozen, still)
        if isinstance(stage, TypedFind)
        else _level(stage, counter, frozen, still, _captures(stage, recipe), _asked(stage, recipe), _stops(stage, recipe))
        for stage in recipe.stages
        if stage.var not in still
    )
    upper = _upper(recipe, counter, frozen, still) if recipe.objective is not None else None
    sampling = _all(Emitter(counter), [(recipe.sampler, "eval")] if recipe.sampler is not None else [])
    drawn = Code(tuple(samples.instrs), tuple(results))
    return kept_choices(Plan(recipe.name, drawn, solves, upper, inits, sampling, recipe.joint), recipe.kind == "attack")


def _all(code: Emitter, wanted: list[tuple[Typed, str]]) -> Code:
    results = tuple(code.linear(e, mode) for e, mode in wanted)
    return Code(tuple(code.instrs), results)


def _level(
    level: TypedLevel,
    counter: list[int],
    frozen: frozenset[str],
    still: frozenset[str],
    captures: tuple[int, ...],
    asked: bool,
    stops: bool,
) -> Solve:
    solver, mode = level.solver, level.mode
    before = Emitter(counter, frozen=frozen, still=still)
    center = (
        before.lower(level.set.center, mode) if level.set.over == "input" else before.emit("number", (), Kind.CONST, level.set.center, (0,))
    )
    radius = before.lower(level.set.radius, mode)
    classes = before.class_range(level.axis, mode) if level.axis else None
    step = None if solver.step is None else before.lower(solver.step, mode)
    until = None if solver.until is None else before.lower(solver.until, mode)
    wanted = tuple(v for v in (center, radius, classes, step, until) if v is not None)
    start = Emitter(counter, level, frozen=frozen, still=still)
    drawn = solver.start_kind not in ("expression", "raw")
    first = () if drawn else (start.lower(solver.start, mode),)
    noise = Emitter(counter, level, frozen=frozen, still=still)
    added = () if solver.noise is None else (noise.lower(solver.noise, mode),)
    body = Emitter(counter, level, frozen=frozen, still=still)
    results = [body.linear(level.objective, mode)]
    facts = asked or until is not None or stops
    if facts:
        results.append(_misclassified(body, level))
    if level.solver.name == "fab" and level.axis is None:
        results.append(body.lower(level.objective.args[0], mode))
    return Solve(
        level,
        Code(tuple(before.instrs), wanted),
        Code(tuple(start.instrs), first),
        Code(tuple(body.instrs), tuple(results)),
        center,
        radius,
        classes,
        captures,
        step,
        until,
        Code(tuple(noise.instrs), added),
        facts,
        stops,
        _optimality(level, counter, frozen, still),
    )


def _misclassified(body: Emitter, level: TypedLevel) -> int:
    """Is the point misclassified? The pass is the objective's own where that has one."""
    here = Typed("point", (), Kind.INPUT, level.span, (level.var,))
    logits = Typed("logits", (here,), Kind.LOGITS, level.span)
    label = body.emit("label", (), Kind.LABEL, Typed("label", (), Kind.LABEL, level.span))
    fact = Typed("fact", (), Kind.REAL, level.span, ("fooled", level.var))
    return body.emit("misclassified", (body.lower(logits, level.mode), label), Kind.REAL, fact)


def _optimality(level: TypedLevel, counter: list[int], frozen: frozenset[str], still: frozenset[str]) -> Code:
    """The objective once more, for an implicit gradient; in train mode its passes write no statistics again."""
    if level.through is None or level.through.kind != "implicit":
        return Code()
    code = Emitter(counter, level, frozen=frozen, still=still)
    value = code.linear(level.objective, "untracked" if level.mode == "train" else level.mode)
    return Code(tuple(code.instrs), (value,))


def _find(stage: TypedFind, counter: list[int], frozen: frozenset[str], still: frozenset[str]) -> Find:
    before = Emitter(counter, frozen=frozen, still=still)
    low, high = before.lower(stage.low, stage.mode), before.lower(stage.high, stage.mode)
    body = Emitter(counter, frozen=frozen, still=still)
    value = body.linear(stage.value, stage.mode)
    return Find(stage, Code(tuple(before.instrs), (low, high)), Code(tuple(body.instrs), (value,)), low, high)


def _everything(recipe: TypedRecipe, but: TypedLevel) -> list[Typed]:
    """Every expression of the recipe except those of one level, parts included."""
    roots = [recipe.objective, recipe.sampler, *(e for _, e in recipe.logs), *(s.update for s in recipe.states)]
    roots += [e for other in recipe.stages if other is not but for e in other.expressions]
    stack = [e for e in roots if e is not None]
    seen: dict[int, Typed] = {}
    while stack:
        e = stack.pop()
        if id(e) in seen:
            continue
        seen[id(e)] = e
        stack.extend(e.args)
        if e.axis is not None and e.axis.domain.expr is not None:
            stack.append(e.axis.domain.expr)
    return list(seen.values())


def _captures(level: TypedLevel, recipe: TypedRecipe) -> tuple[int, ...]:
    """The iterates of a level that anything else speaks of."""
    spoken = _everything(recipe, level)
    return tuple(sorted({e.attrs[1] for e in spoken if e.op == "point" and e.attrs[0] == level.var and len(e.attrs) > 1}))


def _asked(level: TypedLevel, recipe: TypedRecipe) -> bool:
    """Does anything ask how many iterates were right?"""
    facts = (("survived", level.var), ("first_fooled", level.var))
    return any(e.op == "fact" and e.attrs in facts for e in _everything(recipe, level))


def _stops(level: TypedLevel, recipe: TypedRecipe) -> bool:
    """Is an example done at its first success? Not if runs are compared by their objective, and not where the model is not asked."""
    if level.run is None or recipe.count == "best_loss":
        return False
    asks = any(e.op == "logits" and e.attrs[:1] in ((), ("f",)) and level.var in e.depends for e in walk(level.objective))
    return asks and (SOLVERS[level.solver.name].searches or level.solver.options.restarts > 1)


def _upper(recipe: TypedRecipe, counter: list[int], frozen: frozenset[str], still: frozenset[str]) -> Upper:
    assert recipe.objective is not None
    mode = recipe.mode
    code = Emitter(counter, frozen=frozen, still=still, weights=recipe.at)
    names, results = [], []
    for sign, term in _terms(recipe.objective):
        value = code.lower(term, mode)
        if term.kind is Kind.PROB:
            value = code.linear(term, mode)
        if sign < 0:
            value = code.emit("neg", (value,), term.kind, term, text=f"-{show(term)}")
        names.append(("-" if sign < 0 else "") + show(term))
        results.append(value)
    for _, e in recipe.logs:
        results.append(code.lower(e, mode))
    for state in recipe.states:
        results.append(_next(code, state, mode))
    return Upper(
        Code(tuple(code.instrs), tuple(results)), tuple(names), tuple(n for n, _ in recipe.logs), tuple(s.name for s in recipe.states)
    )


def _next(code: Emitter, state: TypedState, mode: str) -> int:
    return code.linear(state.update, state.mode or mode)


def _terms(e: Typed, sign: int = 1) -> list[tuple[int, Typed]]:
    """The addends of the objective as written; a sum over whole numbers is one of them."""
    if e.op in ("add", "sub") and e.args[0].span != e.args[1].span and e.span not in (e.args[0].span, e.args[1].span):
        return _terms(e.args[0], sign) + _terms(e.args[1], sign if e.op == "add" else -sign)
    return [(sign, e)]
