"""What a step leaves behind: modes, gradients, flags, running statistics, random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from plain import METHODS
from torch import Generator, Tensor, nn

import lossdsl
from lossdsl.assets import recipe_paths
from lossdsl.diagnostics import UserError

EVERY = sorted(recipe_paths())
NAMES = sorted(METHODS)
"""One lower level over inputs and no gradient in the upper one: what these tests say of single passes holds for them alone."""
LOWER_NAMES = [n for n in NAMES if n != "erm"]
NO_DRAWS = {"erm", "fgsm_at", "cure", "free_at", "sam", "asam", "bisam"}
TRAIN_ATTACKS = {"fast_at", "pgd2_at"}


class Spy:
    """What every module of the model is like during each forward pass; may raise at one of them."""

    def __init__(self, model: nn.Module, fail_at: int | None = None) -> None:
        self.model, self.fail_at = model, fail_at
        self.training: list[list[bool]] = []
        self.inputs: list[Tensor] = []
        self.flags: list[list[bool]] = []
        self.to_input: list[bool] = []
        model.register_forward_pre_hook(self._seen)

    def _seen(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if len(self.training) == self.fail_at:
            raise RuntimeError("the model broke")
        self.training.append([m.training for m in self.model.modules()])
        self.inputs.append(inputs[0].detach().clone())
        self.flags.append([p.requires_grad for p in self.model.parameters()])
        self.to_input.append(inputs[0].requires_grad)


class Indexed:
    """A step that says which examples it sees, for recipes with a memory."""

    def __init__(self, step: Any, count: int) -> None:
        self.step, self.index = step, torch.arange(count)

    def __call__(self, x: Tensor, y: Tensor, **options: Any) -> Any:
        return self.step(x, y, index=self.index, **options)

    def solve(self, x: Tensor, y: Tensor, **options: Any) -> Any:
        return self.step.solve(x, y, index=self.index, **options)


def compiled(name: str, model: nn.Module, setting: Any) -> Indexed:
    recipe = lossdsl.load(name)
    helpers = {other: setting.copy() for other in recipe.models}
    return Indexed(lossdsl.compile(recipe, model, num_classes=setting.classes, models=helpers), len(setting.y))


def norms(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


# --- modes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left_in_train", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_the_weights_learn_in_train_mode_and_the_attack_runs_in_its_own(
    name: str, left_in_train: bool, normed: Any, draws: Callable[..., Generator]
) -> None:
    """Even if the caller left the model in eval mode, which comes back afterwards."""
    model = normed.copy().train(left_in_train)
    spy = Spy(model)
    loss = compiled(name, model, normed)(normed.x, normed.y, generator=draws())
    attacks = [modes for modes, to_input in zip(spy.training, spy.to_input, strict=True) if to_input]
    assert all(all(modes) is (name in TRAIN_ATTACKS) and any(modes) is (name in TRAIN_ATTACKS) for modes in attacks)
    assert len(attacks) == {"erm": 0, "fgsm_at": 1, "fast_at": 1, "pgd2_at": 2}.get(name, 10)
    assert all(spy.training[-1])
    assert [m.training for m in model.modules()] == [left_in_train] * len(list(model.modules()))
    loss.backward()
    assert [m.training for m in model.modules()] == [left_in_train] * len(list(model.modules()))
    assert any(not torch.equal(a, b) for a, b in zip(model.buffers(), normed.model.buffers(), strict=True))


@pytest.mark.parametrize("name", EVERY)
def test_a_frozen_batchnorm_stays_frozen(name: str, normed: Any, draws: Callable[..., Generator]) -> None:
    """The caller's bn.eval() in a model in train mode: in no pass does it train, and its statistics do not move."""
    model = normed.copy().train()
    first, second = norms(model)
    first.eval()
    before = {k: v.clone() for k, v in first.state_dict().items()}
    moving = second.running_mean.clone()
    place = list(model.modules()).index(first)
    spy = Spy(model)
    compiled(name, model, normed)(normed.x, normed.y, generator=draws()).backward()
    assert not any(modes[place] for modes in spy.training)
    assert all(torch.equal(v, before[k]) for k, v in first.state_dict().items())
    assert not torch.equal(second.running_mean, moving)
    assert [m.training for m in model.modules()] == [m is not first for m in model.modules()]


