"""Writes the table of suites in docs/attacks.md from the files in recipes/attacks.

python docs/make_attacks.py          rewrites docs/attacks.md
python docs/make_attacks.py --check  exits 1 if it would change
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from lossdsl.assets import attack_paths
from lossdsl.catalog import choices, methods
from lossdsl.check.typed import TypedLevel
from lossdsl.front import load

PAGE = Path(__file__).with_name("attacks.md")


def _run(level: TypedLevel) -> str:
    """One run: where, what, by which solver with how many steps and restarts."""
    options = level.solver.options
    steps = getattr(options, "steps", getattr(options, "queries", None))
    starts = f" x {options.restarts} restarts" if options.restarts > 1 else ""
    family = f"[{level.axis.domain.text}]" if level.axis else ""
    return f"{level.run}{family}: {level.solver.name} {steps}{starts}, {level.set.name}"


def table() -> str:
    lines = ["| suite | method | runs | count | source | settles |", "|---|---|---|---|---|---|"]
    for name, path in attack_paths().items():
        suite = load(name)
        text = path.read_text(encoding="utf-8")
        runs = "<br>".join(_run(level) for level in suite.typed.levels)
        said = " ".join(f"{number}: {what}." for number, what in choices(text).items())
        cells = (f"`{name}`", ", ".join(methods(text)), runs, str(suite.typed.count), suite.source_note, said)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def rewritten(text: str) -> str:
    """The page with its table replaced."""
    pattern = re.compile(r"(<!-- suites -->\n).*?(<!-- end -->)", re.DOTALL)
    assert len(pattern.findall(text)) == 1, "docs/attacks.md has no section suites"
    return pattern.sub(lambda found: f"{found[1]}{table()}\n{found[2]}", text)


if __name__ == "__main__":
    old = PAGE.read_text(encoding="utf-8")
    new = rewritten(old)
    if "--check" in sys.argv[1:]:
        sys.exit(old != new)
    PAGE.write_text(new, encoding="utf-8")
