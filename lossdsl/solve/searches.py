"""The table of attacks (`Search`) that build from the options of a recipe and the set they work on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lossdsl.diagnostics import UserError
from lossdsl.lang.search_options import ApgdOptions, CwOptions, FabOptions, SearchOptions, SquareOptions
from lossdsl.lang.specs import SOLVERS
from lossdsl.solve.apgd import Apgd
from lossdsl.solve.apgd_sparse import SparseApgd
from lossdsl.solve.cw import Cw
from lossdsl.solve.fab import Fab
from lossdsl.solve.input_set import InputSet
from lossdsl.solve.search import Search
from lossdsl.solve.sets import L1, L2, SETS_TORCH
from lossdsl.solve.square import SquareLinf
from lossdsl.solve.square_l2 import SquareL2


def _apgd(options: ApgdOptions, region: InputSet, several: bool) -> Search[Any]:
    return SparseApgd(options.steps) if isinstance(region, L1) else Apgd(options.steps, options.rho)


def _fab(options: FabOptions, region: InputSet, several: bool) -> Search[Any]:
    return Fab(options.steps, options.alpha_max, options.eta, options.beta, several)


def _square(options: SquareOptions, region: InputSet, several: bool) -> Search[Any]:
    return (SquareL2 if isinstance(region, L2) else SquareLinf)(options.queries, options.p_init)


def _cw(options: CwOptions, region: InputSet, several: bool) -> Search[Any]:
    return Cw(options.steps, options.step, options.searches, options.constant, options.confidence)


SEARCHES_TORCH: dict[str, Callable[[Any, InputSet, bool], Search[Any]]] = {"apgd": _apgd, "fab": _fab, "square": _square, "cw": _cw}


def build_search(name: str, options: SearchOptions, region: InputSet, *, several: bool = False) -> Search[Any]:
    """The attack of a row with these options, on this kind of set.

    several: may one of several classes win? Then fab looks at each of them (`problem.margins`).
    Raises UserError for a set it does not work on.
    """
    allowed = SOLVERS[name].sets
    if not any(isinstance(region, SETS_TORCH[known]) for known in allowed):
        fix = "it works on " + ", ".join(allowed)
        raise UserError(f"{name} does not work on {type(region).__name__}", where="lower level", fix=fix)
    return SEARCHES_TORCH[name](options, region, several)
