"""`lossdsl explain`: the programme, the algorithm, the flow of the gradient, the cost, and every default spelled out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lossdsl.front import Recipe


def explain(recipe: Recipe) -> str:
    """A recipe, attack suite or game as a reader needs it, in the symbols of papers, with every value that is in force."""
    from lossdsl.explain.game import game_sections
    from lossdsl.explain.method import method_sections
    from lossdsl.explain.settings import heading, settings_sections

    settings = game_sections(recipe) if recipe.kind == "game" else settings_sections(recipe)
    sections = [heading(recipe), *method_sections(recipe), *settings]
    return "\n\n".join("\n".join(section) for section in sections if section)


def explain_latex(recipe: Recipe) -> str:
    """The same without the defaults, as a LaTeX document."""
    from lossdsl.explain.latex import document

    return document(recipe)
