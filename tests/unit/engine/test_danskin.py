"""`through danskin`: the min-norm direction, what is recorded, which statistics are written; and joint passes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from engine_tools import batchnorm, data, gradients, mlp, seeded, step_of
from scipy.optimize import minimize
from torch import Tensor, nn

from lossdsl.diagnostics import RecipeError, UserError

X, Y = data()
LEVEL = "lower x' in linf(x, 0.3) maximize CE(f(x'), y) by pgd(steps = 1, step = 0.1, start = uniform) through danskin(starts = {})\n"
UPPER = "upper minimize CE(f(x'), y) + 0.5 * norm(f(x) - f(x'), 2)^2 by sgd(lr = 0.1)\n"
LOGS = "log a = norm(x' - x, 2)\nlog b = batch_mean(CE(f(x'), y))^2\n"


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def loss_at(model: nn.Module, point: Tensor) -> tuple[Tensor, Tensor]:
    """The two terms; the clean pass is written second."""
    adversarial = model(point)
    return F.cross_entropy(adversarial, Y), 0.5 * ((model(X) - adversarial) ** 2).sum(1).mean()


def min_norm(vectors: Tensor) -> Tensor:
    """The weights by a general solver on the simplex."""
    gram = (vectors @ vectors.T).numpy()
    scale = gram.max()
    k = len(gram)
    found = minimize(
        lambda a: a @ gram @ a / scale,
        torch.full((k,), 1 / k).numpy(),
        jac=lambda a: 2 * gram @ a / scale,
        bounds=[(0, 1)] * k,
        constraints={"type": "eq", "fun": lambda a: a.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-16, "maxiter": 1000},
    )
    return torch.as_tensor(found.x)


@pytest.mark.parametrize("build", [mlp, batchnorm])
@pytest.mark.parametrize("starts", [2, 5])
def test_the_direction_has_the_smallest_norm(build: type[nn.Module], starts: int) -> None:
    """Against scipy, and by the inequality that makes it a descent direction of all maximisers."""
    model, hand = build(), build()
    step = step_of(LEVEL.format(starts) + UPPER + LOGS, model)
    points = [step.solve(X, Y, generator=seeded())[f"x'#{n + 1}"] for n in range(starts)]
    assert all(not torch.equal(points[0], p) for p in points[1:])
    loss = step(X, Y, generator=seeded())
    rows, terms = [], []
    hand.train()
    for point in points:
        parts = loss_at(hand, point)
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(sum(parts), list(hand.parameters()))]))
        terms.append(torch.stack([p.detach() for p in parts]))
    vectors = torch.stack(rows)
    weights = min_norm(vectors)
    direction = flat(gradients(loss, model))
    assert float(direction.norm()) == pytest.approx(float((weights @ vectors).norm()), rel=1e-6)
    assert (direction - weights @ vectors).norm() < 1e-3 * direction.norm()
    assert bool((vectors @ direction >= direction.norm() ** 2 * (1 - 1e-9)).all())
    assert direction.norm() < vectors.norm(dim=1).min() * (1 - 1e-6)
    assert float(loss.detach()) == pytest.approx(float(weights @ torch.stack(terms).sum(1)), rel=1e-3)
    assert sum(float(t) for t in loss.terms.values()) == pytest.approx(float(loss.detach()), rel=1e-12)


def test_what_is_recorded_is_the_weighted_mean() -> None:
    """With the weights read off the loss's own parts: two maximisers, one number unknown."""
    model = mlp()
    step = step_of(LEVEL.format(2) + UPPER + LOGS, model)
    points = [step.solve(X, Y, generator=seeded())[f"x'#{n + 1}"] for n in range(2)]
    loss = step(X, Y, generator=seeded())
    first, second = (sum(loss_at(model, p)) for p in points)
    a = float(((loss.detach() - second) / (first - second)).detach())
    assert 0.01 < a < 0.99
    terms = [float((a * p + (1 - a) * q).detach()) for p, q in zip(loss_at(model, points[0]), loss_at(model, points[1]), strict=True)]
    assert list(map(float, loss.terms.values())) == pytest.approx(terms, rel=1e-9)
    sizes = [float((p - X).norm(dim=1).mean()) for p in points]
    squares = [float(loss_at(model, p)[0].detach()) ** 2 for p in points]
    assert float(loss.logs["a"]) == pytest.approx(a * sizes[0] + (1 - a) * sizes[1], rel=1e-9)
    assert float(loss.logs["b"]) == pytest.approx(a * squares[0] + (1 - a) * squares[1], rel=1e-9)


