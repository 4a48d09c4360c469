"""Laws in your own test suite, in two lines:

from lossdsl.laws.testing import law_tests
test_laws = law_tests("laws/")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lossdsl.assets import law_paths, law_scripts
from lossdsl.diagnostics import UserError, did_you_mean
from lossdsl.laws.catalogue import Law, load_laws
from lossdsl.laws.past import Past
from lossdsl.laws.python_laws import PythonLaw, check_python_law, python_laws
from lossdsl.laws.report import lines
from lossdsl.laws.search import Effort, check_law_file
from lossdsl.laws.verdict import LawReport


def laws_at(*places: str | Path) -> list[Law | PythonLaw]:
    """The laws of .loss files, of Python files, of every such file of a folder, and of shipped files by name (`beta` is beta.loss and
    beta.py); of all shipped files where nothing is named. Raises UserError for what is none of these, or holds no laws."""
    found: list[Law | PythonLaw] = []
    for file in [file for place in places or sorted({**law_paths(), **law_scripts()}) for file in _files(place)]:
        found += python_laws(file) if file.suffix == ".py" else load_laws([str(file)])
    return found


def _files(place: str | Path) -> list[Path]:
    path, shipped = Path(place), {**law_paths(), **law_scripts()}
    if str(place) in shipped:
        return [files[str(place)] for files in (law_paths(), law_scripts()) if str(place) in files]
    if path.is_dir():
        files = sorted([*path.rglob("*.loss"), *path.rglob("*.py")])
        if not files:
            raise UserError("the folder holds no laws", where=str(path), fix="laws are declared in .loss files")
        return files
    if path.suffix not in (".loss", ".py") and not path.exists():
        fix = did_you_mean(str(place), shipped) + "; your own file ends in .loss or .py"
        raise UserError(f"there is no shipped file of laws {place}", fix=fix)
    return [path]


def verdict_on(law: Law | PythonLaw, effort: Effort, past: Past | None = None) -> LawReport:
    """The report on a law of either kind. past: counterexamples of laws in the language, tried first."""
    return check_python_law(law, effort) if isinstance(law, PythonLaw) else check_law_file(law, effort, past)


def law_tests(*places: str | Path, only: Iterable[str] = (), **effort: Any) -> Callable[..., None]:
    """A test function for pytest, one case per law: it fails, with the report, where the law does not pass.

    places: files, folders or names of shipped files. only: names of laws. effort: fields of Effort, such as seed = 1 or seconds = 5.
    """
    import pytest

    wanted = set(only)
    found = [law for law in laws_at(*places) if not wanted or law.name in wanted]

    @pytest.mark.parametrize("law", found, ids=[law.name for law in found])
    def test_law(law: Law | PythonLaw) -> None:
        report = verdict_on(law, Effort(**effort))
        assert report.passed, "\n" + "\n".join(lines(report))

    return test_law
