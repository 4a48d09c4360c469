"""The sections of `explain` that say what is computed: programme, algorithm, gradient flow, cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lossdsl.explain import algorithm, programme
from lossdsl.explain.costs import costs
from lossdsl.explain.flow import flow
from lossdsl.explain.notation import Plain

if TYPE_CHECKING:
    from lossdsl.front import Recipe


def method_sections(recipe: Recipe) -> list[list[str]]:
    """Sections of lines, the first of each its heading."""
    own = programme.Programme(recipe, Plain())
    kinds = {"recipe": "programme", "attack": "attacks", "game": "game"}
    sections = [[kinds[recipe.kind], *programme.plain(list(own.lines()))]]
    sections.append(["algorithm", *algorithm.plain(list(algorithm.Algorithm(recipe, own).steps()))])
    if recipe.kind == "game":
        return sections
    through = flow(recipe.typed)
    sections.append(["gradient of the upper level", *(f"  {line}" for line in through)] if through else [])
    return [*sections, ["cost of a batch", *(f"  {line}" for line in costs(recipe))]]
