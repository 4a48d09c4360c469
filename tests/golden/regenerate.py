"""The expected output of every file of recipe mistakes. `python -m tests.golden.regenerate` writes it anew; read the difference."""

from __future__ import annotations

from pathlib import Path

from lossdsl.diagnostics import Diagnostic
from lossdsl.front import check_source
from lossdsl.render import render_text
from lossdsl.source import Source

ERRORS = Path(__file__).resolve().parent / "errors"


def cases() -> list[Path]:
    return sorted(ERRORS.rglob("*.loss"))


def findings(path: Path) -> tuple[Source, tuple[Diagnostic, ...]]:
    """Everything found in a file, under its bare name."""
    checked = check_source(Source(path.read_text(encoding="utf-8"), path.name))
    return checked.parsed.source, checked.diagnostics


def rendered(path: Path) -> str:
    source, diagnostics = findings(path)
    return "\n".join(render_text(source, d).rstrip("\n") + "\n" for d in diagnostics)


def main() -> None:
    for path in cases():
        expected = path.with_suffix(".txt")
        text = rendered(path)
        if not expected.exists() or expected.read_text(encoding="utf-8") != text:
            expected.write_text(text, encoding="utf-8")
            print(expected.relative_to(ERRORS))
    for stale in sorted(set(ERRORS.rglob("*.txt")) - {path.with_suffix(".txt") for path in cases()}):
        stale.unlink()
        print(stale.relative_to(ERRORS), "removed")


if __name__ == "__main__":
    main()
