"""Files to laws, and a law at any choice of what is enumerated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lossdsl.assets import law_paths
from lossdsl.check.law import check_law
from lossdsl.check.law_typed import Choice, TypedLaw
from lossdsl.check.scope import Report
from lossdsl.diagnostics import RecipeError, UserError, did_you_mean
from lossdsl.front import Recipe, declared, parse_recipes, read_source
from lossdsl.source import Source


@dataclass(frozen=True, eq=False)
class Law:
    """A law of a file. `first` is the law at its first choices."""

    recipe: Recipe

    @property
    def name(self) -> str:
        return self.recipe.name

    @property
    def source(self) -> Source:
        return self.recipe.source

    @property
    def first(self) -> TypedLaw:
        found = self.recipe.declared
        assert isinstance(found, TypedLaw)
        return found

    def at(self, choices: dict[str, Choice]) -> TypedLaw:
        """The law at other choices; what is not among the options is replaced by the first of them. Raises RecipeError where only
        this choice is wrong (a network that grows too large, an index out of a family)."""
        report = Report()
        found = check_law(report, self.recipe.shared, self.recipe.declaration, choices, declared)
        if report.failed:
            raise RecipeError(self.source, [d for d in report.diagnostics if d.severity == "error"])
        return found


def laws_of(source: Source) -> list[Law]:
    """Every law of a text. Raises RecipeError with every error of the text."""
    return [Law(r) for r in parse_recipes(source) if r.kind == "law"]


@cache
def _shipped() -> dict[str, Path]:
    return law_paths()


def load_laws(names: Sequence[str] = ()) -> list[Law]:
    """The laws of files (paths, or names of shipped ones), or of all shipped files.

    Raises UserError for a name that no file has, or files without laws, RecipeError for a file with errors.
    """
    paths = [_path(n) for n in names] if names else list(_shipped().values())
    found = [law for path in paths for law in laws_of(read_source(path))]
    if not found:
        raise UserError("there are no laws", where=", ".join(map(str, paths)), fix="declare one: law NAME, then for ... and claim ...")
    return found


def _path(name: str) -> Path:
    if name in _shipped():
        return _shipped()[name]
    if name.endswith(".loss") or Path(name).exists():
        return Path(name)
    raise UserError(f"there is no file of laws {name}", fix=did_you_mean(name, _shipped()) + "; a file ends in .loss")


def excerpt(source: Source, span: Any) -> str:
    """A statement on one line, without comments."""
    lines = source.holding(span).excerpt(span).splitlines()
    return " ".join(" ".join(line.partition("#")[0].split()) for line in lines).strip()
