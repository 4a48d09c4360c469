"""Bisection per example: accuracy, evaluations, and what is returned where no sign changes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossdsl.diagnostics import UserError
from lossdsl.solve import bisection


@pytest.mark.parametrize("steps", [0, 1, 4, 10])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999))
def test_half_of_the_last_interval(steps: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    low = torch.randn(5, generator=g, dtype=torch.float64)
    high = low + 3 * torch.rand(5, generator=g, dtype=torch.float64)
    root = low + (high - low) * torch.rand(5, generator=g, dtype=torch.float64)
    slope = torch.where(torch.rand(5, generator=g) < 0.5, 1.0, -1.0)
    calls: list[Tensor] = []

    def function(t: Tensor) -> Tensor:
        calls.append(t)
        return slope * (t - root) ** 3

    found = bisection(function, low, high, steps)
    assert len(calls) <= steps + 2
    assert all(((low <= t) & (t <= high)).all() for t in [*calls, found])
    assert ((found - root).abs() <= (high - low) / 2 ** (steps + 1) * (1 + 1e-12)).all()


def test_no_change_of_sign() -> None:
    """Never fooled: the upper end. Fooled already at the lower: the lower end. Whatever happens in between or how fast it falls."""
    low, high = torch.zeros(4), torch.full((4,), 2.0)
    found = bisection(lambda t: torch.stack((t[0] - 5, t[1] + 5, -1 - t[2], 5 - t[3])), low, high, 6)
    assert found.tolist() == [2.0, 0.0, 2.0, 0.0]


def test_ends_and_midpoints_that_are_roots_are_returned_exactly() -> None:
    low, high = torch.zeros(4), torch.ones(4)
    found = bisection(lambda t: torch.stack((t[0], t[1] - 1, t[2] - 0.5, 0.25 - t[3])), low, high, 7)
    assert found.tolist() == [0.0, 1.0, 0.5, 0.25]
    assert bisection(lambda t: 0.0 * t, low, high, 3).tolist() == [0.0] * 4


def test_an_interval_of_length_zero_and_an_empty_batch() -> None:
    assert bisection(lambda t: t - 3, torch.ones(2), torch.ones(2), 3).tolist() == [1.0, 1.0]
    assert bisection(lambda t: t, torch.zeros(0), torch.zeros(0), 3).shape == (0,)


def test_the_radius_of_mma() -> None:
    """A margin that rises along a ray to the border of a linear classifier, in float32, ten steps on [0, 1.05 * d_max]."""
    border = torch.tensor([0.011, 0.04, 0.2])
    d_max = torch.full((3,), 32 / 255)
    found = bisection(lambda r: 7 * (r - border), torch.zeros(3), 1.05 * d_max, 10)
    assert torch.allclose(found[:2], border[:2], atol=float(1.05 * d_max[0]) / 2**11)
    assert found[2] == 1.05 * d_max[2]


def test_the_root_is_a_constant() -> None:
    weight = torch.ones(2, requires_grad=True)
    tracked: list[bool] = []

    def function(t: Tensor) -> Tensor:
        values = weight * t - 0.3
        tracked.append(values.requires_grad)
        return values

    assert not bisection(function, torch.zeros(2), weight * 1.0, 3).requires_grad
    assert not any(tracked)


def test_refusals() -> None:
    zeros, ones = torch.zeros(2), torch.ones(2)
    with pytest.raises(UserError, match="from the larger number to the smaller"):
        bisection(lambda t: t, ones, zeros, 3)
    with pytest.raises(UserError, match="from the larger number to the smaller"):
        bisection(lambda t: t, zeros, ones * math.nan, 3)
    with pytest.raises(UserError, match="r: \n*.*the function whose root is sought is NaN"):
        bisection(lambda t: t * math.nan, zeros, ones, 3, name="r")
    with pytest.raises(UserError, match=r"has shape \(\) for 2 examples"):
        bisection(lambda t: t.sum(), zeros, ones, 3)
