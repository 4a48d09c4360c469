"""One statement of a law at fixed whole numbers, as a search sees it.

    problem = Problem(law, law.statements[0], source)
    found = problem.evaluate(flat, charts)      # float64, many assignments at once, differentiable in flat
    problem.confirm(Assignment(...))            # high precision, one assignment, no rounding left

An assignment gives every quantity (`problem.quantities`) its free numbers: `size` reals, or one whole number below the number of
classes for a label. Any finite numbers are allowed: ends of intervals, balls and the simplex are taken care of (see `Quantity`). A
simplex can be read in two charts, "coordinates" (numbers from 0, divided by their sum: zeros, ties and rational points) and "logits"
(any numbers: extreme probabilities).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor

import lossdsl.laws.recipes  # noqa: F401  # registers the kernels of solutions and games
from lossdsl.check.law_typed import Quantity, Relation, Statement, TypedLaw
from lossdsl.engine.closures import Frame
from lossdsl.laws.domains import CHARTS, Placement
from lossdsl.laws.exact import MEASURED, Confirmation, Exact
from lossdsl.laws.lower import Piece
from lossdsl.laws.relations import negated, plain
from lossdsl.source import Source

ROUNDINGS = 256 * 2.0**-53
"""A generous bound of the relative error of an evaluation in float64, against the largest number met on the way."""
TINY = 1e-300
Free = float | int | Fraction


@dataclass(frozen=True)
class Assignment:
    """The free numbers of every quantity, and how a simplex reads its own ("coordinates" unless said otherwise)."""

    values: dict[str, tuple[Free, ...]]
    charts: dict[str, str] = field(default_factory=dict)
    near: bool = False
    """A point where an equation among the hypotheses holds lies within 1e-100."""


@dataclass(frozen=True)
class Evaluation:
    """What float64 says about B assignments.

    hypotheses: [B, H], from 0: satisfied. violation: [B], above 0: the relation does not hold. Both are differences of the two sides,
    divided by 1 + |left| + |right|; of `and` and `or` the largest and the smallest part; NaN where a side is NaN. noise: [B], the
    size up to which rounding could explain the violation (limits: up to which the sequence has not settled). ratio: [B], the difference
    divided by |left| + |right|: how far from an equation, whatever the size of both sides. rounding: [B], the same bound as noise, of
    the largest number met, not divided.
    """

    hypotheses: Tensor
    violation: Tensor
    noise: Tensor
    ratio: Tensor
    rounding: Tensor

    @property
    def satisfied(self) -> Tensor:
        """bool [B]: every hypothesis holds, up to rounding."""
        return (self.hypotheses >= -self.noise.unsqueeze(-1)).all(-1)

    @property
    def suspicious(self) -> Tensor:
        """bool [B]: a counterexample, unless rounding is to blame. Also where float64 has no number at all."""
        return self.satisfied & ((self.violation > -self.noise) | self.violation.isnan())


class Problem:
    """A statement ready to be evaluated. `equality`: the claim is an equation, whose violation is never below 0. `settles`: it holds a
    limit. `measured`: it holds what a solver or a game leaves, known in float64 only."""

    def __init__(self, law: TypedLaw, statement: Statement, source: Source) -> None:
        self.law, self.statement, self.source = law, statement, source
        self.where: tuple[Relation, ...] = tuple(plain(r) for r in statement.where)
        self.relation: Relation = plain(statement.relation)
        sides = [side for r in (*self.where, self.relation) for side in r.sides]
        self._piece = Piece(law.name, sides, source)
        self._placement = Placement(law, source)
        self.exact = Exact(law, self.where, self.relation)
        self.settles = any(self.exact.holds_a(side, "limit") for side in sides)
        self.measured = any(self.exact.holds_a(side, "solution", "final") for side in sides)

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        return self.law.quantities

    @property
    def equality(self) -> bool:
        return self.relation.op == "=="

    def charts(self, quantity: Quantity) -> tuple[str, ...]:
        """The ways to read its free numbers; the first is the default, "" if there is only one."""
        return CHARTS.get(quantity.form, ("",))

    def tensors(self, assignments: Sequence[Assignment]) -> dict[str, Tensor]:
        """Assignments of equal charts as a batch."""
        found = {}
        for q in self.quantities:
            dtype = torch.long if q.form == "label" else torch.float64
            found[q.name] = torch.tensor([[_number(v) for v in a.values[q.name]] for a in assignments], dtype=dtype)
        return found

    def frame(self, assignment: Assignment) -> Frame:
        """One assignment as the engine holds it, [1, ...]."""
        return self._placement.frame(self.tensors([assignment]), assignment.charts)

    def evaluate(self, flat: Mapping[str, Tensor], charts: Mapping[str, str] | None = None) -> Evaluation:
        """flat: per quantity [B, size], float64 (a label int64 [B, 1]); gradients flow to those that require them."""
        frame = self._placement.frame(flat, charts or {})
        values, largest = self._piece.run_with_size(frame)
        sides = iter(values)
        rows = len(frame.x)
        residuals = [-_violation(r, sides) for r in self.where]
        hypotheses = torch.stack([r.expand(rows) for r in residuals], -1) if residuals else frame.x.new_zeros(rows, 0)
        last = list(sides)
        violation = _violation(self.relation, iter(last)).expand(rows)
        scale = 1 + sum((s.detach().abs().nan_to_num(0.0, 0.0, 0.0) for s in last), frame.x.new_zeros(rows))
        noise = ROUNDINGS * largest / scale
        ratio = _violation(self.relation, iter(last), TINY).expand(rows)
        if not any(v.requires_grad for v in flat.values()):
            hypotheses, violation, ratio = hypotheses.detach(), violation.detach(), ratio.detach()
        noise = noise + 1e-4 if self.settles else noise + MEASURED if self.measured else noise
        return Evaluation(hypotheses, violation, noise, ratio, ROUNDINGS * largest)

    def cost(self, rows: int) -> float:
        """About how many microseconds an evaluation takes, the same on every machine."""
        numbers = 2 + max(self.law.classes, max((q.size for q in self.quantities), default=1))
        return 1500 + self._piece.length * (40 + rows * numbers * 0.004)

    def confirm(self, assignment: Assignment) -> Confirmation:
        """The same in high precision: whether the hypotheses hold, whether the relation does, and by how much not."""
        return self.exact.confirm(assignment.values, assignment.charts, assignment.near)


def _number(v: Free) -> float | int:
    return float(v) if isinstance(v, Fraction) else v


def _violation(r: Relation, sides: object, unit: float = 1.0) -> Tensor:
    """Above 0 where the relation does not hold; consumes its sides in order."""
    if r.parts:
        parts = [_violation(part, sides, unit) for part in r.parts]
        found = parts[0]
        for part in parts[1:]:
            found = torch.maximum(found, part) if r.op == "and" else torch.minimum(found, part)
        return found
    left, right = next(sides), next(sides)  # type: ignore[call-overload]
    return _scaled(r.op, left, right, unit)


def _scaled(op: str, left: Tensor, right: Tensor, unit: float) -> Tensor:
    """The difference divided by unit + |left| + |right|; 0 where both sides are the same infinity, 1 or -1 where one is infinite."""
    if op in (">=", ">"):
        left, right = right, left
    finite = left.isfinite() & right.isfinite()
    a, b = torch.where(finite, left, 0.0), torch.where(finite, right, 0.0)
    size = unit + a.abs() + b.abs()
    inside = (a - b) / (size.detach() if unit == 1 else size)
    beyond = torch.where(left == right, 0.0, torch.where(left > right, 1.0, -1.0))
    value = torch.where(finite, inside, torch.where(left.isnan() | right.isnan(), torch.nan, beyond))
    if op in ("==", "!="):
        return value.abs() if op == "==" else -value.abs()
    return value


__all__ = ["Assignment", "Confirmation", "Evaluation", "Problem", "negated"]
