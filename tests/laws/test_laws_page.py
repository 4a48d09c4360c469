"""docs/laws.md is what docs/make_laws.py writes from docs/laws.json, whose verdicts are those of the laws as they stand."""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
sys.path.insert(0, str(DOCS))

import make_laws  # noqa: E402

UNSETTLED = {"slides_c19_almost_bilinear_played"}
"""Laws of the page with a claim that the search did not settle within its limit on a shared core; the page shows what it said of them."""
LAWS, FOUND = make_laws.papers_laws(), make_laws.kept()["laws"]


def test_the_page_is_up_to_date() -> None:
    assert make_laws.PAGE.read_text(encoding="utf-8") == make_laws.page(), "run python docs/make_laws.py"


def test_verdicts_are_of_the_laws_as_they_stand() -> None:
    for name, entry in FOUND.items():
        assert [row["statement"] for row in entry["statements"]] == make_laws.statements(LAWS[name]), f"{name}: make_laws.py --run"
        failed = not all(row["passed"] for row in entry["statements"])
        assert failed == (name in UNSETTLED), f"{name}: {[row['verdict'] for row in entry['statements']]}"
        for row in entry["statements"] if not failed else ():
            expected = "refuted" if row["statement"].startswith("refute ") else "holds"
            assert row["verdict"] == expected and row["passed"], f"{name}: {row['statement']} {row['verdict']}"
            assert ("counterexample" in row) == (expected == "refuted")


def test_every_statement_says_whether_it_is_true_and_its_laws_agree() -> None:
    everything = [one for name in make_laws.PAPERS for one in make_laws.printed(name)]
    assert len(everything) == 144 == len({one.id for one in everything})
    for one in everything:
        kinds = {said.partition(" ")[0] for law in one.laws for said in make_laws.statements(LAWS[law])}
        wanted = {
            "true": "claim",
            "false": "refute",
            "needs a hypothesis": "claim",
            "false: there is none": "claim",
            "true: a witness": "refute",
        }
        assert wanted[one.mark] in kinds, f"{one.id} is {one.mark}, and {', '.join(one.laws)} only {kinds}"


def test_laws_have_the_name_of_their_file() -> None:
    assert all(name.startswith(tuple(f"{paper}_" for paper in make_laws.PAPERS)) for name in LAWS)
