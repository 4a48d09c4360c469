"""`start = previous`: a level goes on from the perturbations of the last batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lossdsl
from lossdsl import UserError

RECIPE = """recipe free
param eps = 0.3 then 0.2 from epoch 2
lower x' in linf(x, eps) maximize CE(f(x'), y) by pgd(steps = 1, step = 0.1, start = previous)
upper minimize CE(f(x'), y) by sgd(lr = 0.1)"""


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def batch(seed: int, count: int = 6) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return 0.5 + 0.2 * (torch.rand(count, 5, dtype=torch.float64, generator=g) - 0.5), torch.randint(3, (count,), generator=g)


def stepped(f: nn.Module, x: Tensor, y: Tensor, delta: Tensor, eps: float = 0.3) -> Tensor:
    """One plain sign step from x + delta, as a perturbation."""
    point = (x + delta).clamp(0, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(f(point), y, reduction="sum"), point)
    moved = point.detach() + 0.1 * gradient.sign()
    return (x + (moved - x).clamp(-eps, eps)).clamp(0, 1) - x


def test_each_batch_starts_from_the_last_perturbations() -> None:
    f = model()
    step = lossdsl.compile(lossdsl.parse(RECIPE), f, num_classes=3)
    delta = torch.zeros(6, 5, dtype=torch.float64)
    for seed in range(4):
        x, y = batch(seed)
        delta = stepped(f, x, y, delta)
        assert torch.allclose(step.solve(x, y)["x'"] - x, delta, atol=1e-12)
    assert delta.abs().max() > 0.2, "several steps have added up"


def test_a_smaller_batch_takes_the_first_rows_and_a_larger_one_adds_zeros() -> None:
    f = model()
    step = lossdsl.compile(lossdsl.parse(RECIPE), f, num_classes=3)
    x, y = batch(0)
    delta = stepped(f, x, y, torch.zeros_like(x))
    step.solve(x, y)
    x, y = batch(1, 4)
    delta = stepped(f, x, y, delta[:4])
    assert torch.allclose(step.solve(x, y)["x'"] - x, delta, atol=1e-12)
    x, y = batch(2, 6)
    delta = stepped(f, x, y, torch.cat([delta, torch.zeros(2, 5, dtype=torch.float64)]))
    assert torch.allclose(step.solve(x, y)["x'"] - x, delta, atol=1e-12)


def test_the_state_goes_through_a_checkpoint_and_a_change_of_epoch() -> None:
    f = model()
    first, second = (lossdsl.compile(lossdsl.parse(RECIPE), f, num_classes=3) for _ in range(2))
    x, y = batch(0)
    delta = stepped(f, x, y, torch.zeros_like(x))
    first.solve(x, y)
    assert list(first.state_dict()) == ["previous.x'"]
    second.load_state_dict(first.state_dict())
    second.set_epoch(2)
    x, y = batch(1)
    assert torch.allclose(second.solve(x, y)["x'"] - x, stepped(f, x, y, delta.clamp(-0.2, 0.2), eps=0.2), atol=1e-12)


def test_state_of_another_recipe_is_refused() -> None:
    step = lossdsl.compile(lossdsl.parse(RECIPE), model(), num_classes=3)
    with pytest.raises(UserError, match="no state previous.z"):
        step.load_state_dict({"previous.z": torch.zeros(6, 5)})


def test_a_family_keeps_one_perturbation_per_class() -> None:
    text = (
        RECIPE.replace("x' in", "x'[j != y] in")
        .replace("CE(f(x'), y) by pgd", "f(x'[j])[j] by pgd")
        .replace("CE(f(x'), y) by sgd", "sum(j != y: CE(f(x'[j]), y)) by sgd")
    )
    step = lossdsl.compile(lossdsl.parse(text), model(), num_classes=3)
    x, y = batch(0)
    one = step.solve(x, y)["x'"]
    two = step.solve(x, y)["x'"]
    assert one.shape == (6, 2, 5)
    assert torch.allclose((two - x.unsqueeze(1)).abs().amax(-1), torch.full((6, 2), 0.2, dtype=torch.float64), atol=0.05)
