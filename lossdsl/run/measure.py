"""Clean and robust accuracy of a model on a split: always in eval mode, always counted by the suite's own rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lossdsl.diagnostics import UserError
from lossdsl.run.examples import Split
from lossdsl.run.protocols import Attack
from lossdsl.run.rng import generator

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Rate:
    """`right` of `total` examples. The interval is Wilson's (1927), from scipy.stats.binomtest; it covers the test sample alone, not
    the randomness of training."""

    right: int
    total: int

    @property
    def value(self) -> float:
        return self.right / self.total

    @cached_property
    def interval(self) -> tuple[float, float]:
        from scipy.stats import binomtest

        found = binomtest(self.right, self.total).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
        return float(found.low), float(found.high)

    def to_json(self) -> dict[str, Any]:
        low, high = self.interval
        return {"accuracy": self.value, "right": self.right, "total": self.total, "low": low, "high": high, "confidence": CONFIDENCE}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Rate:
        return cls(int(value["right"]), int(value["total"]))


class Interrupted(Exception):  # noqa: N818  (a wish, not a fault)
    """The user asked to stop in the middle of a measurement."""


@dataclass(frozen=True)
class Setting:
    """How a measurement computes; `seed` is that of the attack's generator, `batch` the number of examples at a time."""

    device: torch.device
    dtype: torch.dtype
    seed: int
    batch: int


@dataclass(frozen=True)
class Measurement:
    """`robust` is the suite's number (None for `count each`); `runs` holds each run's own: the examples still right after this run
    and, under `worst`, all runs before it."""

    clean: Rate
    robust: Rate | None
    runs: Mapping[str, Rate]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode and parameters without gradients inside; afterwards each module and parameter is as it was, frozen ones too."""
    modes = [(module, module.training) for module in model.modules()]
    wanting = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in wanting:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter in wanting:
            parameter.requires_grad_(True)


@torch.no_grad()
def right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which examples are classified correctly [N]; logits that are not finite count as wrong."""
    z: Tensor = model(x)
    return (z.argmax(1) == y) & torch.isfinite(z).all(1)


def survives(model: nn.Module, points: Tensor, y: Tensor, rank: int) -> Tensor:
    """Which examples are right at their points [N]. A family, points [N, n, *shape] (`rank` is that of x), must be right at all n."""
    if points.ndim == rank:
        return right(model, points, y)
    return right(model, points.flatten(0, 1), y.repeat_interleave(points.shape[1])).reshape(points.shape[:2]).all(1)


@dataclass
class _Count:
    """Adds batches up; `alive[run]` counts examples that survive."""

    total: int = 0
    clean: int = 0
    robust: int = 0
    alive: dict[str, int] = field(default_factory=dict)

    def add(self, clean: Tensor, robust: Tensor, runs: Mapping[str, Tensor]) -> None:
        self.total += len(clean)
        self.clean += int(clean.sum())
        self.robust += int(robust.sum())
        for name, mask in runs.items():
            self.alive[name] = self.alive.get(name, 0) + int(mask.sum())

    def finish(self, each: bool) -> Measurement:
        runs = {name: Rate(count, self.total) for name, count in self.alive.items()}
        return Measurement(Rate(self.clean, self.total), None if each else Rate(self.robust, self.total), runs)


def measure(
    model: nn.Module,
    attack: Attack,
    split: Split,
    setting: Setting,
    *,
    stop: Callable[[], bool] = lambda: False,
    advance: Callable[[int], None] = lambda done: None,
) -> Measurement:
    """Clean and robust accuracy on all of `split`, in order.

    Clean errors count as broken. `worst`: any success of any run breaks an example and later runs get only those still right;
    `best_loss`: the point with the largest objective decides, ties to the later run; `each`: one number per run. A success is judged
    on the point a run returns, by a forward pass of our own. Raises `Interrupted` when `stop` says so between batches.
    """
    if attack.count not in COUNTERS:
        raise UserError(f"has the unknown count rule {attack.count!r}", where=f"attack {attack.name}", fix="use worst, best_loss or each")
    count, random = _Count(), generator(setting.device, setting.seed)
    with evaluation_mode(model):
        for piece in split.in_order(setting.batch):
            if stop():
                raise Interrupted
            x, y = piece.x.to(setting.device, setting.dtype), piece.y.to(setting.device)
            clean = right(model, x, y)
            robust, runs = COUNTERS[attack.count](model, attack, x, y, clean, random)
            count.add(clean, robust, runs)
            advance(len(y))
    return count.finish(attack.count == "each")


