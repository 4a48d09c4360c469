"""The table of attacks (`Search`) that build from the options of a recipe and the set they work on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lossdsl.diagnostics import UserError
from lossdsl.lang.specs import SOLVERS, ApgdOptions, SearchOptions
from lossdsl.solve.apgd import Apgd
from lossdsl.solve.input_set import InputSet
from lossdsl.solve.search import Search
from lossdsl.solve.sets import SETS_TORCH


def _apgd(options: ApgdOptions, region: InputSet) -> Search[Any]:
    return Apgd(options.steps, options.rho)


SEARCHES_TORCH: dict[str, Callable[[Any, InputSet], Search[Any]]] = {"apgd": _apgd}


def build_search(name: str, options: SearchOptions, region: InputSet) -> Search[Any]:
    """The attack of a row with these options, on this kind of set. Raises UserError for a set it does not work on."""
    allowed = SOLVERS[name].sets
    if not any(isinstance(region, SETS_TORCH[known]) for known in allowed):
        fix = "it works on " + ", ".join(allowed)
        raise UserError(f"{name} does not work on {type(region).__name__}", where="lower level", fix=fix)
    return SEARCHES_TORCH[name](options, region)
