"""Solvers of lower levels over inputs, weights and classes: sets, problems, the loop, the table of solvers, and the equations around them.

Knows nothing of recipes.
"""

from lossdsl.solve.base import Problem, Solution, Solver, solve, value_and_gradient
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
from lossdsl.solve.linear import solve_symmetric
from lossdsl.solve.min_norm import min_norm_weights
from lossdsl.solve.roots import bisection
from lossdsl.solve.sets import L1, L2, SETS_TORCH, Domain, InputSet, Linf, register_set
from lossdsl.solve.simplex import Simplex
from lossdsl.solve.weights import WEIGHT_SETS, Layout, WeightSet

__all__ = [
    "L1",
    "L2",
    "SETS_TORCH",
    "SOLVERS_TORCH",
    "WEIGHT_SETS",
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
    "Simplex",
    "Solution",
    "Solver",
    "TorchOptimizer",
    "WeightSet",
    "bisection",
    "build_solver",
    "min_norm_weights",
    "register_set",
    "register_solver",
    "solve",
    "solve_symmetric",
    "value_and_gradient",
]
