"""Diagnostics of a run: D1, D2, D9, D11, D12, D14, D18, D20, D22 against its own files and plain PyTorch in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lossdsl.assets import recipe_paths
from lossdsl.diagnose.curves import alarm, curves, stopping, time
from lossdsl.diagnose.perturbations import descent
from lossdsl.diagnose.replay import norms
from lossdsl.diagnose.runs import OpenRun
from lossdsl.diagnose.subject import Options
from lossdsl.diagnose.terms import angles, compiled, increase, objective, smoothness, terms, with_logs
from lossdsl.diagnostics import UserError
from lossdsl.front import load
from lossdsl.run.checkpoint import read_checkpoint
from lossdsl.run.rng import derive, generator

KL = "lambda * KL(p(x) || p(x'))"


def solved(run: OpenRun, epoch: int) -> tuple[nn.Module, Tensor, Tensor, dict[str, Tensor]]:
    """The model of an epoch loaded by hand, the examples, and the lower solutions that the diagnostic sees."""
    model = run.model(run.weights(f"epoch:{epoch}"))
    x, y, _ = run.examples("train", 40)
    step = compiled(run, with_logs(run.recipe, {"r": "KL(p(x) || p(x'@2))"}), run.weights(f"epoch:{epoch}"))
    found = step.solve(x, y, generator=generator("cpu", derive(0, "terms", "draws")))
    return model.eval(), x, y, found


def flat(value: Tensor, model: nn.Module) -> Tensor:
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, list(model.parameters()), retain_graph=True)])


def margin(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    p = model(x).softmax(1)
    rows = torch.arange(len(y))
    others = p.clone()
    others[rows, y] = -1
    return p[rows, y] - others.amax(1)


def kl(model: nn.Module, one: Tensor, two: Tensor) -> Tensor:
    p, q = model(one).log_softmax(1), model(two).log_softmax(1)
    return (p.exp() * (p - q)).sum(1).mean()


def test_angles_and_margin_increase(run: OpenRun) -> None:
    seen = {(row["epoch"], row["term"]): row for row in angles(run, run.options)}
    gains = {row["epoch"]: row for row in increase(run, run.options)}
    assert set(seen) == {(epoch, term) for epoch in (1, 2, 3) for term in ("CE(f(x), y)", KL)}
    for epoch in (1, 3):
        model, x, y, found = solved(run, epoch)
        up = flat(margin(model, x, y).mean(), model)
        parts = {"CE(f(x), y)": cross_entropy(model(x), y), KL: 6 * kl(model, x, found["x'"])}
        for term, value in parts.items():
            down = -flat(value, model)
            cosine = float(up @ down / up.norm() / down.norm())
            row = seen[epoch, term]
            assert row["cosine"] == pytest.approx(cosine, abs=1e-8)
            assert row["angle"] == pytest.approx(math.degrees(math.acos(cosine)), abs=1e-5)
            assert row["length"] == pytest.approx(float(down.norm()))
        assert gains[epoch]["increase"] == pytest.approx(float((-up @ flat(sum(parts.values(), torch.zeros(())), model)).detach()))
        assert gains[epoch]["margin"] == pytest.approx(float(margin(model, x, y).mean().detach()))


def test_r_and_r_prime(run: OpenRun) -> None:
    table = {row["epoch"]: row for row in smoothness(run, run.options)}
    model, x, _, found = solved(run, 2)
    end, middle = found["x'"], found["x'@2"]
    assert table[2]["R"] == pytest.approx(float(kl(model, x, end)))
    assert table[2]["R'"] == pytest.approx(float(kl(model, x, middle) + kl(model, middle, end)))


def test_the_first_updates_are_made_again_to_the_last_digit(run: OpenRun) -> None:
    table = norms(run, replace(run.options, updates=12))
    record = run.metrics()
    per_epoch = record[0]["updates"]
    assert any("2 whole epochs are those of the run, to the last digit" in note for note in table.notes)
    whole = table.where(lambda row: row["term"] == "objective")
    assert len(whole) == 12 and per_epoch == 6
    sizes = [256] * 5 + [1293 - 5 * 256]
    assert sum(sizes) == len(run.split("train"))
    weighted = sum(norm * size for norm, size in zip(whole["norm"][:6], sizes, strict=True)) / sum(sizes)
    assert weighted == pytest.approx(record[0]["gradient_norm"], rel=1e-9)
    assert all(row["normalised"] == pytest.approx(row["norm"] / abs(row["value"])) for row in table)


def test_descent_promises_what_danskin_says(run: OpenRun) -> None:
    options = replace(run.options, starts=3, limit=30)
    before = run.weights("best").found.part("model")
    table = descent(run, options)
    slopes = {direction: part["slope"][0] for direction, part in table.split("direction").items()}
    assert slopes["DDi"] < 0 and slopes["DDi"] <= min(slopes.values()) + 1e-9  # the steepest descent of the maximum
    mixed = table.split("direction")["DDi"]
    assert mixed["f"][1] < mixed["f"][0]
    assert {part["f"][0] for part in table.split("direction").values()} == {mixed["f"][0]}
    after = run.weights("best").found.part("model")
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(UserError, match="one maximiser"):
        descent(run, replace(options, starts=1))


def test_curves_hold_what_the_run_recorded_and_what_its_epochs_give(run: OpenRun) -> None:
    table = curves(run, run.options)
    parts = table.split("split")
    assert parts["validation"]["robust"] == [r["validation"]["robust"] for r in run.metrics()]
    assert [sum(part["best"]) for part in parts.values()] == [1, 1, 1]
    subject = run.subject(run.weights("epoch:2"), split="test")
    assert parts["test"]["robust"][1] == pytest.approx(float(subject.robust.double().mean()))
    assert any("robust overfitting (best minus last)" in note for note in table.notes)


def test_rules_of_stopping(run: OpenRun) -> None:
    table = {row["rule"]: row for row in stopping(run, run.options)}
    held = [r["validation"]["robust"] for r in run.metrics()]
    assert table["last"]["epoch"] == 3 and table["held-out"]["epoch"] == held.index(max(held)) + 1
    assert table["test"]["lost"] == 0.0 and all(row["lost"] >= 0 for row in table.values())


def test_the_alarm_is_recorded_and_can_be_measured_later(run: OpenRun) -> None:
    table = alarm(run, run.options)
    assert table["fgsm"] == [r["alarm"]["accuracy"] for r in run.metrics()]
    assert all(r["alarm"]["seconds"] >= 0 for r in run.metrics())
    subject = run.subject(run.weights("epoch:3"), split="validation", limit=10**6, attack="fgsm")
    assert table["fgsm"][2] == pytest.approx(float(subject.robust.double().mean()))


def test_time_and_passes(run: OpenRun) -> None:
    row = next(iter(time(run, run.options)))
    assert row["updates"] == 18 and row["epoch"] == pytest.approx(run.metrics()[-1]["seconds"] / 3)
    assert row["passes"].startswith("13 forward passes, 10 input-backward")


def test_without_kept_epochs_there_are_two_or_an_error(run_path: Path, tmp_path: Path) -> None:
    for name in ("manifest.json", "metrics.jsonl", "best.safetensors", "last.safetensors", "result.json"):
        (tmp_path / name).write_bytes((run_path / name).read_bytes())
    run = OpenRun(tmp_path, Options(limit=20, attack="fgsm"))
    table = increase(run, run.options)
    assert set(table["epoch"]) == {run.weights("best").epoch, 3}
    assert any("--keep-epochs" in note for note in table.notes)
    for diagnostic in (stopping, lambda run, options: run.weights("epoch:1")):
        with pytest.raises(UserError, match="--keep-epochs"):
            diagnostic(run, run.options)
    records = (tmp_path / "metrics.jsonl").read_text().replace('"alarm"', '"other"')
    (tmp_path / "metrics.jsonl").write_text(records)
    with pytest.raises(UserError, match="--alarm fgsm or with --keep-epochs"):
        alarm(run, run.options)


def test_kept_epochs_are_the_weights_of_their_epochs(run: OpenRun) -> None:
    last = run.weights("last").found.part("model")
    kept = read_checkpoint(run.path / "epochs" / "epoch-0003.safetensors").part("model")
    assert set(last) == set(kept) and all(torch.equal(last[name], kept[name]) for name in last)


@pytest.mark.parametrize("name", sorted(recipe_paths()))
def test_the_terms_of_every_recipe_can_be_differentiated(name: str) -> None:
    recipe = load(name)
    whole = with_logs(recipe, {f"length{n}": f"norm(grad(theta: {e}), 2)" for n, e in enumerate([*terms(recipe), objective(recipe)])})
    assert len(whole.plan.upper.logs) == len(terms(recipe)) + 1
