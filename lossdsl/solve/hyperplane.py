"""The shortest way to a hyperplane inside a box, in the linf, l2 and l1 norm (Croce and Hein, ICML 2020, FAB, section 2.2).

All functions work on rows at once, in float64: [n, d], gaps [n, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from lossdsl.solve.input_set import InputSet
from lossdsl.solve.rows import rows
from lossdsl.solve.sets import L1, Linf

_FAR = 1e30
"""Room where there is no box."""


def to_hyperplane(region: InputSet, point: Tensor, normal: Tensor, gap: Tensor) -> Tensor:
    """The offset d of the smallest norm with <normal, d> = gap and point + d in the box, float64 [N, *shape].

    region: its box and its kind of norm; the radius plays no part. point: in the box. gap: [N]. Where the box does not reach the
    hyperplane, d goes to the point of the box nearest to it; where the normal is 0, d is 0.
    """
    w, c = rows(normal).double(), gap.double().unsqueeze(1)
    toward = torch.sign(w) * torch.sign(c)
    room = _room(region, point, toward)
    slopes = w.abs()
    if isinstance(region, L1):
        sizes = _filled(slopes, room, c.abs())
    else:
        sizes = _raised(slopes, torch.ones_like(slopes) if isinstance(region, Linf) else slopes, room, c.abs())
    return (toward * sizes).view_as(point)


def _room(region: InputSet, point: Tensor, toward: Tensor) -> Tensor:
    """How far each coordinate may move."""
    if region.lo is None or region.hi is None:
        return torch.full_like(toward, _FAR) * (toward != 0)
    at = rows(point).double()
    up = rows(region.hi.expand_as(point)).double() - at
    down = at - rows(region.lo.expand_as(point)).double()
    return torch.where(toward > 0, up, torch.where(toward < 0, down, 0.0)).clamp_min_(0.0)


def _raised(slopes: Tensor, rates: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    """min(s * rates, room) with the s that gives <slopes, sizes> = gap, or `room` if that falls short.

    For rates 1 the largest size is the smallest possible, for rates = slopes the Euclidean norm. The product grows piecewise linearly
    in s, with breakpoints room / rates.
    """
    breaks, order = torch.where(slopes > 0, room / rates, 0.0).sort(1)
    full = (slopes * room).gather(1, order).cumsum(1)
    free = (slopes * rates).gather(1, order).flip(1).cumsum(1).flip(1)
    zero = torch.zeros_like(gap)
    full, free = torch.cat((zero, full), 1), torch.cat((free, zero), 1)  # column k: the first k coordinates are at their room
    count = (full[:, 1:] + breaks * free[:, 1:] < gap).sum(1, keepdim=True)
    scale = (gap - full.gather(1, count)) / free.gather(1, count)
    sizes = torch.where(count == slopes.shape[1], room, torch.minimum(scale * rates, room))
    return torch.where(slopes > 0, sizes, 0.0)


def _filled(slopes: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    """The sizes of the smallest sum: the coordinates of the steepest slopes go to their room until the gap is closed."""
    order = slopes.argsort(dim=1, descending=True, stable=True)
    steep, free = slopes.gather(1, order), room.gather(1, order)
    before = torch.cat((torch.zeros_like(gap), (steep * free).cumsum(1)[:, :-1]), 1)
    needed = torch.where(steep > 0, (gap - before).clamp_min(0.0) / steep.clamp_min(torch.finfo(steep.dtype).tiny), 0.0)
    return torch.zeros_like(slopes).scatter_(1, order, torch.minimum(needed, free))


def dual_norm(region: InputSet, vector: Tensor) -> Tensor:
    """The norm that measures how fast a linear function grows along the set's own norm, [N]."""
    flat = rows(vector)
    if isinstance(region, Linf):
        return flat.abs().sum(1)
    length: Tensor = flat.abs().amax(1) if isinstance(region, L1) else torch.linalg.vector_norm(flat, dim=1)
    return length


