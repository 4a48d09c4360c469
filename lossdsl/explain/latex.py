"""A declaration as a LaTeX document of its own: programme, algorithm, gradient flow and cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lossdsl.explain import algorithm, programme
from lossdsl.explain.costs import costs
from lossdsl.explain.flow import flow
from lossdsl.explain.notation import Latex

if TYPE_CHECKING:
    from lossdsl.front import Recipe

_HEAD = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage{amsmath,amssymb}
\usepackage[margin=2cm]{geometry}
\setlength{\parindent}{0pt}
\begin{document}"""


def document(recipe: Recipe) -> str:
    """A whole document; it needs amsmath, amssymb and geometry alone."""
    notation = Latex()
    own = programme.Programme(recipe, notation)
    title = notation.text(recipe.title)
    parts = [_HEAD, f"\\section*{{{title}}}"]
    if recipe.source_note:
        parts.append(notation.text(recipe.source_note))
    parts.append(programme.latex(list(own.lines())))
    parts.append(algorithm.latex(list(algorithm.Algorithm(recipe, own).steps()), notation.text(recipe.name)))
    if recipe.kind != "game":
        lists = [("Gradient of the upper level", flow(recipe.typed)), ("Cost of a batch", costs(recipe))]
        parts += [_listed(name, lines) for name, lines in lists if lines]
    return "\n\n".join([*parts, "\\end{document}"])


def _listed(name: str, lines: list[str]) -> str:
    items = "\n".join(f"  \\item {Latex().text(' '.join(line.split()))}" for line in lines)
    return f"\\paragraph{{{name}}}\n\\begin{{itemize}}\n{items}\n\\end{{itemize}}"
