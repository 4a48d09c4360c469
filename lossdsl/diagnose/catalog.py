"""Every diagnostic, a row for each: its number in the papers' list, what it shows, and where its functions are. Free of torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from lossdsl.diagnostics import UserError, did_you_mean

Of = Literal["model", "run"]


@dataclass(frozen=True)
class Row:
    """of: "model", a function of a Subject (any model and tensors), or "run", of an OpenRun. module: below lossdsl.diagnose and
    lossdsl.diagnose.figures; the functions there are NAME and draw_NAME. needs: what a run must have."""

    name: str
    number: str
    about: str
    of: Of
    module: str
    needs: str = ""

    def measure(self) -> Callable[[Any, Any], Any]:
        """The function from a Subject or an OpenRun, and Options, to a Table."""
        return _function(f"lossdsl.diagnose.{self.module}", self.name)

    def draw(self) -> Callable[[Any], Any]:
        """The function from a Table, of one run or several, to a figure of matplotlib."""
        return _function(f"lossdsl.diagnose.figures.{self.module}", f"draw_{self.name}")


def _function(module: str, name: str) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(import_module(module), name.replace("-", "_"))
    return found


KEPT = "--keep-epochs"
_ROWS = (
    Row("curves", "D1", "clean and robust accuracy per epoch, best and last", "run", "curves"),
    Row("margins", "D6", "margins M(x), M(x*) and smoothness (KL, JS, l2) of every example", "model", "margins"),
    Row("quadrants", "D7", "M(x*) over M(x): robust, boundary and natural errors", "model", "margins"),
    Row("decomposition", "D8", "R_rob = R_nat + R_bdy, exactly", "model", "margins"),
)
DIAGNOSTICS: dict[str, Row] = {row.name: row for row in _ROWS}


def find(name: str) -> Row:
    """A row by name or number. Raises UserError for another name."""
    by_number = {number: row for row in _ROWS for number in row.number.split(", ")}
    if name not in DIAGNOSTICS and name.upper() not in by_number:
        raise UserError(f"there is no diagnostic {name}", where="--what", fix=did_you_mean(name, DIAGNOSTICS))
    return DIAGNOSTICS.get(name) or by_number[name.upper()]
