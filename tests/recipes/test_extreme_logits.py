"""Float32 logits up to 1e4: loss and gradient against 80-digit decimal arithmetic with the formulas as printed."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, localcontext
from typing import Any

import pytest
import torch
from torch import Generator, nn

import lossdsl
from lossdsl.assets import recipe_paths

Numbers = list[Decimal]
PAIRS = [
    # logits at x, logits at x'; the label is 0
    ([0.5, -1.0, 2.0], [1.5, 0.0, -0.5]),
    ([1e4, 0.0, -1e4], [-1e4, 0.0, 1e4]),
    ([-1e4, 1e4, 0.0], [1e4, -1e4, 0.0]),
    ([1e4, 9.99e3, -5e3], [9.99e3, 1e4, 1e4 - 20]),
    ([300.0, 100.0, -100.0], [100.0, 300.0, 299.0]),
    ([1e4, 1e4 - 1, 1e4 - 2], [-1e4, -1e4 + 3, -1e4 + 1]),
    ([0.0, 50.0, 90.0], [90.0, 0.0, 3.0]),
    ([120.0, 0.0, 118.0], [0.0, 120.0, 1.0]),
    ([-1e4, -1e4, -1e4], [1e4, 1e4, -1e4]),
]


def softmax(z: Numbers) -> Numbers:
    top = max(z)
    e = [(v - top).exp() for v in z]
    return [v / sum(e) for v in e]


def kl(p: Numbers, q: Numbers) -> Decimal:
    return sum((a * (a / b).ln() for a, b in zip(p, q, strict=True)), Decimal(0))


def js(p: Numbers, q: Numbers) -> Decimal:
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return (kl(p, m) + kl(q, m)) / 2


def se(p: Numbers, q: Numbers) -> Decimal:
    return sum(((a - b) ** 2 for a, b in zip(p, q, strict=True)), Decimal(0))


def one_minus(q: Numbers, i: int) -> Decimal:
    """Without cancellation."""
    return sum((v for j, v in enumerate(q) if j != i), Decimal(0))


def runner_up(q: Numbers) -> int:
    return max(range(1, len(q)), key=lambda j: q[j])


def mart(p: Numbers, q: Numbers) -> Decimal:
    return -q[0].ln() - one_minus(q, runner_up(q)).ln() + 5 * kl(p, q) * one_minus(p, 0)


TERMS: dict[str, Callable[[Numbers, Numbers], Decimal]] = {
    "CE(f(x), y)": lambda p, q: -p[0].ln(),
    "CE(p(x'), p(x))": lambda p, q: -sum((a * b.ln() for a, b in zip(p, q, strict=True)), Decimal(0)),
    "KL(p(x) || p(x'))": kl,
    "KL(p(x') || p(x))": lambda p, q: kl(q, p),
    "H(p(x))": lambda p, q: -sum((a * a.ln() for a in p), Decimal(0)),
    "JS(p(x) || p(x'))": js,
    "SE(p(x'), p(x))": lambda p, q: se(q, p),
    "SE(p(x), onehot(y))": lambda p, q: se(p, [Decimal(1), Decimal(0), Decimal(0)]),
    "-log(p(x')[y])": lambda p, q: -q[0].ln(),
    "-log(1 - max(j != y: p(x')[j]))": lambda p, q: -one_minus(q, runner_up(q)).ln(),
    "-log(1 - p(x)[y])": lambda p, q: -one_minus(p, 0).ln(),
    "KL(p(x) || p(x')) * (1 - p(x)[y])": lambda p, q: kl(p, q) * one_minus(p, 0),
    "-log(p(x')[y]) - log(1 - max(j != y: p(x')[j])) + 5 * KL(p(x) || p(x')) * (1 - p(x)[y])": mart,
    "CE(f(x), y) + 6 * KL(p(x) || p(x'))": lambda p, q: -p[0].ln() + 6 * kl(p, q),
    "CE(f(x), y) - H(p(x)) - H(p(x'))": lambda p, q: -p[0].ln() + sum((a * a.ln() for a in (*p, *q)), Decimal(0)),
}


def exact(term: Callable[[Numbers, Numbers], Decimal], z: list[float], w: list[float]) -> tuple[float, list[float]]:
    """Value and gradient in all six logits: central differences of width 1e-20 at 80 digits."""
    with localcontext() as context:
        context.prec = 80

        def value(logits: Numbers) -> Decimal:
            return term(softmax(logits[:3]), softmax(logits[3:]))

        at, h = [Decimal(v) for v in (*z, *w)], Decimal("1e-20")
        slopes = []
        for n in range(6):
            up, down = (value([v + s * h * (m == n) for m, v in enumerate(at)]) for s in (1, -1))
            slopes.append(float((up - down) / (2 * h)))
        return float(value(at)), slopes


def step_at(objective: str, model: nn.Module) -> Any:
    """A step whose upper objective is the given one (with what makes every text depend on x')."""
    lower = "lower x' in linf(x, 1) maximize CE(f(x'), y) by pgd(steps = 1, step = 0.1, start = x)\n"
    return lossdsl.compile(lossdsl.parse(f"recipe term\n{lower}upper minimize {objective} by sgd(lr = 0.1)"), model, num_classes=3)


@pytest.mark.parametrize("pair", range(len(PAIRS)))
@pytest.mark.parametrize("term", TERMS)
def test_value_and_gradient(term: str, pair: int, table: Any) -> None:
    model = table(torch.tensor(PAIRS[pair]))
    loss = step_at(term, model).objective(model.points[:1], torch.tensor([0]), {"x'": model.points[1:]})
    loss.backward()
    value, slopes = exact(TERMS[term], *(model.rows[n].tolist() for n in (0, 1)))
    assert loss.dtype == model.rows.grad.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(value, rel=1e-4, abs=1e-7)
    size = max(1.0, *map(abs, slopes))  # a log_softmax of float32 rounds by 1e-7 where a probability is nearly 1
    assert model.rows.grad.flatten().tolist() == pytest.approx(slopes, rel=1e-4, abs=5e-7 * size)


def test_the_runner_up_of_a_tie_counts_once(table: Any) -> None:
    """The gradient of 1 - max flows through one class, the lowest."""
    model = table(torch.tensor([[0.0, 2.0, 2.0]]))
    step_at("-log(1 - max(j != y: p(x')[j]))", model).objective(model.points, torch.tensor([0]), {"x'": model.points}).backward()
    p = torch.tensor([0.0, 2.0, 2.0]).softmax(0)
    expected = p[1] / (1 - p[1]) * (torch.tensor([0.0, 1.0, 0.0]) - p)
    torch.testing.assert_close(model.rows.grad[0], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", sorted(recipe_paths()))
@pytest.mark.parametrize("scale", [1e2, 1e4, 3e4])
def test_a_whole_step_is_finite(name: str, scale: float, draws: Callable[..., Generator]) -> None:
    """A linear model with weights so large that the attack meets logits of 1e4 and more."""
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.copy_(scale * torch.tensor([[1.0, -1.0, 0.5, 0.0], [-1.0, 1.0, 0.0, 0.5], [0.3, 0.2, -1.0, 0.1]]))
    x = torch.tensor([[1.0, 0.0, 0.5, 0.2], [0.0, 1.0, 0.1, 0.9], [0.4, 0.4, 0.4, 0.4], [0.0, 0.0, 0.0, 0.0]])
    helpers = {other: nn.Linear(4, 3) for other in lossdsl.load(name).models}
    step = lossdsl.compile(name, model, num_classes=3, models=helpers)
    loss = step(x, torch.tensor([0, 0, 1, 2]), generator=draws(), index=torch.arange(4))
    loss.backward()
    assert bool(loss.isfinite()) and all(bool(p.grad.isfinite().all()) for p in model.parameters())
