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
    Row("curves", "D1", "clean and robust accuracy per epoch, best and last", "run", "curves", f"{KEPT} for train and test examples"),
    Row("alarm", "D2", "catastrophic overfitting: accuracy under FGSM and PGD per epoch", "run", "curves", f"--alarm or {KEPT}"),
    Row("radii", "D3", "accuracy against the radius of the attack", "model", "accuracy"),
    Row("alignment", "D4", "gradient alignment inside the ball, per epoch", "run", "alignment", f"{KEPT} for a curve"),
    Row("landscape", "D5", "the loss around one example (--example)", "model", "landscape"),
    Row("margins", "D6", "margins M(x), M(x*) and smoothness (KL, JS, l2) of every example", "model", "margins"),
    Row("quadrants", "D7", "M(x*) over M(x): robust, boundary and natural errors", "model", "margins"),
    Row("decomposition", "D8", "R_rob = R_nat + R_bdy, exactly", "model", "margins"),
    Row("angles", "D9", "angles of the terms' gradients to the margin's, per epoch", "run", "terms", f"{KEPT} for a curve"),
    Row("ratios", "D10", "log-ratios of probabilities (--eps for several radii)", "model", "ratios"),
    Row("increase", "D11", "expected margin increase and mean margin, per epoch", "run", "terms", f"{KEPT} for a curve"),
    Row("norms", "D12", "normalised gradient norms of the first updates (--updates)", "run", "replay"),
    Row("trained", "D13", "accuracy of runs trained at several radii", "run", "accuracy", "a finished run with the param eps"),
    Row("smoothness", "D14", "R and R' per epoch", "run", "terms", f"{KEPT} for a curve"),
    Row("entropies", "D15", "entropies at x, in the ball and at x*", "model", "ratios"),
    Row("frontier", "D16", "clean against robust accuracy over a swept param", "run", "accuracy"),
    Row("distances", "D17", "distances between optimised perturbations (--example, --starts)", "model", "perturbations"),
    Row("descent", "D18", "descent along DDi and single maximisers (--starts)", "run", "perturbations"),
    Row("classes", "D19", "accuracy per class and the worst class", "model", "accuracy"),
    Row("stopping", "D20", "which epoch each rule of early stopping chooses", "run", "curves", KEPT),
    Row("time", "D22", "time per epoch and update, passes per step", "run", "curves"),
)
DIAGNOSTICS: dict[str, Row] = {row.name: row for row in _ROWS}


def find(name: str) -> Row:
    """A row by name or number. Raises UserError for another name."""
    if name.lower() in ("d21", "trajectories"):
        raise UserError("trajectories of games are drawn by another command", where="--what", fix="lossdsl play GAME --plot FILE")
    by_number = {number: row for row in _ROWS for number in row.number.split(", ")}
    if name not in DIAGNOSTICS and name.upper() not in by_number:
        raise UserError(f"there is no diagnostic {name}", where="--what", fix=did_you_mean(name, DIAGNOSTICS))
    return DIAGNOSTICS.get(name) or by_number[name.upper()]
