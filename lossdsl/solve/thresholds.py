"""The one-dimensional equations behind ball-and-box problems, solved exactly by sorting their breakpoints.

All functions work on rows at once, in float64: `slopes` and `room` are [N, d], `radius` is [N, 1], everything is non-negative. `room` is
how far a coordinate may move in its direction before it meets the box, cut down to the radius. Sources: Held, Wolfe and Crowder 1974 and
Duchi et al., ICML 2008 for the sorting; Croce and Hein, ICML 2021 ("Mind the box") for the l1 ball met with a box.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LARGE = 1e150  # its square is still a float64: keeps inf * 0 out where squared slopes underflow


def l2_sizes(slopes: Tensor, room: Tensor, radius: Tensor) -> Tensor:
    """min(s * slopes, room) with the s > 0 that makes its Euclidean norm the radius, or `room` (0 where the slope is 0) if that fits.

    Both the projection (slopes = |point - center|; s <= 1 when the point is outside) and the maximiser of a linear function
    (slopes = |gradient|) have this form. Slopes and rooms are scaled to at most 1 first, so that no square overflows, and the sums over
    free coordinates are accumulated from their own end, so that nothing cancels.
    """
    tiny = torch.finfo(slopes.dtype).tiny
    slopes = slopes / slopes.amax(1, keepdim=True).clamp_min(tiny)
    room = (room / radius.clamp_min(tiny)) * (slopes > 0)
    breaks, order = torch.where(slopes > 0, room / slopes, 0.0).clamp_(max=_LARGE).sort(1)
    saturated = room.gather(1, order).square_().cumsum_(1)
    free = slopes.gather(1, order).square_().flip(1).cumsum_(1).flip(1)
    saturated, free = _padded(saturated, front=True), _padded(free, front=False)  # column k: the first k coordinates are at their room
    least = _padded(breaks.clone(), front=True)  # the least s with the first k at their room, whatever rounding has left of the radius
    reached = saturated[:, 1:] + breaks.square_() * free[:, 1:]  # squared norm at the k-th breakpoint
    count = (reached <= 1.0).sum(1, keepdim=True)
    scale = ((1.0 - saturated.gather(1, count)) / free.gather(1, count)).sqrt_().nan_to_num_(nan=0.0, posinf=_LARGE)
    scale = torch.maximum(scale, least.gather(1, count))
    sizes = torch.where(count == slopes.shape[1], room, torch.minimum(slopes * scale, room))
    return sizes.mul_(radius)


def l1_sizes(lengths: Tensor, room: Tensor, radius: Tensor) -> Tensor:
    """clip(lengths - t, 0, room) with the threshold t >= 0 that makes its sum the radius (at t = 0 the sum must be at least that).

    The sum falls piecewise linearly in t with breakpoints lengths and lengths - room. A binary search over the sorted breakpoints (its
    length follows from d) finds the piece, each sum being taken directly, because prefix sums of numbers of very different sizes would
    cancel; on the piece the solution is the interpolation between its ends, which stays accurate where t itself cannot be represented.
    """
    breaks = torch.cat((torch.zeros_like(radius), lengths, (lengths - room).clamp_min_(0.0)), 1).sort(1).values
    low = torch.zeros_like(radius, dtype=torch.long)
    high = torch.full_like(low, breaks.shape[1] - 1)
    for _ in range((breaks.shape[1] - 1).bit_length()):
        middle = (low + high) // 2
        above = _cut(lengths, breaks.gather(1, middle), room).sum(1, keepdim=True) >= radius
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    most, least = _cut(lengths, breaks.gather(1, low), room), _cut(lengths, breaks.gather(1, high), room)
    floor = least.sum(1, keepdim=True)
    gap = most.sum(1, keepdim=True) - floor
    share = torch.where(gap > 0, (radius - floor) / gap, 0.0).clamp_(0.0, 1.0)
    return least.lerp_(most, share)


def l1_fill(slopes: Tensor, room: Tensor, radius: Tensor) -> Tensor:
    """The sizes in [0, room] of sum at most `radius` that maximise <slopes, sizes>: the steepest are filled first (fractional knapsack)."""
    order = slopes.argsort(dim=1, descending=True, stable=True)
    room = room.gather(1, order)
    before = _padded(room.cumsum(1), front=True)[:, :-1]
    taken = torch.minimum((radius - before).clamp_min_(0.0), room)
    return torch.zeros_like(taken).scatter_(1, order, taken) * (slopes > 0)


def _cut(lengths: Tensor, threshold: Tensor, room: Tensor) -> Tensor:
    return torch.minimum((lengths - threshold).clamp_min_(0.0), room)


def _padded(sums: Tensor, *, front: bool) -> Tensor:
    """Cumulative sums with the empty sum added at one end."""
    zero = sums.new_zeros(sums.shape[0], 1)
    return torch.cat((zero, sums) if front else (sums, zero), 1)
