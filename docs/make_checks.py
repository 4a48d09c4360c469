"""Writes the table of checks of docs/sanity.md from the catalogue of the sanity gate: python docs/make_checks.py"""

from __future__ import annotations

from pathlib import Path

from lossdsl.sanity.gate import ROWS

PAGE = Path(__file__).with_name("sanity.md")
MARKS = ("<!-- checks -->\n", "<!-- end -->")


def table() -> str:
    head = "| code | check | holds for a sound model and a sound measurement | reference |\n|---|---|---|---|\n"
    checks = [ROWS[code].check for code in sorted(ROWS)]
    return head + "".join(f"| {check.code} | {check.title} | {check.claim} | {check.reference} |\n" for check in checks)


def rewritten(text: str) -> str:
    """The page with its table replaced."""
    start, end = text.index(MARKS[0]) + len(MARKS[0]), text.index(MARKS[1])
    return text[:start] + table() + text[end:]


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
