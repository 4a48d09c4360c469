"""Sets as operations on points: v [B, *axes, *input] against a centre [B, *axes, *input] or 0 and a radius [B, *axes] or a number.

`project` has the value of the set's own projection and the derivatives, of any order, of its closed form on the active constraints,
by the point, the centre and the radius.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lossdsl.diagnostics import UserError
from lossdsl.engine.kernels.table import kernel
from lossdsl.solve import SETS_TORCH, Domain, InputSet
from lossdsl.solve.rows import rows

Radius = float | Tensor
Formula = Callable[[InputSet, Tensor, Tensor, Tensor], Tensor]


def _flat(v: Tensor, center: Tensor | float, radius: Radius, rank: int) -> tuple[Tensor, Tensor, Radius, torch.Size]:
    """One problem per row: v and the centre [N, *input], the radius a number or [N]; and the shape of the answer."""
    own = v.shape[v.dim() - rank :]
    middle = center if isinstance(center, Tensor) and center.dim() else torch.zeros(own, dtype=v.dtype, device=v.device)
    per_row = isinstance(radius, Tensor) and radius.dim() > 0
    parts = [v.shape[: v.dim() - rank], middle.shape[: middle.dim() - rank], *([radius.shape] if per_row else [])]  # type: ignore[union-attr]
    leading = torch.broadcast_shapes(*parts)
    shape = torch.Size((*leading, *own))
    radius = radius.expand(leading).reshape(-1) if per_row else radius  # type: ignore[union-attr]
    return v.expand(shape).reshape(-1, *own), middle.expand(shape).reshape(-1, *own), radius, shape


@kernel("interior")
def interior(v: Tensor, center: Tensor | float, radius: Radius, *, name: str, rank: int, domain: Domain | None) -> Tensor:
    """1 in the coordinates that no constraint of the set holds, else 0."""
    point, middle, radius, shape = _flat(v.detach(), center, radius, rank)
    return SETS_TORCH[name](middle, radius, domain).interior(point).to(v.dtype).reshape(shape)


@kernel("project")
def project(v: Tensor, center: Tensor | float, radius: Radius, *, name: str, rank: int, domain: Domain | None) -> Tensor:
    """The nearest point of the set. Raises UserError where a derivative is wanted that a registered set does not have."""
    point, middle, radius, shape = _flat(v, center, radius, rank)
    region = SETS_TORCH[name](middle, radius, domain)
    with torch.no_grad():
        nearest = region.project(point)
    moving = any(isinstance(t, Tensor) and t.requires_grad for t in (point, middle, radius))
    if torch.is_grad_enabled() and moving:
        formula = _FORMULAS.get(name)
        if formula is None:
            fix = "stop(project(...)) has no derivative; linf, l2 and l1 have one"
            raise UserError(f"the projection on {name} has no derivative", where=name, fix=fix)
        formed = formula(region, point, middle, _column(radius, point)).reshape(nearest.shape)
        nearest = nearest + (formed - formed.detach())
    return nearest.reshape(shape)


def _column(radius: Radius, like: Tensor) -> Tensor:
    """The radius as [N, 1]."""
    return torch.as_tensor(radius, dtype=like.dtype, device=like.device).expand(like.shape[0]).unsqueeze(-1)


def _clipped(v: Tensor, low: Tensor | None, high: Tensor | None) -> Tensor:
    """The gradient passes inside the bounds and at them, outside it goes to the bound."""
    if low is None or high is None:
        return v
    raised = torch.where(v < low, low.expand_as(v), v)
    return torch.where(raised > high, high.expand_as(v), raised)


def _on_linf(region: InputSet, point: Tensor, center: Tensor, radius: Tensor) -> Tensor:
    spread = radius.reshape(-1, *(1,) * (point.dim() - 1))
    low, high = (_clipped(end, region.lo, region.hi) for end in (center - spread, center + spread))
    return _clipped(point, low, high)


def _active(region: InputSet, point: Tensor, center: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As rows: the clipped point, whether it left the ball [N, 1], the free coordinates, and the sizes of those held by the box."""
    boxed = _clipped(point, region.lo, region.hi)
    with torch.no_grad():
        left = (region.norm(boxed - center) > region.radii).unsqueeze(-1)
        nearest = region.project(point)
        held = torch.zeros_like(point, dtype=torch.bool)
        if region.lo is not None and region.hi is not None:
            held = ((nearest <= region.lo) & (point < nearest)) | ((nearest >= region.hi) & (point > nearest))
        held = rows(held)
    bound = torch.where(held, rows(nearest - center), 0.0)
    return rows(boxed), left, ~held, bound


def _on_l2(region: InputSet, point: Tensor, center: Tensor, radius: Tensor) -> Tensor:
    """Outside: c + t (v - c) on the free coordinates, with t so that the ball's border is met; the others stay at the box."""
    boxed, left, free, bound = _active(region, point, center)
    offset = torch.where(free & left, rows(point - center), 0.0)
    squares = offset.square().sum(1, keepdim=True)
    rest = radius.square() - bound.square().sum(1, keepdim=True)
    some = left & (squares > 0) & (rest > 0)
    scale = torch.where(some, torch.sqrt(torch.where(some, rest, 1.0) / torch.where(some, squares, 1.0)), 0.0)
    outside = rows(center) + torch.where(free, scale * offset, bound)
    return torch.where(left, outside, boxed)


def _on_l1(region: InputSet, point: Tensor, center: Tensor, radius: Tensor) -> Tensor:
    """Outside: offsets shrunk by one number on the coordinates that stay off the centre; the others are the centre's or the box's."""
    boxed, left, free, bound = _active(region, point, center)
    offset = rows(point - center)
    with torch.no_grad():
        moved = rows(region.project(point) - region.center) != 0
    support = free & left & moved
    sizes = torch.where(support, offset.abs(), 0.0)
    surplus = sizes.sum(1, keepdim=True) + bound.abs().sum(1, keepdim=True) - radius
    shrunk = offset - offset.detach().sign() * surplus / support.sum(1, keepdim=True).clamp_min(1)
    outside = rows(center) + torch.where(support, shrunk, bound)
    return torch.where(left, outside, boxed)


_FORMULAS: dict[str, Formula] = {"linf": _on_linf, "l2": _on_l2, "l1": _on_l1}
