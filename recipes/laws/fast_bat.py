"""Laws of Fast-BAT on small tanh networks (2 inputs, 2 hidden units, 2 classes): implicit gradients against central differences.

l(theta, d) = CE(f_theta(x + d), 0); C is the box of (9), |d_i| <= 1/2 with x + d in [0, 1]^2. An example is degenerate, and skipped, where
a coordinate of the point that is projected lies within 1e-3 of the border.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian

import lossdsl
from lossdsl.check.law_typed import Network
from lossdsl.engine.kernels.networks import network

NET = Network("tanh", inputs=2, hidden=2, depth=1, classes=2)
STEP = 1e-5
HEADER = f"for theta in vector({NET.size}, -1, 1), v in vector(2, 0, 1), t in vector(2, 0, 1), lam in "
LINEARISED, PROXIMAL = HEADER + "[1, 10]", HEADER + "[30, 60]"
"""30 is twice a bound on the input Hessian at weights in [-1, 1]: J^2/4 with J <= 4 sqrt(2), and 2 * 2 * 0.77 * 2."""
Said = tuple[float, str, float]


class Problem:
    """l, C and z of one example; z is the share t of the box."""

    def __init__(self, v: Tensor, t: Tensor, lam: float) -> None:
        self.v, self.lam = v, lam
        self.low, self.high = torch.clamp(-v, min=-0.5), torch.clamp(1 - v, max=0.5)
        self.z = self.low + t * (self.high - self.low)

    def loss(self, theta: Tensor, d: Tensor) -> Tensor:
        """[] or [B]: of theta [P] or [B, P] and d [2] or [B, 2]."""
        scores: Tensor = network(theta, self.v + d, NET)
        return scores.logsumexp(-1) - scores[..., 0]

    def slope(self, theta: Tensor, d: Tensor) -> Tensor:
        """The gradient in d."""
        at = d.expand(*theta.shape[:-1], 2).detach().requires_grad_()
        return torch.autograd.grad(self.loss(theta, at).sum(), at)[0]

    def inside(self, raw: Tensor) -> Tensor | None:
        """Which coordinates of the projection are free; None where one is degenerate."""
        near = torch.minimum((raw - self.low).abs(), (raw - self.high).abs()) < 1e-3
        return None if bool(near.any()) else (raw > self.low) & (raw < self.high)

    def project(self, raw: Tensor) -> Tensor:
        return torch.maximum(torch.minimum(raw, self.high), self.low)

    def linearised(self, theta: Tensor) -> Tensor:
        """The point that is projected on C in (8)."""
        return self.z - self.slope(theta, self.z) / self.lam

    def proximal(self, theta: Tensor) -> Tensor:
        """The same for min over C of l + lam/2 |d - z|^2: a fixed point, of a contraction as lam exceeds the Hessian."""
        raw = self.z.expand(*theta.shape[:-1], 2)
        for _ in range(60):
            last, raw = raw, self.z - self.slope(theta, self.project(raw)) / self.lam
            if bool(((raw - last).abs() < 1e-15).all()):
                break
        return raw

    def cross(self, theta: Tensor, d: Tensor) -> Tensor:
        """d^2 l/dtheta dd, [P, 2]."""
        weights, at = theta.clone().requires_grad_(), d.clone().requires_grad_()
        (slope,) = torch.autograd.grad(self.loss(weights, at), at, create_graph=True)
        return torch.stack([torch.autograd.grad(one, weights, retain_graph=True)[0] for one in slope], dim=1)

    def equation_21(self, theta: Tensor, d: Tensor, free: Tensor) -> Tensor:
        """(21) as printed, with Hessian hess l + lam I."""
        inverse = torch.linalg.inv(hessian(lambda at: self.loss(theta, at), d) + self.lam * torch.eye(2, dtype=d.dtype))
        return eliminated(self.cross(theta, d), inverse, torch.eye(2, dtype=d.dtype)[~free])


def eliminated(cross: Tensor, inverse: Tensor, active: Tensor) -> Tensor:
    """-cross H^-1 + cross H^-1 B0' (B0 H^-1 B0')^-1 B0 H^-1 (21)."""
    return -cross @ inverse + cross @ inverse @ active.T @ torch.linalg.inv(active @ inverse @ active.T) @ active @ inverse


def differences(function: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """Central differences by every entry of theta: the derivative, [P, ...]."""
    moves = STEP * torch.eye(len(theta), dtype=theta.dtype)
    values = function(torch.cat((theta + moves, theta - moves)))
    return (values[: len(theta)] - values[len(theta) :]) / (2 * STEP)


def compared(
    theta: Tensor, problem: Problem, raw: Callable[[Tensor], Tensor], formula: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Said | None:
    """The largest difference between a formula (of theta, delta*, its free coordinates) and the derivative of delta*, [P, 2]."""
    at = raw(theta)
    free = problem.inside(at)
    if free is None:
        return None
    measured = differences(lambda rows: problem.project(raw(rows)), theta)
    return float((formula(theta, problem.project(at), free) - measured).abs().max()), "<=", 0.0


@lossdsl.law(LINEARISED, source="Fast-BAT, theorem 1, eq. (10)", tolerance=1e-6, refute=True)
def fast_bat_f07_network(theta: Tensor, v: Tensor, t: Tensor, lam: float) -> Said | None:
    """the implicit gradient of (7) is -(1/lam) d^2l/dtheta ddelta(theta, delta*) H_C: the cross derivative at delta*, as printed"""
    problem = Problem(v, t, lam)
    return compared(theta, problem, problem.linearised, lambda w, d, free: -problem.cross(w, d) * free / lam)


@lossdsl.law(LINEARISED, source="Fast-BAT, theorem 1 corrected", tolerance=1e-6)
def fast_bat_f08_network(theta: Tensor, v: Tensor, t: Tensor, lam: float) -> Said | None:
    """the implicit gradient of (7) is -(1/lam) d^2l/dtheta ddelta(theta, z) H_C: the cross derivative at z"""
    problem = Problem(v, t, lam)
    return compared(theta, problem, problem.linearised, lambda w, d, free: -problem.cross(w, problem.z) * free / lam)


@lossdsl.law(LINEARISED, source="Fast-BAT, app. E, eq. (21)", tolerance=1e-6, refute=True)
def fast_bat_f11_network(theta: Tensor, v: Tensor, t: Tensor, lam: float) -> Said | None:
    """(21) with the Hessian of l plus lam I at delta* is the implicit gradient of (7)"""
    problem = Problem(v, t, lam)
    return compared(theta, problem, problem.linearised, problem.equation_21)


@lossdsl.law(PROXIMAL, source="Fast-BAT, eq. (21)", tolerance=1e-6)
def fast_bat_f12_network(theta: Tensor, v: Tensor, t: Tensor, lam: float) -> Said | None:
    """(21) is the implicit gradient of min over C of l(theta, d) + lam/2 |d - z|^2, lam above the Hessian of l, nondegenerate"""
    problem = Problem(v, t, lam)
    return compared(theta, problem, problem.proximal, problem.equation_21)


@lossdsl.law("for n in {2, 5}, k in {1, 3}, a in matrix(5, 5), c in matrix(3, 5), lam in [1, 5]", source="Fast-BAT, eq. (16)-(20), (24)")
def fast_bat_f13_matrices(n: int, k: int, a: list[Tensor] | Tensor, c: list[Tensor] | Tensor, lam: float) -> Said | None:
    """(21) and (19) solve the optimality conditions [H, B0'; B0, 0] for k active coordinates; so IG B0' = 0"""
    if k >= n:
        return None
    square, cross = _rows(a)[:n, :n].tanh(), _rows(c)[:, :n].tanh()
    metric, active = square @ square.T + lam * torch.eye(n, dtype=square.dtype), torch.eye(n, dtype=square.dtype)[:k]
    inverse = torch.linalg.inv(metric)
    corner = torch.zeros(k, k, dtype=square.dtype)
    system = torch.cat((torch.cat((metric, active.T), 1), torch.cat((active, corner), 1)))
    solution = torch.linalg.solve(system, torch.cat((-cross.T, torch.zeros(k, 3, dtype=square.dtype)))).T
    multipliers = -cross @ inverse @ active.T @ torch.linalg.inv(active @ inverse @ active.T)
    found = torch.cat((eliminated(cross, inverse, active), multipliers), 1)
    outside = (eliminated(cross, inverse, active) @ active.T).abs().max()
    return float(torch.maximum((found - solution).abs().max(), outside)), "<=", 0.0


def _rows(rows: list[Tensor] | Tensor) -> Tensor:
    return torch.stack(rows) if isinstance(rows, list) else rows


@lossdsl.law(LINEARISED, source="Fast-BAT, eq. (3)", tolerance=1e-6)
def fast_bat_f16_network(theta: Tensor, v: Tensor, t: Tensor, lam: float) -> Said | None:
    """d/dtheta l(theta, delta*(theta)) = grad_theta l + IG grad_delta l with the implicit gradient of F08"""
    problem = Problem(v, t, lam)
    raw = problem.linearised(theta)
    free = problem.inside(raw)
    if free is None:
        return None
    d = problem.project(raw)
    implicit = -problem.cross(theta, problem.z) * free / lam
    chain = jacobian(lambda w: problem.loss(w, d), theta) + implicit @ problem.slope(theta, d)
    total = differences(lambda rows: problem.loss(rows, problem.project(problem.linearised(rows))), theta)
    return float((chain - total).abs().max()), "<=", 0.0


@lossdsl.law(HEADER + "[0, 1]", source="Fast-BAT, sec. 3, app. B", tolerance=1e-6)
def fast_bat_f20_network(theta: Tensor, v: Tensor, t: Tensor, lam: float) -> Said | None:
    """l_atk = -l_tr, delta* a strict maximiser of l_tr on C: d/dtheta l_tr(theta, delta*(theta)) = grad_theta l_tr, no implicit term"""
    problem = Problem(v, t, 15.0)  # a bound on the Hessian: steps of 1/15 climb

    def climbed(rows: Tensor, start: Tensor) -> Tensor:
        d = start.expand(*rows.shape[:-1], 2)
        for _ in range(40):
            last, d = d, problem.project(d + problem.slope(rows, d) / problem.lam)
            if bool((d == last).all()):
                break
        return d

    best = climbed(theta, problem.z)
    raw = best + problem.slope(theta, best) / problem.lam
    if problem.inside(raw) is None or bool((problem.project(raw) != best).any()):
        return None
    total = differences(lambda rows: problem.loss(rows, climbed(rows, best)), theta)
    return float((jacobian(lambda w: problem.loss(w, best), theta) - total).abs().max()), "<=", 0.0
