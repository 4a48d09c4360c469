"""docs/language.md: every block is well typed and can be planned, its tables are those of the language, its links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from lossdsl.front import check_source
from lossdsl.lang.ops import BINDERS, FACTS_OF_A_LEVEL, OPERATIONS
from lossdsl.lang.specs import FINDERS, OPTIMIZERS, SCHEDULES, SETS, SOLVERS, THROUGH, TrainOptions
from lossdsl.plan.pipeline import make_plan
from lossdsl.source import Source

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "language.md").read_text(encoding="utf-8")
HEADER = re.compile(r"^(recipe|attack)\b", re.MULTILINE)
BLOCK = re.compile(r"(?:(?<=\n\n)|(?<=:\n))((?:    .*\n)(?:(?:    .*)?\n)*)")


def blocks(page: str) -> list[str]:
    """The indented blocks of a page, without their indentation."""
    return ["\n".join(line[4:] for line in block.rstrip().splitlines()) for block in BLOCK.findall(page)]


def whole(block: str) -> str:
    """A block as a file: what has no header is a recipe's statements."""
    return block if HEADER.search(block) else f"recipe example\n{block}\n"


BLOCKS = blocks(PAGE)


def test_the_page_has_its_examples() -> None:
    assert len(BLOCKS) >= 14
    assert BLOCKS[0].startswith("recipe trades\n") and sum("find t in" in block for block in BLOCKS) == 1


@pytest.mark.parametrize("block", BLOCKS, ids=[re.sub(r"\W+", "_", block.splitlines()[0]) for block in BLOCKS])
def test_an_example_is_right_and_can_be_planned(block: str) -> None:
    checked = check_source(Source(whole(block), "docs/language.md"))
    assert not [(d.code, d.message) for d in checked.diagnostics]
    for one in checked.checks:
        assert one.typed is not None and str(make_plan(one.typed))


def test_a_wrong_example_would_be_found() -> None:
    broken = PAGE.replace("log size = norm(grad(theta: CE(f(x), y)), 2)", "log size = norm(grad(theta: CE(f(z), y)), 2)")
    assert broken != PAGE
    assert any(check_source(Source(whole(block), "docs")).diagnostics for block in blocks(broken))


def _tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_tables", DOCS / "make_tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_those_of_the_language() -> None:
    assert _tables().rewritten(PAGE) == PAGE, "run: python docs/make_tables.py"


@pytest.mark.parametrize("name", ["theory.md", "explain.md"])
def test_the_other_generated_pages(name: str) -> None:
    tables = _tables()
    page = (DOCS / name).read_text(encoding="utf-8")
    assert tables.rewritten(page, tables.OTHERS[name]) == page, "run: python docs/make_tables.py"
    links = re.findall(r"\]\(([\w./-]+\.[a-z]+)\)", page)
    assert not [link for link in links if not (DOCS / link).exists()]


def test_every_name_of_the_language_is_on_the_page() -> None:
    names = {
        *OPERATIONS,
        *BINDERS,
        *FACTS_OF_A_LEVEL,
        *SOLVERS,
        *SETS,
        *OPTIMIZERS,
        *SCHEDULES,
        *THROUGH,
        *FINDERS,
        *TrainOptions.model_fields,
    }
    names |= {"grad", "D", "stop", "if", "top", "raw", "previous", "uniform", "corner", "normal", "rademacher", "until", "noise", "joint"}
    assert not [name for name in sorted(names) if not re.search(rf"(?<![\w]){re.escape(name)}(?!\w)", PAGE)]


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([\w./-]+\.[a-z]+)\)", PAGE)
    assert len(links) >= 3 and not [link for link in links if not (DOCS / link).exists()]
