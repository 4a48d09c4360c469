"""Lower-level problems for the tests of attacks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lossdsl.solve import SETS_TORCH, Domain, ExampleStreams, Problem

UNIT = Domain(0.0, 1.0)
RADIUS = {"linf": 0.1, "l2": 0.6, "l1": 3.0}


def problem(objective: Callable[[Tensor], Tensor], norm: str, x: Tensor, *, domain: Domain | None = UNIT) -> Problem:
    """maximise the objective from a random point of the border."""
    region = SETS_TORCH[norm](x, RADIUS[norm], domain)
    generator = torch.Generator().manual_seed(0)
    return Problem(objective, region, lambda: region.sphere(generator))


def classifier(
    model: Callable[[Tensor], Tensor],
    norm: str,
    x: Tensor,
    y: Tensor,
    *,
    target: Tensor | None = None,
    domain: Domain | None = UNIT,
    eps: float | None = None,
    objective: Callable[[Tensor], Tensor] | None = None,
) -> Problem:
    """Raise a class (the target, or any) above the label: an attack that can be restricted, with a stream of random numbers for each."""
    streams = ExampleStreams.of(0, torch.arange(len(x)))

    def of(rows: Tensor) -> Problem:
        seen: dict[str, Tensor] = {}

        def margins(v: Tensor) -> Tensor:
            if objective is not None:
                seen["wrong"] = torch.zeros(len(v), dtype=torch.bool)
                return objective(v).unsqueeze(1)
            z = model(v)
            seen["wrong"] = z.argmax(1) != y[rows]
            above = z - z.gather(1, y[rows].unsqueeze(1))
            others = torch.arange(z.shape[1]).expand_as(z) != y[rows].unsqueeze(1)
            return above[others].view(len(z), -1) if target is None else above.gather(1, target[rows].unsqueeze(1))

        region = SETS_TORCH[norm](x[rows], RADIUS[norm] if eps is None else eps, domain)
        return Problem(
            lambda v: margins(v).amax(1), region, lambda: x[rows], streams.rows(rows), margins=margins, fooled=lambda: seen["wrong"],
            restrict=None if objective is not None else lambda at: of(rows[at]),
        )  # fmt: skip

    return of(torch.arange(len(x)))
