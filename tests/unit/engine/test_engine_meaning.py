"""Meanings that a second pair of eyes found broken: sets, mixtures, conventions at kinks, the order of passes, buffers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import lossdsl
from lossdsl import RecipeError

BY = "by sgd(lr = 0.1)"


class Identity(nn.Module):
    """Logits are the input; remembers the points it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.seen: list[Tensor] = []

    def forward(self, v: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(v.detach().clone())
        return self.scale * v


def upper(text: str, model: nn.Module, before: str = "") -> lossdsl.engine.api.Step:
    return lossdsl.compile(lossdsl.parse(f"recipe r input x in reals\n{before}\nupper minimize {text} {BY}"), model, num_classes=3)


X = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]], dtype=torch.float64)
Y = torch.tensor([0, 2])


def test_a_draw_from_a_set_around_x_stays_in_the_domain() -> None:
    text = f"recipe r sample z ~ uniform(linf(x, 0.5)), eta ~ uniform(linf(0, 0.5)) upper minimize CE(f(z + eta), y) {BY}"
    text = text.replace(
        "sample z ~ uniform(linf(x, 0.5)), eta ~ uniform(linf(0, 0.5))",
        "sample z ~ uniform(linf(x, 0.5)) sample eta ~ uniform(linf(0, 0.5))",
    )
    step = lossdsl.compile(lossdsl.parse(text), Identity(), num_classes=3)
    x = torch.zeros(500, 3, dtype=torch.float64)
    found = step.solve(x, torch.zeros(500, dtype=torch.long), generator=torch.Generator().manual_seed(0))
    assert found["z"].min() >= 0 and found["z"].max() <= 0.5
    assert (found["z"] == 0).double().mean() < 0.01, "uniform on the set, not clipped to it"
    assert found["eta"].min() < -0.4, "a set of perturbations is not met with the domain"


@pytest.mark.parametrize("weight", [0, 1])
def test_a_mixture_with_all_the_weight_on_one_side_is_that_side(weight: int) -> None:
    x = torch.tensor([[1e4, 0.0, 0.0]], dtype=torch.float32)
    text = "CE((1 - a) * p(x) + a * p(-x), y)"
    model = Identity().float()
    loss = upper(text, model, f"param a = {weight} in [0, 1]")(x, torch.tensor([1 - weight]))
    assert float(loss) == pytest.approx(1e4 + weight * math.log(2), rel=1e-7), "p(-x) shares what is left between two classes"
    (gradient,) = torch.autograd.grad(loss, model.scale)
    assert float(gradient) == 1e4


def test_nearly_equal_weights_make_no_mixture() -> None:
    with pytest.raises(RecipeError, match="E012"):
        lossdsl.parse(
            f"recipe r let u = 0.25 * p(x)[y], v = 0.2500000001 * p(x)[y] upper minimize CE((1 - v) * p(x) + u * p(1 - x), y) {BY}"
        )


def gradient_at(text: str, point: list[float]) -> list[float]:
    """Of the objective of a level by its point, read off one raw step of length one."""
    recipe = f"recipe r input x in reals lower x' in linf(x, 100) maximize {text} by ascent(steps = 1, step = 1, start = x) upper minimize CE(f(x'), y) {BY}"
    x = torch.tensor([point], dtype=torch.float64)
    step = lossdsl.compile(lossdsl.parse(recipe), Identity(), num_classes=3)
    found: list[float] = (step.solve(x, torch.tensor([0]))["x'"] - x)[0].tolist()
    return found


def test_clip_passes_the_gradient_at_its_bounds() -> None:
    assert gradient_at("dot(clip(x', 0, 1), x' * 0 + 1)", [0.0, 1.0, 2.0]) == [1, 1, 0]


def test_the_largest_entry_passes_the_gradient_to_the_first_at_a_tie() -> None:
    assert gradient_at("norm(f(x'), inf)", [2.0, -2.0, 2.0]) == [1, 0, 0]


