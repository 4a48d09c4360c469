"""Writes docs/methods.md: the methods of the five papers, their files, and what each file is verified against.

python docs/make_methods.py          rewrites docs/methods.md
python docs/make_methods.py --check  exits 1 if it would change

Nothing is kept by hand but the names of the methods. Files, lines and settled choices come from recipes/ and its comments; what a
file is verified against comes from the tests: the entry under its name in a table of tests/recipes/plain*.py, and every test module
of recipes, games and the engine that names it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lossdsl.assets import game_paths, recipe_paths  # noqa: E402
from lossdsl.catalog import choices, code_lines, methods  # noqa: E402

PAGE = Path(__file__).with_name("methods.md")
TESTS = ROOT / "tests"
CHOICES = 20
MOST_LINES, USUAL_LINES = 20, 12
OPTIONAL = "T34"
NO_FILE, NOTHING = "**no file**", "**nothing**"
METHODS: dict[str, str] = {
    f"T{number}": name
    for number, name in enumerate(
        (
            "Standard training (ERM)", "FGSM-AT", "Fast-AT (FGSM-RS)", "PGD-AT", "PGD-2-AT", "TRADES", "MART", "BETA-AT", "Smooth BETA-AT",
            "FAST-AT-GA (GradAlign)", "Fast-BAT", "FAIT", "Maximal entropy: TRADES-MER, FAIT-MER", "SCORE and squared-error variants",
            "FAT", "FAT for TRADES, FAT for MART", "GAIRAT", "TRADES-AWP", "AT-AWP", "HAT", "MMA", "Bridged AT (BAT)",
            "RST: AT, TRADES, MART, BAT", "LLR", "CURE", "ELLE, ELLE-A", "DDi", "SAM, ASAM", "BiSAM", "CFOL", "Class fairness",
            "WGAN with three Lipschitz devices", "Minimax algorithms on toy games", "Mixed Nash, Langevin",
            "Toy model of catastrophic overfitting",
        ),
        1,
    )
}  # fmt: skip


@dataclass(frozen=True)
class Shipped:
    """One file of recipes/."""

    name: str
    path: Path

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def link(self) -> str:
        place = self.path.relative_to(ROOT).as_posix()
        return f"[{place.removeprefix('recipes/')}](../{place})"


def shipped() -> list[Shipped]:
    """Every recipe, then every game."""
    return [Shipped(name, path) for paths in (recipe_paths(), game_paths()) for name, path in paths.items()]


# --- what a file is verified against ---------------------------------------------------------------------------------


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _tables(module: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """The entries of every dict written at the top of a module."""
    for node in module.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    yield key.value, value


def plain(name: str) -> list[str]:
    """The plain PyTorch functions (file: functions) that a recipe is compared with."""
    found = []
    for path in sorted((TESTS / "recipes").glob("plain*.py")):
        module = _tree(path)
        functions = {node.name for node in module.body if isinstance(node, ast.FunctionDef)}
        for key, value in _tables(module):
            used = [n.id for n in ast.walk(value) if isinstance(n, ast.Name) and n.id in functions]
            if key == name and used:
                found.append(f"{path.name}: {', '.join(dict.fromkeys(used))}")
    return found


@cache
def _words(path: Path) -> frozenset[str]:
    """Every text in a module."""
    return frozenset(n.value for n in ast.walk(_tree(path)) if isinstance(n, ast.Constant) and isinstance(n.value, str))


def naming(name: str) -> list[str]:
    """The test modules that name a recipe or game."""
    folders = (TESTS / "recipes", TESTS / "unit" / "games", TESTS / "unit" / "engine")
    found = []
    for path in (p for folder in folders for p in sorted(folder.glob("test_*.py"))):
        if name in _words(path):
            found.append(path.stem.removeprefix("test_").removeprefix("recipes_"))
    return found


def verified(name: str) -> str:
    """Both, as one cell."""
    others = naming(name)
    return "; ".join([*plain(name), *([f"tests {', '.join(others)}"] if others else [])]) or NOTHING


# --- the page --------------------------------------------------------------------------------------------------------


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)]


def _row(number: str, method: str, file: Shipped) -> tuple[str, ...]:
    settled = "; ".join(f"{choice}: {said}" for choice, said in choices(file.text).items())
    return number, method, file.link, str(code_lines(file.text)), verified(file.name), settled


def table() -> list[tuple[str, ...]]:
    """A row for each method and file, T1 to T35, then what the papers name without a number."""
    files = shipped()
    rows: list[tuple[str, ...]] = []
    for number, method in METHODS.items():
        own = [file for file in files if number in methods(file.text)]
        missing = "optional, mentioned only" if number == OPTIONAL else NO_FILE
        rows += [_row(number, method, file) for file in own] or [(number, method, missing, "", "", "")]
    return rows + [_row("", "named without a number", file) for file in files if not methods(file.text)]


def open_choices() -> list[tuple[str, ...]]:
    """A1 to A20, and what the files say of each."""
    said: dict[str, dict[str, list[str]]] = {}
    for file in shipped():
        for number, text in choices(file.text).items():
            said.setdefault(number, {}).setdefault(text, []).append(file.link)
    numbers = [f"A{n}" for n in range(1, CHOICES + 1)]
    return [(n, "; ".join(f"{text} ({', '.join(links)})" for text, links in said.get(n, {}).items()) or "in no file") for n in numbers]


def sizes() -> dict[int, int]:
    """How many recipes (games left aside) have how many lines of code."""
    lengths = [code_lines(path.read_text(encoding="utf-8")) for path in recipe_paths().values()]
    return {n: lengths.count(n) for n in sorted(set(lengths))}


def summary() -> str:
    counts = sizes()
    total, short = sum(counts.values()), sum(count for n, count in counts.items() if n <= USUAL_LINES)
    spread = ", ".join(f"{count} of {n}" for n, count in counts.items())
    return f"{total} recipes: {short} of at most {USUAL_LINES} lines of code, the longest of {max(counts)} ({spread})."


def page() -> str:
    head = [
        "# The methods",
        "",
        "Every training method of the five papers (T1 to T35), its file, what the file is verified against, and the open choices that its",
        "comments settle. Lines are lines of code: neither empty nor comments. Written by `python docs/make_methods.py`.",
        "",
        "Plain PyTorch: solutions, loss, gradients and running statistics of the recipe agree with functions written from the papers'",
        "formulas, in float64 and under the same random numbers (tests/recipes/plain*.py). Tests are those of tests/recipes,",
        "tests/unit/games and tests/unit/engine that name the file. `lossdsl diff trades fait` shows what differs between two methods.",
        "",
        summary(),
        "",
    ]
    methods_table = _table(("", "method", "file", "lines", "verified against", "choices settled"), table())
    choices_table = _table(("", "what the files say"), open_choices())
    return "\n".join([*head, *methods_table, "", "## Open choices", "", *choices_table, ""])


if __name__ == "__main__":
    new = page()
    if "--check" in sys.argv:
        sys.exit(int(not PAGE.is_file() or new != PAGE.read_text(encoding="utf-8")))
    PAGE.write_text(new, encoding="utf-8")
    print(summary())
