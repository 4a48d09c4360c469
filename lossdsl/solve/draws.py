"""Random numbers for a batch: from one generator for all of it, or from a stream for each example."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lossdsl.diagnostics import UserError

_GAMMA = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15, the odd number nearest to 2^64 / golden ratio, as a signed number
_FIRST, _SECOND = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # 0xBF58476D1CE4E5B9 and 0x94D049BB133111EB
_BITS = 53


class ExampleStreams:
    """A stream of random numbers for every example of a batch; torch's generators know only one for the whole batch.

    What an example draws depends on its key and on how much it has drawn itself: not on which others are in the batch, whether they
    have left, or whether it comes in one piece. The n-th number of a stream is SplitMix64's (Steele et al., OOPSLA 2014, fig. 17),
    computed from n directly, as in the counter-based generators of Salmon et al., SC 2011; the same on every device.

    keys: int64 [N].
    """

    def __init__(self, keys: Tensor) -> None:
        self._keys, self._drawn = keys, torch.zeros_like(keys)
        self._at: Tensor | None = None

    @classmethod
    def of(cls, seed: int, index: Tensor) -> ExampleStreams:
        """Streams of the examples with these numbers (int64 [N], at least 0); different seeds give unrelated ones."""
        return cls(_mixed(_mixed(torch.full_like(index, seed)) + _GAMMA * (index + 1)))

    def __len__(self) -> int:
        return len(self._keys if self._at is None else self._at)

    def rows(self, index: Tensor) -> ExampleStreams:
        """The streams of some of the examples (int64 [M], each once): the same ones, so that nothing drawn here comes again there."""
        part = ExampleStreams.__new__(ExampleStreams)
        part._keys, part._drawn = self._keys, self._drawn
        part._at = index if self._at is None else self._at[index]
        return part

    def branches(self, labels: Tensor) -> ExampleStreams:
        """Fresh streams, n for each example by their labels (int64 [N, n], at least 0), in the order of [N * n]."""
        at = self._places()
        self._drawn.index_add_(0, at, torch.ones_like(at))
        keys = _mixed(~self._keys[at] + _GAMMA * self._drawn[at])
        return ExampleStreams(_mixed(keys.unsqueeze(1) + _GAMMA * (labels + 1)).reshape(-1))

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        """Numbers in [0, 1), multiples of 2^-53, float64 `shape` = [N, ...]. Raises UserError for another first dimension."""
        count = len(self)
        if not shape or shape[0] != count:
            raise UserError(f"random numbers of shape {list(shape)} for {count} examples", fix="draw something for each example")
        at = self._places()
        size = math.prod(shape[1:])
        place = self._drawn[at].unsqueeze(1) + torch.arange(1, size + 1, device=at.device)
        self._drawn.index_add_(0, at, torch.full_like(at, size))
        bits = _shifted(_mixed(self._keys[at].unsqueeze(1) + _GAMMA * place), 64 - _BITS)
        return (bits.double() * 2.0**-_BITS).reshape(shape)

    def _places(self) -> Tensor:
        return torch.arange(len(self._keys), device=self._keys.device) if self._at is None else self._at


Randomness = torch.Generator | ExampleStreams | None
"""Where random numbers come from; None is torch's global generator."""


def uniform(like: Tensor, source: Randomness) -> Tensor:
    """Uniform on [0, 1), in the shape and precision of `like`."""
    if isinstance(source, ExampleStreams):
        cut = 2.0 ** min(_BITS, _digits(like))  # no rounding up to 1
        return (source.uniform(tuple(like.shape)) * cut).floor_().div_(cut).to(like)
    return torch.rand(like.shape, generator=source, dtype=like.dtype, device=like.device)


def normal(like: Tensor, source: Randomness) -> Tensor:
    """Standard normal."""
    if isinstance(source, ExampleStreams):
        return torch.special.ndtri(source.uniform(tuple(like.shape)) + 2.0 ** -(_BITS + 1)).to(like)
    return torch.empty_like(like).normal_(generator=source)


def exponential(like: Tensor, source: Randomness) -> Tensor:
    """Exponential of rate 1."""
    if isinstance(source, ExampleStreams):
        return torch.log1p(-source.uniform(tuple(like.shape))).neg_().to(like)
    return torch.empty_like(like).exponential_(generator=source)


def signs(like: Tensor, source: Randomness) -> Tensor:
    """-1 or 1, each with probability 1/2."""
    if isinstance(source, ExampleStreams):
        return torch.where(source.uniform(tuple(like.shape)) < 0.5, 1.0, -1.0).to(like)
    return torch.empty_like(like).bernoulli_(0.5, generator=source).mul_(2).sub_(1)


def _digits(like: Tensor) -> int:
    return 1 - int(math.log2(torch.finfo(like.dtype).eps))


def _shifted(z: Tensor, by: int) -> Tensor:
    """z >> by, without the sign."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def _mixed(z: Tensor) -> Tensor:
    """SplitMix64's finaliser; products wrap around 2^64."""
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


__all__ = ["ExampleStreams", "Randomness", "exponential", "normal", "signs", "uniform"]