Counted = tuple[Tensor, dict[str, Tensor]]


def _worst(model: nn.Module, attack: Attack, x: Tensor, y: Tensor, clean: Tensor, random: torch.Generator) -> Counted:
    alive, runs = clean.clone(), {}
    names = [str(row["name"]) for row in attack.settings]
    for row, name in zip(attack.settings, names, strict=True):
        at = alive.nonzero().squeeze(1)
        if len(at):
            found = attack.run(x[at], y[at], generator=random) if len(names) == 1 else attack.run(x[at], y[at], generator=random, only=name)
            points = found[name][0]
            check_in_set(attack.name, row, x[at], points)
            alive[at] = survives(model, points, y[at], x.ndim)
        runs[name] = alive.clone()
    return alive, runs


def _every(
    model: nn.Module, attack: Attack, x: Tensor, y: Tensor, clean: Tensor, random: torch.Generator
) -> tuple[dict[str, Tensor], list[Tensor | None]]:
    alive: dict[str, Tensor] = {}
    objectives = []
    found = attack.run(x, y, generator=random)
    for row in attack.settings:
        points, objective = found[str(row["name"])]
        check_in_set(attack.name, row, x, points)
        if attack.count == "best_loss" and objective is not None and objective.ndim == 2:
            rows = torch.arange(len(y), device=y.device)
            best = objective.argmax(1)
            points, objective = points[rows, best], objective[rows, best]
        alive[str(row["name"])] = clean & survives(model, points, y, x.ndim)
        objectives.append(objective)
    return alive, objectives


def _each(model: nn.Module, attack: Attack, x: Tensor, y: Tensor, clean: Tensor, random: torch.Generator) -> Counted:
    return clean, _every(model, attack, x, y, clean, random)[0]


def _best_loss(model: nn.Module, attack: Attack, x: Tensor, y: Tensor, clean: Tensor, random: torch.Generator) -> Counted:
    alive, objectives = _every(model, attack, x, y, clean, random)
    known = [objective for objective in objectives if objective is not None]
    if len(known) != len(objectives):
        raise UserError("count best_loss needs an objective from every run", where=f"attack {attack.name}", fix="use count worst")
    # argmax takes the first of equals, which after the flip is the later run
    stacked = torch.stack([objective.detach() for objective in known]).flip(0)
    chosen = len(known) - 1 - stacked.argmax(0)
    robust = torch.stack(list(alive.values())).gather(0, chosen.unsqueeze(0)).squeeze(0)
    return robust, alive


COUNTERS = {"worst": _worst, "best_loss": _best_loss, "each": _each}


def check_in_set(attack: str, row: Mapping[str, Any], x: Tensor, points: Tensor) -> None:
    """A guard against an attack that cheats: its points stay within the radius it reports. Raises RuntimeError (a fault of ours)."""
    radius, norm = row.get("radius"), row.get("norm")
    if not isinstance(radius, float | int) or norm not in ("linf", "l2"):
        return
    difference = (points - (x if points.ndim == x.ndim else x.unsqueeze(1))).flatten(points.ndim - x.ndim + 1)
    size = difference.abs().amax(-1) if norm == "linf" else difference.norm(dim=-1)
    if bool((size > radius * (1 + 1e-4) + 1e-6).any()):
        raise RuntimeError(
            f"attack {attack}, run {row['name']}: a point is {float(size.max()):g} away in {norm}, outside the radius {radius:g}"
        )
