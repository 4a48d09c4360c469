"""The tests behind the findings: their levels against exact enumeration, and what one more example changes."""

from __future__ import annotations

from math import comb

import pytest
import torch

from lossdsl.sanity.statistics import LEVEL, MOST_TESTS, Pair, enough, exceeds


def tail(count: int, total: int, share: float) -> float:
    return sum(comb(total, k) * share**k * (1 - share) ** (total - k) for k in range(count, total + 1))


@pytest.mark.parametrize(("total", "share"), [(20, 0.01), (128, 0.02), (128, 0.1), (1000, 0.05)])
def test_exceeds_is_the_exact_binomial_test(total: int, share: float) -> None:
    first = next(k for k in range(total + 1) if exceeds(k, total, share))
    assert tail(first, total, share) < LEVEL <= tail(first - 1, total, share)
    assert not exceeds(0, 0, share)


def test_reversed_is_mcnemars_exact_test() -> None:
    for differing in (11, 20, 50):
        first = next(k for k in range(differing + 1) if Pair(0, 0, k, differing - k, 100).reversed())
        assert tail(first, differing, 0.5) < LEVEL <= tail(first - 1, differing, 0.5)
    assert not Pair(0, 0, 0, 0, 100).reversed()
    assert not Pair(0, 0, 10, 0, 100).reversed() and enough(11) and not enough(10)


def test_pairs_are_counted_per_example() -> None:
    weak, strong = torch.tensor([1, 1, 0, 0, 1]).bool(), torch.tensor([1, 0, 1, 0, 0]).bool()
    assert Pair.of(weak, strong) == Pair(3, 2, 2, 1, 5)


def test_a_repaired_share_is_a_finding_even_where_the_net_is_right() -> None:
    """Thirty examples repaired while sixty more are broken: the sum hides it, the share does not."""
    pair = Pair(40, 70, 30, 60, 128)
    assert pair.misses(0.02) and not pair.reversed()
    assert not Pair(40, 100, 5, 65, 128).misses(0.02)


def test_false_alarms_are_rare_where_the_claim_holds() -> None:
    """All tests of a report together, each at the border of its claim: below FAMILY_LEVEL by enumeration."""
    shares = sum(max(tail(k, 128, s) for k in range(129) if exceeds(k, 128, s)) for s in (0.01, 0.01, 0.1, 0.02, 0.02, 0.02, 0.1, 0.05, 0.05, 0.05))
    signs = 4 * max(tail(k, 50, 0.5) for k in range(51) if Pair(0, 0, k, 50 - k, 128).reversed())
    assert shares + signs < MOST_TESTS * LEVEL <= 0.01 + 1e-12
