"""Square Attack on l2 (Andriushchenko et al., ECCV 2020, algorithm 3): the norm moves from one window of the image to another."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from lossdsl.diagnostics import UserError
from lossdsl.solve import draws
from lossdsl.solve.climb import Climb, Climber, climbed
from lossdsl.solve.draws import ExampleStreams, Randomness
from lossdsl.solve.input_set import InputSet
from lossdsl.solve.problem import Problem
from lossdsl.solve.rows import per_example, unit
from lossdsl.solve.sight import Asked, Seen
from lossdsl.solve.square import as_image, corners, pixels, places, share_of, signs, streams_of

NARROWEST = 3
"""Side of the smallest window."""
TILES = 5
"""The start has this many windows in each direction."""


@dataclass(frozen=True)
class SquareL2State(Climb):
    """rows: of the streams. query: how many were answered."""

    rows: Tensor
    streams: ExampleStreams
    query: int


@dataclass(frozen=True)
class SquareL2(Climber):
    """v <- the best point, where one window takes a new pattern, with the norm of a second window, which becomes 0, and what is left of the
    radius; scaled to the radius and clipped; kept if the objective grows.

    The pattern has two halves of opposite sign, each falling like a pyramid, and is added to what the window holds.
    """

    queries: int
    p_init: float

    @property
    def evaluations(self) -> int:
        """The start and every query."""
        return self.queries + 1

    def start(self, region: InputSet, source: Randomness, run: int) -> Tensor:
        """Windows side by side, each a pattern with a sign for every channel, scaled to the radius and clipped."""
        channels, sides = pixels(region.center.shape[1:])
        image = torch.zeros_like(as_image(region.center))
        width = max(min(sides) // TILES, 1)
        firsts = [range(max((side - width * TILES) // 2, 0), side - width + 1, width) for side in sides]
        for corner in itertools.product(*firsts):
            sign = draws.signs(region.center.new_empty(len(image), channels), source)
            axis = _axes(draws.uniform(region.radii, source), len(sides))
            at = (slice(None), slice(None), *(slice(low, low + width) for low in corner))
            image[at] += _patterns(width, len(sides), image.dtype, image.device)[axis] * sign.reshape(*sign.shape, *(1,) * len(sides))
        return _placed(region, image.reshape(region.center.shape))

    def begin(self, problem: Problem, start: Tensor) -> SquareL2State:
        """Nothing is known yet. Raises UserError for images narrower than the smallest window."""
        sides = pixels(start.shape[1:])[1]
        if min(sides) < NARROWEST:
            wrong = f"square on l2 moves windows of {NARROWEST} pixels, and the inputs have shape {list(start.shape[1:])}"
            raise UserError(wrong, where=problem.name, fix="use linf, or apgd")
        nothing = torch.full_like(problem.set.radii, -torch.inf)
        return SquareL2State(start, start, nothing, torch.arange(len(start), device=start.device), streams_of(problem, len(start)), 0)

    def ask(self, problem: Problem, state: SquareL2State) -> Asked:
        """The proposal, which hardly comes twice."""
        return Asked(state.point, known=torch.zeros_like(state.rows, dtype=torch.bool))

    def tell(self, problem: Problem, state: SquareL2State, seen: Seen) -> SquareL2State:
        """Keeps the proposal where it is better, and makes the next one."""
        state, _ = climbed(state, seen)
        if state.query == self.queries:
            return state
        return replace(state, point=self._proposed(problem.set, state), query=state.query + 1)

    def _proposed(self, region: InputSet, state: SquareL2State) -> Tensor:
        channels, sides = pixels(state.best.shape[1:])
        streams, dims = state.streams.rows(state.rows), len(sides)
        width = self._width(state.query, sides)
        square = (width,) * dims
        first, second = corners(streams, sides, square), corners(streams, sides, square)
        pattern = _patterns(width, dims, state.best.dtype, state.best.device)[_axes(streams.uniform((len(streams),)), dims)]
        sign = signs(streams, channels).to(state.best)
        into, cleared = (places(corner, sides, square).unsqueeze(1).expand(-1, channels, -1) for corner in (first, second))
        image = as_image(state.best - region.center).flatten(2)
        held = image.gather(2, into)
        new = pattern.flatten(2) * sign.unsqueeze(2) + held / (_size(held, 2) + 1e-12)
        new = new / _size(new, 2).clamp_min(1e-12)
        rest = image.scatter(2, into, 0.0)
        taken = _size(held, 1, 2).square() + _size(rest.gather(2, cleared), 1, 2).square()
        left = (region.radii.reshape(-1, 1, 1).square() - _size(image, 1, 2).square()).clamp_min(0)
        image = rest.scatter(2, cleared, 0.0).scatter(2, into, new * (left / channels + taken).sqrt())
        return _placed(region, image.reshape(state.best.shape))

    def _width(self, query: int, sides: tuple[int, ...]) -> int:
        """Odd, at least 3, and no wider than the image."""
        width = max(round((share_of(query, self.p_init) * math.prod(sides)) ** (1 / len(sides))), NARROWEST)
        most = min(sides) - (min(sides) + 1) % 2
        return min(width + (width + 1) % 2, most)


def _placed(region: InputSet, offset: Tensor) -> Tensor:
    """center + the offset scaled to the radius, clipped."""
    return region.clip(region.center + unit(offset) * per_example(region.radii, offset))


def _size(image: Tensor, *over: int) -> Tensor:
    """Euclidean norm over these dimensions, which stay with length 1."""
    return torch.linalg.vector_norm(image, dim=over, keepdim=True)


def _axes(drawn: Tensor, dims: int) -> Tensor:
    """Along which dimension the halves of a pattern lie, from a uniform number."""
    return (drawn * dims).long().clamp_max(dims - 1)


@lru_cache(maxsize=16)
def _patterns(width: int, dims: int, precision: torch.dtype, device: torch.device) -> Tensor:
    """[dims, 1, *square]: the pattern with its halves along each dimension, of norm 1."""
    like, half = torch.empty(0, dtype=precision, device=device), width // 2
    first, second = _pyramid((half, *(width,) * (dims - 1)), like), _pyramid((width - half, *(width,) * (dims - 1)), like)
    pattern = torch.cat((first, -second), 0)
    pattern = pattern / torch.linalg.vector_norm(pattern)
    return torch.stack([pattern.transpose(0, axis) for axis in range(dims)]).unsqueeze(1)


def _pyramid(sides: tuple[int, ...], like: Tensor) -> Tensor:
    """Sum of 1 / (k + 1)^2 over the boxes of radius k around the middle that hold a pixel, up to the box that covers all; of norm 1."""
    if 0 in sides:
        return like.new_zeros(sides)
    far = like.new_zeros(sides)
    for at, side in enumerate(sides):
        off = (torch.arange(side, device=like.device) - side // 2).abs().to(like)
        far = torch.maximum(far, off.reshape(-1, *(1,) * (len(sides) - at - 1)))
    last = max(side // 2 + 1 for side in sides)
    total = sum(((far <= k).to(like) / (k + 1) ** 2 for k in range(last)), like.new_zeros(sides))
    return total / torch.linalg.vector_norm(total)
