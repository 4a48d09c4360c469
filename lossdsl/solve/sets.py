"""Norm balls met with the input domain, one per example: where the lower levels over inputs live."""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lossdsl.diagnostics import UserError, did_you_mean
from lossdsl.lang.specs import SETS, SetRow
from lossdsl.solve import draws
from lossdsl.solve.derivatives import Ball, tracked, with_derivative
from lossdsl.solve.draws import Randomness
from lossdsl.solve.input_set import Domain, InputSet
from lossdsl.solve.rows import largest, per_example, rows, unit
from lossdsl.solve.thresholds import l1_fill, l1_sizes, l2_sizes


class Linf(InputSet):
    """max |v - center| <= radius: itself a box, so that every answer is coordinate by coordinate. The two bounds are computed once, when
    they are asked for."""

    unrolls: ClassVar[bool] = True

    @cached_property
    def lower(self) -> Tensor:
        """[N, *shape]."""
        return self.clip(self.center - per_example(self.radius, self.center))

    @cached_property
    def upper(self) -> Tensor:
        """[N, *shape]."""
        return self.clip(self.center + per_example(self.radius, self.center))

    def norm(self, offset: Tensor) -> Tensor:
        """Largest absolute coordinate, [N]."""
        return largest(offset)

    def project(self, point: Tensor) -> Tensor:
        """The two clips."""
        return torch.clamp(point, self.lower, self.upper)

    def steepest(self, gradient: Tensor, at: Tensor | None = None) -> Tensor:
        """sign(gradient); its derivative is 0, so it is a constant."""
        return gradient.detach().sign()

    def linear_maximiser(self, gradient: Tensor, at: Tensor) -> Tensor:
        """The bound the gradient points to: clip(center + radius * sign(gradient)) bit by bit, which is FGSM (Goodfellow et al., 2015)."""
        return torch.where(gradient > 0, self.upper, torch.where(gradient < 0, self.lower, at))

    def sample(self, generator: Randomness = None) -> Tensor:
        """Uniform on the set, box included: every coordinate is uniform between its bounds."""
        return self.project(torch.lerp(self.lower, self.upper, self._uniform(generator)))

    def corner(self, generator: Randomness = None) -> Tensor:
        """clip(center + radius * s), s of random signs."""
        return torch.where(self._signs(generator) > 0, self.upper, self.lower)

    def direction(self, generator: Randomness = None) -> Tensor:
        """u / max |u|, u uniform on [-1, 1]^d."""
        drawn = self._uniform(generator).mul_(2).sub_(1)
        return drawn / per_example(largest(drawn).clamp_min_(torch.finfo(drawn.dtype).tiny), drawn)

    def interior(self, point: Tensor) -> Tensor:
        """Strictly between the bounds, coordinate by coordinate."""
        return (point > self.lower) & (point < self.upper)


