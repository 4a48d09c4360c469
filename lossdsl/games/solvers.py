"""The updates of games of numbers and vectors: pure functions of the joint vector, one per row of lossdsl.lang.games.

z is [N, d]: N independent plays side by side. V is an oracle of the field: every call has a fresh draw of noise and samples, unless
it is given one. P projects on the sets of the players.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lossdsl.diagnostics import UserError
from lossdsl.games.field import Draw, Field
from lossdsl.games.regions import Projection, uniform
from lossdsl.solve import min_norm_weights

Memory = tuple[Tensor, ...]
"""What an update remembers of the one before; empty at the first."""
NEWTON_STEPS = 60
ROUNDING = 1e-7
"""A convex combination this much shorter than its longest vector is 0: min-norm weights are no more exact."""


@dataclass(frozen=True)
class Oracle:
    """V(z) as a solver sees it."""

    field: Field
    generator: torch.Generator
    noise: float = 0.0

    @property
    def random(self) -> bool:
        return self.noise > 0 or bool(self.field.game.samples)

    def draw(self, points: int) -> Draw | None:
        return self.field.draw(points, self.noise, self.generator) if self.random else None

    def __call__(self, z: Tensor, draw: Draw | None = None) -> Tensor:
        return self.field(z, draw or self.draw(len(z)))


Update = Callable[[Tensor, int, Memory, Oracle, Any, Projection], tuple[Tensor, Memory]]
"""(z, number of the iteration from 0, memory, V, options, P) -> (next z, memory)."""


def gda(z: Tensor, k: int, memory: Memory, v: Oracle, o: Any, p: Projection) -> tuple[Tensor, Memory]:
    return p(z - o.step * v(z)), ()


def ppm(z: Tensor, k: int, memory: Memory, v: Oracle, o: Any, p: Projection) -> tuple[Tensor, Memory]:
    """Newton's method on w - z + step V(w) = 0 from w = z, with halved steps where the residual would grow; to rounding."""
    eye = torch.eye(z.shape[1], dtype=z.dtype)

    def residual(w: Tensor) -> Tensor:
        found: Tensor = w - z + o.step * v(w)
        return found

    w, r = z, residual(z)
    for _ in range(NEWTON_STEPS):
        size = r.norm(dim=1, keepdim=True)
        if bool((size <= 1e-15 * (1 + z.norm(dim=1, keepdim=True))).all()):
            break
        direction = torch.linalg.solve(eye + o.step * v.field.jacobian(w), r.unsqueeze(2)).squeeze(2)
        rate = torch.ones_like(size)
        for _ in range(30):
            better = residual(w - rate * direction).norm(dim=1, keepdim=True) < size
            if bool(better.all()):
                break
            rate = torch.where(better, rate, rate / 2)
        moved = w - torch.where(better, rate, 0.0) * direction
        if bool((moved == w).all()):
            break
        w, r = moved, residual(moved)
    if bool((r.norm(dim=1) > 1e-9 * (1 + z.norm(dim=1))).any()):
        raise UserError(f"the implicit step of ppm was not found in iteration {k + 1}", where=v.field.game.name, fix="take a smaller step")
    return w, ()


def extragradient(z: Tensor, k: int, memory: Memory, v: Oracle, o: Any, p: Projection) -> tuple[Tensor, Memory]:
    return p(z - o.step * v(p(z - o.step * v(z)))), ()


def ogda(z: Tensor, k: int, memory: Memory, v: Oracle, o: Any, p: Projection) -> tuple[Tensor, Memory]:
    now = v(z)
    before = memory[0] if memory else now
    return p(z - o.step * (2 * now - before)), (now,)


def rfbs(z: Tensor, k: int, memory: Memory, v: Oracle, o: Any, p: Projection) -> tuple[Tensor, Memory]:
    before = memory[0] if memory else z
    return p(z - o.step * v(2 * z - before)), (z,)


def _second_step(z: Tensor, h: Tensor, rate: float, v: Oracle, o: Any, p: Projection) -> tuple[Tensor, Tensor]:
    """From the extrapolated point h: the projected extrapolation, and the relaxed step with the field there."""
    bar = p(h)
    if p.trivial or o.projection == "both":
        return p(z - rate * o.step * v(bar)), bar
    return z - rate * (h - bar + o.step * v(bar)), bar


