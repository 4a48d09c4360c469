"""The point of smallest norm in the convex hull of some vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from lossdsl.diagnostics import UserError


def min_norm_weights(gram: Tensor) -> Tensor:
    """The a >= 0, sum(a) = 1, that minimise |sum_i a_i g_i|, from the Gram matrix <g_i, g_j>, [k, k]; [k], float64.

    The direction of DDi (Latorre et al., ICLR 2023) is g = sum_i a_i g_i; it satisfies <g_i, g> >= |g|^2 for all i, so that -g
    descends on every one of the k functions unless g = 0.

    Solved exactly as a least-squares problem with non-negative unknowns (Lawson and Hanson 1974, chapter 23): u minimises
    |sum_i u_i g_i|^2 + (sum_i u_i - 1)^2, and a = u / sum(u). The vectors are divided by their lengths first, so that neither their
    common scale nor differences between them cost digits. Vectors of length 0 share the weight if there are any.

    Raises UserError for a matrix that is not square, symmetric and finite.
    """
    from scipy.optimize import nnls  # here, as it takes long to load and only this function needs it

    gram = gram.detach()
    matrix = gram.double().cpu()
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or not bool(matrix.isfinite().all()):
        raise UserError(f"a Gram matrix of shape {tuple(gram.shape)}", where="min-norm", fix="it is square and finite")
    lengths = matrix.diagonal().clamp_min(0.0).sqrt()
    zero = lengths == 0
    if bool(zero.any()):
        return (zero.double() / zero.sum()).to(gram.device)
    cosines = matrix / lengths / lengths.unsqueeze(1)
    if not torch.allclose(cosines, cosines.mT, rtol=0, atol=1e-4):
        raise UserError("a Gram matrix that is not symmetric", where="min-norm", fix="entry (i, j) is the inner product of vectors i and j")
    values, vectors = torch.linalg.eigh((cosines + cosines.mT) / 2)
    root = vectors * values.clamp_min(0.0).sqrt() @ vectors.mT
    shortest = lengths.min() / lengths  # the unknowns are u_i * |g_i|
    target = torch.zeros(len(lengths) + 1, dtype=torch.float64)
    target[-1] = 1.0
    scaled = torch.as_tensor(nnls(torch.cat((root, shortest.unsqueeze(0))).numpy(), target.numpy())[0])
    weights = scaled * shortest
    return (weights / weights.sum()).to(gram.device)
