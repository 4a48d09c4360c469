"""The law files of the papers: what they cover, and that each is well formed. `lossdsl laws` searches them; that takes minutes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lossdsl.assets import law_paths
from lossdsl.front import check_source, read_source
from lossdsl.syntax import tree as t

STATEMENTS = {"A": 36, "F": 25, "C": 23, "D": 32, "E": 28}
"""Of the papers, by the letter of their ids."""
FILES = law_paths()
PAPERS = {"beta", "fast_bat", "slides", "fait", "bat"}


def test_files_by_paper() -> None:
    assert set(FILES) >= PAPERS


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_well_formed(name: str) -> None:
    checked = check_source(read_source(FILES[name]))
    assert not checked.diagnostics, checked.diagnostics[0].message
    for node in checked.parsed.file.declarations:
        assert node.kind == "law" and node.name.startswith(f"{name}_"), node.name
        assert any(isinstance(item, t.Claim) for item in node.items), f"{node.name} claims nothing"
        assert any(isinstance(item, t.Keyword) and item.keyword == "source" for item in node.items), f"{node.name} names no source"


def test_at_least_120_of_the_144_statements_have_a_law() -> None:
    text = "\n".join(Path(path).read_text(encoding="utf-8") for path in FILES.values())
    found = {name.upper() for name in re.findall(r"^law [a-z_]+?_([afcde][0-9]{2})_", text, re.MULTILINE)}
    named = found | set(re.findall(r"^# ([AFCDE][0-9]{2})\b", text, re.MULTILINE))
    wanted = {f"{letter}{n:02}" for letter, count in STATEMENTS.items() for n in range(1, count + 1)}
    assert len(wanted) == 144 and named <= wanted
    assert len(found) >= 120, f"without a law of their own: {sorted(wanted - found)}"
    assert not wanted - named, f"nowhere named: {sorted(wanted - named)}"
