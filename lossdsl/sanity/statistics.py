"""The decisions of the gate: exact tests on counts, each at a level that keeps a sound model's false alarms rare.

A report makes at most MOST_TESTS of them. By Bonferroni's inequality a model for which every tested claim holds is reported with
probability at most FAMILY_LEVEL.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.stats import binomtest
from torch import Tensor

FAMILY_LEVEL = 0.01
MOST_TESTS = 20
LEVEL = FAMILY_LEVEL / MOST_TESTS


def exceeds(count: int, total: int, share: float) -> bool:
    """Whether `count` of `total` examples are more than `share` of all, by a one-sided binomial test at LEVEL."""
    return total > 0 and float(binomtest(count, total, share, alternative="greater").pvalue) < LEVEL


def enough(total: int) -> bool:
    """Whether so many paired examples could show a difference at all: with all of them on one side the sign test has p = 2^-total."""
    return 0.5**total < LEVEL


@dataclass(frozen=True)
class Pair:
    """Two attacks on the same examples; `only_weak` and `only_strong` count the examples that just one of them breaks."""

    weak: int
    strong: int
    only_weak: int
    only_strong: int
    total: int

    @classmethod
    def of(cls, weak: Tensor, strong: Tensor) -> Pair:
        """From what each breaks, boolean [N]."""
        one, two, only_weak, only_strong = torch.stack([weak, strong, weak & ~strong, strong & ~weak]).sum(1).tolist()
        return cls(one, two, only_weak, only_strong, len(weak))

    def reversed(self) -> bool:
        """Whether the attack that should be stronger is weaker: McNemar's exact one-sided test at LEVEL on the examples that only one
        of the two breaks."""
        differing = self.only_weak + self.only_strong
        return differing > 0 and float(binomtest(self.only_weak, differing, 0.5, alternative="greater").pvalue) < LEVEL

    def misses(self, share: float) -> bool:
        """Whether the attack that should be stronger misses more than `share` of all examples that the other breaks."""
        return exceeds(self.only_weak, self.total, share)

    def numbers(self) -> dict[str, int]:
        return {
            "broken_by_the_weaker": self.weak, "broken_by_the_stronger": self.strong, "only_by_the_weaker": self.only_weak,
            "only_by_the_stronger": self.only_strong, "examples": self.total,
        }  # fmt: skip
