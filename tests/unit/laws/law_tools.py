"""Random assignments of a problem, and laws by their text."""

from __future__ import annotations

import torch
from torch import Tensor

from lossdsl.laws.catalogue import Law, laws_of
from lossdsl.laws.problem import Assignment, Problem
from lossdsl.source import Source


def law(text: str) -> Law:
    """The one law of a text without its header."""
    (found,) = laws_of(Source(f"law l\n{text}\n", "l.loss"))
    return found


def problem(text: str, index: int = 0, **choices: int | float | str) -> Problem:
    found = law(text)
    typed = found.at(choices)
    return Problem(typed, typed.statements[index], found.source)


def assignment(**values: object) -> Assignment:
    return Assignment({name.replace("_", "'"): tuple(v) if isinstance(v, list | tuple) else (v,) for name, v in values.items()})


def random_numbers(problem: Problem, count: int, seed: int = 0) -> dict[str, Tensor]:
    """Ordinary numbers, ties, zeros and ends of intervals for every quantity."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for q in problem.quantities:
        shape = (count, q.size)
        if q.form == "label":
            found[q.name] = torch.randint(0, int(q.attrs[0]), shape, generator=generator)
            continue
        whole = torch.randint(-2, 3, shape, generator=generator).double()
        plain = 2 * torch.randn(shape, dtype=torch.float64, generator=generator)
        numbers = torch.where(torch.rand(count, 1, generator=generator) < 0.4, whole, plain)
        if q.form in ("real", "vector") and max(abs(q.args[0].low), abs(q.args[1].high)) < 1e9:
            numbers = q.args[0].low + torch.rand(shape, dtype=torch.float64, generator=generator) * (q.args[1].high - q.args[0].low)
        found[q.name] = numbers
    return found


def rows(problem: Problem, flat: dict[str, Tensor], place: int) -> Assignment:
    return Assignment({name: tuple(v[place].tolist()) for name, v in flat.items()})
