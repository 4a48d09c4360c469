"""What became of a statement, and of a law."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lossdsl.check.law_typed import Choice, Statement
from lossdsl.laws.exact import Confirmation
from lossdsl.laws.problem import Assignment


@dataclass(frozen=True)
class Counterexample:
    """choices: whole numbers, elements of finite sets, dimensions; assignment: free numbers; confirmation: in high precision."""

    choices: dict[str, Choice]
    assignment: Assignment
    confirmation: Confirmation
    values: dict[str, Any]
    """What every quantity is, to 6 digits."""


@dataclass(frozen=True)
class Tried:
    """How hard it was: examples that satisfy the hypotheses, all examples, exact evaluations, choices of whole numbers, seconds."""

    satisfied: int = 0
    examples: int = 0
    confirmed: int = 0
    shapes: int = 0
    seconds: float = 0.0
    closest: float | None = None
    """The largest violation among the examples that satisfy the hypotheses (negative: how far from one)."""


@dataclass(frozen=True)
class Verdict:
    """One statement. outcome: "holds" (no counterexample was found), "refuted", "undecided" (float64 suspects a counterexample that no
    number of digits settles), "vacuous" (nothing that was tried satisfies the hypotheses)."""

    statement: Statement
    text: str
    outcome: str
    tried: Tried
    counterexample: Counterexample | None = None
    measured: bool = False
    """A side is what a solver or a game leaves: the verdict is one in float64, with a tolerance."""

    @property
    def passed(self) -> bool:
        """A claim passes if it holds, a refute if it is refuted; a vacuous or undecided one never does."""
        return self.outcome == ("refuted" if self.statement.refuted else "holds")


@dataclass(frozen=True)
class LawReport:
    name: str
    title: str
    source: str
    place: str
    verdicts: tuple[Verdict, ...] = field(default_factory=tuple)

    @property
    def passed(self) -> bool:
        return all(v.passed for v in self.verdicts)
