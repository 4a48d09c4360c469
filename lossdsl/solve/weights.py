"""Sets over the weights of a model: one problem whose point, [1, P], holds all parameters one after the other.

All three are {theta + v : |v_b / scale_b|_2 <= radius in every block b}, with the scale frozen at the center theta:

    l2         one block, scale 1: |v|_2 <= rho                                     SAM, Foret et al., ICLR 2021
    layerwise  a block per tensor, scale |theta_l|: |v_l| <= gamma * |theta_l|       AWP, Wu et al., NeurIPS 2020
    adaptive   one block, scale |theta| by coordinate: |v / |theta||_2 <= rho        ASAM, Kwon et al., ICML 2021

A coordinate of scale 0 stays at theta: a tensor of zeros under layerwise, a zero weight under adaptive, and with only = "matrices" every
tensor of fewer than two dimensions (biases and normalisation; the released AWP perturbs matrices only).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lossdsl.diagnostics import UserError, did_you_mean
from lossdsl.solve import draws
from lossdsl.solve.draws import Randomness
from lossdsl.solve.input_set import InputSet
from lossdsl.solve.rows import largest, unit

ONLY = ("all", "matrices")
TINY = 1e-60
"""Weights, and radii, below this count as 0: fourth powers of their inverses are no float64."""


class Layout:
    """Where the parameters of a model lie in a flat point.

    tensors: (name, tensor) by parameter, as named_parameters gives them; only names, shapes and precision are kept.
    Raises UserError for no tensor, a name that comes twice, or tensors of different precisions.
    """

    def __init__(self, tensors: Sequence[tuple[str, Tensor]]) -> None:
        self.names = tuple(name for name, _ in tensors)
        self.shapes = tuple(tensor.shape for _, tensor in tensors)
        self.sizes = tuple(tensor.numel() for _, tensor in tensors)
        self.size = sum(self.sizes)
        if not tensors or len(set(self.names)) < len(tensors) or len({tensor.dtype for _, tensor in tensors}) > 1:
            raise UserError("weights must be named tensors of one precision, each name once", fix="cast the model to one precision")

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors in the order of the layout (parameters, gradients) as one point, [1, P]; differentiable.

        Raises UserError for other shapes.
        """
        if tuple(tensor.shape for tensor in tensors) != self.shapes:
            raise UserError("these tensors do not have the shapes of the layout", fix="give one per parameter, in the order of the layout")
        return torch.cat([tensor.reshape(1, -1) for tensor in tensors], 1)

    def views(self, point: Tensor) -> dict[str, Tensor]:
        """The parameters in a point, [1, P], by name and in their shapes; views of the point, so differentiable and without copies."""
        if point.shape != (1, self.size):
            raise UserError(f"a point of shape {tuple(point.shape)} for {self.size} weights", fix=f"points have shape (1, {self.size})")
        parts = point[0].split(self.sizes)
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

class WeightSet(InputSet):
    """{center + v : |v_b / scale_b|_2 <= radius in every block b}; see the table above.

    center: [1, P]. radius: a number. scale: [1, P], at least 0. blocks: sizes that sum to P.
    even: the scale is the same within a block, but for coordinates of scale 0.
    """

    def __init__(self, center: Tensor, radius: float | Tensor, scale: Tensor, blocks: Sequence[int], even: bool) -> None:
        super().__init__(center, radius)
        self._scale, self._blocks, self._even = scale.detach().masked_fill(scale < TINY, 0.0), tuple(blocks), even
        self._free = self._scale > 0
        self._sizes = self._block_norms(self.center * self._free)  # what rounding scales with

    def norm(self, offset: Tensor) -> Tensor:
        """max over blocks of |offset / scale|_2, [1]; infinite if a coordinate of scale 0 moves."""
        return self._block_norms(offset).amax(1)

    def project(self, point: Tensor) -> Tensor:
        """The nearest point in the Euclidean norm of the weights. Blocks inside come back unchanged."""
        offset = (point.double() - self.center.double()) * self._free
        norms = self._block_norms(offset)
        radius = self.radii.double().unsqueeze(1)
        outside = norms > radius
        if self._even:
            shrunk = offset * self._spread(torch.where(outside, radius / norms, 1.0))
        else:
            shrunk = _onto_ellipsoid(offset, self._scale.double(), float(radius)) if bool(outside.any()) else offset
        placed = (self.center.double() + shrunk).to(self.center.dtype)
        return torch.where(self._free & ~self._spread(outside), point, placed)

    def steepest(self, gradient: Tensor, at: Tensor | None = None) -> Tensor:
        """The v of norm 1 with the largest <gradient, v>, block by block: scale * unit(scale * gradient); 0 where the block has none."""
        slopes = (gradient * self._scale).split(self._blocks, 1)
        return torch.cat([unit(part) for part in slopes], 1).mul_(self._scale)

    def linear_maximiser(self, gradient: Tensor, at: Tensor) -> Tensor:
        """center + radius * steepest(gradient); a block without gradient keeps `at`, a set member.

        l2: theta + rho * g / |g| (SAM). layerwise: theta_l + gamma * |theta_l| * g_l / |g_l| (AWP). adaptive:
        theta + rho * theta^2 * g / | |theta| * g | (ASAM). The released codes divide by |g| + 1e-12 (SAM, ASAM) and |d_l| + 1e-20 (AWP) to
        survive a zero gradient, which makes their step shorter by the factor 1 / (1 + 1e-12 / |g|); here it has the radius exactly.
        """
        slopes = (gradient * self._scale).split(self._blocks, 1)
        moves = self._spread(torch.stack([largest(part) > 0 for part in slopes], 1))
        return torch.where(moves, self.center + self.radii.unsqueeze(1) * self.steepest(gradient), at)

    def sample(self, generator: Randomness = None) -> Tensor:
        """Uniform on the set: in each block a Gaussian direction times u^(1/d), d the coordinates that may move."""
        drawn = draws.normal(self.center, generator) * self._free
        direction = torch.cat([unit(part) for part in drawn.split(self._blocks, 1)], 1)
        share = draws.uniform(self.center.new_empty(1, len(self._blocks)), generator)
        return self._reached(direction, share ** (1 / self._dimensions()))

    def corner(self, generator: Randomness = None) -> Tensor:
        """In each block center + radius * scale * s / sqrt(d), s of random signs."""
        return self._reached(self._signs(generator), self._dimensions().rsqrt())

    def interior(self, point: Tensor) -> Tensor:
        """bool [1, P]: blocks strictly inside their ball (up to rounding), without the coordinates that may not move."""
        slack = 4 * torch.finfo(self.center.dtype).eps * (self.radii.unsqueeze(1) + self._sizes)
        norms = self._block_norms((point.double() - self.center.double()) * self._free)
        return self._spread(norms < self.radii.unsqueeze(1) - slack) & self._free

    def contains(self, point: Tensor, tolerance: float = 1e-6) -> Tensor:
        """bool [1]: each block in its ball up to tolerance * (radius + |center_b / scale_b|), coordinates of scale 0 at theta exactly."""
        slack = tolerance * (self.radii.unsqueeze(1) + self._sizes)
        return (self._block_norms(point.double() - self.center.double()) <= self.radii.unsqueeze(1) + slack).all(1)

    def _block_norms(self, offset: Tensor) -> Tensor:
        """[1, blocks]"""
        relative = torch.where(self._free, offset / self._scale, torch.where(offset == 0, 0.0, math.inf))
        return torch.cat([torch.linalg.vector_norm(part, dim=1, keepdim=True) for part in relative.split(self._blocks, 1)], 1)

    def _spread(self, values: Tensor) -> Tensor:
        """[1, blocks] as [1, P]."""
        return torch.cat([value.expand(1, size) for value, size in zip(values.split(1, 1), self._blocks, strict=True)], 1)

    def _dimensions(self) -> Tensor:
        """How many coordinates of each block may move, at least 1, [1, blocks]."""
        counts = torch.stack([part.sum(1) for part in self._free.split(self._blocks, 1)], 1)
        return counts.clamp_min(1).to(self.center.dtype)

    def _reached(self, direction: Tensor, share: Tensor) -> Tensor:
        return self.center + self.radii.unsqueeze(1) * self._spread(share) * direction * self._scale


