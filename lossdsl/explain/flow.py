"""What the gradient of the upper level flows through, and what is a constant of it."""

from __future__ import annotations

from lossdsl.check.flow import is_flat
from lossdsl.check.typed import Typed, TypedLevel, TypedRecipe, same, show

_WAYS = {
    "implicit": "through the optimality conditions of its level (implicit gradient)",
    "unrolling": "through every update of its level (unrolled)",
    "danskin": "as a constant in each of its runs, whose gradients are combined",
}


def flow(recipe: TypedRecipe) -> list[str]:
    """Lines "what: how", for the upper level of a recipe."""
    if recipe.objective is None:
        return []
    reached, stopped = _split(recipe.objective)
    models = _each([e for e in reached if e.op in ("logits", "weights")])
    lines = [f"flows through  {', '.join(models)}"]
    lines += [f"               {level.var}, {_WAYS[level.through.kind]}" for level in recipe.levels if level.through is not None]
    constants = [_solution(level) for level in recipe.levels if level.through is None and level.var in recipe.objective.depends]
    constants += [f"{s.var}, a root" for s in recipe.stages if not isinstance(s, TypedLevel) and s.var in recipe.objective.depends]
    constants += [f"{text}, {why}" for text, why in stopped]
    frozen = [name for name, is_frozen in recipe.models.items() if is_frozen]
    constants += [f"the parameters of {name}, a frozen model" for name in frozen]
    return lines + [f"{'constant' if n == 0 else '':<15}{text}" for n, text in enumerate(constants)]


def _solution(level: TypedLevel) -> str:
    if level.set.over == "weights":
        return f"{level.var} - theta, the step of the weights: the gradient at {level.var} is applied to theta"
    return f"{level.var}, the solution of its level"


def _split(root: Typed) -> tuple[list[Typed], list[tuple[str, str]]]:
    """The nodes that a gradient reaches, and the outermost ones that hold it up, with the reason."""
    reached: list[Typed] = []
    stopped: dict[str, str] = {}
    seen: set[int] = set()
    stack = [root]
    while stack:
        e = stack.pop()
        if id(e) in seen:
            continue
        seen.add(id(e))
        if is_flat(e):
            if "theta" in e.depends or e.op == "stop":
                stopped.setdefault(show(e.args[0] if e.op == "stop" else e), _why(e))
            continue
        reached.append(e)
        stack.extend(reversed(e.args[1:] if e.op == "if" else e.args))
    return reached, list(stopped.items())


def _why(e: Typed) -> str:
    if e.op == "stop":
        return "stopped"
    if e.op == "fact":
        return "a count of the attack"
    return "a class" if e.op == "reduce" else "of zero gradient"


def _each(found: list[Typed]) -> list[str]:
    """Texts, each once."""
    kept: list[Typed] = []
    for e in found:
        if not any(same(e, other) for other in kept):
            kept.append(e)
    return [show(e) for e in kept]
