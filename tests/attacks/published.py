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


def margin(z: Tensor, y: Tensor) -> Tensor:
    """Of the best other class over the label."""
    other = z.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)
    return other - z.gather(1, y.unsqueeze(1)).squeeze(1)


def flat(v: Tensor) -> Tensor:
    return v.reshape(len(v), -1)


def wide(number: Tensor, like: Tensor) -> Tensor:
    return number.reshape(-1, *[1] * (like.dim() - 1))


def length(v: Tensor, norm: str) -> Tensor:
    return {"linf": flat(v).abs().amax(1), "l2": flat(v).square().sum(1).sqrt(), "l1": flat(v).abs().sum(1)}[norm]


@dataclass(frozen=True)
class Attacked:
    """What is attacked: the model, clean points and labels, the loss to raise, the radius, and the box of the inputs."""

    model: Model
    x: Tensor
    y: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    eps: float
    norm: str
    lo: float = 0.0
    hi: float = 1.0

    def see(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Losses, their gradients, and who is classified correctly."""
        v = v.detach().requires_grad_()
        z = self.model(v)
        values = self.loss(z, self.y)
        (gradient,) = torch.autograd.grad(values.sum(), v)
        return values.detach(), gradient, z.detach().argmax(1) == self.y

    def box(self, v: Tensor) -> Tensor:
        return v.clamp(self.lo, self.hi)


@dataclass
class Found:
    """Every point a run evaluated, in order, [steps + 1] of [N, *shape]; its losses; and whether all of them were classified correctly."""

    points: list[Tensor]
    losses: list[Tensor]
    correct: Tensor
    best: Tensor


# --- APGD --------------------------------------------------------------------------------------------------------------------------


def l1_projection(at: Attacked, v: Tensor) -> Tensor:
    """The nearest point to v of the l1 ball around x met with the box: shrink |v - x| by t, clip, and bisect t."""
    x, eps, offset = at.x, at.eps, v - at.x
    low, high = torch.zeros(len(x), dtype=x.dtype), flat(offset).abs().amax(1)

    def shrunk(t: Tensor) -> Tensor:
        return at.box(x + offset.sign() * (offset.abs() - wide(t, x)).clamp(min=0)) - x

    inside = flat(shrunk(low)).abs().sum(1) <= eps
    for _ in range(100):
        middle = (low + high) / 2
        too_far = flat(shrunk(middle)).abs().sum(1) > eps
        low, high = torch.where(too_far, middle, low), torch.where(too_far, high, middle)
    return x + torch.where(wide(inside, x), shrunk(torch.zeros_like(low)), shrunk(high))


def onto_ball(at: Attacked, v: Tensor) -> Tensor:
    x, eps = at.x, at.eps
    if at.norm == "linf":
        return at.box(torch.minimum(torch.maximum(v, x - eps), x + eps))
    size = length(v - x, "l2")
    return at.box(x + (v - x) * wide(torch.minimum(size, torch.full_like(size, eps)) / size.clamp(min=1e-300), x))


def apgd(at: Attacked, start: Tensor, steps: int, rho: float = 0.75) -> Found:
    """Croce & Hein, ICML 2020, algorithm 1, on linf and l2, with the release's settings.

    As in the release, the loss after the first step is compared with 0 at the first checkpoint, not with that of the start.
    """
    checkpoints, window = [], max(int(0.22 * steps), 1)
    while sum(checkpoints) + window <= steps:
        checkpoints.append(window)
        window = max(window - max(int(0.03 * steps), 1), int(0.06 * steps), 1)
    ends = {sum(checkpoints[: n + 1]): checkpoints[n] for n in range(len(checkpoints))}
    x, eps = at.x, at.eps
    value, gradient, correct = at.see(start)
    found = Found([start], [value], correct, start.clone())
    best_value, best_gradient = value.clone(), gradient.clone()
    size = torch.full_like(value, 2 * eps)
    halved_before, best_before = torch.ones(len(x), dtype=torch.bool), value.clone()
    v, v_old = start.clone(), start.clone()
    for k in range(1, steps + 1):
        a = 1.0 if k == 1 else 0.75
        direction = gradient.sign() if at.norm == "linf" else gradient / wide(length(gradient, "l2").clamp(min=1e-300), x)
        u = onto_ball(at, v + wide(size, x) * direction)
        v, v_old = onto_ball(at, v + a * (u - v) + (1 - a) * (v - v_old)), v
        value, gradient, right = at.see(v)
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


def sparse_apgd(at: Attacked, start: Tensor, steps: int) -> Found:
    """Croce & Hein, ICML 2021, algorithm 1: l1, with the release's settings."""
    x, eps = at.x, at.eps
    value, gradient, correct = at.see(start)
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
        v = l1_projection(at, moved)
        value, gradient, right = at.see(v)
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


# --- FAB ---------------------------------------------------------------------------------------------------------------------------


def to_hyperplane(at: Attacked, v: Tensor, w: Tensor, gap: Tensor) -> Tensor:
    """The shortest d with <w, d> = gap and v + d in the box; the best one there is, if the box does not reach. One multiplier, bisected.

    Every coordinate goes towards the hyperplane: by t on linf, by t |w_i| on l2, and on l1 all the way in the order of |w_i|.
    """
    toward = flat(w.sign()) * gap.sign().unsqueeze(1)
    room = torch.where(toward > 0, at.hi - flat(v), torch.where(toward < 0, flat(v) - at.lo, 0.0))
    slope, need = flat(w).abs(), gap.abs()
    if at.norm == "l1":
        sizes = torch.zeros_like(room)
        for i in range(len(v)):
            left = float(need[i])
            for n in slope[i].argsort(descending=True, stable=True).tolist():
                if slope[i, n] == 0 or left <= 0:
                    break
                sizes[i, n] = min(float(room[i, n]), left / float(slope[i, n]))
                left -= float(sizes[i, n] * slope[i, n])
        return (toward * sizes).reshape(v.shape)
    rate = (slope > 0).to(slope) if at.norm == "linf" else slope

    def sizes_at(t: Tensor) -> Tensor:
        return torch.minimum(t.unsqueeze(1) * rate, room)

    low, high = torch.zeros_like(need), torch.where(rate > 0, room / rate, 0.0).amax(1)
    for _ in range(200):
        middle = (low + high) / 2
        enough = (slope * sizes_at(middle)).sum(1) >= need
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return (toward * sizes_at(high)).reshape(v.shape)


def fab(at: Attacked, targets: list[Tensor], start: Tensor, steps: int, alpha_max: float = 0.1, eta: float = 1.05, beta: float = 0.9) -> Found:
    """Croce & Hein, ICML 2020 (FAB), algorithm 1. targets: one class for each example and boundary that is considered.

    points: the points tried (not those stepped back to); best: the nearest fooling one, x without any.
    """
    x, every = at.x, torch.arange(len(at.x))
    found = Found([], [], torch.ones(len(x), dtype=torch.bool), x.clone())
    smallest = torch.full((len(x),), 1e10, dtype=x.dtype)
    v = start.clone()
    for _ in range(steps):
        v = v.detach().requires_grad_()
        z = at.model(v)
        df = torch.stack([z[every, t] - z[every, at.y] for t in targets], 1)
        dg = torch.stack([torch.autograd.grad(df[:, n].sum(), v, retain_graph=True)[0] for n in range(len(targets))], 1)
        v, df = v.detach(), df.detach()
        dual = {"linf": "l1", "l2": "l2", "l1": "linf"}[at.norm]
        steep = torch.stack([length(dg[:, n], dual) for n in range(len(targets))], 1)
        nearest = (df.abs() / (steep + 1e-12)).argmin(1)
        w, gap = dg[every, nearest], -df[every, nearest]
        d1 = to_hyperplane(at, v, w, gap)
        d2 = to_hyperplane(at, x, w, gap + (flat(w) * flat(v - x)).sum(1))
        a1, a2 = length(d1, at.norm).clamp(min=1e-8), length(d2, at.norm).clamp(min=1e-8)
        alpha = wide((a1 / (a1 + a2)).clamp(max=alpha_max), x)
        v = at.box((v + eta * d1) * (1 - alpha) + (x + eta * d2) * alpha)
        found.points.append(v)
        wrong = at.model(v).argmax(1) != at.y
        size = length(v - x, at.norm)
        closer = wrong & (size < smallest)
        smallest, found.best = torch.where(closer, size, smallest), torch.where(wide(closer, x), v, found.best)
        v = torch.where(wide(wrong, x), x + beta * (v - x), v)
    found.correct = smallest > at.eps
    return found


# --- Square ------------------------------------------------------------------------------------------------------------------------


def share(query: int, first: float) -> float:
    """Halved after these queries, whatever their number (AutoAttack's resc_schedule = False)."""
    for end in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000):
        if query > end:
            first = first / 2
    return first


