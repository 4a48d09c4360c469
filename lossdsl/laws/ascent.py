"""Gradient ascent from many rows at once, with the hypotheses as constraints.

A row that misses hypotheses takes Gauss-Newton steps towards satisfying all of them; one that satisfies them climbs the violation
along those that are active, is brought back where the step left them, and keeps the step if it gained. Steps go in the numbers as
they are, or in proportion to their distance from the ends and from 0 (unconstrained coordinates of an interval, to first order).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lossdsl.laws.layout import Layout
from lossdsl.laws.pool import lack, worth
from lossdsl.laws.problem import Evaluation

Judge = Callable[[Tensor, Evaluation], bool]
"""Looks at evaluated rows; true ends the search."""
REPAIRS = 3
MARGIN = 1e-13
"""Inequalities are aimed at with this much to spare, so that rounding does not undo a repair."""
ACTIVE = 1e-9
SMALLEST = 1e-280


class Slopes:
    """Rows, what float64 says about them, and derivatives.

    up: [B, width], of the violation (of the ratio where `relative`). towards: [B, H, width], of the hypotheses. missing: [B, H], what
    they lack. Differentiates once for each hypothesis.
    """

    def __init__(self, layout: Layout, x: Tensor, relative: Tensor) -> None:
        self.x = x
        point = x.clone().requires_grad_(True)
        with torch.enable_grad():
            e = layout.evaluate(point)
            goal = torch.where(relative, e.ratio, e.violation).nan_to_num(0.0)
            self.up = _gradient(goal, point)
            rows = [_gradient(e.hypotheses[:, i].nan_to_num(0.0), point) for i in range(e.hypotheses.shape[1])]
        self.e = Evaluation(e.hypotheses.detach(), e.violation.detach(), e.noise, e.ratio.detach(), e.rounding)
        self.towards = torch.stack(rows, 1) if rows else x.new_zeros(len(x), 0, x.shape[1])
        spare = torch.tensor([0.0 if r.op == "==" else MARGIN for r in layout.problem.where], dtype=x.dtype)
        lacking = spare - self.e.hypotheses.nan_to_num(0.0)
        self.missing = torch.where(self.e.hypotheses < 0, lacking, 0.0)
        self.satisfied = self.e.satisfied
        self.worth = torch.where(relative, worth(self.e, True), worth(self.e))

    def repair(self, x: Tensor) -> Tensor:
        """x moved by the smallest step after which all hypotheses hold, to first order."""
        wanted = (self.missing > 0).unsqueeze(-1)
        return x + _combined(torch.where(wanted, self.towards, 0.0), self.missing)

    def along(self, scale: Tensor) -> Tensor:
        """The direction up, in coordinates divided by `scale`, without what would leave active hypotheses."""
        towards, up = self.towards * scale.unsqueeze(1), self.up * scale
        falling = (towards @ up.unsqueeze(-1)).squeeze(-1) < 0
        active = (self.e.hypotheses < ACTIVE) & falling
        held = torch.where(active.unsqueeze(-1), towards, 0.0)
        direction = up - _combined(held, (held @ up.unsqueeze(-1)).squeeze(-1))
        found: Tensor = direction / direction.norm(dim=-1, keepdim=True).clamp_min(SMALLEST) * scale
        return found


def _gradient(value: Tensor, point: Tensor) -> Tensor:
    slope = torch.autograd.grad(value.sum(), point, retain_graph=True, allow_unused=True)[0] if value.requires_grad else None
    found = torch.zeros_like(point) if slope is None else slope.nan_to_num(0.0, 0.0, 0.0)
    return torch.where(found.abs() < 1e140, found, 0.0)


def _combined(rows: Tensor, values: Tensor) -> Tensor:
    """The smallest step [B, width] whose product with every row [B, H, width] is its value [B, H]."""
    if not rows.shape[1]:
        return rows.sum(1)
    lengths = rows.norm(dim=-1, keepdim=True)
    unit = torch.where(lengths > SMALLEST, rows / lengths.clamp_min(SMALLEST), 0.0)
    per = torch.where(lengths.squeeze(-1) > SMALLEST, values / lengths.squeeze(-1).clamp_min(SMALLEST), 0.0).clamp(-1e12, 1e12)
    gram = unit @ unit.transpose(1, 2) + 1e-10 * torch.eye(rows.shape[1], dtype=rows.dtype)
    found: Tensor = (unit.transpose(1, 2) @ torch.linalg.solve(gram, per.unsqueeze(-1))).squeeze(-1)
    return found


def climb(layout: Layout, x: Tensor, steps: int, sizes: Tensor, judge: Judge) -> Tensor:
    """x [B, width]; sizes [B]: the first step of every row, relative to its numbers. The last rows; judge sees all on the way."""
    relative = torch.arange(len(x)) % 2 == 1
    inner = (torch.arange(len(x)) % 4 >= 2).unsqueeze(-1)
    now = Slopes(layout, x, relative)
    for _ in range(steps):
        scale = torch.where(inner, _room(layout, now.x), now.x.abs().amax(-1, keepdim=True).clamp(1.0, 1e100))
        climbed = now.x + sizes.unsqueeze(-1) * now.along(scale)
        new = _repaired(layout, torch.where(now.satisfied.unsqueeze(-1), climbed, now.repair(now.x)), relative)
        if judge(new.x, new.e):
            break
        better = new.worth > now.worth
        sizes = torch.where(better, sizes * 1.6, sizes * 0.45)
        now = _chosen(better, new, now)
    return now.x


def _repaired(layout: Layout, x: Tensor, relative: Tensor) -> Slopes:
    """Rows after a few steps towards the hypotheses."""
    found = Slopes(layout, layout.tidy(x), relative)
    for _ in range(REPAIRS if found.missing.shape[1] else 0):
        if bool(found.satisfied.all()):
            break
        x = torch.where(found.satisfied.unsqueeze(-1), found.x, found.repair(found.x))
        found = Slopes(layout, layout.tidy(x), relative)
    return found


def _room(layout: Layout, x: Tensor) -> Tensor:
    """How far every number may go, with a little left at the ends."""
    below, above = x - layout.low, layout.high - x
    return torch.minimum(torch.minimum(below, above), x.abs()).clamp(1e-9, 1e100)


def _chosen(better: Tensor, new: Slopes, old: Slopes) -> Slopes:
    """`new` where better, else `old`."""
    for name in ("x", "up", "towards", "missing", "satisfied", "worth"):
        setattr(new, name, _where(better, getattr(new, name), getattr(old, name)))
    parts = ("hypotheses", "violation", "noise", "ratio", "rounding")
    new.e = Evaluation(*(_where(better, getattr(new.e, name), getattr(old.e, name)) for name in parts))
    return new


def _where(rows: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(rows.reshape(-1, *(1,) * (a.dim() - 1)), a, b)


def restored(layout: Layout, x: Tensor, steps: int) -> Tensor:
    """Rows moved towards the hypotheses, and nothing else; a step that gains nothing is halved."""
    nothing = torch.zeros(len(x), dtype=torch.bool)
    now, share = Slopes(layout, layout.tidy(x), nothing), x.new_ones(len(x), 1)
    for _ in range(steps):
        if bool(now.satisfied.all()):
            break
        moved = now.x + share * (now.repair(now.x) - now.x)
        new = Slopes(layout, layout.tidy(torch.where(now.satisfied.unsqueeze(-1), now.x, moved)), nothing)
        better = (lack(new.e) < lack(now.e)) | new.satisfied
        share = torch.where(better.unsqueeze(-1), (2 * share).clamp_max(1.0), share / 4)
        now = _chosen(better, new, now)
    return now.x
