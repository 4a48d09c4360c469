"""The upper level's optimizer and its learning rate for every batch."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable
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
    TrainOptions,
)

BUILDERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
}


def build_optimizer(spec: OptimizerSpec, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The torch.optim class of that name; every option of the recipe is one of its arguments."""
    if spec.name not in BUILDERS:
        raise UserError(f"there is no optimizer {spec.name!r}", where="upper", fix="use " + ", ".join(BUILDERS))
    options: dict[str, Any] = spec.options.model_dump()
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
    (T - t) / (T - peak T) after it; cosine, final + (1 - final) (1 + cos(pi t / T)) / 2; constant, 1. Warm-up multiplies each by
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
    shape, warm = shapes[schedule.kind], options.warmup * per_epoch
    return (lambda t: shape(t) * min(1.0, t / warm)) if warm else shape


def build_schedule(optimizer: torch.optim.Optimizer, options: TrainOptions, per_epoch: int) -> LRScheduler:
    """The scheduler, to be stepped after every batch. onecycle moves the rate alone: the momentum stays what the recipe says."""
    if not isinstance(options.schedule, OneCycle):
        return LambdaLR(optimizer, rate_factor(options, per_epoch))
    if options.warmup:
        raise UserError("onecycle has a warm-up of its own (pct_start)", where="train", fix="leave out warmup, or choose another schedule")
    rate = float(optimizer.param_groups[0]["lr"])
    return OneCycleLR(
        optimizer, max_lr=rate, total_steps=options.epochs * per_epoch, pct_start=options.schedule.pct_start, cycle_momentum=False
    )
