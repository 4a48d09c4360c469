"""Laws of lossdsl itself: sets of weights and of classes, and draws, directions and maximisers of every set. sets.loss has the
projections on sets of inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import lossdsl
from lossdsl.solve import SETS_TORCH, WEIGHT_SETS, Domain, InputSet, Layout, Simplex

SIZE = 6
NUMBERS = f"c in vector({SIZE}, 0, 1), r in [0, 2], v in vector({SIZE}, -4, 4), u in vector({SIZE}, -4, 4)"
HEADER = f"for boxed in {{0, 1}}, {NUMBERS}"


def _of_weights(name: str, only: str) -> Callable[[Tensor, float, bool], InputSet]:
    """Two tensors, of which one is a matrix, and weights of different sizes."""

    def build(center: Tensor, radius: float, boxed: bool) -> InputSet:
        center = center + torch.linspace(0, 0.9, SIZE, dtype=torch.float64)
        layout = Layout([("matrix", center[0, :4].reshape(2, 2)), ("bias", center[0, 4:])])
        return WEIGHT_SETS[name](layout, center, radius, only=only)

    return build


def _of_inputs(name: str) -> Callable[[Tensor, float, bool], InputSet]:
    return lambda center, radius, boxed: SETS_TORCH[name](center, radius, Domain(0.0, 1.0) if boxed else None)


OVER_WEIGHTS = {f"{name}_{only}": _of_weights(name, only) for name in WEIGHT_SETS for only in ("all", "matrices")}
REGIONS = {name: _of_inputs(name) for name in SETS_TORCH} | OVER_WEIGHTS | {"simplex": lambda center, radius, boxed: Simplex(center)}
"""Of one point in R^6: from the centre, the radius and whether the set is met with [0, 1]^6."""
PROJECTED = {name: REGIONS[name] for name in (*OVER_WEIGHTS, "simplex")}


def _drawn(region: InputSet) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [draw(generator) for draw in (region.sample, region.corner) for _ in range(3)]


def _outside(region: InputSet, point: Tensor) -> float:
    """0 in the set, up to 1e-12 of its sizes."""
    return float(not bool(region.contains(point, 1e-12)))


@lossdsl.law(f"for {NUMBERS}", source="lossdsl")
def sets_projections_stay(c: Tensor, r: float, v: Tensor, u: Tensor) -> tuple[float, str, float]:
    """sets of weights and the simplex: the projection is a member, and that of a member itself"""
    worst = 0.0
    for build in PROJECTED.values():
        region = build(c.unsqueeze(0), r, False)
        nearest = region.project(v.unsqueeze(0))
        again = float((region.project(nearest) - nearest).abs().max())
        worst = max(worst, _outside(region, nearest), again)
    return worst, "<=", 0.0


@lossdsl.law(f"for {NUMBERS}", source="lossdsl")
def sets_projections_are_nearest(c: Tensor, r: float, v: Tensor, u: Tensor) -> tuple[float, str, float]:
    """sets of weights and the simplex: no member lies on the far side of the projection, and projecting moves no two points apart"""
    worst = 0.0
    for build in PROJECTED.values():
        region = build(c.unsqueeze(0), r, False)
        nearest, other = region.project(v.unsqueeze(0)), region.project(u.unsqueeze(0))
        near = [region.project(v.unsqueeze(0) + s * (u - v)) for s in (1e-3, 1e-2, 0.1, 1.0)]
        members = [*_drawn(region), *near, region.project(c.unsqueeze(0))]
        beyond = max(float(((v - nearest) * (m - nearest)).sum()) for m in members)
        apart = float((nearest - other).norm() - (v - u).norm())
        worst = max(worst, beyond, apart)
    return worst, "<=", 0.0


@lossdsl.law(HEADER, source="lossdsl")
def sets_draws_are_members(boxed: int, c: Tensor, r: float, v: Tensor, u: Tensor) -> tuple[float, str, float]:
    """every set: uniform draws and corners are members, on the sets of inputs also the points at the radius that apgd starts from"""
    worst = 0.0
    for name, build in REGIONS.items():
        region = build(c.unsqueeze(0), r, bool(boxed))
        points = _drawn(region) + ([region.sphere(torch.Generator().manual_seed(1))] if name in SETS_TORCH else [])
        worst = max(worst, *(_outside(region, point) for point in points))
    return worst, "<=", 0.0


@lossdsl.law(HEADER, source="lossdsl")
def sets_maximisers_are_best(boxed: int, c: Tensor, r: float, v: Tensor, u: Tensor) -> tuple[float, str, float]:
    """every set: the maximiser of a linear function is a member, and no member is better; one step of `linear` is exact"""
    worst = 0.0
    for build in REGIONS.values():
        region = build(c.unsqueeze(0), r, bool(boxed))
        at = region.project(u.unsqueeze(0))
        best = region.linear_maximiser(v.unsqueeze(0), at)
        members = [*_drawn(region), at, *(region.project(s * v.unsqueeze(0) + u) for s in (1.0, 1e3))]
        better = max(float((v * (m - best)).sum()) for m in members)
        worst = max(worst, _outside(region, best), better)
    return worst, "<=", 0.0


@lossdsl.law(f"for {NUMBERS}", source="lossdsl")
def sets_directions_are_steepest(c: Tensor, r: float, v: Tensor, u: Tensor) -> tuple[float, str, float]:
    """every set without a border nearby: the direction has norm 1, and no vector of norm 1 has a larger product with the gradient"""
    worst = 0.0
    for name, build in REGIONS.items():
        region = build(c.unsqueeze(0), r, False)
        free = (region.steepest(torch.ones(1, SIZE, dtype=torch.float64)) != 0) | (torch.tensor(name in (*SETS_TORCH, "simplex")))
        gradient = torch.where(free, v.unsqueeze(0), 0.0)
        other = torch.where(free, u.unsqueeze(0), 0.0)
        if name == "simplex":
            gradient, other = gradient - gradient.mean(), other - other.mean()
        length = float(region.norm(other))
        if not 1e-6 < length < float("inf") or float(gradient.abs().max()) < 1e-6:
            continue
        best = region.steepest(gradient)
        better = float((gradient * (other / length - best)).sum())
        worst = max(worst, better, abs(float(region.norm(best)) - 1))
    return worst, "<=", 0.0