class _Radial(InputSet):
    """What l2 and l1 share: their answers are center + sign * sizes, the sizes coming from one equation per example, solved in float64."""

    unrolls: ClassVar[bool] = True
    _order: ClassVar[Literal[1, 2]]

    def __init__(self, center: Tensor, radius: float | Tensor, domain: Domain | None = None, *, differentiable: bool = False) -> None:
        super().__init__(center, radius, domain, differentiable=differentiable)
        self._origin = rows(self.center).double()
        self._limit = self.radii.double().unsqueeze(1)
        self._inner = self._limit * (1 - torch.finfo(self.center.dtype).eps)  # so that rounding does not leave the ball
        self._up = self._down = self._inner
        if self.lo is not None and self.hi is not None:
            self._up = torch.minimum(rows(self.hi.expand_as(self.center)).double() - self._origin, self._inner)
            self._down = torch.minimum(self._origin - rows(self.lo.expand_as(self.center)).double(), self._inner)

    @abstractmethod
    def _projected(self, lengths: Tensor, room: Tensor) -> Tensor:
        """Sizes of the projection of a point outside, from |point - center|, [N, d]."""

    @abstractmethod
    def _steepest_sizes(self, slopes: Tensor, room: Tensor) -> Tensor:
        """Sizes that maximise <slopes, sizes>, [N, d]."""

    @abstractmethod
    def _left(self, sizes: Tensor) -> Tensor:
        """The radius of the ball that remains for other coordinates once these have the given sizes, [N, 1]."""

    def _room(self, direction: Tensor) -> Tensor:
        return torch.where(direction > 0, self._up, self._down)

    def _placed(self, offset: Tensor) -> Tensor:
        return self.clip((self._origin + offset).to(self.center.dtype).view_as(self.center))

    def project(self, point: Tensor) -> Tensor:
        """Exact on the ball met with the box: the multiplier of the ball is found by sorting its breakpoints."""
        with torch.no_grad():
            boxed = self.clip(point)
            inside = (self.norm(rows(boxed).double() - self._origin) <= self._limit[:, 0]).unsqueeze(1)
            offset = rows(point).double() - self._origin
            sizes = self._projected(offset.abs(), self._room(offset))
            outside = self._placed(torch.copysign(sizes, offset))
            within = inside.expand_as(offset).view_as(point)
            nearest = torch.where(within, boxed, outside)
        if not tracked(point, self.center, self.radii):
            return nearest
        formula = self._ball().projection(rows(point).double(), sizes, ~inside)
        return with_derivative(nearest, torch.where(within, self.clip(point), formula.view_as(point)))

    def linear_maximiser(self, gradient: Tensor, at: Tensor) -> Tensor:
        """Exact on the ball met with the box.

        Coordinates without gradient keep `at`, drawn towards the center as far as the others need the radius.
        """
        with torch.no_grad():
            slopes = rows(gradient).double()
            idle = slopes == 0
            sizes = self._steepest_sizes(slopes.abs(), self._room(slopes))
            kept = (rows(at).double() - self._origin) * idle
            left, needed = self._left(sizes), self.norm(kept).unsqueeze(1)
            shrink = (left / needed.clamp_min(torch.finfo(needed.dtype).tiny)).clamp_max_(1.0)
            best = self._placed(torch.copysign(sizes, slopes) + kept * shrink)
            unchanged = idle & ((needed <= left) | idle.all(1, keepdim=True))
            best = torch.where(unchanged.view_as(at), at, best)
        if not tracked(gradient, at, self.center, self.radii):
            return best
        formula = self._ball().maximiser(rows(gradient).double(), rows(at).double(), sizes, unchanged)
        return with_derivative(best, formula.view_as(at))

    def _ball(self) -> Ball:
        """The same ball and box, for derivatives."""
        lo, hi = (None if end is None else rows(end.expand_as(self.center)).double() for end in (self.lo, self.hi))
        return Ball(self._order, self._origin, self._limit, lo, hi)

    def interior(self, point: Tensor) -> Tensor:
        """All or nothing for the ball, since it holds every coordinate at once (up to rounding); coordinate by coordinate for the box."""
        slack = 4 * torch.finfo(self.center.dtype).eps * (self.radii + self.norm(self.center))
        free = (self.distance(point) < self.radii - slack).view(-1, *(1,) * (point.dim() - 1)).expand_as(point)
        if self.lo is not None and self.hi is not None:
            free = free & (point > self.lo) & (point < self.hi)
        return free


class L2(_Radial):
    """Euclidean norm of v - center <= radius."""

    _order = 2

    def norm(self, offset: Tensor) -> Tensor:
        """Euclidean norm, [N]."""
        length: Tensor = torch.linalg.vector_norm(rows(offset), dim=1)
        return length

    def steepest(self, gradient: Tensor, at: Tensor | None = None) -> Tensor:
        """gradient / |gradient|_2."""
        return unit(gradient)

    def direction(self, generator: Randomness = None) -> Tensor:
        """Uniform on the unit sphere: a Gaussian vector divided by its length."""
        return unit(self._normal(generator))

    def retract(self, point: Tensor) -> Tensor:
        """Drawn to the ball along the ray from the center, then clipped: feasible, but not the nearest point."""
        offset = point - self.center
        length = per_example(torch.minimum(self.norm(offset), self.radii), offset)
        return self.clip(self.center + unit(offset) * length)

    def sample(self, generator: Randomness = None) -> Tensor:
        """Uniform on the ball (a Gaussian direction, radius times u^(1/d)), then projected: the faces of a box get extra mass."""
        direction = self.direction(generator)
        share = draws.uniform(self.radii, generator)
        length = self.radii * share.pow_(1 / max(1, self._origin.shape[1]))
        return self.project(self.center + per_example(length, self.center) * direction)

    def corner(self, generator: Randomness = None) -> Tensor:
        """center + radius * s / sqrt(d), s of random signs, then projected."""
        length = self.radii / math.sqrt(max(1, self._origin.shape[1]))
        return self.project(self.center + per_example(length, self.center) * self._signs(generator))

    def _projected(self, lengths: Tensor, room: Tensor) -> Tensor:
        return self._steepest_sizes(lengths, room)

    def _steepest_sizes(self, slopes: Tensor, room: Tensor) -> Tensor:
        return unit(slopes).mul_(self._inner) if self.lo is None else l2_sizes(slopes, room, self._inner)

    def _left(self, sizes: Tensor) -> Tensor:
        squared = self._limit.square() - sizes.square().sum(1, keepdim=True)
        rounding = 4 * torch.finfo(self.center.dtype).eps + 32 * torch.finfo(torch.float64).eps
        spent = squared <= rounding * self._limit.square()
        return squared.masked_fill_(spent, 0.0).sqrt_()


