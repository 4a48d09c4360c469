"""Laws in your own test suite, in two lines:

from lossdsl.laws.testing import law_tests
test_laws = law_tests("laws/")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lossdsl.diagnostics import UserError
from lossdsl.laws.catalogue import Law, load_laws
from lossdsl.laws.past import Past
from lossdsl.laws.python_laws import PythonLaw, check_python_law, python_laws
from lossdsl.laws.report import lines
from lossdsl.laws.search import Effort, check_law_file
from lossdsl.laws.verdict import LawReport


def laws_at(*places: str | Path) -> list[Law | PythonLaw]:
    """The laws of .loss files, of Python files, and of every such file of a folder. Raises UserError where there are none."""
    found: list[Law | PythonLaw] = []
    for place in map(Path, places):
        files = sorted([*place.rglob("*.loss"), *place.rglob("*.py")]) if place.is_dir() else [place]
        if not files:
            raise UserError("the folder holds no laws", where=str(place), fix="laws are declared in .loss files")
        for file in files:
            found += python_laws(file) if file.suffix == ".py" else load_laws([str(file)])
    return found


def verdict_on(law: Law | PythonLaw, effort: Effort, past: Past | None = None) -> LawReport:
    """The report on a law of either kind. past: counterexamples of laws in the language, tried first."""
    return check_python_law(law, effort) if isinstance(law, PythonLaw) else check_law_file(law, effort, past)


def law_tests(*places: str | Path, only: Iterable[str] = (), **effort: Any) -> Callable[..., None]:
    """A test function for pytest, one case per law: it fails, with the report, where the law does not pass.

    places: files or folders. only: names of laws. effort: fields of Effort, such as seed = 1 or seconds = 5.
    """
    import pytest

    wanted = set(only)
    found = [law for law in laws_at(*places) if not wanted or law.name in wanted]

    @pytest.mark.parametrize("law", found, ids=[law.name for law in found])
    def test_law(law: Law | PythonLaw) -> None:
        report = verdict_on(law, Effort(**effort))
        assert report.passed, "\n" + "\n".join(lines(report))

    return test_law
