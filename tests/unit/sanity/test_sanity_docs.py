"""docs/sanity.md: its table is the catalogue, and the numbers that it states are those of the code."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from lossdsl.sanity import gradients, strength
from lossdsl.sanity.gate import ROWS
from lossdsl.sanity.statistics import FAMILY_LEVEL, LEVEL, MOST_TESTS, Pair, enough, exceeds
from lossdsl.sanity.subject import FULL, QUICK

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGE = (DOCS / "sanity.md").read_text(encoding="utf-8")


def test_the_table_is_the_catalogue() -> None:
    spec = importlib.util.spec_from_file_location("make_checks", DOCS / "make_checks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.rewritten(PAGE) == PAGE, "run: python docs/make_checks.py"


def test_the_numbers_are_those_of_the_code() -> None:
    text = " ".join(PAGE.split())
    shares = (gradients.ZERO_SHARE, strength.REPAIRED_SHARE, strength.MISSED_SHARE, gradients.GAP_SHARE)
    assert shares == (0.01, 0.02, 0.05, 0.10) and strength.SURVIVOR_SHARE == 0.02
    needed = {total: [next(k for k in range(total) if exceeds(k, total, share)) for share in shares] for total in (120, 1000)}
    assert needed == {120: [7, 10, 16, 25], 1000: [23, 37, 75, 133]}
    assert "takes 7, 10, 16 or 25 of them" in text and "takes 23, 37, 75 or 133" in text
    assert Pair(0, 0, 11, 0, 120).reversed() and not Pair(0, 0, 10, 0, 120).reversed() and enough(11) and not enough(10)
    assert (LEVEL, MOST_TESTS, FAMILY_LEVEL) == (0.0005, 20, 0.01)
    assert (QUICK.examples, FULL.examples) == (128, 1000) and len(ROWS) == 17 and text.count("| S") == 17
    assert set(re.findall(r"S\d\d", PAGE)) <= set(ROWS)
