"""Faults found in published adversarial training code, one test each: none of them here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from plain import clip, pgd
from torch import Generator, Tensor, nn
from torch.nn import functional

import lossdsl

ONE_LEVEL = """
recipe one_level
param eps = 0.1
lower x' in {set} maximize {objective} by {solver}
upper minimize CE(f(x'), y) by sgd(lr = 0.1)
"""


def solution(recipe: Any, setting: Any, generator: Generator | None = None, rows: slice = slice(None), **options: Any) -> Tensor:
    step = lossdsl.compile(recipe, setting.copy(), num_classes=setting.classes, **options)
    return step.solve(setting.x[rows], setting.y[rows], generator=generator)["x'"]


def one_level(solver: str, region: str = "linf(x, eps)", objective: str = "CE(f(x'), y)") -> Any:
    return lossdsl.parse(ONE_LEVEL.format(set=region, objective=objective, solver=solver))


def eval_copy(setting: Any) -> nn.Module:
    return setting.copy().eval()


# --- TRADES -----------------------------------------------------------------------------------------------------------


def test_the_clean_term_of_trades_is_on_x(smooth: Any) -> None:
    """CE(f(x), y), not CE(f(x'), y): at lambda = 0 the adversarial point plays no part."""
    far = (smooth.x + 0.3).clamp(0, 1)
    for name in ("trades", "trades_mer", "fait", "fait_mer", "bat", "score"):
        recipe = lossdsl.load(name)
        weight = "beta" if name == "bat" else "lambda"
        recipe = recipe.with_params(**{weight: 0}, **({"b_cle": 0} if "b_cle" in recipe.params else {}))
        step = lossdsl.compile(recipe, smooth.copy(), num_classes=4)
        losses = [float(step.objective(smooth.x, smooth.y, {"x'": v, "x'@2": v}).detach()) for v in (smooth.x, far)]
        assert losses[0] == losses[1]
        if name != "score":
            clean = functional.cross_entropy(smooth.model(smooth.x), smooth.y)
            assert losses[0] == pytest.approx(float(clean.detach()), rel=1e-12)


@pytest.mark.parametrize("name", ["trades", "trades_mer", "fait", "fait_mer", "score", "fait_s", "trades_mer_s"])
def test_the_attack_of_trades_does_not_look_at_the_label(name: str, smooth: Any, draws: Callable[..., Generator]) -> None:
    """It ascends the divergence from p(x), not the cross-entropy with y."""
    step = lossdsl.compile(name, smooth.copy(), num_classes=4)
    found = [step.solve(smooth.x, y, generator=draws())["x'"] for y in (smooth.y, (smooth.y + 1) % 4)]
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("name", ["pgd_at", "mart", "bat", "fgsm_at", "fast_at"])
def test_the_other_attacks_do_look_at_the_label(name: str, smooth: Any, draws: Callable[..., Generator]) -> None:
    step = lossdsl.compile(name, smooth.copy(), num_classes=4)
    found = [step.solve(smooth.x, y, generator=draws())["x'"] for y in (smooth.y, (smooth.y + 1) % 4)]
    assert not torch.equal(found[0], found[1])


def test_the_attack_of_trades_raises_the_divergence(smooth: Any, draws: Callable[..., Generator]) -> None:
    """Of every example, by more than the cross-entropy attack does on the whole."""
    model = eval_copy(smooth)

    def divergence(v: Tensor) -> Tensor:
        return functional.kl_div(model(v).log_softmax(1), model(smooth.x).softmax(1), reduction="none").sum(1).detach()

    step = lossdsl.compile("trades", smooth.copy(), num_classes=4)
    end = divergence(step.solve(smooth.x, smooth.y, generator=draws())["x'"])
    start = divergence(clip(smooth.x + 0.001 * torch.randn(smooth.x.shape, generator=draws(), dtype=torch.float64), smooth.x, 8 / 255))
    assert (end > 10 * start).all()
    assert end.sum() > divergence(solution("mart", smooth, draws())).sum()


# --- reductions -------------------------------------------------------------------------------------------------------


def test_kl_is_summed_over_classes_and_averaged_over_the_batch(table: Any) -> None:
    """By hand on two examples; four more classes without mass change nothing (a mean over classes would be 3 times smaller)."""
    p, q = [[0.5, 0.5], [0.25, 0.75]], [[0.9, 0.1], [0.5, 0.5]]
    by_hand = sum(math.fsum(a * math.log(a / b) for a, b in zip(*pair, strict=True)) for pair in zip(p, q, strict=True)) / 2
    ce = -(math.log(0.5) + math.log(0.75)) / 2
    for empty in (0, 4):
        logits = torch.cat([torch.tensor(p + q, dtype=torch.float64).log(), torch.full((4, empty), -1e4, dtype=torch.float64)], 1)
        model = table(logits)
        step = lossdsl.compile("trades", model, num_classes=2 + empty)
        loss = step.objective(model.points[:2], torch.tensor([0, 1]), {"x'": model.points[2:]})
        assert float(loss.detach()) == pytest.approx(ce + 6 * by_hand, rel=1e-12)


@pytest.mark.parametrize("name", ["trades", "mart", "fait", "bat", "score", "trades_mer", "beta_at", "sbeta_at"])
def test_the_loss_is_the_mean_of_the_losses_of_the_examples(name: str, smooth: Any, draws: Callable[..., Generator]) -> None:
    """Without BatchNorm: one at a time, and in a batch that holds everything twice."""
    step = lossdsl.compile(name, smooth.copy(), num_classes=4)
    found = step.solve(smooth.x, smooth.y, generator=draws())
    whole = float(step.objective(smooth.x, smooth.y, found).detach())
    singles = [float(step.objective(smooth.x[[i]], smooth.y[[i]], {k: v[[i]] for k, v in found.items()}).detach()) for i in range(7)]
    assert whole == pytest.approx(sum(singles) / 7, rel=1e-12)
    twice = step.objective(
        smooth.x.repeat(2, *[1] * (smooth.x.dim() - 1)), smooth.y.repeat(2), {k: torch.cat([v, v]) for k, v in found.items()}
    )
    assert float(twice.detach()) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("name", ["erm", "trades", "mart", "fait_mer", "trades_mer_s", "bat"])
def test_the_terms_add_up_to_the_loss(name: str, smooth: Any, draws: Callable[..., Generator]) -> None:
    loss = lossdsl.compile(name, smooth.copy(), num_classes=4)(smooth.x, smooth.y, generator=draws())
    assert float(loss.detach()) == pytest.approx(sum(float(v) for v in loss.terms.values()), rel=1e-12)
    assert len(loss.terms) == {"erm": 1, "trades": 2, "mart": 3, "fait_mer": 4, "trades_mer_s": 4, "bat": 2}[name]


RAW_STEPS = {
    "ascent": ("ascent(steps = 4, step = 0.05, start = x)", "linf(x, eps)"),
    "ascent on l2": ("ascent(steps = 4, step = 0.05, start = x)", "l2(x, 0.2)"),
    "pgd on l2": ("pgd(steps = 4, step = 0.07, start = x)", "l2(x, 0.2)"),
    "fgm on l2": ("linear(start = x)", "l2(x, 0.2)"),
    "adam": ("adam(steps = 4, step = 0.02, eps = 0.05, start = x)", "linf(x, eps)"),
    "rmsprop": ("rmsprop(steps = 4, step = 0.02, eps = 0.05, start = x)", "linf(x, eps)"),
    "sgd": ("sgd(steps = 4, step = 0.05, momentum = 0.5, start = x)", "linf(x, eps)"),
    "momentum": ("momentum(steps = 4, step = 0.02, decay = 1, start = x)", "l2(x, 0.2)"),
}


@pytest.mark.parametrize("solver", RAW_STEPS)
def test_a_step_does_not_depend_on_the_rest_of_the_batch(solver: str, normed: Any) -> None:
    """The gradient is that of the example's own objective: not divided by the batch size, no norm over the batch."""
    recipe = one_level(*RAW_STEPS[solver])
    whole = solution(recipe, normed)
    assert (whole - normed.x).flatten(1).norm(dim=1).min() > 1e-3
    for rows in (slice(0, 1), slice(2, 5), slice(6, 7)):
        assert (solution(recipe, normed, rows=rows) - whole[rows]).abs().max() < 1e-12


def test_an_ascent_step_is_the_gradient_of_the_example(smooth: Any) -> None:
    v = smooth.x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(functional.cross_entropy(smooth.model(v), smooth.y, reduction="sum"), v)
    expected = clip(smooth.x + 0.05 * gradient, smooth.x, 0.1)
    assert (solution(one_level("ascent(steps = 1, step = 0.05, start = x)"), smooth) - expected).abs().max() < 1e-14


@pytest.mark.parametrize("name", ["trades", "beta_at", "fait", "pgd_at", "mart"])
def test_solving_in_chunks_changes_nothing(name: str, normed: Any, draws: Callable[..., Generator]) -> None:
    assert (solution(name, normed, draws(), chunk=2) - solution(name, normed, draws())).abs().max() < 1e-12


# --- choices per example ----------------------------------------------------------------------------------------------


def test_the_best_restart_is_chosen_per_example(smooth: Any, draws: Callable[..., Generator]) -> None:
    """Of five starts each example keeps its own best end, not the one best on the batch mean; ties to the later."""
    found = solution(one_level("pgd(steps = 2, step = 0.01, start = x + uniform(linf(0, eps)), restarts = 5)"), smooth, draws())
    model, generator = eval_copy(smooth), draws()

    def loss(v: Tensor) -> Tensor:
        return functional.cross_entropy(model(v), smooth.y, reduction="none")

    ends = []
    for _ in range(5):
        start = smooth.x + (2 * torch.rand(smooth.x.shape, generator=generator, dtype=torch.float64) - 1) * 0.1
        ends.append(pgd(loss, smooth.x, start, 0.1, 0.01, 2)[-1])
    values = torch.stack([loss(v).detach() for v in ends])
    best = values.argmax(0)
    assert len(set(best.tolist())) > 1
    assert (found - torch.stack(ends)[best, torch.arange(7)]).abs().max() < 1e-12


def test_the_best_iterate_is_chosen_per_example(smooth: Any, draws: Callable[..., Generator]) -> None:
    """Steps far too large: the examples peak at different updates."""
    found = solution(one_level("pgd(steps = 6, step = 0.15, start = x + uniform(linf(0, eps)), keep = best)"), smooth, draws())
    model = eval_copy(smooth)

    def loss(v: Tensor) -> Tensor:
        return functional.cross_entropy(model(v), smooth.y, reduction="none")

    start = smooth.x + (2 * torch.rand(smooth.x.shape, generator=draws(), dtype=torch.float64) - 1) * 0.1
    path = pgd(loss, smooth.x, start, 0.1, 0.15, 6)
    values = torch.stack([loss(v).detach() for v in path])
    assert torch.allclose(loss(found), values.max(0).values, rtol=1e-12)
    assert len(set(values.argmax(0).tolist())) > 1


def test_beta_takes_the_worst_class_per_example(normed: Any, draws: Callable[..., Generator]) -> None:
    """The objective at the whole family is that at each example's own member of the largest margin."""
    step = lossdsl.compile("beta_at", normed.copy(), num_classes=4)
    family = step.solve(normed.x, normed.y, generator=draws())["x'"]
    model = eval_copy(normed)
    worst = []
    for i in range(7):
        logits = model(family[i]).detach()
        classes = [j for j in range(4) if j != int(normed.y[i])]
        worst.append(max(range(3), key=lambda n, z=logits, c=classes, i=i: float(z[n, c[n]] - z[n, normed.y[i]])))
    assert len(set(worst)) > 1
    chosen = family[torch.arange(7), worst]
    alone = lossdsl.compile("pgd_at", normed.copy(), num_classes=4).objective(normed.x, normed.y, {"x'": chosen})
    assert float(step.objective(normed.x, normed.y, {"x'": family}).detach()) == pytest.approx(float(alone.detach()), rel=1e-12)


# --- radii ------------------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """Normalisation by hand in front of a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x - 0.5) / 0.05)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["fgsm_at", "trades", "pgd_at", "beta_at", "fast_at"])
def test_normalisation_inside_the_model_does_not_change_eps(name: str, smooth: Any, draws: Callable[..., Generator]) -> None:
    """eps is in units of x: nothing leaves the box, and something reaches its border."""
    step = lossdsl.compile(name, Scaled(smooth.copy()), num_classes=4)
    found = step.solve(smooth.x, smooth.y, generator=draws())["x'"]
    center = smooth.x.unsqueeze(1) if name == "beta_at" else smooth.x
    reach = (found - center).abs()
    assert reach.max() <= 8 / 255 + 1e-12
    assert (reach > 8 / 255 - 1e-9).double().mean() > 0.3
    assert found.min() >= 0 and found.max() <= 1


def test_the_set_is_met_with_the_input_domain(normed: Any, draws: Callable[..., Generator]) -> None:
    """In [0, 1] at any radius; `input x in reals` and a set of perturbations are not clipped."""
    for name in ("fgsm_at", "fast_at", "trades", "beta_at"):
        found = solution(lossdsl.load(name).with_params(eps=0.9), normed, draws())
        assert found.min() >= 0 and found.max() <= 1
    free = lossdsl.parse("recipe free extends fgsm_at\ninput x in reals")
    assert solution(free.with_params(eps=0.5), normed).max() > 1


@pytest.mark.parametrize("name", ["pgd10", "pgd20", "fgsm", "pgd50x10"])
@pytest.mark.parametrize("classes", [2, 3])
def test_attacks_work_for_few_classes(name: str, classes: int, table: Any, draws: Callable[..., Generator]) -> None:
    """Suites exist that fail for fewer than 4 or 10 classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = table(torch.randn(5, classes))
    x, y = torch.full((3, 5), 0.5), torch.tensor([0, 1, 0])
    for point, _ in lossdsl.compile(name, model, num_classes=classes).run(x, y, generator=draws()).values():
        loss, clean = (functional.cross_entropy(model(v), y, reduction="none") for v in (point, x))
        assert (loss > clean).all() and (point - x).abs().max() <= 8 / 255 + 1e-6
