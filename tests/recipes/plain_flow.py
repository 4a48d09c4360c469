"""The recipes whose gradients flow through more than one pass, as plain PyTorch; nothing of lossdsl is imported here.

Fast-BAT and its schemes, gradient regularisers, ELLE, DDi, Free-AT, ALP. A method runs one batch on a model, in the order of the released
codes, and returns an Outcome: the lower solutions by name, the loss, and the gradient of every parameter. Where the gradient is not that
of the loss (Fast-BAT, DDi), it is put together by hand as the papers write it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import combinations

import torch
from plain import EPS, STEP, Solutions, attack_pgd, clip, cross_entropy, pgd, uniform_start
from torch import Generator, Tensor, nn

Params = Mapping[str, float]


@dataclass(frozen=True)
class Outcome:
    """What one batch gives."""

    solutions: Solutions
    loss: Tensor
    gradients: list[Tensor]


def by_autograd(f: nn.Module, solutions: Solutions, loss: Tensor) -> Outcome:
    return Outcome(solutions, loss.detach(), gradient_of(loss, f))


def gradient_of(loss: Tensor, f: nn.Module) -> list[Tensor]:
    parameters = list(f.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def input_gradient(f: nn.Module, v: Tensor, y: Tensor, again: bool) -> tuple[Tensor, Tensor]:
    """The cross-entropy of every example at v, and its gradient there."""
    v = v.detach().requires_grad_()
    losses = cross_entropy(f(v), y)
    (gradient,) = torch.autograd.grad(losses.sum(), v, create_graph=again, retain_graph=True)
    return losses, gradient


def box_noise(x: Tensor, eps: float, g: Generator) -> Tensor:
    """Uniform on the eps-box around 0."""
    return (2 * torch.rand(x.shape, generator=g, dtype=x.dtype) - 1) * eps


def inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def norm(a: Tensor) -> Tensor:
    return inner(a, a).sqrt()


def fgsm(f: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """One full step from x in train mode, clipped to [0, 1]."""
    f.train()
    return pgd(lambda v: cross_entropy(f(v), y), x, x, eps, eps, 1)[-1]


# --- regularisers -----------------------------------------------------------------------------------------------------


def gradalign(f: nn.Module, x: Tensor, y: Tensor, g: Generator, q: Params) -> Outcome:
    """1 minus the cosine of the gradients at x (a constant) and at a random point; examples without a gradient are left out."""
    eta = box_noise(x, q["eps"], g)
    adversarial = fgsm(f, x, y, q["eps"])
    loss = cross_entropy(f(adversarial), y).mean()
    _, clean = input_gradient(f, x, y, again=False)
    _, noisy = input_gradient(f, x + eta, y, again=True)
    keep = (norm(clean) != 0) & (norm(noisy) != 0)
    clean, noisy = clean[keep].detach(), noisy[keep]
    cosine = inner(clean, noisy) / (norm(clean) * norm(noisy))
    if bool(keep.any()):
        loss = loss + q["lambda"] * (1 - cosine).mean()
    return by_autograd(f, {"x'": adversarial, "eta": eta}, loss)


def llr(f: nn.Module, x: Tensor, y: Tensor, g: Generator, q: Params) -> Outcome:
    """Qin et al., eq. 5-7: l(x) + lambda * |l(x') - l(x) - <x' - x, grad l(x)>| + mu * |<x' - x, grad l(x)>|."""
    f.eval()
    clean, slope = input_gradient(f, x, y, again=False)
    clean, slope = clean.detach(), slope.detach()

    def departure(v: Tensor) -> Tensor:
        return (cross_entropy(f(v), y) - clean - inner(v - x, slope)).abs()

    adversarial = pgd(departure, x, uniform_start(x, q["eps"], g), q["eps"], q["step"], 2)[-1]
    f.train()
    losses, slope = input_gradient(f, x, y, again=True)
    along = inner(adversarial - x, slope)
    gamma = (cross_entropy(f(adversarial), y) - losses - along).abs()
    return by_autograd(f, {"x'": adversarial}, (losses + q["lambda"] * gamma + q["mu"] * along.abs()).mean())


def llr_fgsm(f: nn.Module, x: Tensor, y: Tensor, g: Generator, q: Params) -> Outcome:
    """The squared linearity error between two random points, with the gradient of each example's own loss."""
    xa, xb = x + box_noise(x, q["eps"], g), x + box_noise(x, q["eps"], g)
    adversarial = fgsm(f, x, y, q["eps"])
    loss = cross_entropy(f(adversarial), y).mean()
    at_b = cross_entropy(f(xb), y)
    at_a, slope = input_gradient(f, xa, y, again=True)
    loss = loss + q["lambda"] * ((at_b - at_a - inner(xb - xa, slope)) ** 2).mean()
    return by_autograd(f, {"x'": adversarial}, loss)


def cure(f: nn.Module, x: Tensor, y: Tensor, g: Generator, q: Params) -> Outcome:
    """The squared change of the gradient from x (there a constant) to x'."""
    adversarial = fgsm(f, x, y, q["eps"])
    losses, moved = input_gradient(f, adversarial, y, again=True)
    _, still = input_gradient(f, x, y, again=False)
    change = still.detach() - moved
    return by_autograd(f, {"x'": adversarial}, losses.mean() + q["lambda"] * inner(change, change).mean())


def elle_parts(f: nn.Module, x: Tensor, y: Tensor, g: Generator, q: Params) -> tuple[Tensor, Tensor, Tensor]:
    """The perturbation, its losses, and the squared error of interpolation; the four points are one batch in the order of the objective,
    and none is clipped to [0, 1]."""
    a, b = box_noise(x, q["eps"], g), box_noise(x, q["eps"], g)
    t = torch.rand(len(x), generator=g, dtype=x.dtype)
    wide = t.view(-1, *(1,) * (x.dim() - 1))
    xa, xb = x + a, x + b
    middle = (1 - wide) * xa + wide * xb
    f.train()
    _, slope = input_gradient(f, x, y, again=False)
    delta = q["eps"] * slope.sign()
    losses = cross_entropy(f(torch.cat([x + delta, middle, xa, xb])), y.repeat(4))
    at_adversarial, at_middle, at_a, at_b = losses.chunk(4)
    return delta, at_adversarial, (at_middle - (1 - t) * at_a - t * at_b) ** 2


def elle(f: nn.Module, x: Tensor, y: Tensor, g: Generator, q: Params) -> Outcome:
    delta, losses, error = elle_parts(f, x, y, g, q)
    return by_autograd(f, {"d": delta}, losses.mean() + q["lambda"] * error.mean())


@dataclass
class ElleA:
    """The controller: its factor, and the errors of all batches so far."""

    top: float
    factor: float = 0.0
    errors: list[float] = field(default_factory=list)
    jumps: list[bool] = field(default_factory=list)

    def batch(self, f: nn.Module, x: Tensor, y: Tensor, g: Generator, q: Params) -> Outcome:
        """One batch with the present factor; the next one is for the next batch."""
        delta, losses, error = elle_parts(f, x, y, g, q)
        out = by_autograd(f, {"d": delta}, losses.mean() + self.factor * error.mean())
        self._note(float(error.detach().mean()))
        return out

    def _note(self, error: float) -> None:
        past = torch.tensor(self.errors, dtype=torch.float64)
        jump = len(past) > 2 and error > float(past.mean() + 2 * past.std(correction=0))
        self.factor = self.top if jump else 0.99 * self.factor
        self.jumps.append(jump)
        self.errors.append(error)


def elle_a(f: nn.Module, x: Tensor, y: Tensor, g: Generator, q: Params) -> Outcome:
    """The first batch."""
    return ElleA(q["lambda"]).batch(f, x, y, g, q)


def alp(f: nn.Module, x: Tensor, y: Tensor, g: Generator, q: Params) -> Outcome:
    """Half clean, half adversarial, and the squared difference of the logits, a mean over the classes."""
    solutions = attack_pgd(f, x, y, g, q)
    f.train()
    clean, adversarial = f(x), f(solutions["x'"])
    pairing = ((adversarial - clean) ** 2).mean(1)
    loss = (cross_entropy(clean, y) + cross_entropy(adversarial, y)) / 2 + q["lambda"] * pairing
    return by_autograd(f, solutions, loss.mean())


# --- Fast-BAT ---------------------------------------------------------------------------------------------------------


def raw_step(f: nn.Module, x: Tensor, y: Tensor, g: Generator, q: Params) -> Tensor:
    """Scheme iv: one raw step of the gradient of each example's loss, from a random point."""
    start = clip(uniform_start(x, q["eps"], g), x, q["eps"])
    _, slope = input_gradient(f, start, y, again=False)
    return clip(start + slope / q["lambda"], x, q["eps"]).detach()


def sign_step(f: nn.Module, x: Tensor, y: Tensor, g: Generator, q: Params) -> Tensor:
    """Scheme iii."""
    start = clip(uniform_start(x, q["eps"], g), x, q["eps"])
    _, slope = input_gradient(f, start, y, again=False)
    return clip(start + 0.5 * q["eps"] * slope.sign(), x, q["eps"]).detach()


def random_point(f: nn.Module, x: Tensor, y: Tensor, g: Generator, q: Params) -> Tensor:
    """Scheme i."""
    low, high = (x - q["eps"]).clamp(min=0), (x + q["eps"]).clamp(max=1)
    return low + (high - low) * torch.rand(x.shape, generator=g, dtype=x.dtype)


def random_corner(f: nn.Module, x: Tensor, y: Tensor, g: Generator, q: Params) -> Tensor:
    """Scheme ii."""
    signs = 2 * torch.empty_like(x).bernoulli_(0.5, generator=g) - 1
    return clip(x + q["eps"] * signs, x, q["eps"])


def free_coordinates(v: Tensor, x: Tensor, eps: float) -> Tensor:
    """The diagonal of H_C, theorem 1: 1 strictly inside the box."""
    return ((v > (x - eps).clamp(min=0)) & (v < (x + eps).clamp(max=1))).to(v.dtype)


Scheme = Callable[[nn.Module, Tensor, Tensor, Generator, Params], Tensor]


def fast_bat(scheme: Scheme) -> Callable[[nn.Module, Tensor, Tensor, Generator, Params], Outcome]:
    """Eq. 7-11 for a linearisation point: the step at delta* plus the implicit term, whose cross derivative is at z."""

    def method(f: nn.Module, x: Tensor, y: Tensor, g: Generator, q: Params) -> Outcome:
        f.train()
        z = scheme(f, x, y, g, q)
        _, ascent = input_gradient(f, z, y, again=True)  # of l_tr; that of l_atk is its negative
        adversarial = clip(z + ascent.detach() / q["lambda"], x, q["eps"])
        loss, direct, outer = upper_at(f, adversarial, y)
        weights = free_coordinates(adversarial, x, q["eps"]) * outer
        # a2 / lambda = share: minus share times the cross derivative of l_atk is plus share times that of l_tr
        implicit = gradient_of((ascent * weights).sum(), f)
        gradients = [d + q["share"] * i for d, i in zip(direct, implicit, strict=True)]
        return Outcome({"z": z, "x'": adversarial}, loss, gradients)

    return method


def upper_at(f: nn.Module, adversarial: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
    """The mean loss at delta*, its gradient in the weights and in delta*."""
    adversarial = adversarial.clone().requires_grad_()
    loss = cross_entropy(f(adversarial), y).mean()
    (outer,) = torch.autograd.grad(loss, adversarial, retain_graph=True)
    return loss.detach(), gradient_of(loss, f), outer


def fast_bat_exact(steps: int | None = 10, tolerance: float = 1e-3) -> Callable[[nn.Module, Tensor, Tensor, Generator, Params], Outcome]:
    """Eq. 21: the Hessian of l_atk + lambda/2 |delta - z|^2 at delta*, on the free coordinates; steps = None inverts it."""

    def method(f: nn.Module, x: Tensor, y: Tensor, g: Generator, q: Params) -> Outcome:
        f.train()
        z = raw_step(f, x, y, g, q)
        _, ascent = input_gradient(f, z, y, again=False)
        adversarial = clip(z + ascent / q["lambda"], x, q["eps"])
        loss, direct, outer = upper_at(f, adversarial, y)
        point = adversarial.clone().requires_grad_()
        apart = {name: b.clone() for name, b in f.named_buffers()}  # this pass writes no statistics
        attack = -cross_entropy(torch.func.functional_call(f, apart, (point,)), y).sum()
        slope = torch.autograd.grad(attack, point, create_graph=True)[0] + q["lambda"] * (point - z)
        free = free_coordinates(adversarial, x, q["eps"]).flatten().bool()
        matrix = hessian(slope, point)[free][:, free]
        v = torch.zeros_like(point).flatten()
        v[free] = krylov(matrix, outer.flatten()[free], steps, tolerance)
        implicit = gradient_of((slope * v.view_as(slope)).sum(), f)
        gradients = [d - q["share"] * q["lambda"] * i for d, i in zip(direct, implicit, strict=True)]
        return Outcome({"z": z, "x'": adversarial}, loss, gradients)

    return method


def hessian(slope: Tensor, point: Tensor) -> Tensor:
    """The derivative of the gradient, row by row, [n, n]."""
    rows = [torch.autograd.grad(s, point, retain_graph=True)[0].flatten() for s in slope.flatten()]
    return torch.stack(rows)


def krylov(matrix: Tensor, b: Tensor, steps: int | None, tolerance: float) -> Tensor:
    """The v of smallest residual |b - matrix v| in the space of b, matrix b, ..., matrix^(m - 1) b, for the first m that suffices."""
    if steps is None or len(b) == 0:
        return torch.linalg.solve(matrix, b)
    basis = b.new_zeros(len(b), 0)
    v, new = torch.zeros_like(b), b
    for _ in range(min(steps, len(b))):
        for _ in range(2):
            new = new - basis @ (basis.T @ new)
        basis = torch.cat([basis, (new / new.norm()).unsqueeze(1)], 1)
        v = basis @ torch.linalg.lstsq(matrix @ basis, b.unsqueeze(1), driver="gelsd").solution[:, 0]
        if (b - matrix @ v).norm() <= tolerance * b.norm():
            break
        new = matrix @ basis[:, -1]
    return v


# --- DDi --------------------------------------------------------------------------------------------------------------


def ddi(starts: int = 10, steps: int = 7) -> Callable[[nn.Module, Tensor, Tensor, Generator, Params], Outcome]:
    """Latorre et al., alg. 1: the min-norm point of the convex hull of the gradients at several attacks of the batch."""

    def method(f: nn.Module, x: Tensor, y: Tensor, g: Generator, q: Params) -> Outcome:
        f.eval()
        points = []
        for _ in range(starts):
            start = uniform_start(x, q["eps"], g)
            points.append(pgd(lambda v: cross_entropy(f(v), y), x, start, q["eps"], q["step"], steps)[-1])
        f.train()
        losses, rows = [], []
        for point in points:
            loss = cross_entropy(f(point), y).mean()
            losses.append(loss.detach())
            rows.append(torch.cat([p.flatten() for p in gradient_of(loss, f)]))
        weights = min_norm(torch.stack(rows))
        direction = weights @ torch.stack(rows)
        sizes = [p.numel() for p in f.parameters()]
        pieces = [d.view_as(p) for d, p in zip(direction.split(sizes), f.parameters(), strict=True)]
        found = {f"x'#{n + 1}": point for n, point in enumerate(points)}
        return Outcome(found, (weights * torch.stack(losses)).sum(), pieces)

    return method


def min_norm(vectors: Tensor) -> Tensor:
    """By brute force over the faces of the hull: on each the point of its plane nearest to 0, if it lies in the face."""
    best, best_norm = None, float("inf")
    for size in range(1, len(vectors) + 1):
        for face in combinations(range(len(vectors)), size):
            first, rest = vectors[face[0]], vectors[list(face[1:])] - vectors[face[0]]
            others = -torch.linalg.lstsq(rest.T, first.unsqueeze(1), driver="gelsd").solution[:, 0] if size > 1 else first.new_zeros(0)
            weights = torch.cat([1 - others.sum().unsqueeze(0), others])
            length = float((weights @ vectors[list(face)]).norm())
            if bool((weights >= 0).all()) and length < best_norm:
                best, best_norm = torch.zeros(len(vectors), dtype=vectors.dtype), length
                best[list(face)] = weights
    assert best is not None
    return best


# --- Free-AT ----------------------------------------------------------------------------------------------------------


@dataclass
class FreeAt:
    """Shafahi et al., alg. 1: one backward pass gives the gradient in the weights and that in the perturbation, which lives on."""

    eps: float
    delta: Tensor | None = None

    def replay(self, f: nn.Module, x: Tensor, y: Tensor) -> Outcome:
        """One forward and one backward pass; the weights are the caller's to step."""
        f.train()
        before = torch.zeros_like(x)
        if self.delta is not None:
            rows = min(len(x), len(self.delta))
            before[:rows] = self.delta[:rows]
        point = clip(x + before, x, self.eps).requires_grad_()
        for p in f.parameters():
            p.grad = None
        losses = cross_entropy(f(point), y)
        losses.mean().backward()
        assert point.grad is not None
        after = clip(point.detach() + self.eps * point.grad.sign(), x, self.eps)
        self.delta = after - x
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in f.parameters()]
        return Outcome({"x'@0": point.detach(), "x'": after}, losses.mean().detach(), gradients)


def free_at(f: nn.Module, x: Tensor, y: Tensor, g: Generator, q: Params) -> Outcome:
    """The first replay of the first batch."""
    return FreeAt(q["eps"]).replay(f, x, y)


# --- the methods and their params -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FlowMethod:
    run: Callable[[nn.Module, Tensor, Tensor, Generator, Params], Outcome]
    params: Params


BAT = {"eps": EPS, "lambda": 255 / 5000, "share": 0.1}
FLOW_METHODS: dict[str, FlowMethod] = {
    "gradalign": FlowMethod(gradalign, {"lambda": 0.2, "eps": EPS}),
    "fast_bat": FlowMethod(fast_bat(raw_step), BAT),
    "fast_bat_exact": FlowMethod(fast_bat_exact(), BAT),
    "fast_bat_random": FlowMethod(fast_bat(random_point), BAT),
    "fast_bat_corner": FlowMethod(fast_bat(random_corner), BAT),
    "fast_bat_sign": FlowMethod(fast_bat(sign_step), BAT),
    "llr": FlowMethod(llr, {"lambda": 4, "mu": 3, "eps": EPS, "step": EPS / 2}),
    "llr_fgsm": FlowMethod(llr_fgsm, {"eps": EPS, "lambda": 200}),
    "cure": FlowMethod(cure, {"eps": EPS, "lambda": 1000 / 128**2}),
    "elle": FlowMethod(elle, {"eps": EPS, "lambda": 1000}),
    "elle_a": FlowMethod(elle_a, {"eps": EPS, "lambda": 4000}),
    "ddi": FlowMethod(ddi(), {"eps": 0.031, "step": 0.00797}),
    "free_at": FlowMethod(free_at, {"eps": EPS}),
    "alp": FlowMethod(alp, {"eps": EPS, "step": STEP, "lambda": 0.5}),
}
