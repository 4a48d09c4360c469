"""What `lossdsl list` and docs/methods.md say of the shipped files, and that every method of the papers has one."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from lossdsl.assets import attack_paths, game_paths, recipe_paths
from lossdsl.catalog import choices, code_lines, comments, methods

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "docs" / "make_methods.py"


@pytest.fixture(scope="module")
def made() -> Iterator[ModuleType]:
    """docs/make_methods.py as a module."""
    spec = importlib.util.spec_from_file_location("make_methods", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_methods"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["make_methods"]


# --- reading comments -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("# T6: TRADES.\nrecipe a", ["T6"]),
        ("# T6, T7: both (A7).\nrecipe a", ["T6", "T7"]),
        ("\n  # T33: a game\ngame a", ["T33"]),
        ("# method: T12 FAIT\nrecipe a", ["T12"]),
        ("# As T6, with more.\nrecipe a", []),
        ("recipe a  # T6: not at the start of its line", []),
        ("recipe a\nparam T6 = 1", []),
    ],
)
def test_methods_stand_at_the_start_of_the_first_comment(text: str, numbers: list[str]) -> None:
    assert methods(text) == numbers


def test_what_comments_settle() -> None:
    text = (
        "# T8: one. A1: the start is uniform; A2: j runs\n# over j != y (see A5). A12: that of the code. More of it.\n"
        "recipe a  # A19: no\n# The margin is of logits (A15). A5: later."
    )
    assert choices(text) == {
        "A1": "the start is uniform",
        "A2": "j runs over j != y (see A5)",
        "A5": "later",
        "A12": "that of the code",
        "A15": "The margin is of logits",
    }
    assert choices("# T2, T3: As printed (see A16; A17 is open).") == dict.fromkeys(("A16", "A17"), "As printed (see A16; A17 is open)")
    assert comments("# a\nx # b\n#c") == "a c"


def test_lines_of_code() -> None:
    assert code_lines('# a\n\nrecipe r\n  title  "# no comment"\n   # b\nparam a = 1 # c\n') == 3


# --- the shipped files ------------------------------------------------------------------------------------------------


def test_every_method_has_a_file() -> None:
    found = {number for path in (*recipe_paths().values(), *game_paths().values()) for number in methods(path.read_text(encoding="utf-8"))}
    wanted = {f"T{n}" for n in range(1, 36)} - {"T34"}
    assert found - {"T34"} == wanted, f"without a file: {sorted(wanted - found)}; unknown: {sorted(found - wanted)}"


def test_files_without_a_number_are_named_by_the_papers() -> None:
    without = {name for name, path in {**recipe_paths(), **game_paths()}.items() if not methods(path.read_text(encoding="utf-8"))}
    assert without <= {"alp", "free_at"}
    suites = {name: methods(path.read_text(encoding="utf-8")) for name, path in attack_paths().items()}
    assert all(number.startswith("E") for numbers in suites.values() for number in numbers) and all(suites.values())


def test_recipes_are_short(made: ModuleType) -> None:
    sizes: dict[int, int] = made.sizes()
    print(made.summary())
    assert sum(sizes.values()) == len(recipe_paths())
    assert max(sizes) <= 20, {n: p.name for p in recipe_paths().values() if (n := code_lines(p.read_text(encoding="utf-8"))) > 20}
    assert sum(count for n, count in sizes.items() if n <= 12) > 0.75 * sum(sizes.values()), made.summary()


def test_every_recipe_is_verified_against_plain_pytorch(made: ModuleType) -> None:
    assert [name for name in recipe_paths() if not made.plain(name)] == []


def test_every_game_is_named_by_a_test(made: ModuleType) -> None:
    assert [name for name in game_paths() if not made.naming(name)] == []


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_is_up_to_date(made: ModuleType) -> None:
    assert made.PAGE.read_text(encoding="utf-8") == made.page(), "run: python docs/make_methods.py"


def test_the_page_shows_what_is_missing(made: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method without a file, an optional one, a file that nothing verifies."""
    trades = made.Shipped("trades", recipe_paths()["trades"])
    monkeypatch.setattr(made, "shipped", lambda: [trades])
    monkeypatch.setattr(made, "plain", lambda name: [])
    monkeypatch.setattr(made, "naming", lambda name: [])
    rows = {row[0]: row for row in made.table()}
    assert list(rows) == [f"T{n}" for n in range(1, 36)]
    assert rows["T6"][2:5] == ("[trades.loss](../recipes/trades.loss)", "11", made.NOTHING)
    assert rows["T7"][2] == made.NO_FILE and rows["T34"][2] == "optional, mentioned only"
    assert rows["T6"][5].startswith("A7: lambda = 6 is the released default (the paper of BETA says 5); A12: ")
    assert dict(made.open_choices())["A20"] == "in no file"


def test_what_a_recipe_is_verified_against(made: ModuleType) -> None:
    assert made.plain("trades") == ["plain.py: attack_kl, loss_trades"]
    assert made.plain("fast_bat") == ["plain_flow.py: fast_bat, raw_step"]
    assert made.plain("sam") == ["plain_weights.py: sam"]
    assert made.plain("lambda") == [], "a key of a table that is no recipe"
    assert "identities" in made.naming("trades") and "flow" in made.naming("fast_bat")
