"""CPU time of one update of every recipe, against one of pgd_at made right after it; for digits_table.py.

Other work on the machine slows both alike, so that the ratio holds where seconds do not. An update is the step and its backward pass, on
one batch of digits, one thread, from the weights of a few epochs of standard training; params that change by epoch are those of epoch 20.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from statistics import median

import torch
from torch import Tensor, nn

import lossdsl
from lossdsl.front import Recipe
from lossdsl.run.data import DataRequest, load_data
from lossdsl.run.models import ModelInput, build_model

ANCHOR, BATCH, EPOCH = "pgd_at", 64, 20


def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A small CNN after 60 steps of standard training, and a batch."""
    torch.manual_seed(0)
    data = load_data(DataRequest())
    model = build_model("smallcnn", ModelInput(data.shape, data.num_classes), data.mean, data.std)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    order = [torch.randint(len(data.train), (BATCH,)) for _ in range(60)]
    for batch in data.train.batches(order):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch.x), batch.y).backward()
        optimizer.step()
    return model, batch.x, batch.y


def updater(recipe: Recipe, model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], float]:
    """CPU seconds of an update; other models are the same one."""
    others = {name: deepcopy(model) for name in recipe.models}
    step = lossdsl.compile(recipe, model, num_classes=10, models=others)
    step.set_epoch(EPOCH)
    generator, index = torch.Generator().manual_seed(1), torch.arange(len(y))

    def once() -> float:
        model.zero_grad()
        began = time.process_time()
        step(x, y, generator=generator, index=index if recipe.needs_index else None).backward()
        step.after_update()
        return time.process_time() - began

    once()
    return once


def relative(recipes: dict[str, Recipe], rounds: int) -> tuple[dict[str, float], float]:
    """Of each recipe the median ratio of an update to one of pgd_at, and the median of pgd_at's own, in seconds."""
    torch.set_num_threads(1)
    model, x, y = trained()
    anchor, own, ratios = updater(recipes[ANCHOR], model, x, y), [], {}
    for name, recipe in recipes.items():
        once = updater(recipe, model, x, y)
        pairs = [(once(), anchor()) for _ in range(rounds)]
        ratios[name] = median(a / b for a, b in pairs)
        own += [b for _, b in pairs]
    return ratios, median(own)
