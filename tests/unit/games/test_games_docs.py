"""docs/games.md: its table is that of the language, and its example is the shipped game."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lossdsl.assets import game_paths
from lossdsl.lang.games import GAME_SOLVERS, GameSolverRow

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGE = (DOCS / "games.md").read_text(encoding="utf-8")


def options(row: GameSolverRow) -> str:
    fields = {name: field for name, field in row.options.model_fields.items() if name != "batch"}
    return ", ".join(name if field.is_required() else f"{name} = {field.default}" for name, field in fields.items())


def test_the_table_of_solvers_is_that_of_the_language() -> None:
    found = re.search(r"<!-- solvers -->\n(.*?)<!-- end -->", PAGE, re.DOTALL)
    assert found is not None
    rows = [(f"`{r.name}`", options(r), r.update, r.sets, r.source) for r in GAME_SOLVERS.values()]
    expected = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    assert found[1].splitlines()[2:] == expected


def test_the_example_is_the_shipped_game() -> None:
    text = game_paths()["forsaken"].read_text(encoding="utf-8")
    statements = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    page = [line.strip() for line in PAGE.splitlines()]
    assert all(statement in page for statement in statements)


@pytest.mark.parametrize("name", list(game_paths()))
def test_every_shipped_game_is_told_of(name: str) -> None:
    assert re.search(rf"\b{name}\b", PAGE)


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", PAGE))
def test_links_lead_somewhere(link: str) -> None:
    assert (DOCS / link).exists()