@pytest.mark.parametrize(
    "text",
    [
        "CE(p(x) || f(1 - x))",
        "max(j != argmax(k: f(x)[k]): f(1 - x)[j])",
        "batch_mean(CE(f(x), y) where f(1 - x)[y] > 0)",
        "if(f(x)[0] > 0, CE(f(1 - x), y), 1)",
        "p(x)[y] * H(p(1 - x))",
    ],
)
def test_passes_come_in_the_order_written(text: str) -> None:
    model = Identity()
    upper(text, model)(X, Y)
    assert [torch.equal(v, X) for v in model.seen] == [True, False]
    assert int(model.calls) == 2


def test_what_an_eval_pass_writes_into_a_buffer_is_kept() -> None:
    model = Identity()
    upper("CE(f(x), y) + KL(q || p(1 - x))", model, "let q = p(x) with f in eval")(X, Y)
    assert int(model.calls) == len(model.seen) == 3


def test_a_family_over_all_classes_is_at_hand_for_the_label() -> None:
    text = f"recipe r lower x'[j] in linf(x, 0.2) maximize f(x'[j])[j] by linear(start = x) upper minimize CE(f(x'[y]), y) + sum(j != y: f(x'[j])[j]) {BY}"
    step = lossdsl.compile(lossdsl.parse(text), Identity(), num_classes=3)
    x = torch.full((2, 3), 0.5, dtype=torch.float64)
    loss = step(x, Y)
    ahead = math.log(math.exp(0.7) + 2 * math.exp(0.5)) - 0.7
    assert float(loss) == pytest.approx(ahead + 2 * 0.7)


def test_if_chooses_between_classes() -> None:
    loss = upper("CE(f(x), if(f(x)[0] > 1, y, argmax(j: f(x)[j])))", Identity())(X, Y)
    expected = nn.functional.cross_entropy(X, torch.tensor([0, 1]))
    assert float(loss) == pytest.approx(float(expected))


HUGE = {
    "-log(2 * p(x)[y])": 1e4 - math.log(2),
    "-log(p(x)[y]^2)": 2e4,
    "-log(sqrt(p(x)[y]))": 5e3,
    "-log(p(x)[1] + p(x)[2])": 1e4 - math.log(2),
    "log(1 / p(x)[y])": 1e4,
    "-log(mean(j != argmax(k: f(x)[k]): p(x)[j]))": 1e4,
    "-log(1 - sum(j != y: p(x)[j]))": 1e4,
    "-log(1 - (1 - p(x)[y]))": 1e4,
    "-log(if(y == 1, p(x)[y], 0.5))": 1e4,
    "-log(softmax(j: f(x)[j])[y])": 1e4,
}


@pytest.mark.parametrize("text", HUGE)
def test_logarithms_of_tiny_probabilities_are_right_in_float32(text: str) -> None:
    model = Identity().float()
    loss = upper(text, model)(torch.tensor([[1e4, 0.0, 0.0]]), torch.tensor([1]))
    (gradient,) = torch.autograd.grad(loss, model.scale)
    slope = {"-log(p(x)[y]^2)": 2e4, "-log(sqrt(p(x)[y]))": 5e3}.get(text, 1e4)
    assert float(loss) == pytest.approx(HUGE[text], rel=1e-6)
    assert float(gradient) == pytest.approx(slope, rel=1e-6)


def test_values_of_later_epochs_are_checked_at_once() -> None:
    text = f"recipe r param n = 3 then 1 from epoch 2 lower x' in linf(x, 0.1) maximize CE(f(x'), y) by pgd(steps = n, step = 0.05, start = x) upper minimize CE(f(x'@2), y) {BY}"
    with pytest.raises(RecipeError, match="x' has no iterate 2"):
        lossdsl.parse(text)
    with pytest.raises(RecipeError, match="outside its range"):
        lossdsl.parse(f"recipe r param a = ramp(0, 3, epochs = 4) in [0, 2] upper minimize a * CE(f(x), y) {BY}")
