"""Laws of Bridged AT that the language does not say: inverses of psi-transforms, monotone paths, zeros on a path."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, inf, log, sqrt

import torch
from torch import Tensor

import lossdsl
from lossdsl.check.law_typed import Network
from lossdsl.engine.kernels.networks import network

Said = tuple[float, str, float]
Surrogate = tuple[Callable[[float], float], Callable[[float], float], Callable[[float], float]]


def _entropy(t: float) -> float:
    return sum(-u * log(u) for u in (t, 1 - t) if u > 0)


def _logistic(unit: float) -> Surrogate:
    def phi(u: float) -> float:
        return (max(-u, 0.0) + log(1 + exp(-abs(u)))) / unit

    return phi, lambda e: _entropy(e) / unit, lambda t: (log(2) - _entropy((1 + t) / 2)) / unit


SURROGATES: tuple[Surrogate, ...] = (
    (lambda u: max(0.0, 1 - u), lambda e: 2 * min(e, 1 - e), abs),
    (lambda u: exp(-u), lambda e: 2 * sqrt(e * (1 - e)), lambda t: 1 - sqrt(1 - t * t)),
    _logistic(log(2)),
)
"""Hinge, exponential, base-2 logistic: phi, H (the least risk at P(y = 1) = e), psi."""


def _inverse(psi: Callable[[float], float], value: float) -> float:
    """The largest t in [0, 1] with psi(t) <= value, psi convex from 0."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if psi(middle) <= value else (low, middle)
    return high


def _risks(surrogate: Surrogate, q: Tensor, e: Tensor, f: list[Tensor], beta: float) -> Said:
    """R_rob - R*_nat and psi^-1(R_phi - R*_phi) + E sum_k phi(beta f_k f_{k+1}). f[i]: from x_i to its x*, which crosses or touches 0
    if anything in the ball does."""
    phi, least, psi = surrogate
    robust = natural = risk = best = bridge = 0.0
    for mass, positive, path in zip(q.tolist(), e.tolist(), (row.tolist() for row in f), strict=True):
        start, moved = path[0], path[0] * path[-1] <= 0
        robust += mass * (positive * (start <= 0 or moved) + (1 - positive) * (start >= 0 or moved))
        natural += mass * min(positive, 1 - positive)
        risk += mass * (positive * phi(start) + (1 - positive) * phi(-start))
        best += mass * least(positive)
        bridge += mass * sum(phi(beta * u * w) for u, w in zip(path, path[1:], strict=False))
    return robust - natural, "<=", _inverse(psi, max(risk - best, 0.0)) + bridge


POINTS = "q in simplex(n), e in vector(n, 0, 1), f[1..n] in vector(m, -5, 5), beta in [0.01, 10]"


@lossdsl.law(f"for n in {{2, 3}}, m in {{2, 4}}, phi in {{0, 1, 2}}, {POINTS}", source="Bridged AT, theorem 1 corrected")
def bat_e14_with_psi(n: int, m: int, phi: float, q: Tensor, e: Tensor, f: list[Tensor], beta: float) -> Said:
    """R_rob - R*_nat <= psi^-1(R_phi - R*_phi) + E sum phi(beta f_k f_{k+1}) on n points, phi hinge, exponential or base-2 logistic"""
    return _risks(SURROGATES[int(phi)], q, e, f, beta)


@lossdsl.law("for f in vector(2, -5, 5), beta in [0.01, 10]", source="Bridged AT, theorem 1", refute=True)
def bat_e12_with_psi(f: Tensor, beta: float) -> Said:
    """the same bound with the natural-log logistic loss and its psi, as printed: one point, y = 1"""
    return _risks(_logistic(1.0), torch.ones(1), torch.ones(1), [f], beta)


def _kl(p: Tensor, q: Tensor) -> float:
    return sum(inf if v == 0 else u * log(u / v) for u, v in zip(p.tolist(), q.tolist(), strict=True) if u > 0)


@lossdsl.law(
    "for K in 3..5, m in {2, 4, 6}, r in simplex(K), q in simplex(K), s[1..m] in vector(25, 0, 1)",
    source="Bridged AT, theorem 3, multi-class extension",
)
def bat_e18_constructed(K: int, m: int, r: Tensor, q: Tensor, s: list[Tensor]) -> Said:  # noqa: N803
    """sum_k KL(p_k || p_{k+1}) <= KL(p_0 || p_m) on paths of K classes on which every component is monotone (mass flows at its own pace)"""
    up, down = (q - r).clamp_min(0.0), (r - q).clamp_min(0.0)
    flows = down.unsqueeze(1) * up / max(float(up.sum()), 1e-300)  # from class i to class j
    paths = [r]
    for share in torch.stack(s).sort(0).values[:-1]:
        moved = flows * share.reshape(5, 5)[:K, :K]
        paths.append((r + moved.sum(0) - moved.sum(1)).clamp_min(0.0))
    paths.append(q)
    return sum(_kl(u, v) for u, v in zip(paths, paths[1:], strict=False)), "<=", _kl(r, q)


NETS = {name: Network(name, inputs=2, hidden=3, depth=1, classes=2) for name in ("tanh", "relu")}


def _at_the_sign_change(function: Callable[[float], float]) -> float | None:
    """|f| at the end of a bisection of [0, 1]; None where the ends have no opposite signs."""
    low, high = 0.0, 1.0
    if function(low) * function(high) >= 0:
        return None
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if function(low) * function(middle) <= 0 else (middle, high)
    return min(abs(function(low)), abs(function(high)))


def _along(theta: Tensor, a: Tensor, b: Tensor, activation: str) -> Callable[[float], float]:
    def value(t: float) -> float:
        logits = network(theta, (1 - t) * a + t * b, NETS[activation])
        return float(logits[0] - logits[1])

    return value


@lossdsl.law("for kind in {0, 1}, theta in vector(17, -5, 5), a in vector(2, 0, 1), b in vector(2, 0, 1)", source="Bridged AT, theorem 2")
def bat_e26_intermediate_values(kind: float, theta: Tensor, a: Tensor, b: Tensor) -> Said | None:
    """f(a) f(b) < 0 for f = f_0 - f_1 of a tanh or ReLU network: bisection of the segment ends at f = 0, up to rounding"""
    found = _at_the_sign_change(_along(theta, a, b, "tanh" if kind else "relu"))
    return None if found is None else (found, "<=", 0.0)


@lossdsl.law("for c in [0, 1]", source="Bridged AT, theorem 2", refute=True)
def bat_e26_step_function(c: float) -> Said | None:
    """the same for a function that is not continuous: -1 up to c and 1 after it"""
    found = _at_the_sign_change(lambda t: 1.0 if t > c else -1.0)
    return None if found is None else (found, "<=", 0.0)
