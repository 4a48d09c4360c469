"""What a set of inputs is: a norm ball met with the input domain, one per example.

A point has shape [N, *shape] (also [N] alone); every method works on each example by itself. Radii and points are in the units of the
input, before the model's own normalisation. A point that comes out of a set is in its box exactly and in its ball up to rounding.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lossdsl.diagnostics import UserError
from lossdsl.solve import draws
from lossdsl.solve.draws import Randomness
from lossdsl.solve.rows import per_example, rows


@dataclass(frozen=True)
class Domain:
    """The box the inputs live in. `lo` and `hi` are numbers or broadcast against [N, *shape]: per-channel ranges of images are [C, 1, 1].

    Raises UserError if an end is NaN or the lower one is above the upper one.
    """

    lo: float | Tensor
    hi: float | Tensor

    def __post_init__(self) -> None:
        if not bool(torch.all(torch.as_tensor(self.lo) <= torch.as_tensor(self.hi))):
            raise UserError(f"the input domain runs from {self.lo} to {self.hi}", fix="write the smaller number first")


class InputSet(ABC):
    """The set {v : norm(v - center) <= radius, lo <= v <= hi}, one per example.

    center: [N, *shape], inside the domain (the caller checks that; nothing else here depends on where it came from).
    radius: a number, or a tensor broadcastable to [N].
    domain: None means no box (`linf(0, eps)`, `input x in reals`).
    differentiable: keep the graph of center and radius; otherwise they are constants here.
    Raises UserError for a radius that is negative, infinite or NaN, and for a domain that does not broadcast.
    """

    unrolls: ClassVar[bool] = False
    """Do derivatives pass through `project`, `steepest` and `linear_maximiser`? Asked by runs that are differentiated."""

    def __init__(self, center: Tensor, radius: float | Tensor, domain: Domain | None = None, *, differentiable: bool = False) -> None:
        self.center = center if differentiable else center.detach()
        self.radius = _checked_radius(radius if differentiable or not isinstance(radius, Tensor) else radius.detach(), self.center)
        self.lo, self.hi = _checked_domain(domain, self.center)

    @property
    def radii(self) -> Tensor:
        """The radius of every example, [N], in the precision of the center."""
        return torch.as_tensor(self.radius, dtype=self.center.dtype, device=self.center.device).expand(self.center.shape[0])

    @abstractmethod
    def norm(self, offset: Tensor) -> Tensor:
        """The set's norm of [N, *shape], as [N]."""

    @abstractmethod
    def project(self, point: Tensor) -> Tensor:
        """The nearest point of the set in the Euclidean norm. A point inside comes back unchanged."""

    @abstractmethod
    def steepest(self, gradient: Tensor, at: Tensor | None = None) -> Tensor:
        """The direction of norm 1 with the largest inner product with the gradient, 0 for a zero gradient; a fresh tensor.

        `at` is the point the step leaves from; only l1 uses it.
        """

    @abstractmethod
    def linear_maximiser(self, gradient: Tensor, at: Tensor) -> Tensor:
        """The v that maximises <gradient, v> on the set. Where the gradient is zero it keeps the coordinates of `at`, a set member."""

    @abstractmethod
    def sample(self, generator: Randomness = None) -> Tensor:
        """A random point of the set."""

    @abstractmethod
    def corner(self, generator: Randomness = None) -> Tensor:
        """A random extreme point of the ball, projected on the set."""

    def direction(self, generator: Randomness = None) -> Tensor:
        """A random vector of norm 1, [N, *shape]: uniform numbers in [-1, 1] on linf, normal ones on l2 and l1, divided by their norm.

        Raises UserError where the set has no such draw.
        """
        fix = "start at a point, or uniform"
        raise UserError(f"{type(self).__name__} has no random direction", where="start of a solver", fix=fix)

    def sphere(self, generator: Randomness = None) -> Tensor:
        """center + radius * direction, projected: where APGD starts (Croce and Hein, ICML 2020)."""
        return self.project(self.center + per_example(self.radii, self.center) * self.direction(generator))

    def retract(self, point: Tensor) -> Tensor:
        """A point of the set in place of one that may lie outside, the way APGD's authors move it back: `project`, but on l2."""
        return self.project(point)

    @abstractmethod
    def interior(self, point: Tensor) -> Tensor:
        """bool [N, *shape]: the coordinates that no constraint of the set holds at `point`."""

    def distance(self, point: Tensor) -> Tensor:
        """norm(point - center) of every example, [N], without the box."""
        return self.norm(point.double() - self.center.double()).to(self.center.dtype)

    def contains(self, point: Tensor, tolerance: float = 1e-6) -> Tensor:
        """bool [N]: in the box exactly, and in the ball up to tolerance * (radius + norm(center)), the sizes that rounding scales with."""
        slack = tolerance * (self.radii + self.norm(self.center))
        inside: Tensor = self.distance(point) <= self.radii + slack
        if self.lo is not None and self.hi is not None:
            inside = inside & rows((point >= self.lo) & (point <= self.hi)).all(1)
        return inside

    def clip(self, point: Tensor) -> Tensor:
        """The point clipped to the box of the domain alone."""
        return point if self.lo is None else torch.clamp(point, self.lo, self.hi)

    def _uniform(self, generator: Randomness) -> Tensor:
        return draws.uniform(self.center, generator)

    def _normal(self, generator: Randomness) -> Tensor:
        return draws.normal(self.center, generator)

    def _signs(self, generator: Randomness) -> Tensor:
        return draws.signs(self.center, generator)


def _checked_radius(radius: float | Tensor, center: Tensor) -> float | Tensor:
    """A float, or a tensor [N] in the precision of the center."""
    if not isinstance(radius, Tensor):
        if not 0 <= radius < math.inf:
            raise UserError(f"the radius of a set is {radius}", fix="a radius is a finite number, at least 0")
        return float(radius)
    radius = radius.to(center)
    if radius.dim() > 1 or (radius.dim() == 1 and radius.shape[0] not in (1, center.shape[0])):
        raise UserError(f"radii of shape {tuple(radius.shape)} for {center.shape[0]} examples", fix="give one number, or one per example")
    radius = radius.expand(center.shape[0])
    wrong = ~((radius >= 0) & radius.isfinite())
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0])
        raise UserError(f"the radius of example {first} is {float(radius[first])}", fix="a radius is a finite number, at least 0")
    return radius


def _checked_domain(domain: Domain | None, center: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Both ends in the precision of the center, broadcastable to its shape."""
    if domain is None:
        return None, None
    lo, hi = (torch.as_tensor(end, dtype=center.dtype, device=center.device) for end in (domain.lo, domain.hi))
    try:
        lo.expand_as(center), hi.expand_as(center)
    except RuntimeError as error:
        problem = f"a domain of shapes {tuple(lo.shape)} and {tuple(hi.shape)} does not fit inputs of shape {tuple(center.shape[1:])}"
        raise UserError(problem, fix="give one range, or one per channel as [C, 1, 1]") from error
    return lo, hi
