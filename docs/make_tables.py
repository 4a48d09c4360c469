"""Writes the tables of docs/language.md from the tables of the language.

python docs/make_tables.py          rewrites docs/language.md
python docs/make_tables.py --check  exits 1 if it would change
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from lossdsl.lang.ops import BINDERS, OPERATIONS
from lossdsl.lang.specs import OPTIMIZERS, SCHEDULES, SETS, SOLVERS, TrainOptions

PAGE = Path(__file__).with_name("language.md")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)])


def _defaults(model: type) -> str:
    fields = model.model_fields  # type: ignore[attr-defined]
    return ", ".join(n if f.is_required() else f"{n} = {f.default}" for n, f in fields.items() if n != "kind")


def operations() -> str:
    rows = [(f"`{r.name}`", r.signature, f"`{r.formula}`", r.about, f"`{r.example}`") for r in OPERATIONS.values()]
    return _table(("name", "types", "formula", "meaning", "example"), rows)


def binders() -> str:
    return _table(("name", "gives"), [(f"`{n}`", a) for n, a in BINDERS.items()])


def solvers() -> str:
    return _table(
        ("solver", "options", "one update", "source"), [(f"`{r.name}`", _defaults(r.options), r.update, r.source) for r in SOLVERS.values()]
    )


def sets() -> str:
    over = {"input": "inputs", "weights": "weights", "classes": "class weights"}
    rows = [(f"`{r.name}({', '.join(r.args)})`", over[r.over] + (", weights" if r.name == "l2" else ""), r.about) for r in SETS.values()]
    return _table(("set", "of", "points v"), rows)


def optimizers() -> str:
    return _table(("optimizer", "options"), [(f"`{n}`", _defaults(m)) for n, m in OPTIMIZERS.items()])


def schedules() -> str:
    rows = [(f"`{n}`", _defaults(m), (m.__doc__ or "").strip()) for n, m in SCHEDULES.items()]
    return _table(("schedule", "options", "meaning"), rows)


def training() -> str:
    return "`" + _defaults(TrainOptions).replace("PydanticUndefined", "constant") + "`"


SECTIONS: dict[str, Callable[[], str]] = {f.__name__: f for f in (operations, binders, solvers, sets, optimizers, schedules, training)}


def rewritten(text: str) -> str:
    """The page with every marked section replaced."""
    for name, make in SECTIONS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        before, count = text, len(pattern.findall(text))
        assert count == 1, f"docs/language.md has no section {name}"
        found = pattern.search(before)
        assert found is not None
        text = f"{before[: found.end(1)]}{make()}\n{before[found.start(2) :]}"
    return text


if __name__ == "__main__":
    old = PAGE.read_text(encoding="utf-8")
    new = rewritten(old)
    if "--check" in sys.argv:
        sys.exit(int(new != old))
    PAGE.write_text(new, encoding="utf-8")