def test_one_start_is_the_plain_gradient() -> None:
    for build in (mlp, batchnorm):
        model, plain = build(), build()
        ours = step_of(LEVEL.format(1) + UPPER, model)(X, Y, generator=seeded())
        theirs = step_of(LEVEL.replace("through danskin(starts = {})", "") + UPPER, plain)(X, Y, generator=seeded())
        assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-15)
        torch.testing.assert_close(flat(gradients(ours, model)), flat(gradients(theirs, plain)), rtol=1e-14, atol=1e-16)
        for a, b in zip(model.buffers(), plain.buffers(), strict=True):
            assert torch.equal(a, b)


def test_statistics_are_written_once_per_maximiser_in_their_order() -> None:
    model, hand = batchnorm(), batchnorm()
    step = step_of(LEVEL.format(11) + UPPER, model)
    points = [step.solve(X, Y, generator=seeded())[f"x'#{n + 1}"] for n in range(11)]
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), hand.buffers(), strict=True))
    step(X, Y, generator=seeded())
    hand.train()
    for point in points:
        loss_at(hand, point)
    for a, b in zip(model.buffers(), hand.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=0)


def test_given_maximisers() -> None:
    """All of them, in their order, of more than nine too; one that is missing is an error."""
    model, other = batchnorm(), batchnorm()
    whole = step_of(LEVEL.format(11) + UPPER, model)(X, Y, generator=seeded())
    parts = step_of(LEVEL.format(11) + UPPER, other)
    found = parts.solve(X, Y, generator=seeded())
    again = parts.objective(X, Y, found)
    torch.testing.assert_close(flat(gradients(again, other)), flat(gradients(whole, model)), rtol=1e-12, atol=1e-14)
    for a, b in zip(model.buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b)
    del found["x'#11"]
    with pytest.raises(UserError, match="objective needs x'#11"):
        parts.objective(X, Y, found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_is_that_of_the_batch(dtype: torch.dtype) -> None:
    x, y = data(dtype=dtype)
    model = mlp(dtype=dtype)
    loss = step_of(LEVEL.format(3) + UPPER + LOGS, model)(x, y, generator=seeded())
    assert loss.dtype == dtype
    assert all(v.dtype == dtype for v in (*loss.logs.values(), *loss.terms.values()))
    assert all(g.dtype == dtype for g in gradients(loss, model))


def test_graphs_are_used_up_one_by_one() -> None:
    """The loss that is handed over holds no pass: its backward is a sum over the parameters."""
    model = mlp()
    loss = step_of(LEVEL.format(3) + UPPER, model)(X, Y, generator=seeded())
    names, stack = set(), [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None:
            names.add(node.name())
            stack.extend(n for n, _ in node.next_functions)
    assert not any("Addmm" in n or "LogSoftmax" in n for n in names)


def test_a_state_moves_by_the_weighted_mean() -> None:
    text = LEVEL.format(3) + "state s = 0 then s + batch_mean(CE(f(x'), y))\n" + UPPER + "log m = CE(f(x'), y)\n"
    step = step_of(text, mlp())
    loss = step(X, Y, generator=seeded())
    step.after_update()
    assert float(step.state_dict()["state.s"]) == pytest.approx(float(loss.logs["m"]), rel=1e-12)


def test_danskin_beside_an_implicit_level() -> None:
    """Each maximiser has the whole upper level, implicit part included."""
    implicit = "lower u in linf(x, 0.1) minimize norm(u - x, 2)^2 - f(u)[1] by ascent(steps = 60, step = 0.3, start = x) through {}\n"
    upper = "upper minimize CE(f(x'), y) + f(u)[2]^2 by sgd(lr = 0.1)"
    grads = {}
    for way in ("implicit", "nothing"):
        for kind in (LEVEL.format(1), LEVEL.replace("through danskin(starts = {})", "")):
            model = mlp()
            loss = step_of(implicit.format(way) + kind + upper, model)(X, Y, generator=seeded())
            grads[way, "danskin" in kind] = flat(gradients(loss, model))
    torch.testing.assert_close(grads["implicit", True], grads["implicit", False], rtol=1e-12, atol=1e-14)
    assert (grads["implicit", True] - grads["nothing", True]).norm() > 1e-4


WRONG = {
    "two levels": (LEVEL.format(2) + LEVEL.format(2).replace("x'", "v") + "upper minimize CE(f(x'), y) + CE(f(v), y) by sgd(lr = 0.1)", "two levels cannot"),
    "a later level": (LEVEL.format(2) + "lower v in linf(x', 0.1) maximize CE(f(v), y) by linear(start = x)\nupper minimize CE(f(x'), y) + CE(f(v), y) by sgd(lr = 0.1)", "depends on x'"),
    "later weights": (LEVEL.format(2) + "lower w in l2(theta, 0.1) maximize CE(f{w}(x'), y) by linear\nupper at w minimize CE(f(x'), y) by sgd(lr = 0.1)", "depends on x'"),
    "an iterate": (LEVEL.format(2) + "upper minimize CE(f(x'@0), y) + CE(f(x'), y) by sgd(lr = 0.1)", "only the points themselves"),
    "a count": (LEVEL.format(2) + "upper minimize survived(x') * CE(f(x'), y) by sgd(lr = 0.1)", "only the points themselves"),
    "the last batch": (LEVEL.format(2).replace("start = uniform", "start = previous") + "upper minimize CE(f(x'), y) by sgd(lr = 0.1)", "no last one"),
    "restarts": (LEVEL.format(2).replace("start = uniform", "start = uniform, restarts = 2") + "upper minimize CE(f(x'), y) by sgd(lr = 0.1)", "runs of its own"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(WRONG))
def test_what_makes_no_sense(name: str) -> None:
    text, message = WRONG[name]
    with pytest.raises(RecipeError, match=message):
        step_of(text, mlp())


def test_fooled_is_a_fact_of_each_maximiser() -> None:
    step_of(LEVEL.format(2) + "upper minimize (1 + fooled(x')) * CE(f(x'), y) by sgd(lr = 0.1)", mlp())(X, Y, generator=seeded())


# --- joint passes -----------------------------------------------------------------------------------------------------


JOINT = "upper minimize {} by sgd(lr = 0.1) with f in {} joint"


def run(text: str, model: nn.Module) -> tuple[float, Tensor]:
    loss = step_of(text, model)(X, Y, generator=seeded())
    return float(loss.detach()), flat(gradients(loss, model))


@pytest.mark.parametrize("mode", ["train", "untracked"])
def test_a_joint_pass_is_one_batch(mode: str) -> None:
    """In the order of first appearance, statistics included; a point that appears twice is there once."""
    model, hand = batchnorm(), batchnorm()
    value, found = run(JOINT.format("CE(f(x^2), y) + 2 * CE(f(x), y) + KL(p(x) || p(sqrt(x)))", mode), model)
    hand.train()
    a, b, c = hand(torch.cat([X**2, X, X.sqrt()])).chunk(3)
    kl = F.kl_div(c.log_softmax(1), b.softmax(1), reduction="batchmean")
    loss = F.cross_entropy(a, Y) + 2 * F.cross_entropy(b, Y) + kl
    assert value == pytest.approx(float(loss.detach()), rel=1e-12)
    wanted = flat(list(torch.autograd.grad(loss, list(hand.parameters()))))
    assert (found - wanted).norm() < 1e-12 * wanted.norm()
    for p, q in zip(model.buffers(), (hand if mode == "train" else batchnorm()).buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-13, atol=0)


def test_a_joint_pass_with_a_family() -> None:
    model, hand = batchnorm(), batchnorm()
    level = "lower x'[j != y] in linf(x, 0.2) maximize f(x'[j])[j] - f(x'[j])[y] by pgd(steps = 1, step = 0.1, start = x)\n"
    text = level + JOINT.format("CE(f(x), y) + mean(j != y: CE(f(x'[j]), y))", "train")
    points = step_of(text, copy.deepcopy(model)).solve(X, Y)["x'"]
    value, found = run(text, model)
    hand.train()
    logits = hand(torch.cat([X, points.flatten(0, 1)]))
    loss = F.cross_entropy(logits[:6], Y) + F.cross_entropy(logits[6:], Y.repeat_interleave(3))
    assert value == pytest.approx(float(loss.detach()), rel=1e-12)
    wanted = flat(list(torch.autograd.grad(loss, list(hand.parameters()))))
    assert (found - wanted).norm() < 1e-12 * wanted.norm()
    for p, q in zip(model.buffers(), hand.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-13, atol=0)


def test_a_joint_pass_with_gradients() -> None:
    """The points of gradients are in the batch too, which couples all of them: the gradient at x is by x's rows alone."""
    model, hand = batchnorm(), batchnorm()
    text = JOINT.format("CE(f(x), y) + norm(grad(x: CE(f(x), y)) - grad(v = x^2: CE(f(v), y)), 2)^2", "train")
    value, found = run(text, model)
    hand.train()
    x, v = X.clone().requires_grad_(), (X**2).requires_grad_()
    losses = F.cross_entropy(hand(torch.cat([x, v])), Y.repeat(2), reduction="none")
    g = torch.autograd.grad(losses[:6].sum(), x, create_graph=True)[0] - torch.autograd.grad(losses[6:].sum(), v, create_graph=True)[0]
    loss = losses[:6].mean() + (g**2).sum(1).mean()
    assert value == pytest.approx(float(loss.detach()), rel=1e-12)
    wanted = flat(list(torch.autograd.grad(loss, list(hand.parameters()))))
    assert (found - wanted).norm() < 1e-10 * wanted.norm()
    for p, q in zip(model.buffers(), hand.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-13, atol=0)


def test_stopped_points_of_a_joint_pass() -> None:
    """Logits that only a stop uses are in the batch all the same."""
    model, hand = batchnorm(), batchnorm()
    value, found = run(JOINT.format("CE(f(x), y) * stop(CE(f(x^2), y))", "train"), model)
    hand.train()
    losses = F.cross_entropy(hand(torch.cat([X, X**2])), Y.repeat(2), reduction="none")
    loss = (losses[:6] * losses[6:].detach()).mean()
    assert value == pytest.approx(float(loss.detach()), rel=1e-12)
    wanted = flat(list(torch.autograd.grad(loss, list(hand.parameters()))))
    assert (found - wanted).norm() < 1e-12 * wanted.norm()


def test_what_is_only_recorded_stays_out_of_a_joint_pass() -> None:
    text = JOINT.format("CE(f(x), y) + CE(f(x^2), y)", "untracked")
    log = "\nlog l = CE(f(sqrt(x)), y)\nlog n = norm(grad(theta: CE(f(x), y)), 2)"
    assert run(text, batchnorm())[0] == run(text + log, batchnorm())[0]
    assert torch.equal(run(text, batchnorm())[1], run(text + log, batchnorm())[1])
