"""Solvers of lower levels over inputs: sets, problems, the loop and the table of solvers. Knows nothing of recipes."""

from lossdsl.solve.base import Problem, Solution, Solver, solve, value_and_gradient
from lossdsl.solve.first_order import (
    SOLVERS_TORCH,
    Ascent,
    Linear,
    Momentum,
    Pgd,
    TorchOptimizer,
    build_solver,
    register_solver,
)
from lossdsl.solve.sets import L1, L2, SETS_TORCH, Domain, InputSet, Linf, register_set

__all__ = [
    "L1",
    "L2",
    "SETS_TORCH",
    "SOLVERS_TORCH",
    "Ascent",
    "Domain",
    "InputSet",
    "Linear",
    "Linf",
    "Momentum",
    "Pgd",
    "Problem",
    "Solution",
    "Solver",
    "TorchOptimizer",
    "build_solver",
    "register_set",
    "register_solver",
    "solve",
    "value_and_gradient",
]
