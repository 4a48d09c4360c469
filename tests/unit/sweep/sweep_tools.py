"""Sweeps that take a second: a small recipe on tensors, and one run in a process of its own that is killed."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lossdsl.engine.api import attack_compiler, step_compiler
from lossdsl.front import Recipe, parse_recipe
from lossdsl.run.data import DataSet, from_tensors
from lossdsl.run.request import AttackChoice, TrainRequest
from lossdsl.sweep.sweep import SweepRequest

TEXT = """
recipe tiny
  title "TRADES on tiny data"
param lambda = 1, eps = 0.1, rate = 0.1
lower x' in linf(x, eps)
  maximize KL(p(x) || p(x'))
  by pgd(steps = 1, step = eps, start = x + normal(0.001))
upper
  minimize CE(f(x), y) + lambda * KL(p(x) || p(x'))
  by sgd(lr = rate, momentum = 0.9)
train epochs = 1, batch = 32, validation = 0.25
"""


def tiny_data() -> DataSet:
    """160 blurred class templates, 1x6x6 in [0, 1]."""
    random = torch.Generator().manual_seed(0)
    templates = torch.rand(3, 1, 6, 6, generator=random)
    y = torch.arange(160) % 3
    x = (0.5 * templates[y] + 0.5 * torch.rand(160, 1, 6, 6, generator=random)).clamp(0, 1)
    return from_tensors("tiny", (x[:120], y[:120]), (x[120:], y[120:]), 3)


def make_request(out: Path, recipe: Recipe | None = None, **changes: Any) -> SweepRequest:
    recipe = recipe or parse_recipe(TEXT)
    trainable: Any = recipe
    template = TrainRequest(
        recipe=trainable, compile_step=step_compiler(recipe), compile_attack=attack_compiler, out=out, data=tiny_data(), device="cpu",
        validation_attack=AttackChoice("fgsm"), test_attack=AttackChoice("fgsm"),
    )  # fmt: skip
    template = replace(template, **changes.pop("template", {}))
    return SweepRequest(template, recipe, **{"over": {"lambda": (1, 3)}, "seeds": (0, 1), "attack": AttackChoice("fgsm"), **changes})


def killed_sweep(out: Path) -> None:
    """In a process of its own: a sweep that kills itself in the middle of its third run."""
    import signal

    import lossdsl.sweep.sweep as module
    from lossdsl.run.train import train

    torch.set_num_threads(1)
    count = [0]

    class Fatal:
        def __init__(self, step: Any) -> None:
            self._step, self._left = step, 3

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return self._step(*args, **kwargs)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._step, name)

    def train_third_to_death(request: TrainRequest) -> Any:
        count[0] += 1
        if count[0] == 3:
            inner = request.compile_step
            request = replace(request, compile_step=lambda *args: Fatal(inner(*args)), checkpoint_every=1)  # type: ignore[arg-type,return-value]
        return train(request)

    module.train = train_third_to_death
    module.sweep(make_request(out))
