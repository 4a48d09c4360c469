"""What the scripts that train and write tables have in common: the command line in this process, and the tables of pages."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from statistics import mean, stdev

from lossdsl.cli import main as command_line

END = "<!-- end -->"


def lossdsl(*arguments: str) -> str:
    """The command line in this process, so that torch is imported once; what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = command_line(list(arguments))
    if code:
        sys.exit(code)
    return printed.getvalue()


def accuracies(out: Path, suite: str, eps: float, *more: str) -> tuple[float, float]:
    """Clean and robust accuracy of a run's checkpoint under a suite, in percent."""
    printed = lossdsl("evaluate", str(out), "--attack", suite, "--set", f"eps={eps}", "--format", "json", "--quiet", *more)
    (result,) = json.loads(printed)
    return 100 * result["clean"]["accuracy"], 100 * result["robust"]["accuracy"]


def cell(values: list[float]) -> str:
    """Mean and standard deviation, or the one value."""
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def between(text: str, mark: str) -> slice:
    """Where the table between the line <!-- mark --> and the next <!-- end --> stands."""
    line = f"<!-- {mark} -->\n"
    start = text.index(line) + len(line)
    return slice(start, text.index(END, start))


def put(page: Path | None, mark: str, rows: list[list[str]]) -> None:
    """Replace a page's table by these rows, of which the first is the head; or print it."""
    head, *body = rows
    table = "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body]) + "\n"
    if page is None:
        print(table)
        return
    text = page.read_text()
    place = between(text, mark)
    page.write_text(text[: place.start] + table + text[place.stop :])
