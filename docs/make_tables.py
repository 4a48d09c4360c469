"""Writes the tables of docs/language.md, docs/theory.md and docs/explain.md from those of the language, and quotes commands.

python docs/make_tables.py          rewrites the pages
python docs/make_tables.py --check  exits 1 if one would change
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lossdsl.assets import attack_paths, recipe_paths  # noqa: E402
from lossdsl.check_commands import findings_of  # noqa: E402
from lossdsl.explain import explain  # noqa: E402
from lossdsl.front import load, read_source  # noqa: E402
from lossdsl.lang.ops import BINDERS, OPERATIONS  # noqa: E402
from lossdsl.lang.specs import OPTIMIZERS, SCHEDULES, SETS, SOLVERS, TrainOptions  # noqa: E402
from lossdsl.theory.ranges import number  # noqa: E402
from lossdsl.theory.report import report  # noqa: E402
from lossdsl.theory.table import LINTS  # noqa: E402

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


def lints() -> str:
    rows = []
    for r in LINTS.values():
        refuted = f"; refuted: {', '.join(r.refuted)}" if r.refuted else ""
        laws = f"; laws: {', '.join(r.laws)}" if r.laws else ""
        rows.append((r.code, r.severity, r.claim, r.silent, r.reference + laws + refuted))
    return _table(("code", "is a", "says", "silent", "reference"), rows)


def surrogates() -> str:
    rows = [
        (f"`{r.name}`", f"< {number(k.right)}" if r.name != "error" else "0", number(k.wrong), number(k.half))
        for r in OPERATIONS.values()
        if (k := r.surrogate) is not None
    ]
    return _table(("of prediction and label", "where right", "where wrong, at least", "where p(v)[y] <= 1/2, at least"), rows)


def shipped() -> str:
    """Recipes by the findings that are made on them."""
    found: dict[str, list[str]] = {}
    for name, path in {**recipe_paths(), **attack_paths()}.items():
        codes = " ".join(sorted({d.code for d in findings_of(read_source(path), {}).diagnostics}))
        found.setdefault(codes or "none", []).append(f"`{name}`")
    return _table(("findings", "recipes and suites"), [(codes, ", ".join(names)) for codes, names in sorted(found.items())])


def _quoted(text: str) -> str:
    return "\n" + "\n".join(f"    {line}".rstrip() for line in text.splitlines()) + "\n"


def report_of_bat() -> str:
    recipe = load("bat")
    return _quoted(report(recipe.typed, recipe.declaration).as_text())


def explained() -> str:
    """The sections of `explain` before the defaults."""
    return _quoted(explain(load("trades_awp")).partition("\n\nparams\n")[0])


Sections = dict[str, Callable[[], str]]
SECTIONS: Sections = {f.__name__: f for f in (operations, binders, solvers, sets, optimizers, schedules, training)}
OTHERS: dict[str, Sections] = {
    "theory.md": {"lints": lints, "surrogates": surrogates, "report": report_of_bat, "shipped": shipped},
    "explain.md": {"trades_awp": explained},
}


def rewritten(text: str, sections: Sections = SECTIONS) -> str:
    """The page with every marked section replaced."""
    for name, make in sections.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        before, count = text, len(pattern.findall(text))
        assert count == 1, f"the page has no section {name}"
        found = pattern.search(before)
        assert found is not None
        text = f"{before[: found.end(1)]}{make()}\n{before[found.start(2) :]}"
    return text


def pages() -> dict[Path, Sections]:
    return {PAGE: SECTIONS, **{PAGE.with_name(name): sections for name, sections in OTHERS.items()}}


if __name__ == "__main__":
    changed = False
    for page, own in pages().items():
        old = page.read_text(encoding="utf-8")
        new = rewritten(old, own)
        changed |= new != old
        if new != old and "--check" not in sys.argv:
            page.write_text(new, encoding="utf-8")
            print(f"{page} rewritten")
    sys.exit(1 if changed and "--check" in sys.argv else 0)
