"""The cheap attacks of the gate, written in the language and compiled like any other suite."""

from __future__ import annotations

from dataclasses import dataclass

from lossdsl.lang.specs import SOLVERS
from lossdsl.run.protocols import Bound

CE, DLR, MARGIN = "CE(f(x'), y)", "DLR(f(x'), y)", "max(j != y: f(x')[j]) - f(x')[y]"
RESCALED = "CE(f(x') / scale, y)"
SQUARE_NORMS = ("linf", "l2")


@dataclass(frozen=True)
class Threat:
    """A ball of `radius` (in the units of x) around every input, in the norm linf, l2 or l1; `domain` is the range of the inputs, numbers
    or one per channel, None: all reals."""

    radius: float
    norm: str = "linf"
    domain: tuple[Bound, Bound] | None = (0.0, 1.0)

    def text(self, objective: str, solver: str, scale: float = 1.0) -> str:
        """A suite of one run that maximises `objective` over the ball."""
        return (
            f"attack probe\ninput x in {_range(self.domain)}\nparam eps = {self.radius!r}, scale = {scale!r}\n"
            f"run probe : x' in {self.norm}(x, eps) maximize {objective} by {solver}\ncount worst\n"
        )

    def pgd(self, steps: int) -> str:
        """Steps of a quarter of the radius from a random start."""
        return f"pgd(steps = {steps}, step = eps/4, start = x + uniform({self.norm}(0, eps)))"

    def black_boxes(self, corners: int, queries: int) -> dict[str, str]:
        """Solvers that see no gradient, by what they are called: random corners of the ball, and Square where its norm is."""
        found = {f"{corners} random corners": f"pgd(steps = 1, step = 0, start = corner, restarts = {corners})"}
        if "square" in SOLVERS and self.norm in SQUARE_NORMS:
            found[f"square with {queries} queries"] = f"square(queries = {queries})"
        return found


def _range(domain: tuple[Bound, Bound] | None) -> str:
    return "reals" if domain is None else f"[{_bound(domain[0])}, {_bound(domain[1])}]"


def _bound(bound: Bound) -> str:
    return repr(float(bound)) if isinstance(bound, float | int) else "[" + ", ".join(repr(float(b)) for b in bound) + "]"
