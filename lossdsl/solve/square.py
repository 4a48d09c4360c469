"""Square Attack (Andriushchenko et al., ECCV 2020): random search that asks for values alone, on linf and l2.

Inputs of one dimension are taken as one row of pixels and squares as windows in it; inputs of two dimensions as an image of one channel;
otherwise the first dimension counts channels and a square is a cube in all the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lossdsl.solve import draws
from lossdsl.solve.climb import Climb, Climber, climbed
from lossdsl.solve.draws import ExampleStreams, Randomness
from lossdsl.solve.input_set import InputSet
from lossdsl.solve.problem import Problem
from lossdsl.solve.rows import per_example
from lossdsl.solve.sets import Linf
from lossdsl.solve.sight import Asked, Seen

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""The share of the pixels in a square is halved after each of these queries (AutoAttack does not scale them to the number of queries)."""
LARGEST_TABLE = 1 << 14
"""Proposals of one example that are remembered; with more than these, hardly one comes twice."""


def pixels(shape: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """How many channels one input has, and the sides of its image."""
    if len(shape) <= 2:
        return 1, tuple(shape) or (1,)
    return shape[0], tuple(shape[1:])


def as_image(point: Tensor) -> Tensor:
    """[N, *shape] as [N, channels, *sides]."""
    channels, sides = pixels(point.shape[1:])
    return point.reshape(point.shape[0], channels, *sides)


def share_of(query: int, first: float) -> float:
    """The share of the pixels that the square of this query covers (queries count from 0)."""
    return first / 2.0 ** sum(query > end for end in HALVINGS)


def streams_of(problem: Problem, count: int) -> ExampleStreams:
    """A stream of random numbers for each example, so that its squares do not depend on which others are still there."""
    source = problem.generator
    if isinstance(source, ExampleStreams):
        return source.rows(torch.arange(count, device=problem.set.center.device))
    keys = torch.empty(count, dtype=torch.long, device=problem.set.center.device).random_(generator=source)
    return ExampleStreams(keys)


def corners(streams: ExampleStreams, sides: tuple[int, ...], square: tuple[int, ...]) -> Tensor:
    """The lowest corner of a square, int64 [n, dimensions]: uniform on all places but the last ones, as in the authors' code."""
    room = torch.tensor([max(a - b, 0) for a, b in zip(sides, square, strict=True)], dtype=torch.float64)
    drawn = streams.uniform((len(streams), len(sides)))
    return (drawn * room.to(drawn.device)).long()


def signs(streams: ExampleStreams, channels: int) -> Tensor:
    """-1 or 1 for each channel, float64 [n, channels]."""
    return torch.where(streams.uniform((len(streams), channels)) < 0.5, 1.0, -1.0)


def places(corner: Tensor, sides: tuple[int, ...], square: tuple[int, ...]) -> Tensor:
    """int64 [n, pixels of the square]: which pixels of the image are in it, counted row by row."""
    found, apart = corner.new_zeros(len(corner), 1), math.prod(sides)
    for at, (side, width) in enumerate(zip(sides, square, strict=True)):
        apart //= side
        along = (corner[:, at : at + 1] + torch.arange(width, device=corner.device)) * apart
        found = (found.unsqueeze(2) + along.unsqueeze(1)).flatten(1)
    return found


@dataclass(frozen=True)
class SquareState(Climb):
    """rows: of the streams. tried: [n, proposals] the query
    at which each square was last proposed, for squares of this size; None if there are too many. changed: the query at which the best
    point last changed. known: bool [n], the answer is known to be no better. query: how many have been answered."""

    rows: Tensor
    streams: ExampleStreams
    changed: Tensor
    known: Tensor
    tried: Tensor | None
    width: int
    query: int


@dataclass(frozen=True)
class SquareLinf(Climber):
    """v <- the best point with one square moved by 2 * radius up or down in each channel, projected; kept if the objective grows.

    The start has vertical stripes of +- radius. A proposal that is the best point itself, or that was turned down since the best point
    last changed, is not evaluated: its answer is known.
    """

    queries: int
    p_init: float

    @property
    def evaluations(self) -> int:
        """The start and every update."""
        return self.queries + 1

    def start(self, region: InputSet, source: Randomness, run: int) -> Tensor:
        """center + radius * a sign for every channel and column, projected."""
        channels, sides = pixels(region.center.shape[1:])
        stripes = (1, *sides[1:]) if len(sides) > 1 else sides
        like = region.center.new_empty(region.center.shape[0], channels, *stripes)
        drawn = draws.signs(like, source).expand(-1, channels, *sides).reshape(region.center.shape)
        return region.project(region.center + per_example(region.radii, region.center) * drawn)

    def begin(self, problem: Problem, start: Tensor) -> SquareState:
        """Nothing is known yet."""
        n = len(start)
        nothing = torch.full_like(problem.set.radii, -torch.inf)
        at = torch.arange(n, device=start.device)
        never = torch.full_like(at, -1)
        return SquareState(start, start, nothing, at, streams_of(problem, n), never, torch.zeros_like(at, dtype=torch.bool), None, 0, -1)

    def ask(self, problem: Problem, state: SquareState) -> Asked:
        """The proposal."""
        return Asked(state.point, known=state.known if state.query >= 0 else None)

    def tell(self, problem: Problem, state: SquareState, seen: Seen) -> SquareState:
        """Keeps the proposal where it is better, and makes the next one."""
        state, better = climbed(state, seen)
        state = replace(state, changed=torch.where(better, state.query, state.changed), query=state.query + 1)
        return state if state.query >= self.queries else self._proposed(problem, state)

    def _proposed(self, problem: Problem, state: SquareState) -> SquareState:
        """The next proposal. Only the pixels of the square are computed: the others are the best point's, which lies in the set."""
        region = problem.set
        assert isinstance(region, Linf)
        channels, sides = pixels(state.best.shape[1:])
        width = self._width(state.query, sides)
        square = tuple(min(width, side) for side in sides)
        streams = state.streams.rows(state.rows)
        corner, sign = corners(streams, sides, square), signs(streams, channels)
        at = places(corner, sides, square).unsqueeze(1).expand(-1, channels, -1)
        old, lower, upper = (as_image(v).flatten(2).gather(2, at) for v in (state.best, region.lower, region.upper))
        step = region.radii.view(-1, 1) * (sign.to(state.best) * 2)
        new = torch.clamp(old + step.unsqueeze(2), lower, upper)
        point = as_image(state.best).flatten(2).scatter(2, at, new).view_as(state.best)
        state = replace(state, point=point, known=(new == old).flatten(1).all(1))
        return self._remembered(state, width, corner, sign, tuple(max(a - b, 1) for a, b in zip(sides, square, strict=True)))

    def _width(self, query: int, sides: tuple[int, ...]) -> int:
        return max(round((share_of(query, self.p_init) * math.prod(sides)) ** (1 / len(sides))), 1)

    def _remembered(self, state: SquareState, width: int, corner: Tensor, sign: Tensor, places: tuple[int, ...]) -> SquareState:
        """Notes the proposal, and whether it has been turned down since the best point last changed."""
        size = math.prod(places) << sign.shape[1]
        if size > LARGEST_TABLE:
            return state
        tried = state.tried
        if tried is None or width != state.width:
            tried = torch.full((len(corner), size), -1, dtype=torch.int32, device=corner.device)
        key = torch.zeros_like(corner[:, 0])
        for at, room in enumerate(places):
            key = key * room + corner[:, at]
        for bit in (sign > 0).long().unbind(1):
            key = key * 2 + bit
        last = tried.gather(1, key.unsqueeze(1)).squeeze(1)
        now = torch.full_like(last, state.query).unsqueeze(1)
        known = state.known | (last > state.changed)
        return replace(state, known=known, tried=tried.scatter(1, key.unsqueeze(1), now), width=width)
