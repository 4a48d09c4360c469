"""The programme of a recipe as MathML, which browsers show without a script or a font of their own."""

from __future__ import annotations

import re

from latex2mathml.converter import convert

from lossdsl.explain.notation import Latex
from lossdsl.explain.programme import Programme
from lossdsl.front import Recipe

_NAMED = re.compile(r"\\operatorname\{([^{}]*\\_[^{}]*)\}")


def formulas(recipe: Recipe) -> list[str]:
    """A <math> element for each line of the programme, outermost level first."""
    lines = Programme(recipe, Latex()).lines()
    return [mathml(" \\quad ".join(filter(None, (line.head, line.formula, _words(line.words))))) for line in lines]


def mathml(latex: str) -> str:
    """One displayed formula."""
    found: str = convert(_NAMED.sub(lambda m: r"\text{" + m[1].replace(r"\_", "_") + "}", latex), display="block")
    return found


def _words(words: str) -> str:
    """Words between formulas, "with $t = 0$": the converter does not know formulas inside text."""
    parts = words.split("$")
    return " ".join(part if number % 2 else rf"\text{{{part}}}" for number, part in enumerate(parts) if part)
