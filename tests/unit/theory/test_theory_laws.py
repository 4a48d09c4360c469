"""Every law that a lint or a bound leans on is a law file, with the verdict that it leans on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lossdsl.lang.ops import OPERATIONS
from lossdsl.theory.table import LINTS

ROOT = Path(__file__).resolve().parents[3]
ID = re.compile(r"\b([AFCDE]\d\d)\b", re.IGNORECASE)


def blocks() -> dict[str, str]:
    """The text of every law of recipes/laws by the ids it names: the law and the comment lines right before it."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / "recipes" / "laws").rglob("*.loss")):
        lines = path.read_text(encoding="utf-8").splitlines()
        starts = []
        for n, line in enumerate(lines):
            if line.startswith("law "):
                first = n
                while first > 0 and lines[first - 1].startswith("#"):
                    first -= 1
                starts.append(first)
        for first, last in zip(starts, [*starts[1:], len(lines)], strict=True):
            text = "\n".join(lines[first:last])
            for name in ID.findall(text.replace("_", " ")):
                found[name.upper()] = found.get(name.upper(), "") + text
    return found


def leaned_on() -> set[str]:
    """Ids in the tables and in the sources of theory."""
    sources = [*(ROOT / "lossdsl" / "theory").glob("*.py"), ROOT / "lossdsl" / "lang" / "ops.py"]
    return {name for path in sources for name in re.findall(r'"([AFCDE]\d\d)"', path.read_text(encoding="utf-8"))}


BLOCKS = blocks()
NEEDS_FILES = pytest.mark.skipif(len(BLOCKS) < 20, reason="the law files of the papers are not in recipes/laws yet")


def test_ids_are_collected() -> None:
    assert {"A03", "A09", "E21", "C03", "D32"} <= leaned_on()
    assert {name for row in OPERATIONS.values() if row.surrogate for name in row.surrogate.laws} <= leaned_on()
    assert all(not set(row.laws) & set(row.refuted) for row in LINTS.values()), "a law holds or is refuted"


@NEEDS_FILES
def test_every_law_is_a_file() -> None:
    assert not leaned_on() - set(BLOCKS)


@NEEDS_FILES
@pytest.mark.parametrize("code", LINTS)
def test_a_lint_says_what_its_laws_say(code: str) -> None:
    row = LINTS[code]
    for name in row.laws:
        assert "claim " in BLOCKS[name], f"{code} leans on {name}, of which no claim holds"
    for name in row.refuted:
        said = BLOCKS[name].lower()
        assert "refute " in said or "refuted" in said, f"{code} leans on the refutation of {name}, which is not refuted"
