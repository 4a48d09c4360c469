"""The gate behind `evaluate`, and alone on a run: what it is given, what it stores, when it is asked again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lossdsl.arguments import FINDINGS, OK
from lossdsl.cli import main
from lossdsl.diagnostics import UserError
from lossdsl.engine.api import attack_compiler
from lossdsl.run.evaluate import EvaluateRequest, evaluate
from lossdsl.sanity.suites import Gate, NoThreat, check_run, fair_sample, threat_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "erm"
    words = ["train", "erm", "--epochs", "3", "--batch", "64", "--by", "adam(lr = 1e-2)", "--train", "warmup = 0, augment = none"]
    assert main([*words, "--alarm", "none", "--quiet", "--attack-set", "eps=0.1", "--out", str(out)]) == OK
    return out


def request(run: Path, **changes: Any) -> EvaluateRequest:
    return replace(EvaluateRequest(run, attack_compiler, attack="pgd20", overrides={"eps": 0.1}, device="cpu", sanity=Gate()), **changes)


def test_evaluate_stores_what_the_gate_says_and_asks_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = evaluate(request(run))
    assert found.sanity is not None and found.sanity["gate"] == {"budget": "quick", "surrogates": {}}
    assert found.sanity["summary"].startswith("sanity: 17 checks (16 passed, 1 not run), findings: none;")
    assert (found.sanity["norm"], found.sanity["radius"]) == ("linf", 0.1)
    stored = json.loads(found.file.read_text())
    assert stored["sanity"] == found.sanity and stored["robust"]["right"] == found.robust.right  # type: ignore[union-attr]
    monkeypatch.setattr("lossdsl.sanity.suites.check_model", lambda *args, **kwargs: pytest.fail("asked again"))
    assert evaluate(request(run)).sanity == found.sanity
    assert evaluate(request(run, sanity=None)).sanity == found.sanity
    assert json.loads(found.file.read_text())["sanity"] == found.sanity


@pytest.mark.slow
def test_a_suite_that_breaks_nothing_is_found_out(run: Path, tmp_path: Path) -> None:
    """It returns the clean inputs and calls them attacked."""
    weak = tmp_path / "weak.loss"
    weak.write_text(
        "attack weak\nparam eps = 0.1\nrun w : x' in linf(x, eps) maximize CE(f(x'), y) by pgd(steps = 1, step = 0, start = x)\ncount worst\n"
    )
    found = evaluate(request(run, attack=str(weak)))
    assert found.sanity is not None and found.sanity["findings"] == ["S16"]
    assert found.robust == found.clean
    assert evaluate(request(run, attack="fgsm")).sanity["findings"] == ["S16"]  # type: ignore[index]


@pytest.mark.slow
def test_alone_on_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sanity", str(run), "--set", "eps=0.1", "--device", "cpu"]
    assert main([*words, "--surrogate", str(run)]) == OK
    text = " ".join(capsys.readouterr().out.split())
    assert "S14" in text and "findings: none" in text and "backward passes per example on 128 examples" in text
    assert main([*words, "--format", "json"]) == OK
    (value,) = json.loads(capsys.readouterr().out)
    assert value["run"] == str(run) and {row["code"]: row["status"] for row in value["checks"]}["S16"] == "not run"


def test_findings_are_printed_with_remedy_and_reference(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import zoo

    from lossdsl.sanity import gate, suites

    real = gate.check_model
    monkeypatch.setattr(suites, "check_model", lambda model, *args, **kwargs: real(zoo.Quantised(model), *args, **kwargs))
    assert main(["sanity", str(run), "--set", "eps=0.1"]) == FINDINGS
    text = capsys.readouterr().out
    assert "finding S07, gradients are not zero: 128 of 128" in text and "help: attack through the obstacle" in text and "see: Athalye" in text


def test_a_surrogate_must_fit(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no manifest of a run here"):
        check_run(request(run), Gate(surrogates=(str(tmp_path),)))


def test_a_fair_sample_meets_every_part() -> None:
    assert fair_sample(10, 4).tolist() == [0, 3, 6, 9] and fair_sample(3, 128).tolist() == [0, 1, 2]
    assert len(set(fair_sample(1000, 128).tolist())) == 128
    labels = torch.arange(10).repeat_interleave(100)
    assert len(labels[fair_sample(1000, 128)].unique()) == 10


def test_the_threat_of_a_suite() -> None:
    rows = [{"norm": "l2", "radius": 0.5}, {"norm": "linf", "radius": 9.0}, {"norm": "l2", "radius": 1}, {"norm": "l2", "radius": None}]
    threat = threat_of("suite", rows, (0.0, 1.0))
    assert (threat.norm, threat.radius, threat.domain) == ("l2", 1.0, (0.0, 1.0))
    with pytest.raises(NoThreat, match="attack suite: has no run with one radius"):
        threat_of("suite", rows[3:], None)