class L1(_Radial):
    """Sum of |v - center| <= radius."""

    _order = 1

    def norm(self, offset: Tensor) -> Tensor:
        """Sum of absolute coordinates, [N]."""
        length: Tensor = torch.linalg.vector_norm(rows(offset), 1, dim=1)
        return length

    def steepest(self, gradient: Tensor, at: Tensor | None = None) -> Tensor:
        """The sign of the coordinate of largest |gradient|, the first one among equals.

        With `at` and a box, only coordinates that can still move inside the box count: otherwise the step would push for ever on a
        pixel that is already black or white, and the projection would return the same point. The derivative is 0.
        """
        gradient = gradient.detach()
        score = gradient.abs()
        if at is not None and self.lo is not None and self.hi is not None:
            score.mul_(torch.where(gradient > 0, at < self.hi, at > self.lo))
        score = rows(score)
        index = score.argmax(1, keepdim=True)
        sign = torch.where(score.gather(1, index) > 0, rows(gradient).gather(1, index).sign(), 0.0)
        return torch.zeros_like(score).scatter_(1, index, sign).view_as(gradient)

    def direction(self, generator: Randomness = None) -> Tensor:
        """A Gaussian vector divided by its l1 norm."""
        drawn = self._normal(generator)
        return drawn / per_example(self.norm(drawn), drawn)

    def sphere(self, generator: Randomness = None) -> Tensor:
        """center + a Gaussian vector, projected: for more than a few coordinates on the border (Croce and Hein, ICML 2021, sec. 3)."""
        return self.project(self.center + self._normal(generator))

    def sample(self, generator: Randomness = None) -> Tensor:
        """Uniform on the ball (d of d + 1 exponentials divided by their sum, random signs), then projected: box faces get extra mass."""
        drawn = draws.exponential(self.center.new_empty(self._origin.shape[0], self._origin.shape[1] + 1), generator)
        share = (drawn / drawn.sum(1, keepdim=True))[:, :-1].view_as(self.center)
        return self.project(self.center + per_example(self.radii, self.center) * share * self._signs(generator))

    def corner(self, generator: Randomness = None) -> Tensor:
        """center + radius or center - radius in one random coordinate, then projected."""
        index = rows(self._uniform(generator)).argmax(1, keepdim=True)
        move = torch.zeros_like(rows(self.center)).scatter_(1, index, rows(self._signs(generator)).gather(1, index))
        return self.project(self.center + per_example(self.radii, self.center) * move.view_as(self.center))

    def _projected(self, lengths: Tensor, room: Tensor) -> Tensor:
        return l1_sizes(lengths, room, self._inner)

    def _steepest_sizes(self, slopes: Tensor, room: Tensor) -> Tensor:
        return l1_fill(slopes, room, self._inner)

    def _left(self, sizes: Tensor) -> Tensor:
        left = self._limit - sizes.sum(1, keepdim=True)
        return left.masked_fill_(left <= 4 * torch.finfo(self.center.dtype).eps * self._limit, 0.0)


SETS_TORCH: dict[str, type[InputSet]] = {"linf": Linf, "l2": L2, "l1": L1}


def register_set(name: str, cls: type[InputSet], row: SetRow | None = None) -> None:
    """Makes `name(center, radius)` a set of inputs. `row` describes a name that lang.specs does not know yet.

    Raises UserError if the name is taken, unknown without a row, or not that of the row, and if `cls` is no InputSet.
    """
    if name in SETS_TORCH:
        raise UserError(f"the set {name} exists already", where="register_set", fix="choose another name")
    if not issubclass(cls, InputSet):
        raise UserError(f"{cls.__name__} is no InputSet", where="register_set", fix="derive it from lossdsl.solve.InputSet")
    if row is not None and row.name != name:
        raise UserError(f"the row describes {row.name}, not {name}", where="register_set", fix=f"name the row {name}")
    if row is None and name not in SETS:
        fix = "pass row = SetRow(...); " + did_you_mean(name, SETS)
        raise UserError(f"the language has no set {name}", where="register_set", fix=fix)
    if row is not None:
        SETS[name] = row
    SETS_TORCH[name] = cls
