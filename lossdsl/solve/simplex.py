"""The probability simplex: class weights that are non-negative and sum to one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lossdsl.solve import draws
from lossdsl.solve.draws import Randomness
from lossdsl.solve.input_set import InputSet
from lossdsl.solve.rows import unit


class Simplex(InputSet):
    """{q : q_j >= 0, sum_j q_j = 1}, one per problem.

    like: [N, K], K >= 1; only its shape, precision and device count. The center is the uniform distribution, the radius the distance
    from there to a vertex, the norm Euclidean.
    """

    def __init__(self, like: Tensor) -> None:
        count = like.shape[1]
        super().__init__(torch.full_like(like.detach(), 1 / count), math.sqrt(1 - 1 / count))

    def norm(self, offset: Tensor) -> Tensor:
        """Euclidean norm, [N]."""
        length: Tensor = torch.linalg.vector_norm(offset, dim=1)
        return length

    def project(self, point: Tensor) -> Tensor:
        """The nearest point: max(point - t, 0), t found exactly by sorting (Held, Wolfe and Crowder 1974; Duchi et al., ICML 2008)."""
        if point.shape[0] == 0:
            return point
        lengths = point.double()
        lengths = lengths - lengths.amax(1, keepdim=True)  # so that huge coordinates do not swallow the 1
        ordered = lengths.sort(1, descending=True).values
        counts = torch.arange(1, point.shape[1] + 1, dtype=ordered.dtype, device=point.device)
        thresholds = (ordered.cumsum(1) - 1) / counts
        kept = (ordered > thresholds).sum(1, keepdim=True)
        nearest = (lengths - thresholds.gather(1, kept - 1)).clamp_min_(0.0).to(point.dtype)
        return torch.where(self.contains(point, 0.0).unsqueeze(1), point, nearest)

    def steepest(self, gradient: Tensor, at: Tensor | None = None) -> Tensor:
        """The unit vector of coordinate sum 0 with the largest inner product with the gradient; 0 for equal coordinates."""
        top = gradient.amax(1, keepdim=True) if gradient.shape[0] else gradient
        level = gradient - top  # equal coordinates become 0 exactly
        return unit(level - level.mean(1, keepdim=True))

    def linear_maximiser(self, gradient: Tensor, at: Tensor) -> Tensor:
        """The vertex of the largest coordinate, the first among equals; `at` where all coordinates are equal."""
        if gradient.shape[0] == 0:
            return at
        vertex = torch.zeros_like(gradient).scatter_(1, gradient.argmax(1, keepdim=True), 1.0)
        return torch.where((gradient == gradient[:, :1]).all(1, keepdim=True), at, vertex)

    def sample(self, generator: Randomness = None) -> Tensor:
        """Uniform on the simplex, Dirichlet(1, ..., 1): exponentials divided by their sum."""
        drawn = draws.exponential(self.center, generator)
        return drawn / drawn.sum(1, keepdim=True)

    def corner(self, generator: Randomness = None) -> Tensor:
        """A random vertex."""
        return self.linear_maximiser(self._uniform(generator), self.center)

    def interior(self, point: Tensor) -> Tensor:
        """bool [N, K]: the coordinates above 0. That they sum to one holds everywhere and is not counted."""
        return point > 0

    def contains(self, point: Tensor, tolerance: float = 1e-6) -> Tensor:
        """bool [N]: no coordinate below 0, and a sum of 1 up to the tolerance and the rounding of K numbers."""
        total = (point.double().sum(1) - 1).abs()
        rounding = point.shape[1] * torch.finfo(point.dtype).eps
        return (point >= 0).all(1) & (total <= tolerance + rounding)
