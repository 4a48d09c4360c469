"""A game played by another solver than the declared one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lossdsl.front import Recipe
from lossdsl.lang.games import GAME_SOLVERS
from lossdsl.syntax import tree as t

OWN_OPTIMIZERS = "alternating"
"""The solver whose players have optimizers of their own."""


def with_solver(recipe: Recipe, solver: str | None, options: Mapping[str, float | int | str]) -> Recipe:
    """The same game played otherwise.

    solver: as a `solve` statement has it, "gda(step = 0.1, iterations = 100)"; a bare name keeps those declared options that it knows;
    None: the declared one. options replace single ones: step, iterations, batch, noise (a standard deviation), alpha, ... Optimizers of
    players belong to alternating, and are left out with any other solver. Raises UserError or RecipeError for what the solver does not
    take.
    """
    declared = recipe.game.solver
    name, bracket, _ = (solver or declared.name).partition("(")
    if name.strip() != OWN_OPTIMIZERS:
        items = tuple(replace(i, optimizer=None) if isinstance(i, t.Player) else i for i in recipe.declaration.items)
        recipe = replace(recipe, declaration=replace(recipe.declaration, items=items))
    if bracket:
        changed = recipe.with_clauses(solve=solver)
        return with_solver(changed, None, options) if options else changed
    known = set(GAME_SOLVERS[name].options.model_fields) if name in GAME_SOLVERS else set()
    kept = {k: v for k, v in declared.options.model_dump(exclude_unset=True).items() if k in known}
    text = ", ".join(f"{k} = {_written(k, v)}" for k, v in {**kept, **options}.items())
    return recipe.with_clauses(solve=f"{name}({text})")


def _written(option: str, value: float | int | str) -> str:
    return f"normal({value})" if option == "noise" else str(value)
