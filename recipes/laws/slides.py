"""Laws of the slides of Cevher that the language does not say: a solver of lossdsl, trajectories, spectra and linear programmes."""

from __future__ import annotations

import cmath

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

import lossdsl
from lossdsl.solve import min_norm_weights


@lossdsl.law("for k in {2, 3, 5}, b[1..k] in vector(3, -5, 5)", source="Cevher, slides: DDi, derived", tolerance=1e-6)
def slides_c04_danskin_many(k: int, b: list[Tensor]) -> tuple[float, str, float]:
    """the combination v of k gradients b_i that `through danskin` takes has <v, b_i> >= |v|^2 for every i"""
    rows = torch.stack(b)
    v = min_norm_weights(rows @ rows.T) @ rows
    return float((rows @ v).min()), ">=", float(v @ v)


def _circling(z: complex) -> complex:
    """V(z) = (|z| - 1) min(|z|, 1) e_phi: 1-Lipschitz, V(0) = 0, <V, z> = 0; every point of the unit circle is another zero."""
    return (abs(z) - 1) * min(abs(z), 1) * 1j * z / abs(z)


def _eg_plus(z: complex, steps: int) -> complex:
    for _ in range(steps):
        z -= _circling(z - _circling(z)) / 2
    return z


@lossdsl.law("for k in {100, 1000, 10000}", source="Cevher, slides: EG+; Diakonikolas et al., 2021", refute=True)
def slides_c17_iterates_circle(k: int) -> tuple[float, str, float]:
    """EG+ with steps 1 and 1/2 converges on V(z) = (|z| - 1) min(|z|, 1) e_phi from (2, 0): z^k and z^10k are at most 1/10 apart"""
    early = _eg_plus(2 + 0j, k)
    return abs(_eg_plus(early, 9 * k) - early), "<=", 0.1


@lossdsl.law("for k in {100, 1000, 10000}", source="Cevher, slides: EG+; Diakonikolas et al., 2021")
def slides_c17_angle_grows_like_a_logarithm(k: int) -> tuple[float, str, float]:
    """the angle between z^k and z^10k is (4/3) log 10 = 3.07, up to 1/10, for every k"""
    early = _eg_plus(2 + 0j, k)
    turned = -cmath.phase(_eg_plus(early, 9 * k) / early)
    return abs(turned - 4 / 3 * np.log(10)), "<=", 0.1


def _weak_minty(v: np.ndarray) -> float:
    """The largest rho with <Vz, z> >= rho |Vz|^2 for all z, of an invertible matrix."""
    inverse = np.linalg.inv(v)
    return float(np.linalg.eigvalsh((inverse + inverse.T) / 2)[0])


def _normalised(a: list[Tensor] | Tensor) -> np.ndarray | None:
    """The matrix at spectral norm 1; None where it is 0 or nearly singular."""
    v = (torch.stack(a) if isinstance(a, list) else a).reshape(2, 2).numpy()
    sizes = np.linalg.svd(v, compute_uv=False)
    return v / sizes[0] if sizes[1] > sizes[0] / 20 else None


@lossdsl.law("for n in {10, 100}, a in vector(4, -5, 5), z in vector(2, -5, 5)", source="Cevher, slides: EG+; Diakonikolas et al., 2021")
def slides_c17_residual(n: int, a: Tensor, z: Tensor) -> tuple[float, str, float] | None:
    """EG+ on a planar linear V with L = 1 and rho > -1/8: n (rho + 1/4) min_k |V(w_k)|^2 <= |z_0|^2"""
    v = _normalised(a)
    if v is None or (rho := _weak_minty(v)) <= -1 / 8:
        return None
    point, least = z.numpy(), np.inf
    for _ in range(n):
        residual = v @ (point - v @ point)
        point, least = point - residual / 2, min(least, float(residual @ residual))
    return n * (rho + 1 / 4) * least, "<=", float(z @ z)


def _radius(v: np.ndarray) -> float:
    """The spectral radius of I - a V (I - V), L = 1, at the step a that is best for both eigenvalues; 1 where none is below."""
    values = np.linalg.eigvals(v - v @ v)
    step = max(0.0, min(float(m.real / abs(m) ** 2) if m != 0 else 0.0 for m in values))
    return float(abs(1 - step * values).max())


@lossdsl.law("for a in vector(4, -5, 5)", source="Cevher, slides: rho > -1/(2L)")
def slides_c18_spectral(a: Tensor) -> tuple[float, str, float] | None:
    """a planar linear V with -0.49 < rho L < 0.99: at some step EG+ with extrapolation 1/L contracts (spectral radius below 1)"""
    v = _normalised(a)
    if v is None or not -0.49 < _weak_minty(v) < 0.99:
        return None
    return _radius(v), "<=", 1 - 1e-6


@lossdsl.law("for a in vector(4, -5, 5)", source="Cevher, slides: rho > -1/(2L)", refute=True)
def slides_c18_spectral_only_if(a: Tensor) -> tuple[float, str, float] | None:
    """a planar linear V with rho L < -1/2: at no step EG+ with extrapolation 1/L contracts"""
    v = _normalised(a)
    if v is None or _weak_minty(v) >= -0.5:
        return None
    return _radius(v), ">=", 1.0


@lossdsl.law("for n in {2, 6}, x in vector(n, -5, 5), p in simplex(n), q in simplex(n)", source="Cevher, slides: WGAN", tolerance=1e-7)
def slides_c22_duality(n: int, x: Tensor, p: Tensor, q: Tensor) -> tuple[float, str, float]:
    """W1 on n points of the line: transport and its dual (linear programmes) and sum |F - G| dx are equal"""
    order = x.argsort()
    at, mass = x[order].numpy(), (p - q)[order].numpy()
    formula = float(np.abs(np.cumsum(mass)[:-1]) @ np.diff(at))
    cost = np.abs(at[:, None] - at[None, :])
    rows, columns = np.kron(np.eye(n), np.ones(n)), np.kron(np.ones(n), np.eye(n))
    plan = linprog(cost.ravel(), A_eq=np.vstack((rows, columns[:-1])), b_eq=np.concatenate((p[order], q[order][:-1])))
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    above = np.array([np.eye(n)[i] - np.eye(n)[j] for i, j in pairs])
    critic = linprog(-mass, A_ub=above, b_ub=[cost[i, j] for i, j in pairs], bounds=[(0, 0)] + [(None, None)] * (n - 1))
    if plan.status or critic.status:
        raise ArithmeticError(f"linprog: {plan.message} {critic.message}")
    return max(abs(plan.fun - formula), abs(-critic.fun - formula)), "<=", 0.0
