"""`lossdsl check --fix`, `--code`, `--no-notes`, and `lossdsl theory`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lossdsl.assets import attack_paths, recipe_paths
from lossdsl.check_commands import corrected
from lossdsl.cli import main
from lossdsl.diagnostics import Edit
from lossdsl.source import Span

TEXT = """# my recipe: eps is in pixels by mistake
recipe mine
  title "mine"  # a remark

param eps = 8, lambda = 6  # eight

lower x' in linf(x, eps)  # the attack
  maximize KL(p(x) || p(x'))
  by pgd(steps = 10, step = eps/4, start = x)

upper
  minimize CE(f(x), y) + lambda * KL(p(x) || p(x'))
  by sgd(lr = 0.1)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.loss"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_fix_mends_warnings_and_keeps_comments(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(file), "--fix"]) == 0
    out = capsys.readouterr().out
    wanted = TEXT.replace("eps = 8,", "eps = 8/255,").replace("start = x)", "start = x + normal(0.001))")
    assert file.read_text(encoding="utf-8") == wanted
    assert "-param eps = 8, lambda = 6  # eight\n+param eps = 8/255, lambda = 6  # eight\n" in out and "no errors, 4 notes" in out
    assert main(["check", str(file), "--fix"]) == 0
    assert file.read_text(encoding="utf-8") == wanted and "---" not in capsys.readouterr().out


def test_fix_leaves_notes_alone_unless_asked(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(file), "--fix", "--code", "T06"]) == 0
    bridge = "(KL(p(x) || p(0.5 * x + 0.5 * x')) + KL(p(0.5 * x + 0.5 * x') || p(x')))"
    assert file.read_text(encoding="utf-8") == TEXT.replace("lambda * KL(p(x) || p(x'))", f"lambda * {bridge}")
    assert main(["check", str(file), "--code", "T06"]) == 0
    assert capsys.readouterr().out.endswith("no errors\n")


def test_the_margin_replaces_a_surrogate(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(TEXT.replace("KL(p(x) || p(x'))\n  by pgd", "CE(f(x'), y)\n  by pgd"), encoding="utf-8")
    assert main(["check", str(file), "--fix", "--code", "T01"]) == 0
    assert "maximize max(j != y: f(x')[j]) - f(x')[y]\n" in file.read_text(encoding="utf-8")
    assert main(["check", str(file), "--code", "T01"]) == 0 and "T01" not in capsys.readouterr().out.rpartition("+++")[2].partition("\n\n")[2]


def test_a_suite_is_brought_up_to_its_name(tmp_path: Path) -> None:
    path = tmp_path / "pgd20.loss"
    suite = "attack pgd20\nrun pgd : x' in linf(x, 8/255) maximize CE(f(x'), y) by pgd(steps = 10, step = 2/255, start = x)\ncount worst\n"
    path.write_text(suite, encoding="utf-8")
    assert main(["check", str(path)]) == 1
    assert main(["check", str(path), "--fix"]) == 0
    assert path.read_text(encoding="utf-8") == suite.replace("steps = 10", "steps = 20")


def test_what_cannot_be_fixed(file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["check", "trades", "--fix"]) == 2
    assert "only a file can be corrected" in capsys.readouterr().err
    monkeypatch.setattr("lossdsl.check_commands.corrected", lambda text, edits: text.replace("CE(f(x), y)", "CE(f(z), y)"))
    assert main(["check", str(file), "--fix"]) == 2
    assert "the corrections together would be wrong: there is no z here" in capsys.readouterr().err
    assert file.read_text(encoding="utf-8") == TEXT, "nothing is written"


def test_a_used_file_is_not_edited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "base.loss").write_text(TEXT.replace("mine", "base"), encoding="utf-8")
    path = tmp_path / "own.loss"
    path.write_text('use "base.loss"\nrecipe own extends base\nparam lambda = 3\n', encoding="utf-8")
    assert main(["check", str(path), "--fix"]) == 1
    assert path.read_text(encoding="utf-8").endswith("param lambda = 3\n") and "eps = 8," in (tmp_path / "base.loss").read_text(encoding="utf-8")
    assert "T08" in capsys.readouterr().out


def test_edits_do_not_disturb_each_other() -> None:
    edits = [Edit(Span(0, 1), "A"), Edit(Span(2, 3), "long"), Edit(Span(2, 4), "overlaps"), Edit(Span(6, 6), "!")]
    assert corrected("a b c d", edits) == "A long c !d"


@pytest.mark.parametrize("name", [*recipe_paths(), *attack_paths()])
def test_every_shipped_file_has_a_report(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["theory", name]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0].endswith(f" {name}") and "Typed(" not in text and "nan" not in text
    assert main(["theory", name, "--format", "json"]) == 0
    (data, *_) = json.loads(capsys.readouterr().out)
    assert data["name"] == name and all(f["reason"]["claim"] and f["reference"] for f in data["findings"])


def test_a_report_gives_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["theory", "trades"]) == 0
    text = capsys.readouterr().out
    for line in (
        "    CE(f(x), y) + 6 * KL(p(x) || p(x')) >= 0.620817 * robust error on linf(x, 0.0313725)",
        "      x' maximises this: it is at least what it is at any misclassified point of the set  (the lower level is solved exactly [A09])",
        "  laws: A07, A10, A13; refuted: A08",
    ):
        assert line in text.splitlines(), line
    assert main(["theory", "pgd20", "--classes", "2"]) == 0
    assert "exact: its maximiser is misclassified" in capsys.readouterr().out
    assert main(["theory", "gairat"]) == 0
    assert "recipe gairat, from epoch 31" in capsys.readouterr().out


def test_theory_of_what_it_does_not_speak_of(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["theory", "forsaken"]) == 2
    assert "theory speaks of recipes and attack suites" in capsys.readouterr().err
    file.write_text(TEXT.replace("p(x)", "p(z)"), encoding="utf-8")
    assert main(["theory", str(file)]) == 2
    assert "there is no z here" in capsys.readouterr().err
    assert main(["theory", "trades", "--classes", "1"]) == 2
