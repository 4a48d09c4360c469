"""Which of many evaluated rows are worth an exact look: float64 suspects, high precision decides."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from lossdsl.check.law_typed import Relation
from lossdsl.laws.layout import Layout
from lossdsl.laws.numbers import isnan
from lossdsl.laws.pool import OUTSIDE, worth
from lossdsl.laws.problem import Assignment, Evaluation, Problem
from lossdsl.laws.refine import refined, rounded, stable

LIMITS = {"clear": 240, "tied": 120, "faint": 60, "no number": 60, "any": 40}
"""Exact looks at rows of each kind, per statement."""
AT_ONCE = {"clear": 6, "tied": 4, "faint": 2, "no number": 4, "any": 1}
"""The same for rows evaluated together."""
ROUNDED = 4
REFINEMENTS, REFINED_AT_ONCE = 160, 2
"""Searches for a nearby point that satisfies the hypotheses, or at which a tie is exact: per statement, and for rows evaluated together."""
PER_PORTION = 3
"""A portion of the search may look at this multiple of it, so that one choice of whole numbers leaves enough to the others."""


@dataclass
class Tally:
    """What was done for one statement, and what is still allowed."""

    examples: int = 0
    satisfied: int = 0
    confirmed: int = 0
    undefined: int = 0
    """Exact looks at which a side was no number (infinity minus infinity, 0 / 0): such an example says nothing."""
    undecided: int = 0
    attained: bool = False
    """Some example satisfies the hypotheses exactly."""
    closest: float | None = None
    left: dict[str, int] = field(default_factory=lambda: dict(LIMITS))
    refinements: int = REFINEMENTS
    until: float = float("inf")
    """On the monotonic clock: no exact looks after that."""

    def see(self, e: Evaluation) -> None:
        """Count evaluated rows."""
        satisfied = e.satisfied
        self.examples += len(satisfied)
        self.satisfied += int(satisfied.sum())
        known = e.violation[satisfied & e.violation.isfinite()]
        if len(known):
            self.closest = max(float(known.max()), self.closest if self.closest is not None else -float("inf"))


class Judge:
    """Looks at rows of one problem; `found` is a counterexample."""

    def __init__(self, problem: Problem, tally: Tally, g: Generator) -> None:
        self.problem, self.tally, self.g = problem, tally, g
        self.found: Assignment | None = None
        self.strict = _strict(problem.relation)
        self.refill()

    def refill(self) -> None:
        """A new portion of the search begins."""
        self.refinements = PER_PORTION * REFINED_AT_ONCE
        self.allowed = {kind: PER_PORTION * count for kind, count in AT_ONCE.items()}

    def rows(self, layout: Layout, x: Tensor, e: Evaluation) -> bool:
        """True once a counterexample is found."""
        self.tally.see(e)
        for kind, rows in self._kinds(e).items():
            for row in self._picked(kind, rows, e):
                self.tally.left[kind] -= 1
                self.allowed[kind] -= 1
                if time.monotonic() < self.tally.until and self.confirms(layout.assignment(x[row])):
                    return True
        return False

    def one(self, assignment: Assignment) -> tuple[float | None, bool]:
        """The violation of an example where the hypotheses hold, and whether it is a counterexample."""
        e = self.problem.evaluate(self.problem.tensors([assignment]), assignment.charts)
        self.tally.see(e)
        self.refill()
        if not bool(e.satisfied[0]):
            return None, False
        kind = next((k for k, rows in self._kinds(e).items() if k != "any" and bool(rows[0]) and self.tally.left[k] > 0), None)
        if kind is not None:
            self.tally.left[kind] -= 1
        return float(e.violation[0]), kind is not None and self.confirms(assignment)

    def _kinds(self, e: Evaluation) -> dict[str, Tensor]:
        satisfied, tied = e.satisfied, (e.violation == 0) & torch.tensor(self.strict)
        faint = (e.violation.abs() <= e.noise) & ~tied
        return {
            "clear": satisfied & (e.violation > e.noise), "tied": satisfied & tied, "faint": satisfied & faint,
            "no number": satisfied & e.violation.isnan(), "any": satisfied,
        }  # fmt: skip

    def _picked(self, kind: str, rows: Tensor, e: Evaluation) -> list[int]:
        """The best among the clear ones, and some at random: of those whose hypotheses are no matter of rounding where there are such."""
        among = torch.nonzero(rows).flatten().numpy()
        count = min(AT_ONCE[kind], self.allowed[kind], self.tally.left[kind], len(among))
        if count <= 0:
            return []
        if kind != "clear":
            return [int(i) for i in self.g.choice(among, count, replace=False)]
        worths = worth(e).numpy()[among]
        sure = among[worths > -OUTSIDE]
        best = among[np.argsort(-worths, kind="stable")[: (count + 1) // 2]]
        others = self.g.choice(sure if len(sure) else among, count // 2)
        return [int(i) for i in (*best, *others)]

    def confirms(self, assignment: Assignment) -> bool:
        """An exact look; where rounding has spoiled a hypothesis or a tie, further ones at points nearby."""
        if self._refuted(assignment):
            return True
        if self.refinements <= 0 or self.tally.refinements <= 0:
            return False
        self.refinements -= 1
        self.tally.refinements -= 1
        return any(self._refuted(near) for near in self._nearby(assignment))

    def _nearby(self, assignment: Assignment) -> Iterator[Assignment]:
        near = refined(self.problem, assignment) if self.problem.where else None
        if near is not None:
            yield near
        seen = [assignment.values]
        for other in rounded(assignment):
            if other.values not in seen and len(seen) < ROUNDED:
                seen.append(other.values)
                yield other

    def _refuted(self, assignment: Assignment) -> bool:
        confirmation = self.problem.confirm(assignment)
        self.tally.confirmed += 1
        self.tally.attained |= confirmation.hypotheses is True
        refuted = confirmation.refuted and (not assignment.near or stable(self.problem, assignment))
        if refuted:
            self.found = assignment
        elif confirmation.hypotheses is not False and confirmation.holds is None:
            no_number = any(isnan(c.left) or isnan(c.right) for c in confirmation.comparisons)
            self.tally.undefined += no_number
            self.tally.undecided += not no_number
        return refuted


def _strict(r: Relation) -> bool:
    """Does a tie matter?"""
    return r.op in ("<", ">", "!=") or any(_strict(part) for part in r.parts)
