"""The best rows found so far for one layout: those that satisfy the hypotheses first, by violation; then those nearest to them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from lossdsl.laws.draws import Rows
from lossdsl.laws.problem import Evaluation

OUTSIDE = 10.0
"""Rows that miss a hypothesis are worth less than minus this."""
BLURRED = 2e-11
"""Where rounding is larger (numbers from 700 on: exponentials underflow), hypotheses that hold by less than it say nothing."""


def lack(e: Evaluation) -> Tensor:
    """[B]: how much the hypotheses are missed by, together; 0 where they hold."""
    return torch.relu(-e.hypotheses.nan_to_num(-1.0)).sum(-1)


def worth(e: Evaluation, relative: bool = False) -> Tensor:
    """[B]: what a search climbs: the violation where the hypotheses hold; relative: the ratio, of differences that are no rounding."""
    value = e.violation.nan_to_num(-1.0)
    if relative:
        value = torch.where(e.violation.abs() > e.noise, e.ratio.nan_to_num(-1.0), -1.0)
    surely = (e.hypotheses >= e.rounding.clamp_max(0.5).unsqueeze(-1)).all(-1) | (e.rounding < BLURRED)
    return torch.where(e.satisfied & surely, value, torch.where(e.satisfied, -OUTSIDE, -OUTSIDE - lack(e)))


class Pool:
    """Up to `size` rows by violation and as many by ratio."""

    def __init__(self, width: int, size: int) -> None:
        self.size = size
        self._probe = np.sqrt(np.arange(2.0, 2.0 + width))  # tells rows apart
        self._rows = [torch.zeros(0, width, dtype=torch.float64) for _ in range(2)]
        self._worths = [torch.zeros(0, dtype=torch.float64) for _ in range(2)]

    def __len__(self) -> int:
        return sum(map(len, self._rows))

    def add(self, x: Tensor, e: Evaluation, g: Generator) -> None:
        """Equally good rows are kept at random, each row once."""
        for n, relative in enumerate((False, True)):
            worths = worth(e, relative)
            if len(self._rows[n]) >= self.size:
                better = worths > self._worths[n][-1]
                rows, worths = x[better], worths[better]
            else:
                rows = x
            if len(rows):
                self._keep(n, rows, worths, g)

    def _keep(self, n: int, x: Tensor, worths: Tensor, g: Generator) -> None:
        rows, worths = torch.cat([self._rows[n], x]), torch.cat([self._worths[n], worths])
        order = np.lexsort((g.random(len(worths)), -worths.numpy()))[: 2 * self.size]
        _, first = np.unique(rows[order].numpy() @ self._probe, return_index=True)
        kept = torch.from_numpy(order[np.sort(first)][: self.size].copy())
        self._rows[n], self._worths[n] = rows[kept], worths[kept]

    @property
    def rows(self) -> Rows:
        """[n, width], those by violation first, the best first."""
        return np.asarray(torch.cat(self._rows).numpy())

    @property
    def best(self) -> float:
        return float(self._worths[0][0]) if len(self._worths[0]) else -float("inf")

    def chosen(self, g: Generator, count: int) -> Rows:
        """Rows drawn with a preference for the best, of both kinds."""
        kinds = [r.numpy() for r in self._rows if len(r)]
        parts = []
        for n, rows in enumerate(kinds):
            share = count // len(kinds) + (count % len(kinds) if n == 0 else 0)
            parts.append(rows[np.minimum((g.random(share) ** 2 * len(rows)).astype(int), len(rows) - 1)])
        return np.concatenate(parts)