def eg_plus(z: Tensor, k: int, memory: Memory, v: Oracle, o: Any, p: Projection) -> tuple[Tensor, Memory]:
    return _second_step(z, z - o.step * v(z), o.alpha, v, o, p)[0], ()


def decreasing(o: Any, k: int) -> float:
    """a_k of the schedule."""
    decay = k / o.every + 1
    return float(o.alpha / (decay if o.schedule == "harmonic" else decay**0.5))


def seg(z: Tensor, k: int, memory: Memory, v: Oracle, o: Any, p: Projection) -> tuple[Tensor, Memory]:
    step = decreasing(o, k) * o.step
    return p(z - step * v(p(z - step * v(z)))), ()


def seg_plus(z: Tensor, k: int, memory: Memory, v: Oracle, o: Any, p: Projection) -> tuple[Tensor, Memory]:
    return _second_step(z, z - o.step * v(z), decreasing(o, k), v, o, p)[0], ()


def bcseg_plus(z: Tensor, k: int, memory: Memory, v: Oracle, o: Any, p: Projection) -> tuple[Tensor, Memory]:
    """The extrapolation is corrected by how far the last one missed, measured with the draw of this one."""
    rate, draw = decreasing(o, k), v.draw(len(z))
    h = z - o.step * v(z, draw)
    if memory:
        bar_before, before = memory
        h = h + (1 - rate) * (bar_before - before + o.step * v(before, draw))
    after, bar = _second_step(z, h, rate, v, o, p)
    return after, (bar, z)


# --- one player answers the other ---


def _answers(z: Tensor, starts: int, v: Oracle, o: Any, p: Projection) -> tuple[Tensor, slice]:
    """`starts` answers of the maximiser to every row of z, [N * starts, d], and the place of the minimiser's variable."""
    players = v.field.game.players
    low, high = (next(q for q in players if q.sense == sense) for sense in ("minimize", "maximize"))
    mine, theirs = v.field.slices[low.name], v.field.slices[high.name]
    assert high.region is not None
    many = z.repeat_interleave(starts, 0)
    many[:, theirs] = uniform(high.region, many[:, theirs], v.generator)
    for _ in range(o.inner):
        moved = many.clone()
        moved[:, theirs] -= o.inner_step * v(many)[:, theirs]
        many = p(moved)
    return many, mine


def _nested(z: Tensor, starts: int, v: Oracle, o: Any, p: Projection) -> tuple[Tensor, Memory]:
    """One normalised step of the minimiser along minus the min-norm convex combination; the maximiser is left at its best answer."""
    many, mine = _answers(z, starts, v, o, p)
    gradients = v(many)[:, mine].reshape(len(z), starts, -1)
    weights = torch.stack([min_norm_weights(g @ g.T) for g in gradients]) if starts > 1 else torch.ones(len(z), 1, dtype=z.dtype)
    direction = (weights.unsqueeze(2) * gradients).sum(1)
    length = direction.norm(dim=1, keepdim=True)
    largest = gradients.norm(dim=2).amax(1, keepdim=True)
    unit = torch.where(length > ROUNDING * largest, direction / length.clamp_min(1e-300), 0.0)
    objective = v.field.values(many, v.draw(len(many)))[0].detach().reshape(len(z), starts)
    best = many.reshape(len(z), starts, -1)[torch.arange(len(z)), objective.argmax(1)].clone()
    best[:, mine] = z[:, mine] - o.step * unit
    return p(best), ()


def best_response(z: Tensor, k: int, memory: Memory, v: Oracle, o: Any, p: Projection) -> tuple[Tensor, Memory]:
    return _nested(z, 1, v, o, p)


def danskin(z: Tensor, k: int, memory: Memory, v: Oracle, o: Any, p: Projection) -> tuple[Tensor, Memory]:
    return _nested(z, o.starts, v, o, p)


UPDATES: dict[str, Update] = {
    "gda": gda, "ppm": ppm, "extragradient": extragradient, "ogda": ogda, "rfbs": rfbs, "eg_plus": eg_plus, "seg": seg,
    "seg_plus": seg_plus, "bcseg_plus": bcseg_plus, "best_response": best_response, "danskin": danskin,
}  # fmt: skip
"""Everything but `alternating`, whose players keep optimizers of their own (lossdsl.games.turns)."""