ONE_PASS = ("erm", "free_at")


@pytest.mark.parametrize(("name", "fail_at"), [(n, k) for n in EVERY for k in (0, 1) if k == 0 or n not in ONE_PASS])
def test_everything_is_put_back_when_the_model_raises(name: str, fail_at: int, normed: Any, draws: Callable[..., Generator]) -> None:
    """Modes module by module, and the parameters' requires_grad; the error names the line of the recipe."""
    model = normed.copy().train()
    norms(model)[1].eval()
    model[0].bias.requires_grad_(False)
    before = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    Spy(model, fail_at=fail_at)
    with pytest.raises(UserError, match="the model broke"):
        compiled(name, model, normed)(normed.x, normed.y, generator=draws())
    assert ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]) == before
    assert all(p.grad is None for p in model.parameters())


def test_everything_is_put_back_at_any_failure(normed: Any, draws: Callable[..., Generator]) -> None:
    """TRADES, broken at each of its 13 passes."""
    for fail_at in range(13):
        model = normed.copy().eval()
        model[1].train()
        before = [m.training for m in model.modules()]
        Spy(model, fail_at=fail_at)
        with pytest.raises(UserError, match="the model broke"):
            compiled("trades", model, normed)(normed.x, normed.y, generator=draws())
        assert [m.training for m in model.modules()] == before
        assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("name", "fail_at"), [("sam", 1), ("asam", 1), ("bisam", 1), ("at_awp", 10), ("at_awp", 11)])
def test_a_pass_at_other_weights_that_fails_leaves_the_weights(
    name: str, fail_at: int, normed: Any, draws: Callable[..., Generator]
) -> None:
    model = normed.copy().train()
    Spy(model, fail_at=fail_at)
    with pytest.raises(UserError, match="the model broke"):
        compiled(name, model, normed)(normed.x, normed.y, generator=draws())
    for p, q in zip(model.parameters(), normed.model.parameters(), strict=True):
        assert torch.equal(p, q) and p.requires_grad and p.grad is None
    assert all(m.training for m in model.modules())
    if name == "at_awp":  # an attack in eval mode, and a level that is not tracked
        assert all(torch.equal(a, b) for a, b in zip(model.buffers(), normed.model.buffers(), strict=True))


def test_attacks_leave_the_statistics_alone(normed: Any, draws: Callable[..., Generator]) -> None:
    """Evaluation is in eval mode, whatever the mode the model is handed over in."""
    for name in ("fgsm", "pgd10", "pgd20", "pgd50x10"):
        model = normed.copy().train()
        spy = Spy(model)
        lossdsl.compile(name, model, num_classes=4).run(normed.x, normed.y, generator=draws())
        assert not any(any(modes) for modes in spy.training)
        assert all(m.training for m in model.modules())
        assert all(torch.equal(a, b) for a, b in zip(model.buffers(), normed.model.buffers(), strict=True))


UNTRACKED = """
recipe untracked extends fast_at
lower x' in linf(x, eps) with f in untracked
"""


def test_an_untracked_attack_leaves_no_trace_in_the_statistics(normed: Any, draws: Callable[..., Generator]) -> None:
    """The attack of Fast-AT with the batch's own statistics; the running ones are those of the upper pass alone."""
    model, tracked = normed.copy(), normed.copy()
    step = lossdsl.compile(lossdsl.parse(UNTRACKED), model, num_classes=4)
    found = step.solve(normed.x, normed.y, generator=draws())["x'"]
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), normed.model.buffers(), strict=True))
    assert torch.equal(found, compiled("fast_at", tracked, normed).solve(normed.x, normed.y, generator=draws())["x'"])
    assert not torch.equal(norms(tracked)[0].running_mean, norms(model)[0].running_mean)
    step(normed.x, normed.y, generator=draws()).backward()
    once = normed.copy().train()
    once(found)
    for a, b in zip(model.buffers(), once.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_broken_untracked_attack_leaves_no_trace_either(normed: Any, draws: Callable[..., Generator]) -> None:
    model = normed.copy()
    model[-1].register_forward_pre_hook(_break)
    with pytest.raises(UserError, match="the last layer broke"):
        lossdsl.compile(lossdsl.parse(UNTRACKED), model, num_classes=4)(normed.x, normed.y, generator=draws())
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), normed.model.buffers(), strict=True))


