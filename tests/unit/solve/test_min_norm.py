"""The min-norm point of a convex hull: optimality conditions, brute force, and awkward vectors."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossdsl.diagnostics import UserError
from lossdsl.solve import min_norm_weights


def gram(vectors: Tensor) -> Tensor:
    return vectors.double() @ vectors.double().T


def brute_force(vectors: Tensor) -> float:
    """The smallest norm over all faces: on each, the min-norm point of the affine hull, if its weights are not negative."""
    best = math.inf
    for size in range(1, len(vectors) + 1):
        for face in itertools.combinations(range(len(vectors)), size):
            inner = gram(vectors[list(face)])
            bordered = torch.zeros(size + 1, size + 1, dtype=torch.float64)
            bordered[:size, :size], bordered[:size, size], bordered[size, :size] = inner, 1.0, 1.0
            side = torch.zeros(size + 1, dtype=torch.float64)
            side[size] = 1.0
            weights = torch.linalg.lstsq(bordered, side.unsqueeze(1), driver="gelsd").solution[:size, 0]
            if (weights >= -1e-9).all() and abs(float(weights.sum()) - 1) < 1e-6:
                best = min(best, float((weights @ inner @ weights).clamp_min(0).sqrt()))
    return best


@settings(max_examples=100, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 7), d=st.sampled_from([1, 2, 3, 10, 1000]), shift=st.sampled_from([0.0, 0.5, 3.0]))
def test_optimality(seed: int, k: int, d: int, shift: float) -> None:
    vectors = shift + torch.randn(k, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights = min_norm_weights(gram(vectors))
    assert weights.dtype == torch.float64
    assert (weights >= 0).all()
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-12)
    point = weights @ vectors
    size = float(vectors.square().sum(1).amax())
    assert (vectors @ point >= point.square().sum() - 1e-9 * size).all()
    assert float(point.norm()) == pytest.approx(brute_force(vectors), abs=1e-6 * math.sqrt(size))


def test_by_hand() -> None:
    assert min_norm_weights(gram(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))).tolist() == pytest.approx([0.5, 0.5])
    assert min_norm_weights(gram(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))).tolist() == pytest.approx([0.2, 0.8])
    assert min_norm_weights(gram(torch.tensor([[1.0, 0.0], [3.0, 1.0]]))).tolist() == pytest.approx([1.0, 0.0])
    assert min_norm_weights(gram(torch.tensor([[1.0], [-3.0]]))).tolist() == pytest.approx([0.75, 0.25])


def test_the_counterexample_of_danskin() -> None:
    """Gradients +1 and -1 at x = 0 of max over d of x d: the direction is 0, not the ascent direction of one maximiser."""
    assert min_norm_weights(gram(torch.tensor([[1.0], [-1.0]]))).tolist() == pytest.approx([0.5, 0.5])


def test_one_vector_duplicates_and_zeros() -> None:
    assert min_norm_weights(torch.tensor([[7.0]])).tolist() == [1.0]
    assert min_norm_weights(torch.tensor([[0.0]])).tolist() == [1.0]
    twice = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    weights = min_norm_weights(gram(twice))
    assert torch.allclose(weights @ twice.double(), twice[0].double())
    two = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    assert torch.allclose(min_norm_weights(gram(two)) @ two.double(), torch.tensor([0.4, 0.8]).double())
    zero = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert min_norm_weights(gram(zero)).tolist() == [0.0, 0.5, 0.5]


@pytest.mark.parametrize("scale", [1e-150, 1e-20, 1e-6, 1e6, 1e20, 1e150])
def test_every_scale(scale: float) -> None:
    vectors = 1.0 + torch.randn(5, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.allclose(min_norm_weights(gram(scale * vectors)), min_norm_weights(gram(vectors)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("ratio", [1e-3, 1e-6, 1e-12])
def test_vectors_of_very_different_lengths(ratio: float) -> None:
    """Orthogonal vectors: weights are inverse to squared lengths, here to full relative accuracy."""
    vectors = torch.tensor([[1.0, 0.0], [0.0, ratio]]).double()
    weights = min_norm_weights(gram(vectors))
    assert float(weights[0]) == pytest.approx(ratio**2 / (1 + ratio**2), rel=1e-6)
    assert float(weights[1]) == pytest.approx(1 / (1 + ratio**2), rel=1e-12)


def test_a_float32_gram_matrix_that_is_not_quite_definite() -> None:
    vectors = torch.ones(6, 100000) + 1e-4 * torch.randn(6, 100000, generator=torch.Generator().manual_seed(0))
    weights = min_norm_weights(vectors @ vectors.T)
    assert weights.isfinite().all()
    assert float((weights @ vectors.double()).norm()) <= float(vectors.double().norm(dim=1).min()) * (1 + 1e-6)


def test_refusals() -> None:
    for wrong in (torch.ones(2, 3), torch.ones(3), torch.tensor([[1.0, math.nan], [math.nan, 1.0]])):
        with pytest.raises(UserError, match="a Gram matrix of shape"):
            min_norm_weights(wrong)
    with pytest.raises(UserError, match="not symmetric"):
        min_norm_weights(torch.tensor([[1.0, 0.5], [-0.5, 1.0]]))
