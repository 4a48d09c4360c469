"""Solvers of lower levels over inputs, weights and classes: sets, problems, the loop, the table of solvers, and the equations around them.

Knows nothing of recipes.
"""

from lossdsl.solve.apgd import Apgd
from lossdsl.solve.base import Solution, Solver, solve
from lossdsl.solve.draws import ExampleStreams, Randomness
from lossdsl.solve.first_order import (
    SOLVERS_TORCH,
    Ascent,
    Linear,
    Momentum,
    Pgd,
    Power,
    Prox,
    TorchOptimizer,
    build_solver,
    register_solver,
)
from lossdsl.solve.input_set import Domain, InputSet
from lossdsl.solve.linear import solve_symmetric
from lossdsl.solve.min_norm import min_norm_weights
from lossdsl.solve.problem import Problem, value_and_gradient
from lossdsl.solve.restarts import solve_until_fooled
from lossdsl.solve.roots import bisection
from lossdsl.solve.search import Request as SearchRequest
from lossdsl.solve.search import Search, search
from lossdsl.solve.searches import SEARCHES_TORCH, build_search
from lossdsl.solve.sets import L1, L2, SETS_TORCH, Linf, register_set
from lossdsl.solve.simplex import Simplex
from lossdsl.solve.weights import WEIGHT_SETS, Layout, WeightSet

__all__ = [
    "L1",
    "L2",
    "SEARCHES_TORCH",
    "SETS_TORCH",
    "SOLVERS_TORCH",
    "WEIGHT_SETS",
    "Apgd",
    "Ascent",
    "Domain",
    "ExampleStreams",
    "InputSet",
    "Layout",
    "Linear",
    "Linf",
    "Momentum",
    "Pgd",
    "Power",
    "Problem",
    "Prox",
    "Randomness",
    "Search",
    "SearchRequest",
    "Simplex",
    "Solution",
    "Solver",
    "TorchOptimizer",
    "WeightSet",
    "bisection",
    "build_search",
    "build_solver",
    "min_norm_weights",
    "register_set",
    "register_solver",
    "search",
    "solve",
    "solve_symmetric",
    "solve_until_fooled",
    "value_and_gradient",
]
