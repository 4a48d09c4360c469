"""The search at one choice of whole numbers, in portions: structured and plain examples, gradients, moves of the best rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from lossdsl.laws.ascent import climb, restored
from lossdsl.laws.constants import constants
from lossdsl.laws.draws import draw, magnitudes
from lossdsl.laws.layout import layouts
from lossdsl.laws.moves import Moves
from lossdsl.laws.pool import Pool
from lossdsl.laws.problem import Assignment, Evaluation, Problem
from lossdsl.laws.suspects import Judge, Tally

POOL, CLIMBERS, STEPS = 200, 128, 25


@dataclass
class Budget:
    """Work in `Problem.cost`; gradients count three times. It makes a search the same on every machine."""

    left: float

    def take(self, problem: Problem, rows: int, times: float = 1) -> None:
        self.left -= problem.cost(rows) * times


class Hunt:
    """One problem; every method returns a counterexample once there is one."""

    def __init__(self, problem: Problem, tally: Tally, g: Generator) -> None:
        self.problem, self.g = problem, g
        self.judge = Judge(problem, tally, g)
        self.layouts = layouts(problem)
        self.constants = constants(problem)
        self.pools = [Pool(layout.width, POOL) for layout in self.layouts]
        self.moves = [Moves(layout, self.constants) for layout in self.layouts]

    @property
    def found(self) -> Assignment | None:
        return self.judge.found

    @property
    def best(self) -> float:
        """The largest worth so far."""
        return max(pool.best for pool in self.pools)

    def look(self, n: int, x: Tensor, budget: Budget) -> bool:
        """Evaluate rows of layout n, keep the best, judge all."""
        budget.take(self.problem, len(x))
        return self._seen(n, x, self.layouts[n].evaluate(x))

    def _seen(self, n: int, x: Tensor, e: Evaluation) -> bool:
        self.pools[n].add(x, e, self.g)
        return self.judge.rows(self.layouts[n], x, e)

    def sweep(self, rows: int, budget: Budget) -> bool:
        """Structured rows, changed ones, and plain ones."""
        for n, layout in enumerate(self.layouts):
            structured = draw(self.g, rows, layout, self.constants, True)
            start = layout.tidy(torch.from_numpy(structured))
            if self.look(n, start, budget):
                return True
            half = structured[: rows // 2]
            if self.look(n, self.moves[n].some(self.g, half, 1, 3), budget) or self.plain(rows, budget, n):
                return True
        return False

    def plain(self, rows: int, budget: Budget, n: int = 0) -> bool:
        """Every quantity evenly over its domain: what finds a small part of it that has no structure."""
        layout = self.layouts[n]
        return self.look(n, layout.tidy(torch.from_numpy(draw(self.g, rows, layout, self.constants, False))), budget)

    def restore(self, budget: Budget, steps: int = 15) -> bool:
        """Rows that miss a hypothesis are led to it."""
        for n, layout in enumerate(self.layouts):
            fresh = torch.from_numpy(draw(self.g, CLIMBERS, layout, self.constants, self.g.random() < 0.5))
            x = torch.cat([layout.tidy(fresh), torch.from_numpy(self.pools[n].chosen(self.g, CLIMBERS))])
            budget.take(self.problem, len(x), (2 + len(self.problem.where)) * steps)
            if self.look(n, restored(layout, x, steps), budget):
                return True
        return False

    def ascend(self, budget: Budget, steps: int = STEPS) -> bool:
        """Gradients, half of the rows from the best ones, half from anywhere."""
        for n, layout in enumerate(self.layouts):
            fresh = torch.from_numpy(draw(self.g, CLIMBERS // 2, layout, self.constants, self.g.random() < 0.5))
            x = torch.cat([torch.from_numpy(self.pools[n].chosen(self.g, CLIMBERS // 2)), layout.tidy(fresh)])
            x = x[torch.from_numpy(self.g.permutation(len(x)))]
            sizes = torch.from_numpy(magnitudes(self.g, len(x), -6, 0))
            hypotheses = len(self.problem.where)
            budget.take(self.problem, len(x), (2 + hypotheses) * (2 if hypotheses else 1) * steps)
            last = climb(layout, x, steps, sizes, lambda rows, e, n=n: self._seen(n, rows, e))  # type: ignore[misc]
            if self.found is not None or self.look(n, last, budget):
                return True
        return False

    def evolve(self, rows: int, generations: int, budget: Budget) -> bool:
        """Moves of the best rows."""
        for n, moves in enumerate(self.moves):
            for _ in range(generations):
                parents = self.pools[n].chosen(self.g, rows)
                if self.look(n, moves.some(self.g, parents, 1, 2), budget):
                    return True
        return False


def generator(seed: int, *place: int) -> Generator:
    """Random numbers of one place of a search."""
    return np.random.default_rng([seed, *place])