def square(at: Attacked, stripes: Tensor, draws: Callable[[Tensor, int], tuple[Tensor, Tensor]], queries: int, p: float = 0.8) -> Found:
    """Andriushchenko et al., ECCV 2020, algorithms 1 and 2 (linf), on images [channels, height, width].

    stripes: the start. draws(examples, side): for these examples row and column of the square's corner, [n, 2], and the signs of the
    channels. loss: the margin of the best other class. best: of the largest margin; an example stops at its first success.
    """
    found = Found([], [], torch.ones(len(at.x), dtype=torch.bool), stripes.clone())
    z = at.model(stripes)
    value = at.loss(z, at.y)
    found.correct = z.argmax(1) == at.y
    for query in range(queries):
        alive = found.correct.nonzero()[:, 0]
        if len(alive) == 0:
            break
        height, width = at.x.shape[2:]
        s = max(int(round((share(query, p) * height * width) ** 0.5)), 1)
        corners, signs = draws(alive, s)
        new, x = found.best[alive].clone(), at.x[alive]
        for n, (r, c) in enumerate(corners.tolist()):
            new[n, :, r : r + s, c : c + s] += 2 * at.eps * signs[n].reshape(-1, 1, 1)
        new = at.box(torch.minimum(torch.maximum(new, x - at.eps), x + at.eps))
        z = at.model(new)
        loss = at.loss(z, at.y[alive])
        better = loss > value[alive]
        found.best[alive[better]], value[alive[better]] = new[better], loss[better]
        found.correct[alive] = z.argmax(1) == at.y[alive]
    return found


