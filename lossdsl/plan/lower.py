"""Typed recipe to the naive plan: levels, their starts and objectives, the upper level's terms."""

from __future__ import annotations

from lossdsl.check.typed import Typed, TypedLevel, TypedRecipe, show
from lossdsl.lang.types import Kind
from lossdsl.plan.expressions import Emitter
from lossdsl.plan.ir import Code, Plan, Solve, Upper


def lower_recipe(recipe: TypedRecipe) -> Plan:
    """The naive plan of a recipe."""
    counter = [0]
    samples = Emitter(counter)
    results = []
    for s in recipe.samples:
        args = tuple(samples.lower(a, "eval") for a in s.draw.args)
        kind = {"x": Kind.INPUT, "example": Kind.REAL, "batch": Kind.CONST, "classes": Kind.VECTOR}[s.over]
        results.append(samples.emit("draw", args, kind, s.draw, (*s.draw.attrs, "as", s.name), axes=()))
    solves = tuple(_level(level, counter, _captures(level, recipe)) for level in recipe.levels)
    upper = _upper(recipe, counter) if recipe.objective is not None else None
    return Plan(recipe.name, Code(tuple(samples.instrs), tuple(results)), solves, upper)


def _level(level: TypedLevel, counter: list[int], captures: tuple[int, ...]) -> Solve:
    before = Emitter(counter)
    center, radius = before.lower(level.set.center, level.mode), before.lower(level.set.radius, level.mode)
    classes = before.class_range(level.axis, level.mode) if level.axis else None
    start = Emitter(counter, level)
    first = () if level.solver.start_kind in ("uniform", "corner", "previous") else (start.lower(level.solver.start, level.mode),)
    body = Emitter(counter, level)
    objective = body.lower(level.objective, level.mode)
    wanted = (center, radius) if classes is None else (center, radius, classes)
    return Solve(
        level,
        Code(tuple(before.instrs), wanted),
        Code(tuple(start.instrs), first),
        Code(tuple(body.instrs), (objective,)),
        center,
        radius,
        classes,
        captures,
    )


def _captures(level: TypedLevel, recipe: TypedRecipe) -> tuple[int, ...]:
    """The iterates of a level that anything else speaks of."""
    found: set[int] = set()
    seen: set[int] = set()
    roots = [recipe.objective, *(e for _, e in recipe.logs)]
    for other in recipe.levels:
        roots += [other.objective, other.set.center, other.set.radius, other.solver.start]
    stack = [e for e in roots if e is not None]
    while stack:
        e = stack.pop()
        if id(e) in seen:
            continue
        seen.add(id(e))
        if e.op == "point" and e.attrs[0] == level.var and len(e.attrs) > 1:
            found.add(e.attrs[1])
        stack.extend(e.args)
        if e.axis is not None and e.axis.domain.expr is not None:
            stack.append(e.axis.domain.expr)
    return tuple(sorted(found))


def _upper(recipe: TypedRecipe, counter: list[int]) -> Upper:
    assert recipe.objective is not None
    code = Emitter(counter)
    names, results = [], []
    for sign, term in _terms(recipe.objective):
        value = code.lower(term, "train")
        if term.kind is Kind.PROB:
            value = code.linear(term, "train")
        if sign < 0:
            value = code.emit("neg", (value,), term.kind, term, text=f"-{show(term)}")
        names.append(("-" if sign < 0 else "") + show(term))
        results.append(value)
    for _, e in recipe.logs:
        results.append(code.lower(e, "train"))
    return Upper(Code(tuple(code.instrs), tuple(results)), tuple(names), tuple(name for name, _ in recipe.logs))


def _terms(e: Typed, sign: int = 1) -> list[tuple[int, Typed]]:
    """The addends of the objective as written; a sum over whole numbers is one of them."""
    if e.op in ("add", "sub") and e.args[0].span != e.args[1].span and e.span not in (e.args[0].span, e.args[1].span):
        return _terms(e.args[0], sign) + _terms(e.args[1], sign if e.op == "add" else -sign)
    return [(sign, e)]
