"""Which examples the batches of an epoch hold: one stream in a new order, two streams mixed, or draws class by class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lossdsl.diagnostics import UserError
from lossdsl.run.examples import Split, chunks
from lossdsl.run.rng import derive, generator

TOLERANCE = 1e-3
"""How far from one the probabilities of the classes may add up to: they come from float32, or bfloat16 rounded to it."""


def epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    """The order of an epoch's examples: a function of seed and epoch alone, so that nothing of it needs saving."""
    return torch.randperm(count, generator=generator("cpu", derive(seed, "order", epoch)))


def cycled_order(seed: int, start: int, length: int, count: int) -> Tensor:
    """Places `start` to `start + length` of an endless stream that goes through `count` examples again and again, shuffled each time."""
    first, last = start // count, (start + length - 1) // count
    passes = [torch.randperm(count, generator=generator("cpu", derive(seed, "second order", number))) for number in range(first, last + 1)]
    return torch.cat(passes)[start - first * count :][:length]


@dataclass(frozen=True)
class Feed:
    """The examples of training and how an epoch goes through them.

    `split`: all of them, the first `labelled` of one stream and the others (none without mixing) of the second. A batch of `batch`
    examples has `pseudo` of the second stream.
    """

    split: Split
    labelled: int
    batch: int
    pseudo: int = 0

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch, which is one pass over the first stream; the last one may be smaller."""
        return -(-self.labelled // (self.batch - self.pseudo))

    def size(self, number: int) -> int:
        """Examples of the first stream in a batch of an epoch, counted from 0."""
        share = self.batch - self.pseudo
        return min(share, self.labelled - number * share)

    def order(self, seed: int, epoch: int) -> tuple[Tensor, ...]:
        """The examples of each batch of an epoch. The second stream goes on where the epoch before left it; a smaller last batch has the
        same share of it."""
        share = self.batch - self.pseudo
        own = chunks(epoch_order(seed, epoch, self.labelled), share)
        if not self.pseudo:
            return own
        counts = [round(len(part) * self.pseudo / share) for part in own]
        total = sum(counts)
        others = cycled_order(seed, (epoch - 1) * total, total, len(self.split) - self.labelled) + self.labelled
        return tuple(torch.cat(pair) for pair in zip(own, others.split(counts), strict=True))


def mixed_count(batch: int, fraction: float) -> int:
    """Examples of the second stream in a full batch. Raises UserError where one stream would have none."""
    count = round(batch * fraction)
    if not 0 < count < batch:
        stream = "second" if count == 0 else "first"
        raise UserError(
            f"a batch of {batch} with fraction = {fraction:g} has no example of the {stream} stream",
            where="train data",
            fix="choose a larger batch, or another fraction",
        )
    return count


class ClassSampler:
    """Draws a class, then an example of that class, each time anew and with replacement (Cevher et al., CFOL)."""

    def __init__(self, labels: Tensor, num_classes: int) -> None:
        self.counts = torch.bincount(labels, minlength=num_classes)
        self.by_class = torch.argsort(labels, stable=True)
        self.first = self.counts.cumsum(0) - self.counts

    def draw(self, law: Tensor, count: int, random: torch.Generator) -> Tensor:
        """Places [count] of examples. `law` [K]: the probability of each class.

        Raises UserError for a law that is none, or that wants a class without examples.
        """
        law = law.detach().to("cpu", torch.float64)
        self._check(law)
        possible = law.nonzero().squeeze(1)
        classes = possible[torch.multinomial(law[possible], count, replacement=True, generator=random)]
        members = (torch.rand(count, dtype=torch.float64, generator=random) * self.counts[classes]).long()
        return self.by_class[self.first[classes] + members]

    def _check(self, law: Tensor) -> None:
        where = "train sampler"
        if law.shape != self.counts.shape:
            raise UserError(
                f"the law has shape {list(law.shape)}, the data {len(self.counts)} classes", where=where, fix="give one number per class"
            )
        if not bool(torch.isfinite(law).all()) or bool((law < 0).any()) or abs(float(law.sum()) - 1) > TOLERANCE:
            shown = ", ".join(f"{p:.4g}" for p in law.tolist())
            raise UserError(
                f"the probabilities of the classes are {shown}: they must be 0 or more and add up to 1",
                where=where,
                fix="build them with softmax or as a mixture of laws",
            )
        absent = ((law > 0) & (self.counts == 0)).nonzero().squeeze(1).tolist()
        if absent:
            raise UserError(
                f"class {absent[0]} has probability {float(law[absent[0]]):.4g} and no training example",
                where=where,
                fix="give it probability 0, or train on data that has every class",
            )