def pyramid(height: int, width: int) -> Tensor:
    """The paper's h of one half: boxes around the middle, the k-th with weight 1/(k + 1)^2, of norm 1."""
    found = torch.zeros(height, width, dtype=torch.float64)
    row, column = height // 2, width // 2
    for k in range(max(height // 2, width // 2) + 1):
        found[max(row - k, 0) : row + k + 1, max(column - k, 0) : column + k + 1] += 1 / (k + 1) ** 2
    return found / found.norm()


def two_halves(side: int, axis: int) -> Tensor:
    """The paper's eta: one half above and, with the other sign, one below; or, for axis 1, side by side."""
    upper = pyramid(side // 2, side) if side > 1 else torch.zeros(0, 1, dtype=torch.float64)
    both = torch.cat((upper, -pyramid(side - side // 2, side)))
    both = both / both.norm()
    return both if axis == 0 else both.T


def square_l2(
    at: Attacked,
    tiles: Callable[[], tuple[Tensor, Tensor]],
    draws: Callable[[Tensor, int], tuple[Tensor, Tensor, Tensor, Tensor]],
    queries: int,
    p: float = 0.8,
) -> Found:
    """Algorithm 3 of the same paper (l2), with the release's norms over all channels, on square images of 5 tiles.

    tiles(): for the next tile of the start, the signs of the channels [N, channels] and the axes [N]. draws(examples, side): corners of both
    windows [n, 2] each, the axes [n] and the signs [n, channels].
    """
    channels, height, width = at.x.shape[1:]
    nu, s = torch.zeros_like(at.x), height // 5
    first = (height - 5 * s) // 2
    for r in range(first, first + (height // s) * s, s):
        for c in range(first, first + (width // s) * s, s):
            signs, axes = tiles()
            for i in range(len(nu)):
                nu[i, :, r : r + s, c : c + s] += two_halves(s, int(axes[i])) * signs[i].reshape(-1, 1, 1)
    v = at.box(at.x + at.eps * nu / wide(length(nu, "l2"), nu))
    found = Found([], [], torch.ones(len(at.x), dtype=torch.bool), v)
    z = at.model(v)
    value, found.correct = at.loss(z, at.y), z.argmax(1) == at.y
    for query in range(queries):
        alive = found.correct.nonzero()[:, 0]
        if len(alive) == 0:
            break
        s = max(int(round((share(query, p) * height * width) ** 0.5)), 3)
        s += s % 2 == 0
        one, two, axes, signs = draws(alive, s)
        new = found.best[alive] - at.x[alive]
        for n, offset in enumerate(new):
            (r, c), (r2, c2) = one[n].tolist(), two[n].tolist()
            both = torch.zeros(height, width, dtype=torch.bool)
            both[r : r + s, c : c + s] = both[r2 : r2 + s, c2 : c2 + s] = True
            unused = max(at.eps**2 - float(offset.square().sum()), 0.0)
            available = (unused / channels + float(offset[:, both].square().sum())) ** 0.5
            window = offset[:, r : r + s, c : c + s]
            change = two_halves(s, int(axes[n])) * signs[n].reshape(-1, 1, 1)
            change = change + window / (1e-12 + window.square().sum((1, 2), keepdim=True).sqrt())
            change = change / change.square().sum((1, 2), keepdim=True).sqrt() * available
            offset[:, r2 : r2 + s, c2 : c2 + s] = 0
            offset[:, r : r + s, c : c + s] = change
        new = at.box(at.x[alive] + at.eps * new / wide(length(new, "l2"), new))
        z = at.model(new)
        loss = at.loss(z, at.y[alive])
        better = loss > value[alive]
        found.best[alive[better]], value[alive[better]] = new[better], loss[better]
        found.correct[alive] = z.argmax(1) == at.y[alive]
    return found


# --- Carlini and Wagner ------------------------------------------------------------------------------------------------------------


def carlini_wagner(at: Attacked, steps: int, rate: float, searches: int, constant: float) -> Found:
    """Carlini & Wagner, S&P 2017, section V (l2), with torch.optim.Adam, one example at a time. loss: the margin of the best other class.

    points: all points, by round and step; best: the nearest fooling one, x without any.
    """
    found = Found([], [], torch.ones(len(at.x), dtype=torch.bool), at.x.clone())
    rounds: list[list[Tensor]] = [[] for _ in range(searches * steps)]
    for i in range(len(at.x)):
        x, y = at.x[i : i + 1], at.y[i : i + 1]
        c, low, high, smallest = constant, 0.0, float("inf"), float("inf")
        for n in range(searches):
            w = torch.atanh((2 * (x - at.lo) / (at.hi - at.lo) - 1) * (1 - 1e-6)).requires_grad_()
            adam = torch.optim.Adam([w], lr=rate)
            fooling = False
            for k in range(steps):
                v = at.lo + (at.hi - at.lo) * (torch.tanh(w) + 1) / 2
                margin = at.loss(at.model(v), y)
                rounds[n * steps + k].append(v.detach())
                size = float((v - x).detach().norm())
                if float(margin.detach()) > 0:
                    fooling = True
                    if size < smallest:
                        smallest, found.best[i] = size, v.detach()[0]
                adam.zero_grad()
                ((v - x).square().sum() + c * torch.relu(-margin).sum()).backward()
                adam.step()
            low, high = (low, min(high, c)) if fooling else (max(low, c), high)
            c = c * 10 if high == float("inf") else (low + high) / 2
        found.correct[i] = smallest > at.eps
    found.points = [torch.cat(points) for points in rounds]
    return found
