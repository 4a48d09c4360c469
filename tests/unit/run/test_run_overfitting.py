"""The alarm of catastrophic overfitting: its rule on made-up curves, in training, and on a run that overfits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lossdsl.cli import main
from lossdsl.run import metrics
from lossdsl.run.overfitting import alarms, message

CURVES = {
    "collapse": ([0.5, 0.6, 0.9, 1.0], [0.4, 0.45, 0.1, 0.0], [False, False, True, True]),
    "recovery": ([0.5, 0.8, 0.55], [0.4, 0.1, 0.42], [False, True, False]),
    "both collapse": ([0.5, 0.6, 0.1], [0.4, 0.45, 0.1], [False, False, False]),
    "robust overfitting": ([0.6, 0.58, 0.55], [0.5, 0.45, 0.4], [False, False, False]),
    "healthy": ([0.3, 0.5, 0.7], [0.2, 0.35, 0.4], [False, False, False]),
    "never robust": ([0.1, 0.4, 0.7], [0.1, 0.0, 0.0], [False, True, True]),
    "just not": ([0.5, 0.5], [0.5, 0.3], [False, False]),
    "one epoch": ([0.9], [0.0], [False]),
    "none": ([], [], []),
}


@pytest.mark.parametrize("name", CURVES)
def test_the_rule(name: str) -> None:
    fgsm, pgd, expected = CURVES[name]
    assert alarms(fgsm, pgd) == expected


def test_curves_of_different_length() -> None:
    with pytest.raises(ValueError, match="shorter|longer"):
        alarms([0.1], [0.1, 0.2])


def test_the_message_names_the_best_epoch() -> None:
    text = message(7, [0.5, 0.6, 0.9], [0.4, 0.45, 0.1])
    assert text.startswith("epoch 7") and "since epoch 6" in text and "45.0% to 10.0%" in text and "60.0% to 90.0%" in text


FAST = ["--by", "sgd(lr = 0.05)", "--train", "epochs = 2, batch = 512", "--validation-attack", "fgsm", "--test-attack", "fgsm", "--quiet"]


def test_training_records_the_alarm_and_what_it_cost_or_leaves_it_out(tmp_path: Path) -> None:
    for name, words in {"on": [], "off": ["--alarm", "none"], "kept": ["--alarm", "none", "--keep-epochs", "2"]}.items():
        assert main(["train", "erm", "--out", str(tmp_path / name), *FAST, *words]) == 0
    records = {name: metrics.read(tmp_path / name / "metrics.jsonl") for name in ("on", "off")}
    assert [set(r["alarm"]) for r in records["on"]] == [{"attack", "accuracy", "seconds", "on"}] * 2
    assert all("alarm" not in r for r in records["off"])
    for name in ("best", "last"):  # the alarm changes nothing in the run
        one, two = (json.loads((tmp_path / run / "result.json").read_text()) for run in ("on", "off"))
        assert one[name]["robust"] == two[name]["robust"]
    assert [r["loss"] for r in records["on"]] == [r["loss"] for r in records["off"]]
    assert [path.name for path in (tmp_path / "kept" / "epochs").iterdir()] == ["epoch-0002.safetensors"]
    assert not (tmp_path / "on" / "epochs").exists()


@pytest.mark.slow
def test_fgsm_at_a_large_radius_overfits_catastrophically(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "fgsm_at", "--set", "eps=0.4", "--by", "adam(lr = 3e-3)", "--train", "epochs = 10, batch = 64"]
    assert main([*words, "--out", str(tmp_path / "co")]) == 0
    records = metrics.read(tmp_path / "co" / "metrics.jsonl")
    assert any(r["alarm"]["on"] for r in records)
    begins = [r["epoch"] for r in records if "message" in r["alarm"]]
    assert begins and f"epoch {begins[0]}: catastrophic overfitting" in capsys.readouterr().err
    last = records[-1]
    assert last["alarm"]["accuracy"] > 0.3 and last["validation"]["robust"] < 0.1
