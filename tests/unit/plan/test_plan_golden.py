"""Golden plans: one pass at a time, what it does and what it leaves alone; the plan of every shipped recipe."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from golden_plans import GOLDEN, NAMES, SHIPPED, case_recipe, cases, change_of, expected, plans, present

from lossdsl.front import load
from lossdsl.plan.cost import Cost, cost
from lossdsl.plan.ir import codes

CASES = cases()
ROOT = GOLDEN.parents[2]


@pytest.fixture(scope="module")
def texts() -> dict[Path, str]:
    return expected()


def name_of(case: Path) -> str:
    return f"{case.parent.name}/{case.stem}"


@pytest.mark.parametrize("path", sorted(p for p in present()), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_the_plan_is_the_golden_one(path: Path, texts: dict[Path, str]) -> None:
    assert path.read_text(encoding="utf-8") == texts.get(path), "python tests/unit/plan/golden_plans.py writes the plans anew"


def test_every_case_and_recipe_has_its_golden_files(texts: dict[Path, str]) -> None:
    assert present() == set(texts)
    assert len(present()) == 2 * len(CASES) + len(SHIPPED)


def test_every_pass_has_cases() -> None:
    assert {case.parent.name for case in CASES} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_pass_acts_in_some_case(name: str) -> None:
    assert any(str(before) != str(after) for before, after in map(plans, (c for c in CASES if c.parent.name == name)))


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_pass_done_twice_is_done_once(case: Path) -> None:
    _, after = plans(case)
    assert str(change_of(case)(after)) == str(after)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_pass_never_adds_a_computation(case: Path) -> None:
    before, after = plans(case)
    added = {i.id: i.op for code in codes(after) for i in code if i.id not in {j.id for other in codes(before) for j in other}}
    assert set(added.values()) <= ({"stack", "forward"} if case.parent.name == "join" else set())
    assert batches(cost(after)) <= batches(cost(before))


def batches(counted: Cost) -> int:
    """Forward passes over one batch, for K = 4."""
    return counted.forward + 3 * sum(forward for _, forward, _ in counted.copies)


def test_shipped_recipes_cost_what_the_papers_count() -> None:
    costs = {name: str(cost(load(name).plan)) for name in SHIPPED}
    assert costs["trades"] == "cost: 13 forward passes, 10 input-backward passes, 1 full backward pass"
    assert costs["erm"] == "cost: 1 forward pass, 0 input-backward passes, 1 full backward pass"
    assert costs["fgsm_at"] == "cost: 2 forward passes, 1 input-backward pass, 1 full backward pass"
    assert costs["pgd_at"] == "cost: 11 forward passes, 10 input-backward passes, 1 full backward pass"
    assert costs["fait"] == "cost: 14 forward passes, 10 input-backward passes, 1 full backward pass"
    assert costs["beta_at"] == "cost: 1 + 11*(K - 1) forward passes, 10*(K - 1) input-backward passes, 1 full backward pass"
    assert costs["pgd50x10"] == "cost: 510 forward passes, 500 input-backward passes, 0 full backward passes"


@pytest.mark.parametrize("bridges", range(1, 6))
def test_a_chain_of_bridges_costs_one_pass_per_point(bridges: int) -> None:
    """m bridges have m + 1 points, the first and last being x and x'."""
    assert load("bat").with_params(m=bridges).plan.upper.code.forwards() == bridges + 1


@pytest.mark.slow
def test_the_text_of_a_plan_is_the_same_in_every_process() -> None:
    code = (
        "import sys, hashlib; sys.path.insert(0, 'tests/unit/plan')\n"
        "from golden_plans import expected\n"
        "print(hashlib.sha256(repr(sorted((str(k), v) for k, v in expected().items())).encode()).hexdigest())"
    )
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    ]
    assert runs[0] and runs[0] == runs[1]


def test_planning_twice_gives_the_same_plan() -> None:
    for case in CASES:
        assert str(case_recipe(case).plan) == str(case_recipe(case).plan)
