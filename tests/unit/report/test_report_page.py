"""The page of a report: everything of a run is in it, nothing is fetched, and it is escaped."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lossdsl.cli import main
from lossdsl.diagnose.subject import Options
from lossdsl.diagnostics import UserError
from lossdsl.report.content import gather
from lossdsl.report.page import render

VOID = {"meta", "img", "br", "mspace", "mo"}


class Outline(HTMLParser):
    """Open tags that are never closed, and everything a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.fetched += [str(values[name]) for name in ("src", "srcset", "data") if values.get(name)]
        self.fetched += [str(values["href"])] if tag == "link" else []
        self.links += [str(values["href"])] if tag == "a" else []
        self.ids += [str(values["id"])] if "id" in values else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}>"


def outline(page: str) -> Outline:
    found = Outline()
    found.feed(page)
    return found


@pytest.fixture(scope="module")
def page(runs: list[Path]) -> str:
    return render(gather(runs, ["curves", "quadrants"], Options(attack="fgsm", limit=40)))


def test_one_file_that_fetches_nothing(page: str) -> None:
    found = outline(page)
    assert found.open == []
    assert [source.partition(",")[0] for source in found.fetched] == ["data:image/svg+xml;base64"] * 2
    assert "<script" not in page and "url(" not in page and "@import" not in page
    assert all(link.removeprefix("#") in found.ids for link in found.links) and len(found.ids) == len(set(found.ids))


def test_what_the_runs_say_is_in_it(page: str, runs: list[Path]) -> None:
    result = json.loads((runs[0] / "result.json").read_text())
    evaluation = json.loads(next(runs[0].glob("evaluate-*.json")).read_text())
    for value in (result["best"]["clean"], result["last"]["robust"], evaluation["robust"]):
        assert f"{100 * value['accuracy']:.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]" in page
    assert "recipe trades" in page and "minimize CE(f(x), y) + lambda * KL(p(x) || p(x" in page
    assert page.count("<math") >= 4 and "θ" in re.sub(r"&#x003B8;", "θ", page)
    manifest = json.loads((runs[0] / "manifest.json").read_text())
    assert manifest["created"] in page and f"torch {manifest['versions']['torch']}" in page and "seed 0, " in page
    assert evaluation["settings"][0]["objective"].replace("'", "&#39;") in page
    assert f"lossdsl diagnose {runs[0]} {runs[1]} --what quadrants --attack fgsm --limit 40" in page


def test_text_of_users_is_escaped(runs: list[Path], tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(runs[1], run)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["recipe"]["title"] = "<img src=x onerror=alert(1)>"
    (run / "manifest.json").write_text(json.dumps(manifest))
    found = render(gather([run], ["curves"]), title="<b>")
    assert "<img src=x" not in found and "&lt;img src=x" in found and "<b>" not in found


def test_an_unfinished_run_is_called_so(runs: list[Path], tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(runs[1], run)
    (run / "result.json").unlink()
    assert "not finished" in render(gather([run], ["curves"]))


def test_sanity_findings_of_evaluations(runs: list[Path], tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(runs[0], run)
    file = next(run.glob("evaluate-*.json"))
    value = json.loads(file.read_text())
    check = {"title": "t", "numbers": {}, "claim": "c", "remedy": "Mend it.", "reference": "R 2018"}
    checks = [{**check, "code": f"S{n:02}", "status": s, "detail": f"detail {n}"} for n, s in enumerate(("passed", "finding", "error", "not run"))]
    file.write_text(json.dumps({**value, "sanity": {"checks": checks}}))
    found = render(gather([run], ["curves"]))
    assert "1 checks passed, 2 with findings, 1 not run" in found
    assert found.index("detail 2") < found.index("detail 1") < found.index("detail 3"), "errors first, what was not run last"
    assert "detail 0" not in found and "No stored evaluation holds sanity checks" not in found


def test_a_default_diagnostic_that_fails_is_named_and_one_asked_for_is_an_error(runs: list[Path], tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(runs[1], run)
    (run / "metrics.jsonl").unlink()
    content = gather([run], options=Options(attack="fgsm", limit=20))
    assert set(content.missing) == {"curves"} and "curves: not made" in render(content)
    with pytest.raises(UserError, match="no finished epoch"):
        gather([run], ["curves"])


def test_errors(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="named twice"):
        gather([runs[0], runs[0] / "."])
    with pytest.raises(UserError, match="nothing to report on"):
        gather([])
    assert main(["report", str(tmp_path)]) == 2
    assert "manifest" in capsys.readouterr().err
    assert main(["report", str(runs[0]), "--what", "curve"]) == 2
    assert "there is no diagnostic curve" in capsys.readouterr().err


def test_the_command_writes_the_page(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    assert main(["report", str(runs[1]), "--what", "curves", "--out", str(out), "--title", "Two words", "--quiet"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert "<h1>Two words</h1>" in out.read_text(encoding="utf-8")
