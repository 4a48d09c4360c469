"""The shipped texts as texts, and their cost: what a plan promises is what the model sees, however the recipe is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from plain import METHODS
from torch import Generator, Tensor, nn

import lossdsl
from lossdsl.assets import recipe_paths
from lossdsl.front import check_source, read_source
from lossdsl.plan.cost import cost

PATHS = recipe_paths()
PLAIN_COSTS = {
    # forward, input-backward; then both for families, as multiples of K - 1 batches
    "erm": (1, 0, 0, 0), "fgsm_at": (2, 1, 0, 0), "fast_at": (2, 1, 0, 0), "pgd2_at": (3, 2, 0, 0), "pgd_at": (11, 10, 0, 0),
    "trades": (13, 10, 0, 0), "trades_mer": (13, 10, 0, 0), "score": (13, 10, 0, 0), "trades_mer_s": (13, 10, 0, 0), "mart": (12, 10, 0, 0),
    "fait": (14, 10, 0, 0), "fait_mer": (14, 10, 0, 0), "fait_s": (14, 10, 0, 0), "bat": (13, 10, 0, 0),
    "beta_at": (1, 0, 11, 10), "sbeta_at": (0, 0, 12, 10),
}  # fmt: skip
OTHER_COSTS = {
    # forward (a frozen helper's and joint passes among them), input-backward, full backward
    "alp": (12, 10, 1), "at_rst": (11, 10, 1), "trades_rst": (13, 10, 1), "mart_rst": (12, 10, 1), "bat_rst": (13, 10, 1),
    "fat": (11, 10, 1), "fat_trades": (13, 10, 1), "fat_mart": (12, 10, 1), "gairat": (11, 10, 1), "hat": (15, 10, 1),
    "class_fairness": (11, 10, 1), "cfol": (8, 7, 1), "free_at": (1, 0, 1),
    "mma": (10 + 12 + 2, 10, 1),  # attack; both ends and ten halvings of the root search; x and z
    "ddi": (10 * (7 + 1), 10 * 7, 10),  # per maximiser: its attack, and its gradient
    "sam": (2, 0, 2), "asam": (2, 0, 2), "bisam": (2, 0, 2), "at_awp": (12, 10, 2), "trades_awp": (11 + 2 + 2, 10, 2),
    "gradalign": (4, 3, 1), "cure": (3, 3, 1), "llr": (5, 4, 1), "llr_fgsm": (4, 2, 1), "elle": (2, 1, 1), "elle_a": (2, 1, 1),
    # z; the linearisation, in the level and in its conditions; the upper objective to x'
    "fast_bat": (4, 4, 1), "fast_bat_sign": (4, 4, 1), "fast_bat_corner": (3, 3, 1), "fast_bat_random": (3, 3, 1),
    "fast_bat_exact": (4, 4 + 10, 1),  # at most ten products with the Hessian
}  # fmt: skip
AS_LONG_AS_IT_GETS = {"fat": {"tau": 99}, "fat_trades": {"tau": 99}, "fat_mart": {"tau": 99}, "trades_awp": {"gamma": 0.005}}
"""Nobody stops early; AWP is on, as it is from epoch 10."""


BESIDE_THE_TABLE = {"alp": "# Adversarial logit pairing", "free_at": "# Free-AT"}
"""Methods that the papers name without a number of their own."""


def code_lines(name: str) -> list[str]:
    lines = PATHS[name].read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


@dataclass
class Passes:
    """Batch sizes of the passes through a model: forward, backward to an input, and backward to parameters."""

    forward: list[int] = field(default_factory=list)
    to_input: list[int] = field(default_factory=list)
    to_parameters: list[int] = field(default_factory=list)

    def watch(self, model: nn.Module) -> None:
        model.register_forward_hook(self._seen)

    def _seen(self, module: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        x = inputs[0]
        self.forward.append(len(x))
        if logits.requires_grad:
            log = self.to_input if x.requires_grad else self.to_parameters
            logits.register_hook(lambda gradient: log.append(len(x)))


def counted(recipe: Any, setting: Any, generator: Generator) -> tuple[Passes, nn.Module, Tensor]:
    model, passes = setting.copy(), Passes()
    passes.watch(model)
    loss = lossdsl.compile(recipe, model, num_classes=setting.classes)(setting.x, setting.y, generator=generator)
    loss.backward()
    return passes, model, loss.detach()


# --- shipped texts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PATHS)
def test_the_text_is_short_and_says_where_it_comes_from(name: str) -> None:
    lines = PATHS[name].read_text(encoding="utf-8").splitlines()
    head = lines[0]
    if name in BESIDE_THE_TABLE:
        assert head.startswith(BESIDE_THE_TABLE[name])
    else:
        assert head.startswith("# T")
        number, colon, about = head.removeprefix("# T").partition(": ")
        assert number.isdigit() and 1 <= int(number) <= 35 and colon and about
    assert len(code_lines(name)) <= 20
    recipe = lossdsl.load(name)
    assert recipe.name == name
    assert recipe.typed.title and recipe.source_note


@pytest.mark.parametrize("name", PATHS)
def test_the_checker_finds_nothing(name: str) -> None:
    assert [str(d) for d in check_source(read_source(PATHS[name])).diagnostics] == []


def test_most_texts_have_at_most_twelve_lines() -> None:
    assert sum(len(code_lines(name)) <= 12 for name in PATHS) > 0.75 * len(PATHS)


def test_every_recipe_has_a_known_cost() -> None:
    assert set(PLAIN_COSTS) == set(METHODS)
    assert sorted([*PLAIN_COSTS, *OTHER_COSTS]) == sorted(PATHS)


@pytest.mark.parametrize("name", PLAIN_COSTS)
def test_the_model_sees_what_the_plan_says(name: str, normed: Any, draws: Callable[..., Generator]) -> None:
    """K - 1 = 3 and a batch of 7: passes of 21 points are passes of a family."""
    recipe = lossdsl.load(name)
    passes, _, _ = counted(recipe, normed, draws())
    planned = cost(recipe.plan)
    (family,) = planned.copies or (("K - 1", 0, 0),)
    assert family[0] == "K - 1" and planned.full_backward == 1
    assert (planned.forward, planned.input_backward, *family[1:]) == PLAIN_COSTS[name]
    seen = [log.count(size) for size in (7, 21) for log in (passes.forward, passes.to_input)]
    assert tuple(seen) == PLAIN_COSTS[name]
    assert len(passes.forward) == sum(seen[::2]) and len(passes.to_input) == sum(seen[1::2])


class Sweeps:
    """What a whole step takes: batch sizes of forward passes, and the backward passes that go through a model."""

    def __init__(self, like: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
        self.like, self.to_input, self.full, self.hits = like, 0, 0, 0
        self.forward: list[int] = []
        grad = torch.autograd.grad

        def counting(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            before = self.hits
            found = grad(outputs, inputs, *args, **kwargs)
            first = inputs if isinstance(inputs, Tensor) else inputs[0]
            if self.hits > before and first.shape[1:] == self.like.shape[1:]:
                self.to_input += 1
            elif self.hits > before:
                self.full += 1
            return found

        monkeypatch.setattr(torch.autograd, "grad", counting)

    def watch(self, model: nn.Module) -> nn.Module:
        model.register_forward_hook(self._seen)
        return model

    def _seen(self, module: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        self.forward.append(len(inputs[0]))
        if logits.requires_grad:
            logits.register_hook(self._hit)

    def _hit(self, gradient: Tensor) -> None:
        self.hits += 1

    def run(self, recipe: Any, setting: Any, generator: Generator) -> tuple[int, int, int]:
        model, helpers = self.watch(setting.copy()), {other: self.watch(setting.copy()) for other in recipe.models}
        step = lossdsl.compile(recipe, model, num_classes=setting.classes, models=helpers)
        loss = step(setting.x, setting.y, generator=generator, index=torch.arange(len(setting.y)))
        before = self.hits
        loss.backward()
        return len(self.forward), self.to_input, self.full + (self.hits > before)


@pytest.mark.parametrize("name", OTHER_COSTS)
def test_a_step_takes_what_the_plan_says(name: str, normed: Any, draws: Callable[..., Generator], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = lossdsl.load(name).with_params(**AS_LONG_AS_IT_GETS.get(name, {}))
    planned = cost(recipe.plan)
    assert (planned.forward, planned.input_backward, planned.full_backward, planned.copies) == (*OTHER_COSTS[name], ())
    sweeps = Sweeps(normed.x, monkeypatch)
    forward, to_input, full = sweeps.run(recipe, normed, draws())
    assert (forward, full) == (planned.forward, planned.full_backward)
    assert 4 < to_input <= planned.input_backward if name == "fast_bat_exact" else to_input == planned.input_backward
    batches = [7, 4 * 7] if name.startswith("elle") else [7] * forward  # ELLE sees its four points jointly
    assert sweeps.forward == batches


STUBBORN = """recipe stubborn extends fast_bat_exact
lower x' in linf(x, eps)
  minimize -CE(f(x'), y) + lambda/2 * norm(x' - z, 2)^2
  through implicit(scale = 1, steps = 3, tolerance = 1e-12)
"""


def test_products_with_the_hessian_are_counted(smooth: Any, draws: Callable[..., Generator], monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that takes all the products it may; a linearised one takes none."""
    recipe = lossdsl.parse(STUBBORN).with_params(eps=0.5, **{"lambda": 4.0})
    assert Sweeps(smooth.x, monkeypatch).run(recipe, smooth, draws()) == (4, 4 + 3, 1)
    assert cost(recipe.plan).input_backward == 4 + 3


# --- TRADES in other words --------------------------------------------------------------------------------------------

HEAD = "recipe other\nparam lambda = 6, eps = 8/255, step = 2/255\n"
BY = " by pgd(steps = 10, step = step, start = x + normal(0.001))\n"
LOWER = "lower x' in linf(x, eps) maximize KL(p(x) || p(x'))" + BY
SGD = " by sgd(lr = 0.1)\n"
OTHER_WORDS = {
    "a let in both levels": HEAD + "let clean = p(x)\nlower x' in linf(x, eps) maximize KL(clean || p(x'))" + BY
    + "upper minimize CE(f(x), y) + lambda * KL(clean || p(x'))" + SGD,
    "defs": HEAD + "def robust(a, b) = KL(p(a) || p(b))\ndef total(a, b) = CE(f(a), y) + lambda * robust(a, b)\n"
    "lower x' in linf(x, eps) maximize robust(x, x')" + BY + "upper minimize total(x, x')" + SGD,
    "p in place of f": HEAD + LOWER + "upper minimize -log(p(x)[y]) + lambda * KL(p(x) || p(x'))" + SGD,
    "CE of probabilities": HEAD + LOWER + "upper minimize CE(p(x), y) + lambda * (CE(p(x), p(x)) * -1 + CE(p(x) || p(x')))" + SGD,
    "the KL split in entropy and cross-entropy": HEAD + "lower x' in linf(x, eps) maximize CE(p(x'), p(x)) - H(p(x))" + BY
    + "upper minimize CE(f(x), y) + lambda * CE(p(x) || p(x')) - lambda * H(p(x))" + SGD,
    "the KL as a sum over classes": HEAD + "lower x' in linf(x, eps) maximize sum(j: p(x)[j] * (log(p(x)[j]) - log(p(x')[j])))" + BY
    + "upper minimize CE(f(x), y) + lambda * sum(j: p(x)[j] * (log(p(x)[j]) - log(p(x')[j])))" + SGD,
    "two halves of the KL": HEAD + "lower x' in linf(x, eps) maximize KL(p(x) || p(x')) / 2 + 0.5 * KL(p(x) || p(x'))" + BY
    + "upper minimize CE(f(x), y) + lambda/2 * KL(p(x) || p(x')) + KL(p(x) || p(x')) * 3" + SGD,
    "points in disguise": HEAD + "lower x' in linf(x, eps) maximize KL(p(1 * x + 0 * x') || p(0 * x + 1 * x'))" + BY
    + "upper minimize CE(f((1 - 0) * x + 0 * x'), y) + lambda * KL(p(x + 0) || p(x' / 1))" + SGD,
    "a let per point": HEAD + "let a = x\nlower x' in linf(a, eps) maximize KL(p(a) || p(x'))" + BY
    + "let b = x'\nlet q = p(b)\nlet t = p(a)\nupper minimize CE(f(a), y) + lambda * KL(t || q)" + SGD,
    "a path of one bridge": HEAD + "def b(v, t) = (1 - t)*x + t*v\nlower x' in linf(x, eps) maximize KL(p(b(x', 0)) || p(b(x', 1)))" + BY
    + "upper minimize CE(f(b(x', 0)), y) + lambda * sum(k in 0..0: KL(p(b(x', k)) || p(b(x', k + 1))))" + SGD,
    "a softmax written out": HEAD + "lower x' in linf(x, eps) maximize sum(j: softmax(i: f(x)[i])[j] * log(p(x)[j] / p(x')[j]))" + BY
    + "upper minimize logsumexp(j: f(x)[j]) - f(x)[y] + lambda * sum(j: p(x)[j] * log(p(x)[j] / p(x')[j]))" + SGD,
    "signs and batch means": HEAD + "lower x' in linf(x, eps) minimize -KL(stop(p(x)) || p(x'))" + BY
    + "upper minimize batch_mean(CE(f(x), y)) - -lambda * batch_mean(KL(p(x) || p(x')))" + SGD,
}  # fmt: skip


@pytest.mark.parametrize("words", OTHER_WORDS)
def test_trades_costs_the_same_in_other_words(words: str, normed: Any, draws: Callable[..., Generator]) -> None:
    """13 forward, 10 input-backward, 1 full backward; the same loss, gradients and running statistics."""
    passes, model, loss = counted(lossdsl.parse(OTHER_WORDS[words]), normed, draws())
    shipped_passes, shipped, shipped_loss = counted("trades", normed, draws())
    assert (len(passes.forward), len(passes.to_input)) == (13, 10) == (len(shipped_passes.forward), len(shipped_passes.to_input))
    assert passes.to_parameters == [7, 7]  # one backward through the two passes of the upper level
    assert float(loss) == pytest.approx(float(shipped_loss), rel=1e-12)
    for a, b in zip((*model.parameters(), *model.buffers()), (*shipped.parameters(), *shipped.buffers()), strict=True):
        torch.testing.assert_close(a if a.grad is None else a.grad, b if b.grad is None else b.grad, rtol=1e-9, atol=1e-12)


def test_words_that_change_the_meaning_are_noticed(normed: Any, draws: Callable[..., Generator]) -> None:
    """The comparison above can fail: the KL the other way round is another method."""
    text = OTHER_WORDS["p in place of f"].replace("lambda * KL(p(x) || p(x'))", "lambda * KL(p(x') || p(x))")
    _, _, loss = counted(lossdsl.parse(text), normed, draws())
    _, _, shipped_loss = counted("trades", normed, draws())
    assert float(loss) != pytest.approx(float(shipped_loss), rel=1e-6)
