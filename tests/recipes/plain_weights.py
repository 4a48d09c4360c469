"""The recipes with levels over weights, early stops, memories, states and other models as plain PyTorch, from the papers' formulas and in
the shape of the authors' programs; nothing of lossdsl is imported here.

Each method is one function: it attacks, evaluates the loss, leaves its gradient in `.grad` of the parameters, and puts the weights back.
What the papers keep between batches (proxy, radii, class weights) is an argument.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from plain import BOX, clip, cross_entropy, kl, normal_start, pgd, uniform_start
from torch import Generator, Tensor, nn

Params = Mapping[str, float]


@dataclass
class Batch:
    """What a step gets. index: the examples' places in the training set. kept: what lives between batches. helper: HAT's model."""

    x: Tensor
    y: Tensor
    g: Generator
    index: list[int] = field(default_factory=list)
    kept: dict[str, object] = field(default_factory=dict)
    helper: nn.Module | None = None


@dataclass
class Outcome:
    """The loss, and the solutions of the lower levels by name."""

    loss: Tensor
    solutions: dict[str, Tensor] = field(default_factory=dict)


Method = Callable[[nn.Module, Batch, Params], Outcome]


def backward(f: nn.Module, loss: Tensor, **solutions: Tensor) -> Outcome:
    f.zero_grad()
    loss.backward()
    return Outcome(loss.detach(), solutions)


def mart_loss(clean: Tensor, adversarial: Tensor, y: Tensor, weight: float) -> Tensor:
    """One number per example: BCE(p(x'), y) + weight * KL(p(x) || p(x')) * (1 - p_y(x))."""
    p, rows = adversarial.softmax(1), torch.arange(len(y))
    runner_up = p.masked_fill(F.one_hot(y, p.shape[1]).bool(), -1).max(1).values
    return -p[rows, y].log() - (1 - runner_up).log() + weight * kl(clean, adversarial) * (1 - clean.softmax(1)[rows, y])


def attack_ce(f: nn.Module, b: Batch, start: Tensor, q: Params, steps: int = 10) -> Tensor:
    """PGD on the cross-entropy in eval mode; the label -1 has none, so its examples stay where they start."""
    f.eval()
    return pgd(lambda v: F.cross_entropy(f(v), b.y, ignore_index=-1, reduction="none"), b.x, start, q["eps"], q["step"], steps)[-1]


def attack_kl(f: nn.Module, b: Batch, q: Params) -> Tensor:
    """PGD on KL(p(x) || p(x')) in eval mode, from a start near x."""
    f.eval()
    clean = f(b.x).detach()
    return pgd(lambda v: kl(clean, f(v)), b.x, normal_start(b.x, b.g), q["eps"], q["step"], 10)[-1]


# --- T15, T16: friendly adversarial training --------------------------------------------------------------------------


def early_stopped(
    f: nn.Module, b: Batch, start: Tensor, q: Params, objective: Callable[[Tensor, Tensor], Tensor], omega: float
) -> Tensor:  # fmt: skip
    """Alg. 1 of FAT, one example at a time in who leaves: objective(logits of the active examples, their rows)."""
    f.eval()
    adversarial = clip(start, b.x, q["eps"])
    active, counter = list(range(len(b.x))), [int(q["tau"])] * len(b.x)
    for _ in range(10):
        with torch.no_grad():
            predicted = f(adversarial[active]).argmax(1)
        staying = []
        for row, i in enumerate(active):
            wrong = int(predicted[row]) != int(b.y[i])
            if wrong and counter[i] == 0:
                continue
            counter[i] -= wrong
            staying.append(i)
        active = staying
        if not active:
            break
        v = adversarial[active].requires_grad_()
        (slope,) = torch.autograd.grad(objective(f(v), torch.tensor(active)).sum(), v)
        moved = v.detach() + q["step"] * slope.sign()
        if omega:
            moved = moved + omega * torch.randn(b.x.shape, generator=b.g, dtype=b.x.dtype)[active]
        adversarial = adversarial.clone()
        adversarial[active] = clip(moved, b.x[active], q["eps"])
    return adversarial


def fat(f: nn.Module, b: Batch, q: Params) -> Outcome:
    found = early_stopped(f, b, uniform_start(b.x, q["eps"], b.g), q, lambda z, rows: cross_entropy(z, b.y[rows]), 0.001)
    f.train()
    return backward(f, cross_entropy(f(found), b.y).mean(), **{"x'": found})


def fat_trades(f: nn.Module, b: Batch, q: Params) -> Outcome:
    f.eval()
    clean = f(b.x).detach()
    found = early_stopped(f, b, normal_start(b.x, b.g), q, lambda z, rows: kl(clean[rows], z), 0)
    f.train()
    z, z_adv = f(b.x), f(found)
    return backward(f, (cross_entropy(z, b.y) + q["lambda"] * kl(z, z_adv)).mean(), **{"x'": found})


def fat_mart(f: nn.Module, b: Batch, q: Params) -> Outcome:
    found = early_stopped(f, b, normal_start(b.x, b.g), q, lambda z, rows: cross_entropy(z, b.y[rows]), 0)
    f.train()
    z, z_adv = f(b.x), f(found)
    return backward(f, mart_loss(z, z_adv, b.y, q["lambda"]).mean(), **{"x'": found})


# --- T17: GAIRAT ------------------------------------------------------------------------------------------------------


def gairat(f: nn.Module, b: Batch, q: Params) -> Outcome:
    """kappa counts the iterates before each step that are right; burn-in: plain PGD-AT before epoch 31."""
    f.eval()
    steps = int(q["steps"])
    v = clip(uniform_start(b.x, q["eps"], b.g), b.x, q["eps"])
    kappa = torch.zeros(len(b.x), dtype=b.x.dtype)
    for _ in range(steps):
        v.requires_grad_()
        z = f(v)
        kappa += z.argmax(1) == b.y
        (slope,) = torch.autograd.grad(cross_entropy(z, b.y).sum(), v)
        v = clip(v.detach() + q["step"] * slope.sign(), b.x, q["eps"])
    f.train()
    losses = cross_entropy(f(v), b.y)
    if q["epoch"] >= 31:
        weights = (1 + torch.tanh(q["Lambda"] + 5 * (1 - 2 * kappa / steps))) / 2
        losses = losses * weights * len(weights) / weights.sum()
    return backward(f, losses.mean(), **{"x'": v, "x'@survived": kappa})


# --- T18, T19: adversarial weight perturbation ------------------------------------------------------------------------


def weight_perturbation(f: nn.Module, loss: Callable[[nn.Module], Tensor], gamma: float) -> dict[str, Tensor]:
    """One SGD step of a proxy in train mode, rescaled per layer; biases and normalisation stay."""
    proxy = copy.deepcopy(f).train()
    optimizer = torch.optim.SGD(proxy.parameters(), lr=1.0)
    optimizer.zero_grad()
    (-loss(proxy)).backward()
    optimizer.step()
    after, found = proxy.state_dict(), {}
    for name, old in f.state_dict().items():
        if old.dim() > 1 and "weight" in name:
            d = after[name] - old
            found[name] = gamma * old.norm() / (d.norm() + 1e-20) * d
    return found


@contextmanager
def perturbed(f: nn.Module, v: Mapping[str, Tensor]) -> Iterator[None]:
    """The model at theta + v, put back exactly."""
    saved = {name: p.detach().clone() for name, p in f.named_parameters()}
    with torch.no_grad():
        for name, p in f.named_parameters():
            if name in v:
                p.add_(v[name])
    yield
    with torch.no_grad():
        for name, p in f.named_parameters():
            p.copy_(saved[name])


def weights_at(f: nn.Module, v: Mapping[str, Tensor]) -> Tensor:
    """theta + v as one vector."""
    return torch.cat([(p.detach() + v.get(name, 0)).flatten() for name, p in f.named_parameters()])


def trades_awp(f: nn.Module, b: Batch, q: Params) -> Outcome:
    found = attack_kl(f, b, q)

    def loss(model: nn.Module) -> Tensor:
        z, z_adv = model(b.x), model(found)
        return cross_entropy(z, b.y).mean() + q["lambda"] * kl(z, z_adv).mean()

    v = weight_perturbation(f, loss, q["gamma"]) if q["gamma"] else {}
    f.train()
    solutions = {"x'": found, **({"w": weights_at(f, v)} if v else {})}
    with perturbed(f, v):
        return backward(f, loss(f), **solutions)


def at_awp(f: nn.Module, b: Batch, q: Params) -> Outcome:
    found = attack_ce(f, b, uniform_start(b.x, q["eps"], b.g), q)
    v = weight_perturbation(f, lambda model: cross_entropy(model(found), b.y).mean(), q["gamma"])
    f.train()
    at = weights_at(f, v)
    with perturbed(f, v):
        return backward(f, cross_entropy(f(found), b.y).mean(), **{"x'": found, "w": at})


# --- T20: HAT ---------------------------------------------------------------------------------------------------------


def hat(f: nn.Module, b: Batch, q: Params) -> Outcome:
    """Helper points beyond x', labelled by a standard model at x'."""
    found = attack_kl(f, b, q)
    assert b.helper is not None
    standard = copy.deepcopy(b.helper).eval()
    with torch.no_grad():
        label = standard(found).argmax(1)
    f.train()
    z, z_adv, z_help = f(b.x), f(found), f(b.x + q["h"] * (found - b.x))
    loss = cross_entropy(z, b.y).mean() + q["lambda"] * kl(z, z_adv).mean() + q["gamma"] * cross_entropy(z_help, label).mean()
    return backward(f, loss, **{"x'": found})


# --- T21: MMA ---------------------------------------------------------------------------------------------------------


def soft_margin(z: Tensor, y: Tensor) -> Tensor:
    """logsumexp over the other classes minus the label's logit."""
    return torch.stack([torch.cat([row[:c], row[c + 1 :]]).logsumexp(0) - row[c] for row, c in zip(z, y.tolist(), strict=True)])


def mma(f: nn.Module, b: Batch, q: Params) -> Outcome:
    """Clean pass first, then one pass over attacked right and clean wrong examples; the radii live in a dictionary."""
    f.eval()
    radii = b.kept.setdefault("radii", {})
    assert isinstance(radii, dict)
    r = torch.tensor([max(radii.get(i, 0.0), q["least"]) for i in b.index], dtype=b.x.dtype)
    wide = r.reshape(-1, *[1] * (b.x.dim() - 1))
    steps = int(q["steps"])
    v = clip(b.x + wide * (2 * torch.rand(b.x.shape, generator=b.g, dtype=b.x.dtype) - 1), b.x, wide)
    for _ in range(steps):
        v.requires_grad_()
        (slope,) = torch.autograd.grad(soft_margin(f(v), b.y).sum(), v)
        v = clip(v.detach() + 2.5 * wide / steps * slope.sign(), b.x, wide)
    direction = (v - b.x) / wide
    with torch.no_grad():
        t = torch.tensor([_radius(f, b.x[[i]], b.y[[i]], direction[[i]], 1.05 * q["hi"]) for i in range(len(b.x))], dtype=b.x.dtype)
    f.train()
    z = f(b.x)
    right = soft_margin(z, b.y) < 0
    t[~right] = 0
    losses = cross_entropy(f(b.x + t.reshape(wide.shape) * direction), b.y)
    counted = sum(losses[i] for i in range(len(b.x)) if not right[i] or t[i] < q["hi"])
    loss = 2 / 3 * counted / len(b.x) + 1 / 3 * cross_entropy(z, b.y).mean()
    b.kept["new"] = dict(zip(b.index, t.tolist(), strict=True))
    return backward(f, loss, **{"x'": v.detach()})


def _radius(f: nn.Module, x: Tensor, y: Tensor, direction: Tensor, high: float) -> float:
    """Where a right example becomes wrong along the direction, by ten halvings of [0, high]; `high` if it never does, 0 if it is."""
    if float(soft_margin(f(x), y)) >= 0:
        return 0.0
    if float(soft_margin(f(x + high * direction), y)) < 0:
        return high
    low = 0.0
    for _ in range(10):
        middle = (low + high) / 2
        if float(soft_margin(f(x + middle * direction), y)) < 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


# --- T23: labelled and unlabelled data; the label -1 was dropped ------------------------------------------------------


def _ce(z: Tensor, y: Tensor) -> Tensor:
    """Mean over the examples with a label."""
    return F.cross_entropy(z, y, ignore_index=-1)


def at_rst(f: nn.Module, b: Batch, q: Params) -> Outcome:
    found = attack_ce(f, b, uniform_start(b.x, q["eps"], b.g), q)
    f.train()
    return backward(f, _ce(f(found), b.y), **{"x'": found})


def trades_rst(f: nn.Module, b: Batch, q: Params) -> Outcome:
    found = attack_kl(f, b, q)
    f.train()
    z, z_adv = f(b.x), f(found)
    return backward(f, _ce(z, b.y) + q["lambda"] * kl(z, z_adv).mean(), **{"x'": found})


def mart_rst(f: nn.Module, b: Batch, q: Params) -> Outcome:
    found = attack_ce(f, b, normal_start(b.x, b.g), q)
    f.train()
    z, z_adv, known = f(b.x), f(found), b.y >= 0
    return backward(f, mart_loss(z[known], z_adv[known], b.y[known], q["lambda"]).mean(), **{"x'": found})


def bat_rst(f: nn.Module, b: Batch, q: Params) -> Outcome:
    found = attack_ce(f, b, uniform_start(b.x, q["eps"], b.g), q)
    f.train()
    m = int(q["m"])
    path = [f(b.x)] + [f((1 - k / m) * b.x + k / m * found) for k in range(1, m + 1)]
    bridged = sum(kl(path[k], path[k + 1]).mean() for k in range(m))
    return backward(f, _ce(path[0], b.y) + q["beta"] * bridged, **{"x'": found})


# --- T28, T29: sharpness ----------------------------------------------------------------------------------------------


def sharpness(f: nn.Module, b: Batch, q: Params, lower: Callable[[Tensor], Tensor], adaptive: bool) -> Outcome:
    """First pass: running statistics and the ascent direction; second pass at theta + v: the gradient, no statistics; restore."""
    f.train()
    f.zero_grad()
    lower(f(b.x)).backward()
    unit = {n: p.detach().abs() if adaptive else torch.ones_like(p) for n, p in f.named_parameters()}
    slopes = {n: unit[n] * p.grad for n, p in f.named_parameters() if p.grad is not None}
    size = torch.stack([g.norm() for g in slopes.values()]).norm()
    v = {n: q["rho"] * unit[n] * g / size for n, g in slopes.items()}
    statistics = [buffer.clone() for buffer in f.buffers()]
    at = weights_at(f, v)
    with perturbed(f, v):
        outcome = backward(f, F.cross_entropy(f(b.x), b.y, label_smoothing=q["s"]), w=at)
    with torch.no_grad():
        for buffer, saved in zip(f.buffers(), statistics, strict=True):
            buffer.copy_(saved)
    return outcome


def sam(f: nn.Module, b: Batch, q: Params) -> Outcome:
    return sharpness(f, b, q, lambda z: F.cross_entropy(z, b.y, label_smoothing=q["s"]), adaptive=False)


def asam(f: nn.Module, b: Batch, q: Params) -> Outcome:
    return sharpness(f, b, q, lambda z: F.cross_entropy(z, b.y, label_smoothing=q["s"]), adaptive=True)


def bisam(f: nn.Module, b: Batch, q: Params) -> Outcome:
    """The ascent is on a lower bound of the 0-1 loss: log sum over all classes of exp(mu * tanh(alpha * margin))."""

    def bound(z: Tensor) -> Tensor:
        margins = z - z.gather(1, b.y.unsqueeze(1))
        return (q["mu"] * torch.tanh(q["alpha"] * margins)).logsumexp(1).mean()

    return sharpness(f, b, q, bound, adaptive=False)


# --- T30, T31: classes ------------------------------------------------------------------------------------------------


def cfol(f: nn.Module, b: Batch, q: Params) -> Outcome:
    """Class weights grow by the importance-weighted errors, example by example, the law being that of the draw."""
    found = attack_ce(f, b, uniform_start(b.x, q["eps"], b.g), q, steps=7)
    f.train()
    z = f(found)
    w = b.kept.setdefault("w", torch.zeros(z.shape[1], dtype=b.x.dtype))
    assert isinstance(w, Tensor)
    law, new = q["gamma"] / len(w) + (1 - q["gamma"]) * w.softmax(0), w.clone()
    for i, c in enumerate(b.y.tolist()):
        new[c] += q["rate"] * (int(z[i].argmax()) != c) / law[c]
    b.kept["new"] = new
    return backward(f, cross_entropy(z, b.y).mean(), **{"x'": found})


def class_fairness(f: nn.Module, b: Batch, q: Params) -> Outcome:
    """The largest mean loss of a class that the batch has."""
    found = attack_ce(f, b, uniform_start(b.x, q["eps"], b.g), q)
    f.train()
    losses = cross_entropy(f(found), b.y)
    means = [losses[b.y == c].mean() for c in sorted(set(b.y.tolist()))]
    return backward(f, max(means, key=lambda m: float(m.detach())), **{"x'": found})


PLAIN: dict[str, tuple[Method, Params]] = {
    "fat": (fat, BOX | {"tau": 0}),
    "fat_trades": (fat_trades, BOX | {"lambda": 6, "tau": 0}),
    "fat_mart": (fat_mart, BOX | {"lambda": 5, "tau": 0}),
    "gairat": (gairat, BOX | {"Lambda": -1, "steps": 10}),
    "trades_awp": (trades_awp, BOX | {"lambda": 6, "gamma": 0}),
    "at_awp": (at_awp, BOX | {"gamma": 0.01}),
    "hat": (hat, BOX | {"lambda": 2.5, "gamma": 0.5, "h": 2}),
    "mma": (mma, {"hi": 12 / 255, "least": 0.005, "steps": 10}),
    "at_rst": (at_rst, BOX),
    "trades_rst": (trades_rst, BOX | {"lambda": 6}),
    "mart_rst": (mart_rst, BOX | {"lambda": 5}),
    "bat_rst": (bat_rst, BOX | {"beta": 5, "m": 2}),
    "sam": (sam, {"rho": 0.05, "s": 0.1}),
    "asam": (asam, {"rho": 2, "s": 0.1}),
    "bisam": (bisam, {"rho": 0.05, "s": 0.1, "mu": 10, "alpha": 0.1}),
    "cfol": (cfol, {"eps": 0.031, "step": 0.00797, "rate": 5e-6, "gamma": 0.5}),
    "class_fairness": (class_fairness, BOX),
}
"""name: the method, and the params that the recipe starts with."""
