"""Every free number of a law as a column of one matrix [B, width]: what the search draws, moves and climbs."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from lossdsl.check.law_typed import Quantity
from lossdsl.laws.problem import Assignment, Evaluation, Problem

LARGEST = 1e300
"""Free numbers stay below, so that sums of a few of them are finite."""


@dataclass(frozen=True)
class Block:
    """The columns of a quantity, and the limits of its numbers whatever the other quantities are."""

    quantity: Quantity
    place: slice
    low: float
    high: float
    masses: bool
    """Numbers from 0 that only matter by their ratios."""

    @property
    def size(self) -> int:
        return self.quantity.size

    @property
    def whole(self) -> bool:
        return self.quantity.form == "label"

    @property
    def family(self) -> str:
        """What it may be exchanged with: quantities of one kind and size."""
        return f"{self.quantity.form} {self.size} {self.quantity.attrs if self.whole else ''}"


class Layout:
    """A problem with one chart for every simplex ("coordinates" or "logits")."""

    def __init__(self, problem: Problem, chart: str) -> None:
        self.problem = problem
        self.charts = {q.name: chart for q in problem.quantities if chart in problem.charts(q)}
        self.blocks: list[Block] = []
        start = 0
        for q in problem.quantities:
            low, high = _limits(problem, q, self.charts.get(q.name, ""))
            self.blocks.append(Block(q, slice(start, start + q.size), low, high, self.charts.get(q.name) == "coordinates"))
            start += q.size
        self.width = start
        self.low = _row(self.blocks, lambda b: b.low)
        self.high = _row(self.blocks, lambda b: b.high)
        self.whole = _row(self.blocks, lambda b: float(b.whole)).bool()

    def tidy(self, x: Tensor) -> Tensor:
        """Within the limits, labels whole, no NaN."""
        kept = x.nan_to_num(0.0, LARGEST, -LARGEST).clamp(-LARGEST, LARGEST)
        kept = torch.minimum(torch.maximum(kept, self.low), self.high)
        return torch.where(self.whole, kept.round(), kept)

    def flat(self, x: Tensor) -> dict[str, Tensor]:
        """As a problem takes it."""
        return {b.quantity.name: x[:, b.place].long() if b.whole else x[:, b.place] for b in self.blocks}

    def evaluate(self, x: Tensor) -> Evaluation:
        return self.problem.evaluate(self.flat(x), self.charts)

    def assignment(self, row: Tensor) -> Assignment:
        numbers = row.tolist()
        values = {b.quantity.name: tuple(int(v) if b.whole else v for v in numbers[b.place]) for b in self.blocks}
        return Assignment(values, dict(self.charts))


def _limits(problem: Problem, q: Quantity, chart: str) -> tuple[float, float]:
    if q.form == "label":
        return 0.0, float(q.attrs[0]) - 1
    if q.form in ("real", "vector"):
        return float(q.args[0].low), float(q.args[1].high)
    if q.form == "ball" and "boxed" in q.attrs:
        return problem.law.domain
    return (0.0, inf) if chart == "coordinates" else (-inf, inf)


def _row(blocks: list[Block], entry: object) -> Tensor:
    found = [entry(b) for b in blocks for _ in range(b.size)]  # type: ignore[operator]
    return torch.tensor(found, dtype=torch.float64)


def layouts(problem: Problem) -> list[Layout]:
    """One for each chart that a quantity of the problem has; one if none has any."""
    charts = sorted({c for q in problem.quantities for c in problem.charts(q) if c})
    return [Layout(problem, c) for c in charts or [""]]
