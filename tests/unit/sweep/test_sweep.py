"""Sweeps: what is refused before the first run, what is kept, resumed and recorded, and the numbers of the table."""

from __future__ import annotations

import json
import multiprocessing
import signal
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from sweep_tools import TEXT, killed_sweep, make_request

import lossdsl.sweep.sweep as module
from lossdsl.diagnostics import UserError
from lossdsl.front import parse_recipe
from lossdsl.run.request import AttackChoice
from lossdsl.run.train import train
from lossdsl.sweep.collected import Collected, Spread
from lossdsl.sweep.grid import parse_over, points_of
from lossdsl.sweep.report import sweep_report
from lossdsl.sweep.sweep import Interrupted, sweep


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Collected:
    return sweep(make_request(tmp_path_factory.mktemp("sweep") / "s"))


def accuracies(collected: Collected) -> list[list[Any]]:
    return [[(run.seed, run.epoch, run.clean, run.robust) for run in row.runs] for row in collected.rows]


def test_every_value_with_every_seed(done: Collected) -> None:
    value = json.loads((done.out / "sweep.json").read_text())
    assert value["format"] == "lossdsl-sweep" and value["over"] == {"lambda": [1, 3]} and value["seeds"] == [0, 1] and value["missing"] == 0
    assert [row["values"] for row in value["rows"]] == [{"lambda": 1}, {"lambda": 3}]
    for row in value["rows"]:
        for run in row["runs"]:
            out = done.out / run["out"]
            manifest = json.loads((out / "manifest.json").read_text())["identity"]
            assert (manifest["params"]["lambda"], manifest["seed"]) == (row["values"]["lambda"], run["seed"])
            evaluation = json.loads((out / run["evaluation"]).read_text())
            assert (run["clean"], run["robust"]) == (evaluation["clean"]["accuracy"], evaluation["robust"]["accuracy"])
        for name in ("clean", "robust"):
            values = [run[name] for run in row["runs"]]
            assert row[name] == {"n": 2, "mean": pytest.approx(mean(values)), "std": pytest.approx(stdev(values))}
    for end in (".png", ".svg"):
        assert (done.out / "frontier").with_suffix(end).stat().st_size > 5000


def test_a_finished_sweep_trains_nothing_and_grows(done: Collected, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []

    def watched(request: Any) -> Any:
        result = train(request)
        trained.append((request.out.name, result.status))
        return result

    monkeypatch.setattr(module, "train", watched)
    assert sweep(make_request(done.out)).rows == done.rows
    assert {status for _, status in trained} == {"already finished"} and len(trained) == 4
    trained.clear()
    more = sweep(make_request(done.out, over={"lambda": (1, 3.0, 9)}, seeds=(0,)))
    assert [status for _, status in trained] == ["already finished", "already finished", "finished"]
    assert [row.clean.n for row in more.rows] == [1, 1, 1] and more.rows[0].robust.std is None


def test_wrong_values_are_refused_before_the_first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "train", lambda request: pytest.fail("a run was started"))
    out = tmp_path / "s"
    for changes, match in (
        ({"over": {"lamda": (1,)}}, r"--over lamda=1: tiny has no param lamda\n  help: did you mean lambda"),
        ({"over": {"eps": (0.1, -1)}}, r"--over eps=-1: the recipe refuses it:\nerror\[E016\]"),
        ({"over": {"eps": (0.1, 0.10)}}, "a value is given twice: 0.1, 0.1"),
        ({"over": {}}, "nothing to sweep over"),
        ({"over": {"eps": ()}}, "--over eps: has no values"),
        ({"seeds": (1, 1)}, "--seeds"),
        ({"attack": AttackChoice("pgd21")}, r"lambda=1: there is no recipe pgd21"),
        ({"attack": AttackChoice("fgsm", {"epsilon": 1.0})}, "no param epsilon"),
        ({"template": {"model": "smalcnn"}}, r"--model \(lambda=1\): there is no model"),
        ({"template": {"validation_attack": AttackChoice("trades")}}, "not an attack suite"),
    ):
        with pytest.raises(UserError, match=match):
            sweep(make_request(out, **changes))
    assert not out.exists()


