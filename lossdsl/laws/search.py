"""The search for a counterexample of one statement: examples at many choices of whole numbers, and their confirmation."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from lossdsl.check.law_typed import TypedLaw
from lossdsl.laws.catalogue import Law, excerpt
from lossdsl.laws.exact_values import shown
from lossdsl.laws.problem import Assignment, Problem
from lossdsl.laws.strategies import explore
from lossdsl.laws.verdict import Counterexample, LawReport, Tried, Verdict


@dataclass(frozen=True)
class Effort:
    """How long to search: choices of whole numbers, examples at each, and a limit in seconds per statement."""

    seed: int = 0
    shapes: int = 8
    examples: int = 200
    seconds: float = 20.0

    def hard(self) -> Effort:
        """Many times the examples."""
        return replace(self, shapes=4 * self.shapes, examples=10 * self.examples, seconds=15 * self.seconds)


class _Search:
    """One statement at one choice of whole numbers; counts what it does."""

    def __init__(self, problem: Problem, deadline: float) -> None:
        self.problem, self.deadline = problem, deadline
        self.satisfied = self.examples = self.confirmed = 0
        self.closest: float | None = None
        self.undecided = False

    def judge(self, assignment: Assignment) -> tuple[float | None, bool]:
        """The violation where the hypotheses hold, and whether this is a counterexample."""
        if time.monotonic() > self.deadline:
            return None, False
        self.examples += 1
        found = self.problem.evaluate(self.problem.tensors([assignment]), assignment.charts)
        if not bool(found.satisfied[0]):
            return None, False
        self.satisfied += 1
        violation = float(found.violation[0])
        if self.closest is None or violation > self.closest:
            self.closest = violation
        return violation, bool(found.suspicious[0]) and self.refutes(assignment)

    def refutes(self, assignment: Assignment) -> bool:
        self.confirmed += 1
        confirmation = self.problem.confirm(assignment)
        self.undecided |= confirmation.hypotheses is not False and confirmation.holds is None
        return confirmation.refuted


def check_statement(law: Law, index: int, effort: Effort) -> Verdict:
    """The verdict on one claim or refute of a law."""
    began = time.monotonic()
    statement = law.first.statements[index]
    text = excerpt(law.source, statement.span)
    tried, undecided = Tried(), False
    for n, typed in enumerate(law.shapes(effort.seed, effort.shapes)):
        problem = Problem(typed, typed.statements[index], law.source)
        search = _Search(problem, began + effort.seconds)
        found = explore(problem, effort.seed + n, effort.examples, search.judge)
        undecided |= search.undecided
        tried = _added(tried, search, time.monotonic() - began)
        if found is not None:
            return Verdict(statement, text, "refuted", tried, counterexample(typed, problem, found))
        if time.monotonic() > began + effort.seconds:
            break
    outcome = "vacuous" if not tried.satisfied else "undecided" if undecided else "holds"
    return Verdict(statement, text, outcome, tried)


def _added(tried: Tried, search: _Search, seconds: float) -> Tried:
    known = [v for v in (tried.closest, search.closest) if v is not None]
    return Tried(
        tried.satisfied + search.satisfied, tried.examples + search.examples, tried.confirmed + search.confirmed, tried.shapes + 1, seconds,
        max(known, default=None),
    )  # fmt: skip


def counterexample(typed: TypedLaw, problem: Problem, found: Assignment) -> Counterexample:
    return Counterexample(typed.choices, found, problem.confirm(found), shown(problem, found))


def check_law_file(law: Law, effort: Effort) -> LawReport:
    """The verdict on every statement of a law."""
    verdicts = tuple(check_statement(law, n, effort) for n in range(len(law.first.statements)))
    return LawReport(law.name, law.first.title or law.name, law.first.source, law.source.where(law.recipe.declaration.span), verdicts)


