"""The upper level's optimizers and their learning rate for every update."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from lossdsl.diagnostics import UserError
from lossdsl.lang.specs import (
    Constant,
    Cosine,
    Cyclic,
    Drop,
    OneCycle,
    OptimizerSpec,
    Phases,
    TrainOptions,
)

BUILDERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
}


def build_optimizer(spec: OptimizerSpec, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The torch.optim class of that name; every option of the recipe but `normalize` is one of its arguments."""
    if spec.name not in BUILDERS:
        raise UserError(f"there is no optimizer {spec.name!r}", where="upper", fix="use " + ", ".join(BUILDERS))
    options: dict[str, Any] = spec.options.model_dump(exclude={"normalize"})
    if "beta1" in options:
        options["betas"] = (options.pop("beta1"), options.pop("beta2"))
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        raise UserError("the model has no parameter to train", where="--model", fix="leave requires_grad on for at least one parameter")
    return BUILDERS[spec.name](trained, **options)


def rate_factor(options: TrainOptions, per_epoch: int) -> Callable[[int], float]:
    """The multiple of the optimizer's rate that update t (counted from 0, `per_epoch` updates in an epoch) uses, for every schedule but
    onecycle.

    With T updates in all: drop, factor^(number of `at` epochs that are over); cyclic, t / (peak T) up to the peak and
    (T - t) / (T - peak T) after it; cosine, final + (1 - final) (1 + cos(pi t / T)) / 2; constant, 1; phases, linear between the points
    (at[i], factor[i]) in t / per_epoch, and the last factor after the last of them. Warm-up multiplies each by
    min(1, t / (warmup per_epoch)).
    """
    schedule, total = options.schedule, options.epochs * per_epoch
    shapes: dict[str, Callable[[int], float]] = {}
    if isinstance(schedule, Drop):
        shapes["drop"] = lambda t: schedule.factor ** bisect_left(schedule.at, t // per_epoch + 1)
    elif isinstance(schedule, Cyclic):
        top = schedule.peak * total
        shapes["cyclic"] = lambda t: t / top if t <= top else max(0.0, (total - t) / (total - top))
    elif isinstance(schedule, Cosine):
        shapes["cosine"] = lambda t: schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * min(t, total) / total)) / 2
    elif isinstance(schedule, Constant):
        shapes["constant"] = lambda t: 1.0
    elif isinstance(schedule, Phases):
        shapes["phases"] = lambda t: _between(schedule, t / per_epoch)
    shape, warm = shapes[schedule.kind], options.warmup * per_epoch
    return (lambda t: shape(t) * min(1.0, t / warm)) if warm else shape


def _between(schedule: Phases, epochs: float) -> float:
    """The factor after so many epochs."""
    after = bisect_left(schedule.at, epochs)
    if after in (0, len(schedule.at)):
        return schedule.factor[min(after, len(schedule.at) - 1)]
    (left, right), (low, high) = schedule.at[after - 1 : after + 1], schedule.factor[after - 1 : after + 1]
    return low + (high - low) * (epochs - left) / (right - left)


def build_schedule(optimizer: torch.optim.Optimizer, options: TrainOptions, per_epoch: int) -> LRScheduler:
    """The scheduler, to be stepped after every update, `per_epoch` of them in an epoch.

    onecycle moves the rate alone: the momentum stays what the recipe says.
    """
    if not isinstance(options.schedule, OneCycle):
        return LambdaLR(optimizer, rate_factor(options, per_epoch))
    if options.warmup:
        raise UserError("onecycle has a warm-up of its own (pct_start)", where="train", fix="leave out warmup, or choose another schedule")
    rate = float(optimizer.param_groups[0]["lr"])
    return OneCycleLR(
        optimizer, max_lr=rate, total_steps=options.epochs * per_epoch, pct_start=options.schedule.pct_start, cycle_momentum=False
    )


@dataclass
class Stepper:
    """An optimizer, its schedule, and what is done to the gradient of all its parameters together before its step."""

    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    normalize: bool
    clip: float | None

    @property
    def rate(self) -> float:
        """The learning rate of the next update."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those that have a gradient."""
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]

    def norm(self) -> float:
        """The l2 norm of the gradient as it is now."""
        return float(torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]))

    def step(self, norm: float) -> None:
        """Scale the gradient, whose norm this is, to length one (zero stays zero) or clip it; then step optimizer and schedule."""
        if self.normalize and norm > 0:
            for parameter in self.parameters:
                assert parameter.grad is not None
                parameter.grad.div_(norm)
        if self.clip is not None and self.parameters:
            device = self.parameters[0].device
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip, torch.tensor(norm, device=device))
        self.optimizer.step()
        self.schedule.step()


def build_stepper(spec: OptimizerSpec, parameters: Iterable[nn.Parameter], options: TrainOptions, per_epoch: int) -> Stepper:
    """An optimizer with the recipe's schedule. Raises UserError for `clip` beside `normalize`, which leaves nothing to clip."""
    normalize = spec.options.normalize
    if normalize and options.clip is not None:
        raise UserError(
            f"{spec.name}(normalize = true) makes every gradient one long, and clip = {options.clip:g} would have no say",
            where="train",
            fix="leave out clip, or normalize",
        )
    optimizer = build_optimizer(spec, parameters)
    return Stepper(optimizer, build_schedule(optimizer, options, per_epoch), normalize, options.clip)
