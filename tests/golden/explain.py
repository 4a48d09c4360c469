"""The expected output of `lossdsl explain`, plain and LaTeX. `python -m tests.golden.explain` writes it anew; read the difference."""

from __future__ import annotations

from pathlib import Path

from lossdsl.explain import explain, explain_latex
from lossdsl.front import load

FOLDER = Path(__file__).resolve().parent / "explain"
NAMES = ("trades", "fast_bat", "trades_awp", "pgd50x10", "forsaken")


def outputs() -> dict[Path, str]:
    """What every file should hold."""
    found = {}
    for name in NAMES:
        recipe = load(name)
        found[FOLDER / f"{name}.txt"] = explain(recipe) + "\n"
        found[FOLDER / f"{name}.tex"] = explain_latex(recipe) + "\n"
    return found


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for path, text in outputs().items():
        path.write_text(text, encoding="utf-8")
        print(path.name)
