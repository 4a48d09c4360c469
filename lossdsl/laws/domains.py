"""From the free numbers of an assignment to the values that a law quantifies over, in float64 and for many rows at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lossdsl.check.law_typed import Quantity, TypedLaw
from lossdsl.engine.closures import Frame
from lossdsl.laws.lower import Piece, frame_of
from lossdsl.source import Source

CHARTS: dict[str, tuple[str, ...]] = {"simplex": ("coordinates", "logits")}
"""Ways to read the free numbers of a form; every other form has one."""


class Placement:
    """Puts assignments into a frame, quantity by quantity: ends, centres and radii may depend on earlier ones."""

    def __init__(self, law: TypedLaw, source: Source) -> None:
        self.law = law
        self.pieces = {q.name: Piece(law.name, q.args, source) for q in law.quantities if q.args}

    def frame(self, flat: Mapping[str, Tensor], charts: Mapping[str, str]) -> Frame:
        """flat: per quantity [B, size], float64 (a label int64 [B, 1])."""
        rows = len(next(iter(flat.values()))) if flat else 1
        frame = frame_of(self.law, rows)
        for q in self.law.quantities:
            args = self.pieces[q.name].run(frame) if q.name in self.pieces else []
            place(frame, q, value_of(q, flat[q.name], args, charts.get(q.name, ""), self.law.domain))
        return frame


def place(frame: Frame, q: Quantity, value: Tensor) -> None:
    if q.name == "y" and q.form == "label":
        frame.y = value
    elif q.name == "x" and "input" in q.attrs:
        frame.x = value
    else:
        frame.points["sample", q.name] = value


def value_in(frame: Frame, q: Quantity) -> Tensor:
    """What `place` has put there."""
    if q.name == "y" and q.form == "label":
        return frame.y
    return frame.x if q.name == "x" and "input" in q.attrs else frame.points["sample", q.name]


def value_of(q: Quantity, flat: Tensor, args: list[Tensor], chart: str, domain: tuple[float, float]) -> Tensor:
    """The value of a quantity as the engine holds it: a Prob by its logarithm."""
    if q.form == "label":
        return flat[:, 0].long()
    if q.form == "simplex":
        return _log_probabilities(flat, chart)
    if q.form == "real":
        return _between(flat[:, 0], args[0], args[1])
    if q.form == "vector":
        return _between(flat, args[0].unsqueeze(-1), args[1].unsqueeze(-1))
    return _in_ball(q, flat, args, domain) if q.form == "ball" else flat


def _log_probabilities(flat: Tensor, chart: str) -> Tensor:
    if chart == "logits":
        return torch.log_softmax(flat, -1)
    mass = flat.clamp_min(0)
    mass = torch.where(mass.sum(-1, keepdim=True) > 0, mass, 1.0)
    positive = mass > 0
    logs = torch.where(positive, torch.log(torch.where(positive, mass, 1.0)), -torch.inf)
    return logs - torch.log(mass.sum(-1, keepdim=True))


def _between(v: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(v, low), high)


def _in_ball(q: Quantity, flat: Tensor, args: list[Tensor], domain: tuple[float, float]) -> Tensor:
    """The free numbers are a point: cut to the box, then drawn towards the centre until it is in the ball (linf: cut to the ball)."""
    center, radius = args[0], args[1].unsqueeze(-1)
    center = center if center.dim() > 1 else center.unsqueeze(-1).expand_as(flat)
    boxed = _between(flat, *(torch.full_like(flat, end) for end in domain)) if "boxed" in q.attrs else flat
    offset = boxed - center
    if q.attrs[0] == "linf":
        return center + _between(offset, -radius, radius)
    size = _NORMS[q.attrs[0]](offset)
    outside = size > radius
    return torch.where(outside, center + offset * (radius / torch.where(outside, size, 1.0)), boxed)


_NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "l2": lambda v: torch.linalg.vector_norm(v, dim=-1, keepdim=True),
    "l1": lambda v: v.abs().sum(-1, keepdim=True),
}
