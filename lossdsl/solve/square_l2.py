"""Square Attack on l2 (Andriushchenko et al., ECCV 2020, algorithm 3): the norm moves from one window of the image to another."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lossdsl.diagnostics import UserError
from lossdsl.solve import draws
from lossdsl.solve.climb import Climb, Climber, climbed
from lossdsl.solve.draws import ExampleStreams, Randomness
from lossdsl.solve.input_set import InputSet
from lossdsl.solve.problem import Problem
from lossdsl.solve.rows import per_example, rows, unit
from lossdsl.solve.sight import Asked, Seen
from lossdsl.solve.square import as_image, corners, pixels, share_of, signs, streams_of, window

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
            image[at] += _patterns(width, len(sides), image)[axis] * sign.reshape(*sign.shape, *(1,) * len(sides))
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
        """The proposal."""
        return Asked(state.point)

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
        pattern = _patterns(width, dims, state.best)[_axes(streams.uniform((len(streams),)), dims)]
        sign = signs(streams, channels).to(state.best)
        image = as_image(state.best - region.center)
        into, cleared = window(first, sides, square), window(second, sides, square)
        new = _moved_into(pattern * sign.reshape(*sign.shape, *(1,) * dims), first, image, into)
        new = new / _size(new, channels).clamp_min(1e-12)
        whole, held = _norm(image), _norm(image * (into | cleared))
        left = (region.radii.reshape(whole.shape).square() - whole.square()).clamp_min(0)
        new = new * (left / channels + held.square()).sqrt()
        image = torch.where(into, new, image * ~cleared)
        return _placed(region, image.reshape(state.best.shape))

    def _width(self, query: int, sides: tuple[int, ...]) -> int:
        """Odd, at least 3, and no wider than the image."""
        width = max(round((share_of(query, self.p_init) * math.prod(sides)) ** (1 / len(sides))), NARROWEST)
        most = min(sides) - (min(sides) + 1) % 2
        return min(width + (width + 1) % 2, most)


def _placed(region: InputSet, offset: Tensor) -> Tensor:
    """center + the offset scaled to the radius, clipped."""
    return region.clip(region.center + unit(offset) * per_example(region.radii, offset))


def _norm(image: Tensor) -> Tensor:
    """Euclidean norm of every example, [n, 1, ..., 1]."""
    return torch.linalg.vector_norm(rows(image), dim=1).reshape(-1, *(1,) * (image.dim() - 1))


def _size(image: Tensor, channels: int) -> Tensor:
    """Euclidean norm of every channel, [n, channels, 1, ..., 1]."""
    return torch.linalg.vector_norm(image.flatten(2), dim=2).reshape(len(image), channels, *(1,) * (image.dim() - 2))


def _axes(drawn: Tensor, dims: int) -> Tensor:
    """Along which dimension the halves of a pattern lie, from a uniform number."""
    return (drawn * dims).long().clamp_max(dims - 1)


def _moved_into(pattern: Tensor, corner: Tensor, image: Tensor, into: Tensor) -> Tensor:
    """The pattern [n, channels, *square] at its place in the image, plus what is there divided by its norm in each channel."""
    held = image * into
    scaled = held / (_size(held, image.shape[1]) + 1e-12)
    placed = torch.zeros_like(image)
    placed[into.expand_as(image)] = pattern.reshape(-1)
    return placed + scaled


def _patterns(width: int, dims: int, like: Tensor) -> Tensor:
    """[dims, 1, *square]: the pattern with its halves along each dimension, of norm 1."""
    half = width // 2
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
