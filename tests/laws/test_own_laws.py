"""The laws of lossdsl itself: every operation, set and solver has one, and the kernels obey them. `lossdsl laws` searches them."""

from __future__ import annotations

import pytest
import torch

from lossdsl.assets import law_paths
from lossdsl.front import read_source
from lossdsl.lang.ops import BINDERS, OPERATIONS
from lossdsl.laws.catalogue import Law, laws_of
from lossdsl.laws.problem import Problem
from lossdsl.syntax import tree as t
from tests.unit.laws.law_tools import random_numbers

FILES = ("operations", "sets", "reductions")
LAWS = {law.name: law for name in FILES for law in laws_of(read_source(law_paths()[name]))}
OVER_BATCH = {"batch_mean", "batch_sum", "class_mean", "class_sum"}
"""Those of a law in Python: a law in the language is about one example."""


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
