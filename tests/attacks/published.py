"""The published attacks, written down from their papers and from the settings of their authors' releases, in plain PyTorch.

Nothing of lossdsl is used here. All of them run whole batches to the end, as the releases do: an example that is broken leaves only
between runs. `model` is any function from points to logits; the numbers of one example never depend on those of another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Model = Callable[[Tensor], Tensor]


def ce(z: Tensor, y: Tensor) -> Tensor:
    return -torch.log_softmax(z, 1)[torch.arange(len(y)), y]


def dlr(z: Tensor, y: Tensor) -> Tensor:
    """Croce & Hein, ICML 2020, eq. 6."""
    values = []
    for row, label in zip(z, y.tolist(), strict=True):
        first, _, third = row.sort(descending=True).values[:3]
        other = max(row[i] for i in range(len(row)) if i != label)
        values.append(-(row[label] - other) / (first - third + 1e-12))
    return torch.stack(values)


def targeted_dlr(z: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Eq. 7."""
    values = []
    for row, label, t in zip(z, y.tolist(), target.tolist(), strict=True):
        first, _, third, fourth = row.sort(descending=True).values[:4]
        values.append(-(row[label] - row[t]) / (first - (third + fourth) / 2 + 1e-12))
    return torch.stack(values)


def flat(v: Tensor) -> Tensor:
    return v.reshape(len(v), -1)


def wide(number: Tensor, like: Tensor) -> Tensor:
    return number.reshape(-1, *[1] * (like.dim() - 1))


def length(v: Tensor, norm: str) -> Tensor:
    return {"linf": flat(v).abs().amax(1), "l2": flat(v).square().sum(1).sqrt(), "l1": flat(v).abs().sum(1)}[norm]


