"""The shipped suites: their names mean what the field means by them, and docs/attacks.md says so."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

import lossdsl
from lossdsl.assets import attack_paths
from lossdsl.diagnostics import UserError
from lossdsl.front import check_source, read_source

DOCS = Path(__file__).resolve().parents[2] / "docs"
FAMILY = "top"


def runs(name: str) -> list[tuple[str, str, int, int, bool]]:
    """Per run: name, solver, steps or queries, restarts, targeted."""
    found = []
    for level in lossdsl.load(name).typed.levels:
        options = level.solver.options
        steps = getattr(options, "steps", None) or options.queries
        targeted = level.axis is not None and level.axis.domain.kind == FAMILY
        assert not targeted or level.axis.domain.text == "j in top(9, i != y: f(x)[i])"
        found.append((level.run, level.solver.name, steps, options.restarts, targeted))
    return found


@pytest.mark.parametrize("name", list(attack_paths()))
def test_a_suite_has_no_finding(name: str) -> None:
    assert {d.severity for d in check_source(read_source(attack_paths()[name])).diagnostics} <= {"note"}
    assert lossdsl.load(name).name == name


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_autoattack_is_the_released_standard_version(norm: str) -> None:
    """fra31/auto-attack, set_version("standard"): these four in this order, 100 steps, one restart, nine targets, 5,000 queries."""
    name = "autoattack" if norm == "linf" else "autoattack_l2"
    assert runs(name) == [
        ("apgd_ce", "apgd", 100, 1, False),
        ("apgd_t", "apgd", 100, 1, True),
        ("fab_t", "fab", 100, 1, True),
        ("square", "square", 5000, 1, False),
    ]
    suite = lossdsl.load(name)
    assert suite.typed.count == "worst" and {level.set.name for level in suite.typed.levels} == {norm}
    ce, targeted, _, square = suite.typed.levels
    options = [level.solver.options for level in suite.typed.levels]
    assert [options[0].rho, options[1].rho, options[2].alpha_max, options[2].eta, options[2].beta, options[3].p_init] == [
        0.75, 0.75, 0.1, 1.05, 0.9, 0.8,
    ]  # fmt: skip
    texts = read_source(attack_paths()[name]).text
    assert "maximize CE(f(x'), y)" in texts and "maximize DLR(f(x'[j]), y, j)" in texts
    assert "maximize max(j != y: f(x')[j]) - f(x')[y]" in texts and ce.sense == targeted.sense == square.sense == "maximize"


def test_autoattack_plus_is_the_released_one() -> None:
    assert runs("autoattack_plus") == [
        ("apgd_ce", "apgd", 100, 5, False),
        ("apgd_dlr", "apgd", 100, 5, False),
        ("fab", "fab", 100, 5, False),
        ("square", "square", 5000, 1, False),
        ("apgd_t", "apgd", 100, 1, True),
        ("fab_t", "fab", 100, 1, True),
    ]


def test_parts_of_autoattack_are_suites_of_their_own() -> None:
    whole = {run[0]: run for name in ("autoattack", "autoattack_plus") for run in runs(name)}
    for name in ("apgd_t", "fab_t", "square"):
        assert runs(name) == [whole[name]]
    assert runs("autoattack_few") == [run for run in runs("autoattack") if run[0] != "apgd_t"]
    assert [run[:3] for name in ("apgd_ce", "apgd_dlr") for run in runs(name)] == [("apgd_ce", "apgd", 100), ("apgd_dlr", "apgd", 100)]


def model_of(classes: int, size: int) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(size, 16), torch.nn.ReLU(), torch.nn.Linear(16, classes)).double()
    with torch.no_grad():
        model[1].weight *= 6
    x = torch.rand(10, size, dtype=torch.float64)
    return model, x, model(x).argmax(1)


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_are_said_or_served(classes: int) -> None:
    model, x, y = model_of(classes, 8)
    with pytest.raises(UserError, match=r"(?s)needs 4 classes, and there are \d.*autoattack_few"):
        lossdsl.evaluate(model, x, y, "autoattack")
    text = lossdsl.load("autoattack_few").text.replace("queries = 5000", "queries = 200")
    found = lossdsl.evaluate(model, x.view(-1, 2, 2, 2), y, text, eps=0.3)
    assert found.robust.right < 10 and found.measurement.outcomes[1].points.shape == (10, 2, 2, 2)
    if classes == 2:
        with pytest.raises(UserError, match="needs 3 classes"):
            lossdsl.evaluate(model, x, y, "apgd_dlr")


@pytest.mark.parametrize("classes", [4, 12])
def test_targets_follow_the_classes(classes: int) -> None:
    model, x, y = model_of(classes, 8)
    widths: list[int] = []
    model.register_forward_hook(lambda m, inputs, output: widths.append(len(inputs[0])))
    lossdsl.evaluate(model, x, y, "apgd_t", eps=1e-4, params={"steps": 3})
    assert max(widths) == 10 * min(9, classes - 1)


def test_the_page_says_what_the_files_say() -> None:
    spec = importlib.util.spec_from_file_location("make_attacks", DOCS / "make_attacks.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = (DOCS / "attacks.md").read_text(encoding="utf-8")
    assert script.rewritten(page) == page, "run: python docs/make_attacks.py"
    assert all(f"`{name}`" in page for name in attack_paths())
