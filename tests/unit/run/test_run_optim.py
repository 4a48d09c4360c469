from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, CyclicLR, MultiStepLR, OneCycleLR

from lossdsl.diagnostics import UserError
from lossdsl.lang.specs import OPTIMIZERS, Constant, Cosine, Cyclic, Drop, OneCycle, OptimizerSpec, Phases, TrainOptions
from lossdsl.run.optim import BUILDERS, build_optimizer, build_schedule

EPOCHS, PER_EPOCH, RATE = 4, 5, 0.2
TOTAL = EPOCHS * PER_EPOCH


def options(**changes: Any) -> TrainOptions:
    return TrainOptions(epochs=EPOCHS, batch=8, **changes)


def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=RATE)


def rates(optimizer: torch.optim.Optimizer, schedule: Any, count: int = TOTAL) -> list[float]:
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def ours(**changes: Any) -> list[float]:
    optimizer = sgd()
    return rates(optimizer, build_schedule(optimizer, options(**changes), PER_EPOCH))


def test_drop_acts_after_the_epochs_it_names() -> None:
    optimizer = sgd()
    library = rates(optimizer, MultiStepLR(optimizer, [PER_EPOCH, 3 * PER_EPOCH], 0.1))
    found = ours(schedule=Drop(at=(1, 3), factor=0.1))
    assert found == pytest.approx(library)
    assert found[PER_EPOCH - 1 : PER_EPOCH + 1] == pytest.approx([0.2, 0.02])


def test_cyclic_is_the_librarys_and_the_plain_formula() -> None:
    found = ours(schedule=Cyclic(peak=0.4))
    optimizer = sgd()
    library = CyclicLR(optimizer, 0.0, RATE, step_size_up=8, step_size_down=12, cycle_momentum=False)
    assert found == pytest.approx(rates(optimizer, library))
    assert found == pytest.approx([RATE * float(np.interp(t, [0, 8, 20], [0, 1, 0])) for t in range(TOTAL)])
    assert max(found) == RATE


def test_cosine() -> None:
    optimizer = sgd()
    library = rates(optimizer, CosineAnnealingLR(optimizer, TOTAL, eta_min=0.1 * RATE))
    assert ours(schedule=Cosine(final=0.1)) == pytest.approx(library)


def test_constant_and_warmup() -> None:
    assert ours(schedule=Constant()) == [RATE] * TOTAL
    assert ours(schedule=Constant(), warmup=1.2) == pytest.approx([RATE * min(1, t / 6) for t in range(TOTAL)])
    half = [0.5 * (1 + math.cos(math.pi * t / TOTAL)) for t in range(TOTAL)]
    assert ours(schedule=Cosine(), warmup=2.0) == pytest.approx([RATE * h * min(1, t / 10) for t, h in enumerate(half)])


def test_phases_are_linear_between_their_points_and_constant_after_the_last() -> None:
    found = ours(schedule=Phases(at=(0, 1.5, 3), factor=(0.2, 1, 0.1)))
    assert found == pytest.approx([RATE * float(np.interp(t / PER_EPOCH, [0, 1.5, 3], [0.2, 1, 0.1])) for t in range(TOTAL)])
    assert found[-PER_EPOCH:] == pytest.approx([0.1 * RATE] * PER_EPOCH)
    warm = ours(schedule=Phases(at=(0, 4), factor=(1, 0.5)), warmup=1.0)
    assert warm == pytest.approx([RATE * (1 - t / 40) * min(1, t / 5) for t in range(TOTAL)])


def test_onecycle_leaves_the_momentum_alone() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=RATE, momentum=0.9)
    found = rates(optimizer, build_schedule(optimizer, options(schedule=OneCycle(pct_start=0.4)), PER_EPOCH))
    other = sgd()
    library = OneCycleLR(other, max_lr=RATE, total_steps=TOTAL, pct_start=0.4, cycle_momentum=False)
    assert found == pytest.approx(rates(other, library))
    assert optimizer.param_groups[0]["momentum"] == 0.9
    with pytest.raises(UserError, match="onecycle has a warm-up of its own"):
        build_schedule(sgd(), options(schedule=OneCycle(), warmup=1.0), PER_EPOCH)


@pytest.mark.parametrize(
    "schedule", [Drop(at=(1,)), Cyclic(), Cosine(), OneCycle(), Constant(), Phases(at=(0, 2), factor=(0, 1))], ids=lambda s: s.kind
)
def test_a_schedule_resumes_exactly(schedule: Any) -> None:
    whole = ours(schedule=schedule, warmup=0.0)
    optimizer = sgd()
    first = build_schedule(optimizer, options(schedule=schedule), PER_EPOCH)
    begun = rates(optimizer, first, 7)
    later = sgd()
    second = build_schedule(later, options(schedule=schedule), PER_EPOCH)
    later.load_state_dict(optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    assert begun + rates(later, second, TOTAL - 7) == whole


def test_every_optimizer_of_the_table_gets_its_options() -> None:
    assert set(BUILDERS) == set(OPTIMIZERS)
    values: dict[str, Any] = {"sgd": {"momentum": 0.8, "nesterov": True}, "adam": {"beta1": 0.7, "beta2": 0.8, "eps": 1e-3}}
    values |= {"adamw": values["adam"], "rmsprop": {"alpha": 0.6, "eps": 1e-3, "momentum": 0.5}}
    for name, kind in OPTIMIZERS.items():
        spec = OptimizerSpec(name, kind(lr=0.3, weight_decay=0.01, **values[name]))
        group = build_optimizer(spec, nn.Linear(2, 2).parameters()).param_groups[0]
        wanted = {"lr": 0.3, "weight_decay": 0.01, **values[name]}
        if "beta1" in wanted:
            wanted["betas"] = (wanted.pop("beta1"), wanted.pop("beta2"))
        assert {key: group[key] for key in wanted} == wanted


def test_frozen_parameters_are_not_stepped() -> None:
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    optimizer = build_optimizer(OptimizerSpec("sgd", OPTIMIZERS["sgd"](lr=0.1)), layer.parameters())
    assert optimizer.param_groups[0]["params"] == [layer.weight]
    layer.weight.requires_grad_(False)
    with pytest.raises(UserError, match="no parameter to train"):
        build_optimizer(OptimizerSpec("sgd", OPTIMIZERS["sgd"](lr=0.1)), layer.parameters())
