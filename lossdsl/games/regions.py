"""Where players may move: projections on their sets, and uniform draws from them."""

from __future__ import annotations

import torch
from torch import Tensor

from lossdsl.check.game_typed import Region
from lossdsl.games.field import Field
from lossdsl.solve import L2, InputSet, Linf, Simplex


def _set(region: Region, like: Tensor) -> InputSet:
    """A ball or simplex per row of `like` [N, n]."""
    if region.name == "simplex":
        return Simplex(like)
    center = torch.tensor(region.center, dtype=like.dtype).expand_as(like)
    return {"l2": L2, "linf": Linf}[region.name](center, region.numbers[0])


def project(region: Region, part: Tensor) -> Tensor:
    """The nearest points of the set, row by row of [N, n]; rows that are not finite stay as they are."""
    if region.name == "box":
        return part.clamp(*region.numbers)
    finite = part.isfinite().all(1, keepdim=True)
    return torch.where(finite, _set(region, part).project(torch.where(finite, part, 0.0)), part)


def uniform(region: Region, like: Tensor, generator: torch.Generator) -> Tensor:
    """A uniform draw from the set for every row of `like`."""
    if region.name == "box":
        low, high = region.numbers
        return low + (high - low) * torch.rand(like.shape, dtype=like.dtype, generator=generator)
    return _set(region, like).sample(generator)


class Projection:
    """The projection of the joint vector on the product of the players' sets."""

    def __init__(self, field: Field) -> None:
        self._regions = [(field.slices[p.name], p.region) for p in field.game.players if p.region is not None]
        self.trivial = not self._regions

    def __call__(self, z: Tensor) -> Tensor:
        """z [N, d] with every player in its set."""
        if self.trivial:
            return z
        z = z.clone()
        for place, region in self._regions:
            z[:, place] = project(region, z[:, place])
        return z
