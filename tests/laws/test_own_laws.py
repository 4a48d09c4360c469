"""The laws of lossdsl itself: every operation, set and solver has one, and the kernels obey them. `lossdsl laws` searches them."""

from __future__ import annotations

import re

import pytest
import torch

from lossdsl.assets import law_paths
from lossdsl.front import read_source
from lossdsl.lang.ops import BINDERS, OPERATIONS
from lossdsl.lang.specs import SETS, SOLVERS
from lossdsl.laws.catalogue import Law, laws_of
from lossdsl.laws.problem import Problem
from lossdsl.laws.python_laws import check_python_law, python_laws
from lossdsl.laws.report import lines
from lossdsl.laws.search import Effort
from lossdsl.syntax import tree as t
from tests.unit.laws.law_tools import random_numbers

FILES = ("operations", "sets", "reductions")
SCRIPTS = [law_paths()["operations"].with_name(f"{name}.py") for name in ("operations", "sets", "solvers")]
PYTHON = {law.name: law for path in SCRIPTS for law in python_laws(path)}
LAWS = {law.name: law for name in FILES for law in laws_of(read_source(law_paths()[name]))}
OVER_BATCH = {"batch_mean", "batch_sum", "class_mean", "class_sum"}
"""Those of the law in Python operations_over_a_batch: a law in the language is about one example."""


def called(law: Law) -> set[str]:
    """Operations and binders in the claims of a law and what they use."""
    found = set()
    for item in law.recipe.declaration.items:
        for node in t.walk(item):
            if isinstance(node, t.Call) and isinstance(node.func, t.Name):
                found.add(node.func.id)
            elif isinstance(node, t.Binder):
                found.add(node.func)
    return found


def test_every_operation_has_a_law() -> None:
    spoken = set().union(*(called(law) for name, law in LAWS.items() if name.startswith(("operations_", "sets_"))))
    assert set(OPERATIONS) | set(BINDERS) <= spoken | OVER_BATCH
    assert {"if", "stop", "grad"} <= spoken


def test_every_gradient_is_compared_with_differences() -> None:
    said = " ".join(law.function.__doc__ or "" for name, law in PYTHON.items() if name.startswith("operations_gradients"))
    named = set(re.findall(r"\w+", said))
    passing = {name for name, row in OPERATIONS.items() if row.gradient} - OVER_BATCH
    assert passing <= named
    assert "operations_over_a_batch" in PYTHON


def test_every_solver_and_every_set_has_a_law() -> None:
    assert {f"solvers_{name}" for name in SOLVERS} <= set(PYTHON)
    regions = next(iter(law for name, law in PYTHON.items() if name.startswith("sets_"))).function.__globals__["REGIONS"]
    assert {row.name for row in SETS.values()} <= {name.partition("_")[0] for name in regions}


@pytest.mark.parametrize("name", PYTHON)
def test_a_law_in_python_passes(name: str) -> None:
    """A short search; `lossdsl laws` makes a longer one."""
    report = check_python_law(PYTHON[name], Effort(shapes=8, examples=5, seconds=600))
    assert report.passed, "\n".join(lines(report))


@pytest.mark.parametrize("name", LAWS)
def test_the_kernels_obey(name: str) -> None:
    """Ordinary numbers in float64, where the search asks high precision before it calls anything a counterexample."""
    law = LAWS[name]
    for n, statement in enumerate(law.first.statements):
        problem = Problem(law.first, law.first.statements[n], law.source)
        e = problem.evaluate(random_numbers(problem, 256, seed=n))
        known = (e.hypotheses > e.noise.unsqueeze(-1)).all(-1) & e.violation.isfinite()
        assert bool(known.any()), f"{name}: nothing satisfies the hypotheses of statement {n + 1}"
        worst = float((e.violation - torch.clamp(e.noise, min=1e-9))[known].max())
        assert (worst > 0) == statement.refuted, f"{name}, statement {n + 1}: {worst}"
