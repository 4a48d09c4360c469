"""Models besides f: frozen helpers, and models that the upper level trains too."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from engine_tools import BY, batchnorm, data, mlp, moody, seeded, step_of
from torch import nn

import lossdsl
from lossdsl.diagnostics import LossdslError, UserError

CE = nn.functional.cross_entropy
FROZEN = f"model g frozen\nupper minimize CE(f(x), y) + KL(p[g](x) || p(x)) {BY}"
TRAINED = (
    "model h\nlower x' in linf(x, 0.1) maximize CE(f(x'), y) + CE(h(x'), y) by pgd(steps = 2, step = 0.05, start = x)\n"
    f"upper minimize CE(f(x'), y) + 2 * KL(p[h](x') || p(x)) + CE(h(x), y) {BY} by adam(lr = 0.01) for h"
)


def other(seed: int = 4) -> nn.Module:
    model = moody()
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def snapshot(model: nn.Module) -> Any:
    return (
        {name: value.clone() for name, value in model.state_dict().items()}, [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()], [p.grad for p in model.parameters()],
    )  # fmt: skip


def assert_untouched(model: nn.Module, before: Any) -> None:
    state, *rest = snapshot(model)
    assert rest == list(before[1:])
    assert all(torch.equal(value, before[0][name]) for name, value in state.items())


# --- frozen -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", ["train", "untracked"])
def test_a_frozen_model_is_asked_in_eval_mode_and_left_alone(training: bool, mode: str) -> None:
    """BatchNorm and dropout at rest, whatever mode the level is in."""
    x, y = data()
    model, g = mlp(), other().train(training)
    g.layers[3].train(not training)
    g.layers[0].bias.requires_grad_(False)
    before = snapshot(g)
    step = step_of(FROZEN + f" with f in {mode}", model, models={"g": g})
    loss = step(x, y, generator=seeded())
    assert_untouched(g, before)
    loss.backward()
    assert_untouched(g, before)
    q = copy.deepcopy(g).eval()(x).log_softmax(1).detach()
    expected = CE(mlp()(x), y) + (q.exp() * (q - mlp()(x).log_softmax(1))).sum(1).mean()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    assert all(p.grad is not None for p in model.parameters())


def test_an_attack_through_a_frozen_model() -> None:
    """The gradient passes it to the input: a transfer attack with the helper as its surrogate."""
    x, y = data()
    g = other().train()
    before = snapshot(g)
    text = f"model g frozen\nlower x' in linf(x, 0.1) maximize CE(g(x'), y) by linear(start = x) with f in train\nupper minimize CE(f(x'), y) {BY}"
    found = step_of(text, mlp(), models={"g": g}).solve(x, y)["x'"]
    v = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(CE(copy.deepcopy(g).eval()(v), y, reduction="sum"), v)
    assert (found - (x + 0.1 * slope.sign()).clamp(0, 1)).abs().max() < 1e-15
    assert_untouched(g, before)


def test_a_frozen_model_is_left_alone_when_something_breaks() -> None:
    x, y = data()
    g, model = other().train(), mlp()
    before = snapshot(g)
    model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))
    with pytest.raises(UserError, match="broken"):
        step_of(FROZEN, model, models={"g": g})(x, y)
    assert_untouched(g, before)


def test_passes_of_different_models_are_different() -> None:
    """The same point through f, g and another g is three numbers, and each pass is made once."""
    x, y = data()
    models = {"g": other(1), "e": other(2)}
    plain = [float(CE(copy.deepcopy(m).eval()(x), y).detach()) for m in (mlp(), models["g"], models["e"])]
    calls: list[str] = []
    for name, model in models.items():
        model.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    text = f"model g frozen\nmodel e frozen\nupper minimize CE(f(x), y) + CE(g(x), y) + 10 * CE(e(x), y) + CE(p[g](x), y) {BY}"
    loss = step_of(text, mlp(), models=models)(x, y)
    assert float(loss.detach()) == pytest.approx(plain[0] + 2 * plain[1] + 10 * plain[2], rel=1e-12)
    assert calls == ["g", "e"]


# --- trained ----------------------------------------------------------------------------------------------------------


def plain_two(f: nn.Module, h: nn.Module) -> torch.Tensor:
    x, y = data()
    f.eval(), h.eval()
    v = x
    for _ in range(2):
        v = v.detach().requires_grad_()
        (slope,) = torch.autograd.grad(CE(f(v), y, reduction="sum") + CE(h(v), y, reduction="sum"), v)
        v = (v + 0.05 * slope.sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1).detach()
    f.train(), h.train()
    first, target, prediction = f(v), h(v).log_softmax(1), f(x).log_softmax(1)
    return CE(first, y) + 2 * (target.exp() * (target - prediction)).sum(1).mean() + CE(h(x), y)


def test_a_trained_model_gets_gradients_and_statistics() -> None:
    """Value and both gradients as by hand; both models are in eval mode in the attack and in train mode above it."""
    x, y = data()
    f, h = batchnorm(), batchnorm()
    with torch.no_grad():
        h.layers[0].weight.mul_(-1.3)
    f_plain, h_plain = copy.deepcopy(f), copy.deepcopy(h)
    step = step_of(TRAINED, f.eval(), models={"h": h.eval()})
    loss = step(x, y)
    assert not f.training and not h.training and all(p.grad is None for p in h.parameters())
    loss.backward()
    expected = plain_two(f_plain, h_plain)
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    for ours, plain in ((f, f_plain), (h, h_plain)):
        for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-13)
        for a, b in zip(ours.buffers(), plain.buffers(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_levels_differentiate_by_no_model() -> None:
    x, y = data()
    h = mlp()
    flags: list[bool] = []
    h.register_forward_pre_hook(lambda m, inputs: flags.append(any(p.requires_grad for p in m.parameters())))
    step_of(TRAINED, mlp(), models={"h": h})(x, y)
    assert flags == [False, False, True, True]
    assert all(p.requires_grad for p in h.parameters())


def test_an_untracked_upper_level_keeps_both_statistics() -> None:
    x, y = data()
    f, h = batchnorm(), batchnorm()
    text = f"model h\nupper minimize CE(f(x), y) + CE(h(x), y) {BY} with f in untracked"
    step_of(text, f, models={"h": h})(x, y).backward()
    for model in (f, h):
        assert all(torch.equal(a, b) for a, b in zip(model.buffers(), batchnorm().buffers(), strict=True))


def test_each_model_has_its_optimizer() -> None:
    recipe = lossdsl.parse("recipe r\n" + TRAINED)
    assert recipe.optimizer.name == "sgd" and {name: spec.name for name, spec in recipe.optimizers.items()} == {"h": "adam"}
    assert recipe.models == {"h": False}


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("models", "said"), [
    (None, "needs the frozen model g"),
    ({}, "needs the frozen model g"),
    ({"h": mlp()}, "needs the frozen model g"),
    ({"g": mlp(), "h": mlp()}, "has no model h"),
    ({"g": "resnet18"}, "the model g is a str"),
    ({"g": None}, "the model g is a NoneType"),
])  # fmt: skip
def test_missing_and_wrong_models(models: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        step_of(FROZEN, mlp(), models=models)


def test_a_recipe_without_other_models_takes_none() -> None:
    with pytest.raises(UserError, match="no model g"):
        step_of(f"upper minimize CE(f(x), y) {BY}", mlp(), models={"g": mlp()})


def test_a_frozen_model_of_another_width() -> None:
    x, y = data()
    with pytest.raises(UserError, match="the model g returned shape"):
        step_of(FROZEN, mlp(), models={"g": mlp(classes=3)})(x, y)


def test_the_trained_model_cannot_be_its_own_frozen_helper() -> None:
    """Neither itself nor a model that shares parameters with it: freezing one would freeze the other."""
    model, g = mlp(), mlp()
    g.layers[0].weight = model.layers[0].weight
    for shared in (model, g):
        with pytest.raises(UserError, match="share|same"):
            step_of(FROZEN, model, models={"g": shared})


@pytest.mark.parametrize(("text", "code"), [
    (f"upper minimize CE(g(x), y) {BY}", "E024"),
    (f"upper minimize CE(f(x), y) + KL(p[g](x) || p(x)) {BY}", "E010"),
    (f"model g frozen\nupper minimize CE(g(x), y) {BY}", "E021"),
    (f"model h\nupper minimize CE(f(x), y) {BY}", "E021"),
    (f"model g frozen\nupper minimize CE(f(x), y) + CE(g(x), y) {BY} by adam(lr = 0.1) for g", "E029"),
    (f"upper minimize CE(f(x), y) {BY} by adam(lr = 0.1) for h", "E010"),
    (f"model h\nupper minimize CE(f(x), y) + CE(h(x), y) {BY} by adam(lr = 0.1) for h by sgd(lr = 0.1) for h", "E007"),
    (f"model g frozen\nupper minimize CE(f(x), y) + CE(g(y), y) {BY}", "E013"),
    (f"model g frozen\nupper minimize CE(f(x), y) + KL(p[x](x) || p(x)) {BY}", ""),
    (f"model g frozen\nlower w in l2(theta, 1) maximize CE(f{{w}}(x), y) by linear\nupper minimize CE(g{{w}}(x), y) + CE(f{{w}}(x), y) {BY}", ""),
    (f"model f\nupper minimize CE(f(x), y) {BY}", "E032"),
])  # fmt: skip
def test_what_cannot_be_meant_is_one_clear_error(text: str, code: str) -> None:
    with pytest.raises(LossdslError) as caught:
        lossdsl.parse("recipe r\n" + text).plan  # noqa: B018
    found = [d for d in caught.value.diagnostics if d.severity == "error"]  # type: ignore[attr-defined]
    assert len(found) == 1 and found[0].code.startswith(code), found
