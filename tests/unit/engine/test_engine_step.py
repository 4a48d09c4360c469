"""What a step gives: a loss with its parts, solutions that give the same loss again, equal results for equal seeds."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from engine_tools import data, gradients, mlp, moody, seeded, step_of, upper
from torch import Tensor

import lossdsl
from lossdsl.assets import recipe_paths
from lossdsl.engine.api import Loss

TRADES = (
    "lower x' in linf(x, 0.1) maximize KL(p(x) || p(x')) by pgd(steps = 3, step = 0.05, start = x + normal(0.01))\n"
    "log clean = error(f(x), y)\nlog half = 0.5\n"
    "upper minimize CE(f(x), y) + 6 * KL(p(x) || p(x')) - batch_mean(H(p(x))) by sgd(lr = 0.1)"
)


def p(z: Tensor) -> Tensor:
    return torch.softmax(z, -1)


# --- the loss ---


def test_the_terms_add_up_to_the_loss() -> None:
    loss = step_of(TRADES, mlp())(*data(), generator=seeded())
    assert isinstance(loss, Loss) and loss.dim() == 0
    assert len(loss.terms) == 3 and not any(t.requires_grad or t.dim() for t in loss.terms.values())
    torch.testing.assert_close(sum(loss.terms.values()), loss.detach(), check_dtype=False)


def test_a_term_is_named_by_its_text_and_averaged() -> None:
    model, (x, y) = mlp(), data()
    loss = upper("CE(f(x), y) - 2 * H(p(x))", model)(x, y)
    assert list(loss.terms) == ["CE(f(x), y)", "-2 * H(p(x))"]
    torch.testing.assert_close(loss.terms["CE(f(x), y)"], torch.nn.functional.cross_entropy(model(x), y).detach())
    q = p(model(x)).detach()
    torch.testing.assert_close(loss.terms["-2 * H(p(x))"], 2 * (q * q.log()).sum(1).mean())


def test_equal_terms_stay_apart() -> None:
    loss = upper("CE(f(x), y) + CE(f(x), y) + CE(f(x), y)", mlp())(*data())
    assert len(loss.terms) == 3
    torch.testing.assert_close(sum(loss.terms.values()), loss.detach(), check_dtype=False)


def test_logs_are_values_without_gradient() -> None:
    model, (x, y) = mlp(), data()
    loss = step_of(TRADES, model)(x, y)
    assert set(loss.logs) == {"clean", "half"} and not any(v.requires_grad for v in loss.logs.values())
    assert float(loss.logs["clean"]) == pytest.approx(float((model(x).argmax(1) != y).double().mean()))
    assert float(loss.logs["half"]) == 0.5


def test_a_batch_mean_is_not_averaged_again_and_a_number_per_example_is() -> None:
    model, (x, y) = mlp(), data()
    a, b = upper("batch_mean(CE(f(x), y))", model)(x, y), upper("CE(f(x), y)", model)(x, y)
    c = upper("batch_sum(CE(f(x), y))", model)(x, y)
    torch.testing.assert_close(a.detach(), b.detach())
    torch.testing.assert_close(c.detach() / len(y), b.detach())


def test_a_loss_behaves_like_a_tensor() -> None:
    model, (x, y) = mlp(), data()
    step = upper("CE(f(x), y)", model)
    loss = step(x, y)
    for result in (
        loss / 2,
        loss * torch.tensor(3.0),
        -loss,
        loss + 1,
        loss.detach(),
        torch.stack([loss, loss]),
        loss.sum(),
        loss.clone(),
        loss.float(),
    ):
        assert type(result) is Tensor
    assert loss.item() == float(loss.detach()) and bool(loss.isfinite())
    expected = gradients(torch.nn.functional.cross_entropy(model(x), y), model)
    (loss / 2).backward()
    for q, g in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(q.grad, g / 2)


def test_a_loss_scaled_as_a_gradient_scaler_does() -> None:
    model, (x, y) = mlp(dtype=torch.float32), data(dtype=torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = gradients(torch.nn.functional.cross_entropy(model(x), y), model)
    scaler.scale(upper("CE(f(x), y)", model)(x, y)).backward()
    scaler.unscale_(optimizer)
    for q, g in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(q.grad, g)
    scaler.step(optimizer)


def test_microbatches_add_up() -> None:
    model, (x, y) = mlp(), data(8)
    step = upper("CE(f(x), y)", model)
    torch.stack([step(x[:4], y[:4]), step(x[4:], y[4:])]).mean().backward()
    expected = gradients(torch.nn.functional.cross_entropy(model(x), y), model)
    for q, g in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(q.grad, g)


def test_gradients_accumulate_in_parameters_as_with_any_loss() -> None:
    model, (x, y) = mlp(), data()
    step = upper("CE(f(x), y)", model)
    step(x, y).backward()
    once = [q.grad.clone() for q in model.parameters()]
    step(x, y).backward()
    for q, g in zip(model.parameters(), once, strict=True):
        torch.testing.assert_close(q.grad, 2 * g)


# --- solve and objective ---


@pytest.mark.parametrize("name", list(recipe_paths()))
def test_the_objective_at_the_solutions_is_the_step(name: str) -> None:
    model, (x, y) = mlp(), data()
    index, helpers = torch.arange(len(y)), {other: mlp() for other in lossdsl.load(name).models}
    step = lossdsl.compile(name, model, num_classes=4, models=helpers)
    solutions = step.solve(x, y, generator=seeded(), index=index)
    parts = step.objective(x, y, solutions, index=index)
    step.load_state_dict({})  # what a level starts from is again what it was before
    whole = step(x, y, generator=seeded(), index=index)
    assert torch.equal(whole.detach(), parts.detach())
    for a, b in zip(gradients(whole, model), gradients(parts, model), strict=True):
        assert torch.equal(a, b)
    assert {k: float(v) for k, v in whole.terms.items()} == {k: float(v) for k, v in parts.terms.items()}


def test_solutions_are_constants_of_the_upper_level() -> None:
    model, (x, y) = mlp(), data()
    step = step_of(TRADES, model)
    solutions = {k: v.requires_grad_() for k, v in step.solve(x, y).items()}
    step.objective(x, y, solutions).backward()
    assert all(v.grad is None for v in solutions.values())


def test_solutions_lie_in_their_set() -> None:
    x, y = data()
    found = step_of(TRADES, mlp()).solve(x, y)["x'"]
    assert float((found - x).abs().max()) <= 0.1 + 1e-12
    assert float(found.min()) >= 0 and float(found.max()) <= 1
    assert bool((found != x).any())


@pytest.mark.parametrize("ball", ["linf", "l2", "l1"])
def test_one_jump_from_a_raw_start_lands_in_the_set(ball: str) -> None:
    x, y = data()
    text = f"lower x' in {ball}(x, 0.1) maximize CE(f(x'), y) * (f(x)[y] > 0) by linear(start = raw(x + 0.19))\nupper minimize CE(f(x'), y) by sgd(lr = 0.1)"
    found = step_of(text, mlp()).solve(x, y)["x'"]
    assert float((found - x).abs().max()) <= 0.1 + 1e-12


def test_samples_and_iterates_are_handed_over() -> None:
    text = (
        "sample a ~ normal(0.1)\nsample b ~ uniform(0, 1) over example\nsample c ~ rademacher over classes\nsample d ~ normal(1) over batch\n"
        "sample u ~ uniform(linf(0, 0.1))\nsample k ~ corner(l2(x, 0.1))\n"
        "lower x' in linf(x, 0.1) maximize CE(f(x'), y) by pgd(steps = 3, step = 0.05, start = x + a)\n"
        "upper minimize CE(f(x'@2 + u), y) * b + dot(c, softmax(j: f(x)[j])) * d + CE(f(k), y) by sgd(lr = 0.1)"
    )
    x, y = data()
    found = step_of(text, mlp()).solve(x, y, generator=seeded())
    shapes = {k: tuple(v.shape) for k, v in found.items()}
    assert shapes == {"a": (6, 5), "b": (6,), "c": (6, 4), "d": (), "u": (6, 5), "k": (6, 5), "x'": (6, 5), "x'@2": (6, 5)}
    assert set(found["c"].unique().tolist()) == {-1.0, 1.0}
    assert float(found["u"].abs().max()) <= 0.1 and float(found["b"].min()) >= 0 and float(found["b"].max()) < 1
    torch.testing.assert_close((found["k"] - x).norm(dim=1), torch.full((6,), 0.1, dtype=torch.float64))


# --- randomness ---


@pytest.mark.parametrize("body", ["x + normal(0.01)", "uniform", "corner", "x + uniform(linf(0, 0.05))", "x + normal(0.01), restarts = 3"])
def test_equal_seeds_give_equal_steps(body: str) -> None:
    text = f"sample e ~ normal(0.01)\nlower x' in linf(x, 0.1) maximize CE(f(x' + e), y) by pgd(steps = 2, step = 0.05, start = {body})\nupper minimize CE(f(x' + e), y) by sgd(lr = 0.1)"
    step, (x, y) = step_of(text, mlp()), data()
    a, b, c = (step.solve(x, y, generator=seeded(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a[k], b[k]) for k in a) and all(not torch.equal(a[k], c[k]) for k in a)


def test_the_generator_is_the_only_source_of_draws() -> None:
    step, (x, y) = step_of(TRADES, mlp()), data()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a = step(x, y, generator=seeded())
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert torch.equal(a.detach(), step(x, y, generator=seeded()).detach())


def test_without_a_generator_draws_come_from_torch() -> None:
    step, (x, y) = step_of(TRADES, mlp()), data()
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(float(step(x, y).detach()))
    assert losses[0] == losses[1] != losses[2]


def test_one_draw_per_batch_for_samples_and_a_new_one_per_restart_for_starts() -> None:
    starts: list[Tensor] = []
    text = "sample e ~ normal(0.01)\nlower x' in linf(x, 0.5) maximize CE(f(x'), y) by pgd(steps = 1, step = 0.0001, start = x + e + {}, restarts = 3)\nupper minimize CE(f(x), y) by sgd(lr = 0.1)"
    for draw, distinct in (("0 * x", 1), ("normal(0.01)", 3)):
        model, (x, y) = mlp(), data()
        starts.clear()
        model.register_forward_hook(lambda _m, i, _o: starts.append(i[0].detach().clone()))
        step_of(text.format(draw), model).solve(x, y, generator=seeded())
        assert len({tuple(s.flatten().tolist()) for s in starts[::2]}) == distinct


# --- many steps ---


def test_a_compiled_step_is_reused() -> None:
    model = mlp()
    step = step_of(TRADES, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    x, y = data(12)
    first = float(step(x, y, generator=seeded()))
    for _ in range(30):
        optimizer.zero_grad()
        step(x[:7], y[:7]).backward()
        step(x, y).backward()
        optimizer.step()
    assert float(step(x, y, generator=seeded())) < first


def test_two_steps_share_a_model_without_touching_each_other() -> None:
    model, (x, y) = mlp(), data()
    a, b = step_of(TRADES, model), upper("CE(f(x), y)", model)
    one, two = a(x, y, generator=seeded()), b(x, y)
    torch.testing.assert_close(one.detach(), a(x, y, generator=seeded()).detach(), rtol=0, atol=0)
    two.backward()
    one.backward()


@pytest.fixture
def only_new_objects() -> Iterator[None]:
    """The garbage collector looks at nothing that was there before."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def tensors() -> int:
    gc.collect()
    return sum(issubclass(type(o), Tensor) for o in gc.get_objects())