def test_directories_of_other_runs_are_left_alone(done: Collected) -> None:
    before = (done.out / "sweep.json").read_bytes()
    other = parse_recipe(TEXT.replace("momentum = 0.9", "momentum = 0.8"))
    with pytest.raises(UserError, match=r"already holds another run; it differs in optimizer\.momentum: 0\.9 there, 0\.8 asked"):
        sweep(make_request(done.out, other))
    assert (done.out / "sweep.json").read_bytes() == before


@pytest.mark.slow
def test_a_diverged_run_is_recorded_and_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = make_request(tmp_path / "s", over={"rate": (0.1, 1e30)})
    found = sweep(request)
    assert [row.clean.n for row in found.rows] == [2, 0] and found.rows[1].diverged == (0, 1)
    assert "x': the objective of example 0 is nan" in found.rows[1].runs[0].reason
    value = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert value["rows"][1]["clean"] == {"n": 0, "mean": None, "std": None} and value["rows"][1]["diverged"] == [0, 1]
    text = printed(sweep_report(found))
    assert "seed 0, 1" in text and "rate=1e+30, seed 1 diverged: x': the objective" in text
    monkeypatch.setattr(module, "train", lambda request: train(request) if "rate=0.1" in str(request.out) else pytest.fail("tried again"))
    assert sweep(request).rows == found.rows


@pytest.mark.slow
def test_ctrl_c_stops_the_sweep_and_the_same_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = [0]

    def stopped(request: Any) -> Any:
        count[0] += 1
        result = train(request)
        return replace(result, status="interrupted") if count[0] == 3 else result

    monkeypatch.setattr(module, "train", stopped)
    request = make_request(tmp_path / "s")
    with pytest.raises(Interrupted):
        sweep(request)
    assert json.loads((tmp_path / "s" / "sweep.json").read_text())["missing"] == 2
    assert sweep(request).missing == 0


def printed(renderable: Any) -> str:
    from rich.console import Console

    console = Console(width=140, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    console.file.close()
    return console.export_text()


def test_the_report_says_n_and_deviation(done: Collected) -> None:
    text = printed(sweep_report(done))
    clean = done.rows[0].clean
    assert clean.mean is not None and clean.std is not None
    assert f"{100 * clean.mean:.1f} ± {100 * clean.std:.1f}" in text and "over seeds 0, 1" in text


def test_spread() -> None:
    assert Spread.of([]) == Spread(0, None, None) and str(Spread.of([])) == "-"
    assert Spread.of([0.5]) == Spread(1, 0.5, None) and str(Spread.of([0.5])) == "50.0"
    assert Spread.of([0.4, 0.6]).std == pytest.approx(0.02**0.5) and str(Spread.of([0.4, 0.6])) == "50.0 ± 14.1"


def test_words_of_the_command_line() -> None:
    assert parse_over(["lambda=1, 3,6", "eps=8/255"]) == {"lambda": (1, 3, 6), "eps": (8 / 255,)}
    for words, match in ((["lambda"], "sweeps over nothing"), (["a=1,x"], "'x' is not a number"), (["a=1", "a=2"], "swept twice")):
        with pytest.raises(UserError, match=match):
            parse_over(words)


def test_names_of_directories() -> None:
    points = points_of(parse_recipe(TEXT), {"lambda": (1.0, 3), "eps": (8 / 255, 0.1)})
    assert [point.folder(2) for point in points[:3]] == [
        "lambda=1,eps=0.03137254901960784,seed=2",
        "lambda=1,eps=0.1,seed=2",
        "lambda=3,eps=0.03137254901960784,seed=2",
    ]
    assert points[0].label == "lambda=1, eps=0.0313725"


@pytest.mark.slow
def test_kill_9_and_the_same_command(tmp_path: Path, done: Collected) -> None:
    """Killed in the middle of its third run, the sweep ends with the same table, and the runs finished before are not touched."""
    out = tmp_path / done.out.name
    process = multiprocessing.get_context("spawn").Process(target=killed_sweep, args=(out,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert json.loads((out / "sweep.json").read_text())["missing"] == 2
    first = out / "lambda=1,seed=0" / "result.json"
    before = first.stat().st_mtime_ns
    torch.set_num_threads(1)
    again = sweep(make_request(out))
    assert first.stat().st_mtime_ns == before
    assert accuracies(again) == accuracies(done)
    assert not list(out.rglob(".*.tmp"))
