"""apgd against the published algorithm written out plainly, iterate by iterate, and against mathematics."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import published
import pytest
import torch
from conftest import Digits
from torch import Tensor

from lossdsl.lang.search_options import ApgdOptions
from lossdsl.solve import SETS_TORCH, Domain, Problem, SearchRequest, build_search, search

UNIT = Domain(0.0, 1.0)
RADIUS = {"linf": 0.1, "l2": 0.6, "l1": 3.0}


def problem(loss: Callable[[Tensor], Tensor], norm: str, x: Tensor, eps: float, seed: int = 0, domain: Domain | None = UNIT) -> Problem:
    """maximise loss(point) from a random point of the border."""
    region = SETS_TORCH[norm](x, eps, domain)
    generator = torch.Generator().manual_seed(seed)
    return Problem(loss, region, lambda: region.sphere(generator))


def run(given: Problem, steps: int, **request: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """All iterates, the point returned and its objective."""
    options = ApgdOptions(steps=steps)
    found = search(given, build_search("apgd", options, given.set), SearchRequest(captures=frozenset(range(steps + 1)), **request))
    assert found.objective is not None
    return [found.iterates[k] for k in range(steps + 1)], found.point, found.objective


LOSSES = {"CE": published.ce, "DLR": published.dlr}


@pytest.mark.parametrize("name", ["CE", "DLR", "targeted DLR"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_every_iterate_is_that_of_the_published_algorithm(norm: str, name: str, digits: Digits) -> None:
    (x, y), steps, eps = digits.some(12), 60, RADIUS[norm]
    target = digits.model(x).sort(dim=1).indices[:, -3]
    loss = LOSSES.get(name) or partial(published.targeted_dlr, target=target)
    given = problem(lambda v: loss(digits.model(v), y), norm, x, eps)
    iterates, best, value = run(given, steps)
    start = SETS_TORCH[norm](x, eps, UNIT).sphere(torch.Generator().manual_seed(0))
    if norm == "l1":
        expected = published.sparse_apgd(loss, digits.model, x, y, start, eps, steps)
    else:
        expected = published.apgd(loss, digits.model, x, y, start, eps, norm, steps)
    for k in range(steps + 1):
        torch.testing.assert_close(iterates[k], expected.points[k], rtol=0, atol=1e-9, msg=lambda m, k=k: f"iterate {k}: {m}")
    torch.testing.assert_close(best, expected.best, rtol=0, atol=1e-9)
    torch.testing.assert_close(value, torch.stack(expected.losses).amax(0), rtol=0, atol=1e-9)