def _onto_ellipsoid(offset: Tensor, scale: Tensor, radius: float) -> Tensor:
    """The v nearest to `offset` with |v / scale|_2 = radius, for an offset outside; all float64, [1, P], offset 0 where scale is 0.

    v = offset * scale^2 / (scale^2 + t) with the t > 0 that meets the radius: Newton's method on 1 / |v(t) / scale| - 1 / radius, a
    concave function of t, climbs from t = 0 without overshooting (More and Sorensen 1983, section 3).
    """
    if radius < TINY:
        return torch.zeros_like(offset)
    squared = scale.square()
    relative = torch.where(scale > 0, offset / scale, 0.0)
    t = 0.0
    for _ in range(200):  # about ten suffice
        weight = squared + t
        shrunk = torch.where(scale > 0, relative * (squared / weight), 0.0)
        length = float(torch.linalg.vector_norm(shrunk))
        if length <= radius * (1 + 1e-13):
            break
        slope = float(torch.where(scale > 0, shrunk.square() / weight, 0.0).sum())
        t += (length / radius - 1) * length**2 / slope
    return shrunk * scale * min(1.0, radius / length)


def _free(layout: Layout, only: str) -> list[bool]:
    if only not in ONLY:
        raise UserError(f"only = {only}", where="a set over weights", fix=did_you_mean(only, ONLY))
    return [only == "all" or len(shape) >= 2 for shape in layout.shapes]


def _filled(center: Tensor, layout: Layout, values: Sequence[float | Tensor]) -> Tensor:
    """One value per tensor, as [1, P]."""
    layout.views(center)  # refuses other shapes
    parts = [torch.as_tensor(v, dtype=center.dtype, device=center.device).expand(1, n) for v, n in zip(values, layout.sizes, strict=True)]
    return torch.cat(parts, 1)


def _l2(layout: Layout, center: Tensor, radius: float, only: str = "all") -> WeightSet:
    return WeightSet(center, radius, _filled(center, layout, [float(free) for free in _free(layout, only)]), (layout.size,), True)


def _layerwise(layout: Layout, center: Tensor, radius: float, only: str = "all") -> WeightSet:
    lengths = [torch.linalg.vector_norm(tensor) for tensor in layout.views(center.detach()).values()]
    scale = _filled(center, layout, [length * free for length, free in zip(lengths, _free(layout, only), strict=True)])
    return WeightSet(center, radius, scale, layout.sizes, True)


def _adaptive(layout: Layout, center: Tensor, radius: float, only: str = "all") -> WeightSet:
    free = _filled(center, layout, [float(free) for free in _free(layout, only)])
    return WeightSet(center, radius, center.detach().abs() * free, (layout.size,), False)


WEIGHT_SETS: dict[str, Callable[..., WeightSet]] = {"l2": _l2, "layerwise": _layerwise, "adaptive": _adaptive}
"""name(layout, center [1, P], radius, only = "all" | "matrices"); raises UserError for a center of another shape or an unknown `only`."""