@pytest.mark.usefixtures("only_new_objects")
def test_repeated_steps_leave_no_tensors_behind() -> None:
    model, (x, y) = moody(), data()
    step = step_of(TRADES, model)
    family = step_of(
        "lower x'[j != y] in linf(x, 0.1) maximize f(x'[j])[j] by pgd(steps = 2, step = 0.05, start = uniform)\nupper minimize sum(j != y: CE(f(x'[j]), y)) by sgd(lr = 0.1)",
        model,
    )
    counts = []
    for _ in range(4):
        for one in (step, family):
            loss = one(x, y, generator=seeded())
            loss.backward()
            del loss
        model.zero_grad()
        counts.append(tensors())
    assert counts[1] == counts[2] == counts[3] > 0


class Sentinel:
    """Lives as long as the graph that holds it."""


class Marked(torch.autograd.Function):
    """The identity; its node of the graph holds a Sentinel."""

    alive: ClassVar[list[weakref.ref[Sentinel]]] = []

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.sentinel = Sentinel()
        Marked.alive.append(weakref.ref(ctx.sentinel))
        return v.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def test_the_graph_goes_with_the_loss() -> None:
    """Terms, logs and solutions may be kept: they hold no graph. No graph of the lower level outlives the step."""
    model, (x, y) = mlp(), data()
    model.layers.append(torch.nn.Identity())
    model.layers[-1].register_forward_hook(lambda _m, _i, out: Marked.apply(out))
    Marked.alive.clear()
    step = step_of(TRADES, model)
    loss = step(x, y)
    terms, logs = loss.terms, loss.logs
    alive = [r() is not None for r in Marked.alive]
    assert alive == [False] * 4 + [True] * 2, "two passes of the upper level"
    del loss
    assert not any(r() for r in Marked.alive) and terms and logs
    Marked.alive.clear()
    solutions = step.solve(x, y)
    assert Marked.alive and not any(r() for r in Marked.alive) and not solutions["x'"].requires_grad


def test_a_param_that_changes_by_epoch() -> None:
    text = "param lambda = 0 then 2 from epoch 3\nupper minimize CE(f(x), y) + lambda * H(p(x)) by sgd(lr = 0.1)"
    model, (x, y) = mlp(), data()
    step = step_of(text, model)
    plain, twice = upper("CE(f(x), y)", model)(x, y), upper("CE(f(x), y) + 2 * H(p(x))", model)(x, y)
    for epoch, expected in ((1, plain), (2, plain), (3, twice), (7, twice), (1, plain)):
        step.set_epoch(epoch)
        torch.testing.assert_close(step(x, y).detach(), expected.detach())


def test_a_recipe_without_state_has_none_and_refuses_some() -> None:
    step = step_of(TRADES, mlp())
    assert step.state_dict() == {}
    step.load_state_dict({})
    with pytest.raises(lossdsl.UserError, match="no state lam"):
        step.load_state_dict({"lam": torch.zeros(())})