def with_gradient(loss: Callable[[Tensor, Tensor], Tensor], model: Model, v: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, their gradients, and who is classified correctly."""
    v = v.detach().requires_grad_()
    z = model(v)
    values = loss(z, y)
    (gradient,) = torch.autograd.grad(values.sum(), v)
    return values.detach(), gradient, z.detach().argmax(1) == y


@dataclass
class Found:
    """Every point a run evaluated, in order, [steps + 1] of [N, *shape]; its losses; and whether all of them were classified correctly."""

    points: list[Tensor]
    losses: list[Tensor]
    correct: Tensor
    best: Tensor


# --- APGD --------------------------------------------------------------------------------------------------------------------------


def l1_projection(x: Tensor, v: Tensor, eps: float, lo: float = 0.0, hi: float = 1.0) -> Tensor:
    """The nearest point to v of the l1 ball around x met with the box: shrink |v - x| by t, clip, and bisect t."""
    offset = v - x
    low, high = torch.zeros(len(x), dtype=x.dtype), flat(offset).abs().amax(1)

    def shrunk(t: Tensor) -> Tensor:
        return (x + offset.sign() * (offset.abs() - wide(t, x)).clamp(min=0)).clamp(lo, hi) - x

    inside = flat(shrunk(low)).abs().sum(1) <= eps
    for _ in range(100):
        middle = (low + high) / 2
        too_far = flat(shrunk(middle)).abs().sum(1) > eps
        low, high = torch.where(too_far, middle, low), torch.where(too_far, high, middle)
    return x + torch.where(wide(inside, x), shrunk(torch.zeros_like(low)), shrunk(high))


def onto_ball(x: Tensor, v: Tensor, eps: float, norm: str, lo: float, hi: float) -> Tensor:
    if norm == "linf":
        return torch.clamp(torch.minimum(torch.maximum(v, x - eps), x + eps), lo, hi)
    size = length(v - x, "l2")
    return torch.clamp(x + (v - x) * wide(torch.minimum(size, torch.full_like(size, eps)) / size.clamp(min=1e-300), x), lo, hi)


def apgd(
    loss: Callable[[Tensor, Tensor], Tensor], model: Model, x: Tensor, y: Tensor, start: Tensor, eps: float, norm: str, steps: int,
    rho: float = 0.75, lo: float = 0.0, hi: float = 1.0,
) -> Found:  # fmt: skip
    """Croce & Hein, ICML 2020, algorithm 1, on linf and l2, with the release's settings.

    As in the release, the loss after the first step is compared with 0 at the first checkpoint, not with that of the start.
    """
    checkpoints, window = [], max(int(0.22 * steps), 1)
    while sum(checkpoints) + window <= steps:
        checkpoints.append(window)
        window = max(window - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    ends = {sum(checkpoints[: n + 1]): checkpoints[n] for n in range(len(checkpoints))}
    value, gradient, correct = with_gradient(loss, model, start, y)
    found = Found([start], [value], correct, start.clone())
    best_value, best_gradient = value.clone(), gradient.clone()
    size = torch.full_like(value, 2 * eps)
    halved_before, best_before = torch.ones(len(x), dtype=torch.bool), value.clone()
    v, v_old = start.clone(), start.clone()
    for k in range(1, steps + 1):
        a = 1.0 if k == 1 else 0.75
        direction = gradient.sign() if norm == "linf" else gradient / wide(length(gradient, "l2").clamp(min=1e-300), x)
        u = onto_ball(x, v + wide(size, x) * direction, eps, norm, lo, hi)
        v, v_old = onto_ball(x, v + a * (u - v) + (1 - a) * (v - v_old), eps, norm, lo, hi), v
        value, gradient, right = with_gradient(loss, model, v, y)
        found.points.append(v)
        found.losses.append(value)
        found.correct = found.correct & right
        for i in range(len(x)):
            if value[i] > best_value[i]:
                best_value[i], found.best[i], best_gradient[i] = value[i], v[i], gradient[i]
        if k in ends:
            v, gradient = v.clone(), gradient.clone()
            for i in range(len(x)):
                history = [0.0 if n == 0 else float(found.losses[n][i]) for n in range(k - ends[k], k + 1)]
                rises = sum(later > sooner for sooner, later in zip(history, history[1:], strict=False))
                stalled = not halved_before[i] and best_value[i] <= best_before[i]
                halved_before[i] = rises <= rho * ends[k] or bool(stalled)
                best_before[i] = best_value[i]
                if halved_before[i]:
                    size[i], v[i], gradient[i] = size[i] / 2, found.best[i], best_gradient[i]
    return found


def sparse_apgd(
    loss: Callable[[Tensor, Tensor], Tensor], model: Model, x: Tensor, y: Tensor, start: Tensor, eps: float, steps: int,
    lo: float = 0.0, hi: float = 1.0,
) -> Found:  # fmt: skip
    """Croce & Hein, ICML 2021, algorithm 1: l1, with the release's settings."""
    value, gradient, correct = with_gradient(loss, model, start, y)
    found = Found([start], [value], correct, start.clone())
    best_value, best_gradient = value.clone(), gradient.clone()
    d = flat(x).shape[1]
    size, share, changed_before = [eps] * len(x), [0.2] * len(x), [d] * len(x)
    v = start.clone()
    for k in range(1, steps + 1):
        moved = v.clone()
        for i in range(len(x)):
            g = gradient[i].flatten()
            least = g.abs().sort().values[int(min(max((1 - share[i]) * d, 0), d - 1))]
            s = torch.where(g.abs() >= least, g.sign(), 0.0)
            moved[i] += size[i] * (s / max(float(s.abs().sum()), 1.0)).reshape(x[i].shape)
        v = l1_projection(x, moved, eps, lo, hi)
        value, gradient, right = with_gradient(loss, model, v, y)
        found.points.append(v)
        found.losses.append(value)
        found.correct = found.correct & right
        for i in range(len(x)):
            if value[i] > best_value[i]:
                best_value[i], found.best[i], best_gradient[i] = value[i], v[i], gradient[i]
        if k % max(int(0.04 * steps), 1) == 0:
            v, gradient = v.clone(), gradient.clone()
            for i in range(len(x)):
                changed = int((found.best[i] != x[i]).sum())
                sparser = changed_before[i] > 0 and changed / changed_before[i] < 0.95
                share[i], changed_before[i] = changed / d / 1.5, changed
                size[i] = eps if sparser else max(size[i] / 1.5, eps / 10)
                if sparser:
                    v[i], gradient[i] = found.best[i], best_gradient[i]
    return found
