"""Adaptive suites: what is carried over from every shipped recipe, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lossdsl
from lossdsl.adaptive import attack_from
from lossdsl.assets import recipe_paths
from lossdsl.cli import main
from lossdsl.diagnostics import UserError
from lossdsl.front import check_source
from lossdsl.source import Source
from lossdsl.syntax.format import format_text

NO_LEVEL = {"erm", "sam", "asam", "bisam"}
NO_RUN = {"elle", "elle_a", "mma"}


@pytest.mark.parametrize("name", [name for name in recipe_paths() if name not in NO_LEVEL | NO_RUN])
def test_every_attack_that_can_be_carried(name: str) -> None:
    """Valid without a finding, in canonical layout, with the recipe's own objective and set; fast_bat's second level needs its first."""
    recipe = lossdsl.load(name)
    found = attack_from(recipe, steps=7, restarts=3)
    assert {d.severity for d in check_source(Source(found.text, name)).diagnostics} <= {"note"}
    assert format_text(found.text) == found.text
    assert bool(found.left) == name.startswith("fast_bat")
    suite = lossdsl.parse(found.text)
    own, *general = suite.typed.levels
    first = next(level for level in recipe.typed.levels if level.set.over == "input")
    assert (own.set.name, own.set.radius.value, own.sense) == (first.set.name, first.set.radius.value, first.sense)
    assert own.solver.name == first.solver.name and own.mode == "eval"
    assert own.solver.options.steps == (first.solver.options.steps if first.solver.name == "linear" else 7)
    assert [level.run for level in general] == ["margin", "ce"] and suite.typed.count == "worst"


@pytest.mark.parametrize("name", ["trades", "beta_at", "llr", "fast_bat", "fgsm_at", "hat", "free_at"])
def test_an_adaptive_suite_runs(name: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4)).double()
    with torch.no_grad():
        model[1].weight *= 6
    x = torch.rand(12, 5, dtype=torch.float64)
    y = model(x).argmax(1)
    found = lossdsl.evaluate(model, x, y, attack_from(lossdsl.load(name), steps=3, restarts=2).text, eps=0.2)
    assert found.robust.right < 12 and found.measurement.outcomes[0].attacked.all()


def test_params_that_change_and_overrides_become_numbers() -> None:
    text = """recipe r
param eps = ramp(0, 0.2, epochs = 5), step = eps/4, n = 3 then 5 from epoch 4
model g
lower x' in linf(x, eps) maximize CE(f(x'), y) + n * CE(g(x'), y) by pgd(steps = 4, step = step, start = previous, until fooled(2)) with f in train
upper minimize CE(f(x'), y) + CE(g(x), y) by sgd(lr = 0.1)
"""
    found = attack_from(lossdsl.parse(text), steps=9, restarts=2, name="mine").text
    assert "attack mine" in found and "param eps = 0.2, step = eps/4, n = 5" in found and "model g frozen" in found
    assert "pgd(steps = 9, step = step, start = uniform, restarts = 2)" in found and "until" not in found
    assert "param eps = 0.3" in attack_from(lossdsl.load("trades").with_params(eps=0.3)).text


def test_several_levels_and_sets() -> None:
    text = """recipe r
lower x' in linf(x, 0.1) maximize CE(f(x'), y) by pgd(steps = 4, step = 0.1, start = x)
lower v in l2(x, 0.5) maximize KL(p(x) || p(v)) by pgd(steps = 4, step = 0.1, start = x + normal(0.1))
lower u in linf(x', 0.1) maximize CE(f(u), y) by pgd(steps = 4, step = 0.1, start = x)
upper minimize CE(f(x'), y) + CE(f(v), y) + CE(f(u), y) by sgd(lr = 0.1)
"""
    found = attack_from(lossdsl.parse(text))
    assert [level.run for level in lossdsl.parse(found.text).typed.levels] == ["own_x", "own_v", "margin1", "ce1", "margin2", "ce2"]
    assert found.left == ("u is left out: its set is not around x: its variable is not the attacked input",)
    assert "by pgd(steps = 100, step = 0.1, start = x)\n" in found.text, "restarts from one point are one"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        *((name, f"{name} has no lower level over inputs: it trains against no attack") for name in sorted(NO_LEVEL)),
        ("elle", "d: its set is not around x"),
        ("mma", "x': it needs s, a sample shared by the levels"),
        ("pgd20", "pgd20 is a declaration of attack, not a recipe"),
        ("forsaken", "forsaken is a declaration of game"),
    ],
)
def test_what_cannot_be_an_attack(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        attack_from(lossdsl.load(name))
    with pytest.raises(UserError, match="lambda is a word|K is a word|max is a word"):
        attack_from(lossdsl.load("trades"), "max")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.loss"
    assert main(["attack-from", "fast_bat", "--steps", "20", "--restarts", "2", "--set", "eps=0.1", "--out", str(file)]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == str(file) and err == "warning: x' is left out: it needs z, the solution of another level, and a run stands alone\n"
    assert "param eps = 0.1" in file.read_text() and main(["check", str(file)]) == 0
    assert main(["attack-from", "fast_bat", "--out", str(file)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["attack-from", "erm"]) == 2