def _break(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    raise RuntimeError("the last layer broke")


# --- passes and gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["trades", "fait", "trades_mer", "fait_mer", "score", "fait_s", "trades_mer_s"])
def test_the_clean_forward_is_not_recomputed_per_step(name: str, normed: Any, draws: Callable[..., Generator]) -> None:
    """x is seen twice: once by the attack in eval mode, once by the loss in train mode."""
    model = normed.copy()
    spy = Spy(model)
    compiled(name, model, normed)(normed.x, normed.y, generator=draws())
    clean = [spy.training[n][0] for n, point in enumerate(spy.inputs) if torch.equal(point, normed.x)]
    assert clean == [False, True]


@pytest.mark.parametrize("name", NAMES)
def test_lower_levels_have_no_parameter_gradients(name: str, normed: Any, draws: Callable[..., Generator]) -> None:
    """In passes of the attack no parameter asks for one; .grad is written by loss.backward() alone; flags come back."""
    model = normed.copy()
    frozen = model[-1].bias.requires_grad_(False)
    wanted = [p.requires_grad for p in model.parameters()]
    spy = Spy(model)
    loss = compiled(name, model, normed)(normed.x, normed.y, generator=draws())
    assert not any(any(flags) for flags, to_input in zip(spy.flags, spy.to_input, strict=True) if to_input)
    assert spy.flags[-1] == wanted
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(p.grad is None for p in model.parameters())
    loss.backward()
    assert frozen.grad is None
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", [n for n in EVERY if n != "erm"])
def test_gradients_that_were_there_are_not_touched(name: str, normed: Any, draws: Callable[..., Generator]) -> None:
    """Before backward .grad is as it was; backward adds to it, as everywhere in PyTorch."""
    model, fresh = normed.copy(), normed.copy()
    for p in model.parameters():
        p.grad = torch.full_like(p, 2.0)
    loss = compiled(name, model, normed)(normed.x, normed.y, generator=draws())
    assert all(bool((p.grad == 2).all()) for p in model.parameters())
    loss.backward()
    compiled(name, fresh, normed)(normed.x, normed.y, generator=draws()).backward()
    for p, q in zip(model.parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad + 2.0, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", EVERY)
def test_the_weights_and_the_batch_are_not_written(name: str, normed: Any, draws: Callable[..., Generator]) -> None:
    model, x, y = normed.copy(), normed.x.clone(), normed.y.clone()
    compiled(name, model, normed)(x, y, generator=draws()).backward()
    assert torch.equal(x, normed.x) and torch.equal(y, normed.y) and x.grad is None and not x.requires_grad
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), normed.model.parameters(), strict=True))


def test_solve_under_no_grad_finds_the_same(normed: Any, draws: Callable[..., Generator]) -> None:
    """The attack needs gradients of its own; a caller who has switched them off still gets the attack."""
    for name in EVERY:
        step = compiled(name, normed.copy(), normed)
        with torch.no_grad():
            quiet = step.solve(normed.x, normed.y, generator=draws())
        loud = compiled(name, normed.copy(), normed).solve(normed.x, normed.y, generator=draws())
        assert all(torch.equal(quiet[k], loud[k]) for k in loud)


# --- random numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_with_a_generator_no_global_random_number_is_used(name: str, normed: Any, draws: Callable[..., Generator]) -> None:
    before = torch.get_rng_state()
    step = compiled(name, normed.copy(), normed)
    generator = draws()
    used = generator.get_state()
    step(normed.x, normed.y, generator=generator).backward()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(generator.get_state(), used) is (name in NO_DRAWS)


@pytest.mark.parametrize("name", [n for n in LOWER_NAMES if n != "fgsm_at"])
def test_the_generator_decides_the_start(name: str, normed: Any, draws: Callable[..., Generator]) -> None:
    """Equal seeds give equal losses, other seeds others."""
    losses = [float(compiled(name, normed.copy(), normed)(normed.x, normed.y, generator=draws(seed)).detach()) for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
