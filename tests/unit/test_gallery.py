"""docs/gallery.md and diagnostics.md: every diagnostic has its picture, its command beside it, and its line in the table."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from lossdsl.cli import parse_arguments
from lossdsl.diagnose.catalog import DIAGNOSTICS

DOCS = Path(__file__).resolve().parents[2] / "docs"
GALLERY, DIAGNOSED = ((DOCS / name).read_text(encoding="utf-8") for name in ("gallery.md", "diagnostics.md"))


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_gallery", DOCS / "make_gallery.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


COMMANDS = script().commands(GALLERY)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_can_be_read(command: str) -> None:
    assert parse_arguments(shlex.split(command)[1:]).command == command.split()[1]


def test_every_diagnostic_has_a_picture_with_its_command_below() -> None:
    for name, row in DIAGNOSTICS.items():
        below = re.search(rf"!\[[^\]]*\]\(gallery/{name}\.png\)\n\n    lossdsl diagnose (.*)\n\n{row.number}[,. ]", GALLERY)
        assert below and f"--what {name} " in below[1], name
    assert len(script().shown(GALLERY)) == len(DIAGNOSTICS)


def test_every_run_that_is_looked_at_is_made_before() -> None:
    made = set(re.findall(r"lossdsl (?:train|sweep) .*--out (\S+)", GALLERY))
    looked = [word.strip("'").split("/")[2] for word in re.findall(r"'?runs/gallery/[\w=*./]+'?", GALLERY) if "figures" not in word]
    assert {f"runs/gallery/{name}" for name in looked} == made


def test_the_pictures_are_there_and_small() -> None:
    for name in script().shown(GALLERY):
        content = (DOCS / "gallery" / name).read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) < script().LARGEST, name
    assert sorted(path.name for path in (DOCS / "gallery").iterdir()) == sorted(script().shown(GALLERY))


def test_the_table_is_the_catalog() -> None:
    rows = re.findall(r"^\| (D[0-9]+) \| (?:`(\w+)`)? ?\|", DIAGNOSED, re.MULTILINE)
    assert [pair for pair in rows if pair[1]] == [(row.number, name) for name, row in DIAGNOSTICS.items()]


def test_the_python_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", DIAGNOSED, re.DOTALL)
    assert code is not None
    exec(compile(code[1], "diagnostics.md", "exec"), {})
    assert (tmp_path / "figures" / "margins.png").exists() and "R_nat" in capsys.readouterr().out
