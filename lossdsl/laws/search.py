"""The search for a counterexample of one statement: many choices of whole numbers first, then the most promising ones in depth."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from lossdsl.check.law_typed import Choice, TypedLaw
from lossdsl.laws.catalogue import Law, excerpt
from lossdsl.laws.exact_values import shown
from lossdsl.laws.hunt import Budget, Hunt, generator
from lossdsl.laws.past import Past
from lossdsl.laws.problem import Assignment, Problem
from lossdsl.laws.shapes import neighbours, shapes
from lossdsl.laws.shrink import shrunk
from lossdsl.laws.strategies import explore
from lossdsl.laws.suspects import Tally
from lossdsl.laws.verdict import Counterexample, LawReport, Tried, Verdict

CHOICES_ONLY = 40
"""So many times the choices are tried where nothing else is quantified: each is one evaluation."""


@dataclass(frozen=True)
class Effort:
    """How long to search a statement: `work` in about microseconds, counted and not measured, at most `shapes` choices of whole
    numbers, `examples` of Hypothesis, and a limit in seconds. Only the limit depends on the machine."""

    seed: int = 0
    shapes: int = 48
    examples: int = 60
    work: float = 2e6
    seconds: float = 20.0

    def hard(self) -> Effort:
        """Many times the work."""
        return replace(self, shapes=8 * self.shapes, examples=10 * self.examples, work=30 * self.work, seconds=30 * self.seconds)


@dataclass
class _Search:
    """One statement."""

    law: Law
    index: int
    effort: Effort
    began: float = field(default_factory=time.monotonic)
    tally: Tally = field(default_factory=Tally)
    hunts: dict[str, Hunt] = field(default_factory=dict)
    past: Past | None = None
    found: tuple[Hunt, Assignment] | None = None

    def __post_init__(self) -> None:
        self.tally.until = self.began + self.effort.seconds

    def over(self, budget: Budget) -> bool:
        return self.found is not None or budget.left <= 0 or time.monotonic() > self.tally.until

    def hunt(self, typed: TypedLaw) -> Hunt:
        """Of one choice, kept."""
        key = repr(sorted(typed.choices.items()))
        if key not in self.hunts:
            problem = Problem(typed, typed.statements[self.index], self.law.source)
            self.hunts[key] = Hunt(problem, self.tally, generator(self.effort.seed, self.index, len(self.hunts)))
        return self.hunts[key]

    def keep(self, hunt: Hunt, found: bool) -> bool:
        if found:
            assert hunt.found is not None
            self.found = hunt, hunt.found
        return found

    def run(self) -> None:
        """Past counterexamples, then all choices shortly, then the best ones in turn, in portions of every kind."""
        for typed, assignment in self.past.of(self.law) if self.past is not None else ():
            hunt = self.hunt(typed)
            if self.keep(hunt, hunt.judge.confirms(assignment)):
                return
        budget = Budget(self.effort.work)
        most = self.effort.shapes * (1 if self.law.first.quantities else CHOICES_ONLY)
        for n, typed in enumerate(shapes(self.law, self.effort.seed, most)):
            if self.over(budget) or (n and typed.quantities and budget.left < self.effort.work / 2):
                break
            hunt = self.hunt(typed)
            if self.keep(hunt, _first_look(hunt, budget)):
                return
            if not typed.quantities:
                continue
            if n < 2 and self.keep(hunt, self._examples(hunt, n)):
                return
        turn = 0
        while not self.over(budget) and any(h.problem.quantities for h in self.hunts.values()):
            hunt = self._next(turn)
            self.keep(hunt, _portion(hunt, turn, budget))
            turn += 1

    def _examples(self, hunt: Hunt, n: int) -> bool:
        """Hypothesis."""
        judge = hunt.judge
        explore(hunt.problem, self.effort.seed + n, self.effort.examples, judge.one)
        return judge.found is not None

    def _next(self, turn: int) -> Hunt:
        """The most promising choices in turn; now and then a neighbour of the best one, or any."""
        order = sorted(self.hunts.values(), key=lambda h: -h.best)
        if turn % 8 == 7:
            best = order[0].problem.law.choices
            for typed in neighbours(self.law, best):
                if repr(sorted(typed.choices.items())) not in self.hunts:
                    return self.hunt(typed)
        places = (0, 1, 0, 2, 0, 1, 3, 4)
        return order[min(places[turn % 8], len(order) - 1)] if turn % 3 else order[turn // 3 % len(order)]


def _first_look(hunt: Hunt, budget: Budget) -> bool:
    hunt.judge.refill()
    if not hunt.problem.quantities:
        return hunt.look(0, torch.zeros(1, 0, dtype=torch.float64), budget)
    return hunt.sweep(768, budget) or hunt.evolve(512, 1, budget)


def _portion(hunt: Hunt, turn: int, budget: Budget) -> bool:
    """One kind of search after the other."""
    hunt.judge.refill()
    if not hunt.problem.quantities:
        return False
    if hunt.problem.where and hunt.restore(budget):
        return True
    if hunt.ascend(budget) or hunt.evolve(1024, 4, budget):
        return True
    return hunt.sweep(1024, budget) or hunt.plain(16384, budget)


def check_statement(law: Law, index: int, effort: Effort, past: Past | None = None) -> Verdict:
    """The verdict on one claim or refute of a law. past: counterexamples to be tried first."""
    statement = law.first.statements[index]
    search = _Search(law, index, effort, past=past)
    search.run()
    text = excerpt(law.source, statement.span)
    if search.found is not None:
        hunt, assignment = search.found
        small = shrunk(hunt.problem, assignment)
        found = counterexample(hunt.problem.law.choices, hunt.problem, small)
        return Verdict(statement, text, "refuted", _tried(search), found, hunt.problem.measured)
    tally = search.tally
    outcome = "vacuous" if not tally.attained else "undecided" if tally.undecided else "holds"
    measured = any(h.problem.measured for h in search.hunts.values())
    return Verdict(statement, text, outcome, _tried(search), measured=measured)


def _tried(search: _Search) -> Tried:
    t = search.tally
    return Tried(t.satisfied, t.examples, t.confirmed, len(search.hunts), time.monotonic() - search.began, t.closest)


def counterexample(choices: dict[str, Choice], problem: Problem, found: Assignment) -> Counterexample:
    return Counterexample(choices, found, problem.confirm(found), shown(problem, found))


def check_law_file(law: Law, effort: Effort, past: Past | None = None) -> LawReport:
    """The verdict on every statement of a law; new counterexamples are added to `past`."""
    return reported(law, [check_statement(law, n, effort, past) for n in range(len(law.first.statements))], past)


def reported(law: Law, verdicts: Sequence[Verdict], past: Past | None = None) -> LawReport:
    """The verdicts on all statements of a law, whose counterexamples are added to `past`."""
    for v in verdicts:
        if past is not None and v.counterexample is not None:
            past.add(law, v.counterexample)
    return LawReport(
        law.name, law.first.title or law.name, law.first.source, law.source.where(law.recipe.declaration.span), tuple(verdicts)
    )
