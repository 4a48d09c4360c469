"""Probabilities, in log space."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lossdsl.engine.kernels.table import kernel


@kernel("log_softmax")
def log_softmax(logits: Tensor) -> Tensor:
    return functional.log_softmax(logits, dim=-1)


def _zero_log_zero(logs: Tensor) -> Tensor:
    """Log-probabilities with -inf replaced, for products with a probability that is 0 there."""
    return torch.where(logs == -math.inf, 0.0, logs)


@kernel("KL")
def kl_divergence(target: Tensor, prediction: Tensor) -> Tensor:
    """KL(target || prediction) = sum_i t_i (log t_i - log q_i), 0 log 0 = 0."""
    t = torch.exp(target)
    both = torch.where(target == -math.inf, 0.0, _zero_log_zero(target) - prediction)
    return _not_negative((t * both).sum(-1))


def _not_negative(v: Tensor) -> Tensor:
    """0 where rounding has gone below it; the gradient is that of v."""
    return torch.where(v < 0, v - v.detach(), v)


@kernel("cross_entropy")
def cross_entropy(prediction: Tensor, target: Tensor) -> Tensor:
    """-sum_i t_i log q_i, 0 log 0 = 0."""
    return -(torch.exp(target) * torch.where(target == -math.inf, 0.0, prediction)).sum(-1)


@kernel("H")
def entropy(p: Tensor) -> Tensor:
    return -(torch.exp(p) * _zero_log_zero(p)).sum(-1)


@kernel("SE")
def squared_error(p: Tensor, q: Tensor) -> Tensor:
    return (torch.exp(p) - torch.exp(q)).square().sum(-1)


@kernel("TV")
def total_variation(p: Tensor, q: Tensor) -> Tensor:
    return (torch.exp(p) - torch.exp(q)).abs().sum(-1) / 2


@kernel("mix")
def mixture(weight: Any, first: Tensor, second: Tensor) -> Tensor:
    """log((1 - a) P + a Q) for a in [0, 1]."""
    a = weight.unsqueeze(-1) if weight.dim() else weight
    return _log_add(_log_weight(1 - a) + first, _log_weight(a) + second)


def _log_weight(a: Tensor) -> Tensor:
    """log a, -inf without gradient at 0."""
    return torch.where(a > 0, torch.log(torch.where(a > 0, a, 1.0)), -math.inf)


@kernel("log_add")
def _log_add(a: Tensor, b: Tensor) -> Tensor:
    """logaddexp with gradient 0, not NaN, where both are -inf."""
    nothing = (a == -math.inf) & (b == -math.inf)
    return torch.where(nothing, -math.inf, torch.logaddexp(torch.where(nothing, 0.0, a), torch.where(nothing, 0.0, b)))


@kernel("JS")
def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    middle = _log_add(p, q) - math.log(2)
    return (kl_divergence(p, middle) + kl_divergence(q, middle)) / 2  # each part is not negative, so neither is the sum


@kernel("onehot")
def one_hot(y: Tensor, real: Tensor, classes: int) -> Tensor:
    hot = functional.one_hot(y, classes).to(real.dtype)
    return torch.log(hot)


@kernel("smooth")
def smoothed(y: Tensor, share: float, real: Tensor, classes: int) -> Tensor:
    hot = functional.one_hot(y, classes).to(real.dtype)
    return torch.log((1 - share) * hot + share / classes)


@kernel("probabilities")
def probabilities(logs: Tensor) -> Tensor:
    """The probabilities in float64, raised to at least 1e-30 (without gradient there), so that any generator has derivatives."""
    low = math.log(1e-30)
    logs = logs.double()
    return torch.exp(torch.where(logs < low, low, logs))


@kernel("bregman")
def bregman(at_p: Tensor, at_q: Tensor, slope: Tensor, p: Tensor, q: Tensor, *, real: Tensor) -> Tensor:
    """psi(p) - psi(q) - <grad psi(q), p - q>, computed in float64."""
    return (at_p - at_q - (slope * (p - q)).sum(-1)).to(real.dtype)
