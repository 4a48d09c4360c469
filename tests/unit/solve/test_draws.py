"""Streams per example: the published sequence, its distributions, and what an example's numbers do not depend on."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import kstest

from lossdsl.diagnostics import UserError
from lossdsl.solve import ExampleStreams, draws


def streams(count: int = 5, seed: int = 3) -> ExampleStreams:
    return ExampleStreams.of(seed, torch.arange(count))


def test_the_numbers_are_those_of_splitmix64() -> None:
    """Seed 1234567 gives 6457827717110365317, 3203168211198807973, 9817491932198370423, ... (the reference implementation's output)."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    found = ExampleStreams(torch.tensor([1234567])).uniform((1, 5))
    assert found.tolist() == [[(z >> 11) * 2.0**-53 for z in published]]


@pytest.mark.parametrize(("draw", "law"), [(draws.uniform, "uniform"), (draws.normal, "norm"), (draws.exponential, "expon")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distributions_within_a_stream_and_across_streams(draw: object, law: str, dtype: torch.dtype) -> None:
    found = draw(torch.empty(400, 50, dtype=dtype), streams(400))
    assert found.dtype is dtype and bool(found.isfinite().all())
    assert kstest(found.flatten().double().numpy(), law).pvalue > 1e-3
    assert kstest(found[:, 7].double().numpy(), law).pvalue > 1e-3
    assert abs(float(torch.corrcoef(found.double().T).triu(1).abs().max())) < 0.3
    if draw is draws.uniform:
        assert float(found.min()) >= 0 and float(found.max()) < 1


def test_signs() -> None:
    found = draws.signs(torch.empty(100, 100), streams(100))
    assert set(found.unique().tolist()) == {-1.0, 1.0} and abs(float(found.mean())) < 0.04


def test_a_stream_goes_on_whoever_draws_beside_it() -> None:
    like = torch.empty(5, 3, dtype=torch.float64)
    alone = streams()
    wanted = [draws.uniform(like, alone) for _ in range(3)]
    parts = streams()
    first = draws.uniform(like, parts)
    some = parts.rows(torch.tensor([1, 4]))
    second = draws.uniform(like[:2], some)
    third = draws.uniform(like[:1], some.rows(torch.tensor([1])))
    others = draws.uniform(like[:3], parts.rows(torch.tensor([3, 0, 2])))
    assert torch.equal(first, wanted[0]) and torch.equal(second, wanted[1][[1, 4]])
    assert torch.equal(third, wanted[2][[4]]) and torch.equal(others, wanted[1][[3, 0, 2]])


def test_example_and_seed_are_all_that_counts() -> None:
    like = torch.empty(2, 4, dtype=torch.float64)
    pair = ExampleStreams.of(3, torch.tensor([7, 2]))
    assert torch.equal(draws.normal(like, pair), draws.normal(torch.empty(9, 4, dtype=torch.float64), streams(9))[[7, 2]])
    assert not torch.equal(draws.normal(like, ExampleStreams.of(4, torch.tensor([7, 2]))), draws.normal(like, pair))


def test_branches_are_fresh_and_named_by_their_labels() -> None:
    like = torch.empty(4, 3, dtype=torch.float64)
    one, two = streams(2), streams(2)
    first = draws.uniform(like, one.branches(torch.tensor([[0, 5], [1, 5]])))
    again = draws.uniform(like, one.branches(torch.tensor([[0, 5], [1, 5]])))
    swapped = draws.uniform(like, two.branches(torch.tensor([[5, 0], [1, 5]])))
    assert torch.equal(first[[1, 0, 2, 3]], swapped)
    assert len({tuple(row) for row in torch.cat([first, again]).tolist()}) == 8


def test_a_draw_for_the_whole_batch_has_no_stream() -> None:
    with pytest.raises(UserError, match=r"random numbers of shape \[3\] for 5 examples"):
        draws.uniform(torch.empty(3), streams())
