"""What a user sees for a mistake, word for word: tests/golden/errors. `python -m tests.golden.regenerate` writes the files anew."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lossdsl.check.scope import Report
from lossdsl.front import check_source
from lossdsl.source import Source

ROOT = Path(__file__).resolve().parents[3]


def _golden() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_regenerate", ROOT / "tests" / "golden" / "regenerate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


golden = _golden()
CASES: list[Path] = golden.cases()
NAMES = [str(path.relative_to(golden.ERRORS).with_suffix("")) for path in CASES]
SINGLE = [path for path in CASES if path.parent.name != "several"]
"""Folders are named after codes: one mistake, one finding. In `several` a file has more than one mistake."""


def codes_in_the_source() -> set[str]:
    """Every code that the front half can give."""
    files = [*(ROOT / "lossdsl" / "check").glob("*.py"), *(ROOT / "lossdsl" / "syntax").glob("*.py"), ROOT / "lossdsl" / "front.py"]
    return {code for path in files for code in re.findall(r'"([ET]\d{2,3})"', path.read_text(encoding="utf-8"))}


def test_there_are_many_cases_and_every_code_has_one() -> None:
    assert len(CASES) >= 60
    assert codes_in_the_source() == {path.parent.name for path in SINGLE}


UNREACHED = {
    # The grammar has no range where a value stands, and nothing else makes one.
    ("infer.py", "a range stands in a header or after in"),
}


def places_of_findings() -> dict[tuple[str, int, int], str]:
    """Every call in the checker that reports a finding: its file and lines, and what it says."""
    found = {}
    for path in sorted((ROOT / "lossdsl" / "check").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in REPORTING
            if named and "report" in ast.unparse(node.func.value):
                found[path.name, node.lineno, node.end_lineno or node.lineno] = ast.unparse(node)
    return found


REPORTING = ("error", "warn", "misnamed", "unknown")


def test_every_place_that_finds_something_has_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    reached: set[tuple[str, int]] = set()

    def noting(report: Callable[..., Any]) -> Callable[..., Any]:
        def note(self: Report, *args: Any, **options: Any) -> Any:
            frame = sys._getframe(1)
            while frame.f_code.co_name in (*REPORTING, "note") and frame.f_back is not None:
                frame = frame.f_back
            reached.add((Path(frame.f_code.co_filename).name, frame.f_lineno))
            return report(self, *args, **options)

        return note

    for name in REPORTING:
        monkeypatch.setattr(Report, name, noting(getattr(Report, name)))
    for path in CASES:
        golden.findings(path)
    missing = [
        f"{file}:{first}: {text}"
        for (file, first, last), text in places_of_findings().items()
        if not any(name == file and first <= line <= last for name, line in reached)
        and not any(file == where and said in text for where, said in UNREACHED)
    ]
    assert not missing, "add a case to tests/golden/errors:\n" + "\n".join(missing)


@pytest.mark.parametrize("path", CASES, ids=NAMES)
def test_output_is_as_recorded(path: Path) -> None:
    expected = path.with_suffix(".txt").read_text(encoding="utf-8")
    assert golden.rendered(path) == expected, "if the new text is better: python -m tests.golden.regenerate"


@pytest.mark.parametrize("path", SINGLE, ids=[name for name in NAMES if not name.startswith("several")])
def test_one_mistake_gives_one_finding_with_a_way_out(path: Path) -> None:
    source, diagnostics = golden.findings(path)
    assert [d.code for d in diagnostics] == [path.parent.name]
    (finding,) = diagnostics
    assert finding.help, "says what is wrong and not how to mend it"
    assert 0 <= finding.span.start < finding.span.end <= len(source.text) + 1
    assert finding.severity == ("warning" if finding.code.startswith("T") else "error")


def test_no_two_files_get_the_same_words() -> None:
    seen: dict[tuple[str, str, str], str] = {}
    for path, name in zip(CASES, NAMES, strict=True):
        if path not in SINGLE:
            continue
        for d in golden.findings(path)[1]:
            words = (d.message, d.label, d.help)
            assert words not in seen, f"{name} and {seen[words]} say the same: {d.message}"
            seen[words] = name


def test_no_recorded_output_is_a_crash_or_an_orphan() -> None:
    recorded = set(golden.ERRORS.rglob("*.txt"))
    assert recorded == {path.with_suffix(".txt") for path in CASES}
    for path in recorded:
        text = path.read_text(encoding="utf-8")
        assert text.strip() and "Traceback" not in text and str(ROOT) not in text, path


@pytest.mark.parametrize("path", CASES, ids=NAMES)
def test_edits_mend_what_they_are_offered_for(path: Path) -> None:
    """Applying the offered edits removes their findings and brings no new one."""
    source, diagnostics = golden.findings(path)
    edits = sorted((d.edit for d in diagnostics if d.edit is not None), key=lambda e: e.span.start, reverse=True)
    if not edits:
        return
    text = source.text
    for edit in edits:
        text = text[: edit.span.start] + edit.replacement + text[edit.span.end :]
    after = check_source(Source(text, path.name)).diagnostics
    assert not {(d.code, d.message) for d in after if d.edit} & {(d.code, d.message) for d in diagnostics if d.edit}
    assert len([d for d in after if d.severity == "error"]) < len(diagnostics)
