"""Who is fooled, and since when: the counts that GAIRAT weighs examples by and the early stop of friendly adversarial training.

Sources: Zhang et al., ICML 2020 (FAT), alg. 1; Zhang et al., ICLR 2021 (GAIRAT), alg. 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Checks:
    """The checks before the updates of one restart, one problem per example.

    survived: [N], the checks passed so far, in the precision of the point.
    first: [N], the k of the first check that was failed; the number of steps while there is none.
    counter: [N], how many more failed checks an example steps on after; None: nobody ever leaves.
    left: bool [N].
    """

    survived: Tensor
    first: Tensor
    counter: Tensor | None
    left: Tensor

    @staticmethod
    def begin(point: Tensor, steps: int, until: float | Tensor | None) -> Checks:
        """Before the first check of a run of `steps` updates from `point`, [N, *shape]; `until` broadcasts to [N]."""
        zeros = point.detach().new_zeros(point.shape[0])
        counter = None if until is None else torch.as_tensor(until, dtype=zeros.dtype, device=zeros.device).expand_as(zeros)
        return Checks(zeros, torch.full_like(zeros, steps), counter, torch.zeros_like(zeros, dtype=torch.bool))

    def record(self, k: int, fooled: Tensor) -> None:
        """The check of x'@k; fooled: bool [N]. Who has left stands still at a misclassified point, whatever `fooled` says there."""
        fooled = fooled | self.left
        self.survived = self.survived + ~fooled
        self.first = torch.where(fooled, self.first.clamp(max=k), self.first)
        if self.counter is not None:
            self.left = fooled & (self.counter <= 0)
            self.counter = self.counter - (fooled & ~self.left).to(self.counter.dtype)

    def replace(self, take: Tensor, new: Checks) -> None:
        """Takes the counts of another run over where `take`, bool [N]."""
        self.survived, self.first = torch.where(take, new.survived, self.survived), torch.where(take, new.first, self.first)
