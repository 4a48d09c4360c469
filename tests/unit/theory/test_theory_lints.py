"""The findings of theory on shipped and on deliberately bad recipes, pinned with their reasons."""

from __future__ import annotations

import lint_cases
import pytest

from lossdsl.assets import attack_paths, recipe_paths
from lossdsl.check_commands import findings_of
from lossdsl.front import read_source
from lossdsl.source import Source

NOTES = ("T01", "T02", "T03", "T04", "T05", "T06")


def codes(source: Source) -> str:
    """The codes found, in order, repeated as often as found."""
    return " ".join(sorted(d.code for d in findings_of(source, {}).diagnostics))


def test_the_table_is_long_and_has_every_recipe() -> None:
    assert not set(recipe_paths()) - set(lint_cases.SHIPPED)
    assert len(lint_cases.SHIPPED) + len(lint_cases.WRITTEN) >= 40


@pytest.mark.parametrize("name", sorted({*attack_paths()} - set(lint_cases.SHIPPED)))
def test_a_shipped_suite_without_a_row_has_notes_alone(name: str) -> None:
    assert set(codes(read_source(attack_paths()[name])).split()) <= {"T01"}


@pytest.mark.parametrize("name", lint_cases.SHIPPED)
def test_shipped(name: str) -> None:
    expected, why = lint_cases.SHIPPED[name]
    found = codes(read_source({**recipe_paths(), **attack_paths()}[name]))
    assert found == expected, why


@pytest.mark.parametrize("name", lint_cases.WRITTEN)
def test_written(name: str) -> None:
    expected, text, why = lint_cases.WRITTEN[name]
    assert codes(Source(text, "case.loss")) == expected, why


def test_severities_follow_the_codes() -> None:
    for _, text, _ in lint_cases.WRITTEN.values():
        for d in findings_of(Source(text, "case.loss"), {}).diagnostics:
            assert d.severity == ("note" if d.code in NOTES else "warning") and d.message and d.span.end > d.span.start, d
