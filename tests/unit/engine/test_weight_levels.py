"""Levels over the weights and over the simplex: their sets, their passes, and what the upper level sees of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from engine_tools import BY, batchnorm, data, gradients, mlp, step_of
from torch import Tensor, nn
from torch.func import functional_call

import lossdsl
from lossdsl.diagnostics import LossdslError, UserError

CE = nn.functional.cross_entropy


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def placed(model: nn.Module, point: Tensor) -> dict[str, Tensor]:
    """A flat point as parameters by name, frozen ones left out."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    parts = point.split([p.numel() for _, p in named])
    return {n: part.view_as(p) for (n, p), part in zip(named, parts, strict=True)}


def level(region: str, solver: str, objective: str = "CE(f{w}(x), y)", mode: str = "", upper: str = "CE(f(x), y)", at: str = "at w") -> str:
    return f"lower w in {region} maximize {objective} by {solver} {mode}\nupper {at} minimize {upper} {BY}"


# --- sets and solvers -------------------------------------------------------------------------------------------------

SOLVERS = ["linear", "pgd(steps = 6, step = 0.4)", "ascent(steps = 6, step = 3)", "momentum(steps = 5, step = 0.7)"]
SOLVERS += ["sgd(steps = 5, step = 2.0)", "adam(steps = 5, step = 0.5)", "pgd(steps = 6, step = 0.4, keep = best)"]


def block_lengths(region: str, theta: nn.Module, point: Tensor) -> list[Tensor]:
    """|v_b / scale_b| for each block, computed tensor by tensor."""
    named = list(theta.named_parameters())
    v = {n: w - p.detach() for (n, p), w in zip(named, placed(theta, point).values(), strict=True)}
    if region.startswith("layerwise"):
        return [v[n].norm() / p.norm() for n, p in named]
    if region.startswith("adaptive"):
        return [torch.cat([(v[n] / p.detach().abs()).flatten() for n, p in named]).norm()]
    return [torch.cat([d.flatten() for d in v.values()]).norm()]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("region", ["l2(theta, 0.7)", "layerwise(theta, 0.7)", "adaptive(theta, 0.7)"])
def test_points_never_leave_the_set_and_the_objective_rises(region: str, solver: str) -> None:
    x, y = data()
    model = mlp()
    point = step_of(level(region, solver), model).solve(x, y)["w"]
    lengths = block_lengths(region, model, point)
    assert all(length <= 0.7 * (1 + 1e-12) for length in lengths)
    assert any(length > 0.5 for length in lengths)
    assert CE(functional_call(model, placed(model, point), (x,)), y) > 1.04 * CE(model(x), y)


def test_steps_of_ascent_on_a_ball_by_hand() -> None:
    """theta + v with v <- v + step * gradient of the batch MEAN, rescaled into the ball."""
    x, y = data()
    model = mlp()
    theta, point = flat(model), flat(model)
    for _ in range(4):
        point.requires_grad_()
        (slope,) = torch.autograd.grad(CE(functional_call(model, placed(model, point), (x,)), y), point)
        v = point.detach() + 3 * slope - theta
        point = theta + v * min(1.0, 0.5 / float(v.norm()))
    found = step_of(level("l2(theta, 0.5)", "ascent(steps = 4, step = 3)"), model).solve(x, y)["w"]
    assert (found - point).abs().max() < 1e-12


def test_steps_of_pgd_layer_by_layer_by_hand() -> None:
    """The steepest step of each layer has the length of step times that of the layer; each layer is projected by itself."""
    x, y = data()
    model = mlp()
    at = {n: p.detach().clone() for n, p in model.named_parameters()}
    theta = {n: p.clone() for n, p in at.items()}
    for _ in range(5):
        leaves = {n: p.clone().requires_grad_() for n, p in at.items()}
        slopes = torch.autograd.grad(CE(functional_call(model, leaves, (x,)), y), list(leaves.values()))
        for (n, p), g in zip(at.items(), slopes, strict=True):
            v = p + 0.2 * theta[n].norm() * g / g.norm() - theta[n]
            at[n] = theta[n] + v * min(1.0, 0.5 * float(theta[n].norm() / v.norm()))
    found = step_of(level("layerwise(theta, 0.5)", "pgd(steps = 5, step = 0.2)"), model).solve(x, y)["w"]
    assert (found - torch.cat([p.flatten() for p in at.values()])).abs().max() < 1e-12


def test_minimize_goes_down() -> None:
    x, y = data()
    model = mlp()
    text = level("l2(theta, 0.3)", "linear").replace("maximize", "minimize")
    point = step_of(text, model).solve(x, y)["w"]
    (slope,) = [torch.cat([g.flatten() for g in torch.autograd.grad(CE(model(x), y), list(model.parameters()))])]
    assert (point - (flat(model) - 0.3 * slope / slope.norm())).abs().max() < 1e-12


@pytest.mark.parametrize(
    "region", ["l2(theta, 0.4, only = matrices)", "layerwise(theta, 0.4, only = matrices)", "adaptive(theta, 0.4, only = matrices)"]
)
def test_only_matrices_move(region: str) -> None:
    """Biases and normalisation stay exactly; `only = all` is the default."""
    x, y = data()
    model = batchnorm()
    with torch.no_grad():
        model.layers[1].bias.add_(0.1)  # a tensor of zeros does not move where the set is relative to it
    for text in (region, region.replace("matrices", "all")):
        found = placed(model, step_of(level(text, "pgd(steps = 2, step = 0.3)"), model).solve(x, y)["w"])
        still = {n: torch.equal(found[n], p) for n, p in model.named_parameters()}
        assert {n for n, same in still.items() if same} == (
            {n for n, p in model.named_parameters() if p.dim() < 2} if "matr" in text else set()
        )


def test_frozen_parameters_stay_put() -> None:
    """requires_grad = False: not in the level, not in the norm, no gradient; the flag is as it was."""
    x, y = data()
    model = mlp()
    frozen = model.layers[0].weight.requires_grad_(False)
    step = step_of(level("l2(theta, 0.6)", "linear"), model)
    point = step.solve(x, y)["w"]
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(point) == sum(p.numel() for p in trained)
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(CE(model(x), y), trained)])
    assert (point - (torch.cat([p.detach().flatten() for p in trained]) + 0.6 * slope / slope.norm())).abs().max() < 1e-12
    step(x, y).backward()
    assert frozen.grad is None and not frozen.requires_grad
    assert all(p.grad is not None for p in trained)


class Tied(nn.Module):
    """One matrix used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.second = nn.Linear(5, 5, dtype=torch.float64), nn.Linear(5, 5, dtype=torch.float64)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))  # type: ignore[no-any-return]


def test_tied_weights_move_together() -> None:
    x, y = data(classes=5)
    model = Tied()
    step = step_of(level("l2(theta, 0.5)", "linear"), model, classes=5)
    point = step.solve(x, y)["w"]
    loss = step(x, y)
    loss.backward()
    moved = copy.deepcopy(model)
    slopes = torch.autograd.grad(CE(model(x), y), list(model.parameters()))
    size = torch.cat([g.flatten() for g in slopes]).norm()
    with torch.no_grad():
        for p, g in zip(moved.parameters(), slopes, strict=True):
            p.add_(0.5 * g / size)
    assert (point - flat(moved)).abs().max() < 1e-12 and len(point) == 35
    expected = CE(moved(x), y)
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    for p, q in zip(model.parameters(), moved.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-12)


# --- what the upper level sees ----------------------------------------------------------------------------------------


def test_theta_and_w_in_one_objective() -> None:
    """`at w`: f is f{w}, also inside lets and defs; f{theta} is not moved; both gradients are gradients of theta."""
    x, y = data()
    model = mlp()
    before = "let hard = CE(f(x), y)\ndef weighted(v) = 2 * H(p(v))\n"
    objective = "hard + 3 * KL(p{theta}(x) || p(x)) + weighted(x) + 0.5 * CE(f{theta}(x), y) + CE(f{w}(x), y)"
    step = step_of(before + level("l2(theta, 0.5)", "linear", upper=objective), model)
    point = step.solve(x, y)["w"]
    loss = step(x, y)
    v = point - flat(model)
    flat_theta = flat(model).requires_grad_()
    near = functional_call(model, placed(model, flat_theta), (x,))
    far = functional_call(model, placed(model, flat_theta + v), (x,))
    entropy = -(far.softmax(1) * far.log_softmax(1)).sum(1).mean()
    kl = (near.softmax(1) * (near.log_softmax(1) - far.log_softmax(1))).sum(1).mean()
    expected = 2 * CE(far, y) + 3 * kl + 2 * entropy + 0.5 * CE(near, y)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    (slope,) = torch.autograd.grad(expected, flat_theta)
    found = torch.cat([g.flatten() for g in gradients(loss, model)])
    assert (found - slope).norm() < 1e-10 * slope.norm()


def test_without_at_only_f_of_w_is_moved() -> None:
    x, y = data()
    model = mlp()
    step = step_of(level("l2(theta, 0.5)", "linear", upper="CE(f(x), y) + 0 * CE(f{w}(x), y)", at=""), model)
    assert float(step(x, y).detach()) == pytest.approx(float(CE(model(x), y).detach()), rel=1e-12)


def test_a_level_over_inputs_after_one_over_weights() -> None:
    """It attacks f{w} where it says so; the attack of f is that of theta."""
    x, y = data()
    model = mlp()
    text = (
        "lower w in l2(theta, 0.8) maximize CE(f{w}(x), y) by linear\n"
        "lower x' in linf(x, 0.1) maximize CE(f{w}(x'), y) by pgd(steps = 3, step = 0.05, start = x)\n"
        "lower u in linf(x, 0.1) maximize CE(f(u), y) by pgd(steps = 3, step = 0.05, start = x)\n"
        f"upper minimize CE(f(x'), y) + CE(f(u), y) {BY}"
    )
    found = step_of(text, model).solve(x, y)
    for key, weights in (("x'", placed(model, found["w"])), ("u", dict(model.named_parameters()))):
        v = x
        for _ in range(3):
            v = v.detach().requires_grad_()
            (slope,) = torch.autograd.grad(CE(functional_call(model, weights, (v,)), y, reduction="sum"), v)
            v = (v + 0.05 * slope.sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1).detach()
        assert (found[key] - v).abs().max() < 1e-12
    assert not torch.equal(found["x'"], found["u"])


def test_logs_and_states_at_w_are_taken_at_w() -> None:
    x, y = data()
    model = mlp()
    text = level("l2(theta, 0.5)", "linear") + "\nlog far = CE(f(x), y)\nlog near = CE(f{theta}(x), y)\n"
    loss = step_of(text, model)(x, y)
    assert float(loss.logs["far"]) == pytest.approx(float(loss.detach()), rel=1e-12)
    assert float(loss.logs["near"]) == pytest.approx(float(CE(model(x), y).detach()), rel=1e-12) != float(loss.logs["far"])


@pytest.mark.parametrize("region", ["l2", "layerwise", "adaptive"])
def test_radius_zero_skips_the_level(region: str) -> None:
    """Not one more pass than without the level, f{w} is f, and the loss is the same."""
    x, y = data()
    model = batchnorm()
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    loss = step_of("param rho = 0\n" + level(f"{region}(theta, rho)", "linear", upper="CE(f{w}(x), y) + CE(f(x), y)"), model)(x, y)
    assert len(calls) == 1
    plain = step_of(f"upper minimize 2 * CE(f(x), y) {BY}", batchnorm())(x, y)
    assert float(loss.detach()) == pytest.approx(float(plain.detach()), rel=1e-12)


# --- modes and buffers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lower", "upper", "writes"), [
    ("train", "train", ["theta", "w"]), ("train", "untracked", ["theta"]), ("untracked", "train", ["w"]),
    ("eval", "train", ["w"]), ("untracked", "untracked", []), ("eval", "untracked", []),
])  # fmt: skip
def test_which_passes_write_statistics(lower: str, upper: str, writes: list[str]) -> None:
    """The statistics are those of the model that is trained, whatever weights the pass was at."""
    x, y = data()
    model = batchnorm()
    text = level("l2(theta, 0.9)", "linear", mode=f"with f in {lower}") + f" with f in {upper}"
    step = step_of(text, model)
    point = step_of(text, copy.deepcopy(model)).solve(x, y)["w"]
    step(x, y).backward()
    expected = batchnorm()
    expected.train()
    if "theta" in writes:
        expected(x)
    if "w" in writes:
        functional_call(expected, placed(expected, point), (x,))
    for a, b in zip(model.buffers(), expected.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), expected.parameters(), strict=True))


def test_modes_decide_what_the_level_sees() -> None:
    """eval: running statistics; untracked: those of the batch, as train."""
    x, y = data()
    found = {}
    for mode in ("eval", "train", "untracked"):
        found[mode] = step_of(level("l2(theta, 0.9)", "linear", mode=f"with f in {mode}"), batchnorm()).solve(x, y)["w"]
    assert torch.equal(found["train"], found["untracked"]) and not torch.equal(found["train"], found["eval"])


@pytest.mark.parametrize("training", [True, False])
def test_everything_is_put_back(training: bool) -> None:
    """Modes, weights and flags, also when the model breaks inside the level."""
    x, y = data()
    model = batchnorm().train(training)
    model.layers[1].eval()
    theta, modes = flat(model), [m.training for m in model.modules()]
    step = step_of(level("layerwise(theta, 0.1)", "pgd(steps = 3, step = 0.05)", mode="with f in untracked"), model)
    step(x, y)
    assert [m.training for m in model.modules()] == modes
    calls: list[int] = []

    def breaks(*_: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("broken")

    handle = model.register_forward_pre_hook(breaks)
    buffers = [b.clone() for b in model.buffers()]
    with pytest.raises(UserError, match="broken"):
        step(x, y)
    handle.remove()
    assert torch.equal(flat(model), theta) and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))


def test_objective_takes_back_what_solve_gave() -> None:
    x, y = data()
    step = step_of(level("layerwise(theta, 0.2)", "linear"), mlp())
    found = step.solve(x, y)
    given, whole = step.objective(x, y, found), step(x, y)
    assert float(given.detach()) == pytest.approx(float(whole.detach()), rel=1e-12)
    for a, b in zip(gradients(given, step.model), gradients(whole, step.model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    with pytest.raises(UserError, match="w"):
        step.objective(x, y, {})


# --- the simplex ------------------------------------------------------------------------------------------------------

LOSSES = "lower q in simplex(K) maximize sum(j: q[j] * CE(f(x), j)) {regular} by {solver}\nupper minimize CE(f(x), y) + sum(j: q[j] * CE(f(x), j)) {by}"


def class_losses(model: nn.Module, x: Tensor) -> Tensor:
    """Mean over the batch of CE(f(x), j) for every class j."""
    return -model(x).log_softmax(1).mean(0)


def simplex_step(solver: str, regular: str = "") -> Any:
    return step_of(LOSSES.format(solver=solver, regular=regular, by=BY), mlp())


def test_the_simplex_finds_the_worst_class() -> None:
    x, y = data()
    step = simplex_step("linear(start = ones(K) / K)")
    q = step.solve(x, y)["q"]
    worst = class_losses(step.model, x).argmax()
    assert q.tolist() == [float(j == worst) for j in range(4)]


def test_the_simplex_against_brute_force() -> None:
    """A concave objective: linear minus half the squared distance from uniform; the grid has no better point."""
    x, y = data()
    step = simplex_step("pgd(steps = 400, step = 0.003, start = ones(K) / K, keep = best)", "- 2 * sum(j: (q[j] - 1/K)^2)")
    q = step.solve(x, y)["q"]
    losses = class_losses(step.model, x).detach()

    def value(points: Tensor) -> Tensor:
        return points @ losses - 2 * (points - 0.25).square().sum(-1)

    n = 40
    grid = torch.tensor([[a, b, c, n - a - b - c] for a in range(n + 1) for b in range(n + 1 - a) for c in range(n + 1 - a - b)]) / n
    grid = grid.to(torch.float64)
    assert float(value(q)) >= float(value(grid).max()) - 1e-6
    assert (q - grid[value(grid).argmax()]).abs().max() < 0.06
    exact = (losses - losses.mean()) / 4 + 0.25
    assert exact.min() > 0 and (q - exact).abs().max() < 4e-3
    assert float(q.sum()) == pytest.approx(1, abs=1e-12) and q.min() >= 0


def test_the_solution_on_the_simplex_is_a_constant() -> None:
    x, y = data()
    step = simplex_step("ascent(steps = 3, step = 0.1, start = ones(K) / K)")
    q = step.solve(x, y)["q"]
    expected = CE(step.model(x), y) + (q * class_losses(step.model, x)).sum()
    loss = step(x, y)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    ours, plain = gradients(loss, step.model), torch.autograd.grad(expected, list(step.model.parameters()))
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    given = step.objective(x, y, {"q": q})
    assert float(given.detach()) == pytest.approx(float(loss.detach()), rel=1e-12)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "code"), [
    ("lower w in linf(theta, 0.1) maximize CE(f{w}(x), y) by linear\nupper minimize CE(f(x), y) BY", "E020"),
    ("lower w in l2(theta, 0.1) maximize CE(f(x), y) by linear\nupper at w minimize CE(f(x), y) BY", "E021"),
    ("lower w in l2(theta, 0.1) maximize CE(f{w}(x), y) by prox(at = x, weight = 1)\nupper at w minimize CE(f(x), y) BY", "E023"),
    ("lower w in layerwise(x, 0.1) maximize CE(f{w}(x), y) by linear\nupper at w minimize CE(f(x), y) BY", ""),
    ("lower w in l2(theta, 0 - 0.1) maximize CE(f{w}(x), y) by linear\nupper at w minimize CE(f(x), y) BY", "E016"),
    ("lower w in l2(theta, 0.1, only = vectors) maximize CE(f{w}(x), y) by linear\nupper at w minimize CE(f(x), y) BY", ""),
    ("lower w in l2(theta, 0.1) maximize CE(f{w}(x), y) by linear through unrolling\nupper at w minimize CE(f(x), y) BY", "E021"),
    ("lower w[j != y] in l2(theta, 0.1) maximize CE(f{w}(x), y) by linear\nupper minimize CE(f(x), y) BY", "E025"),
    ("upper at w minimize CE(f(x), y) BY", "E010"),
    ("upper minimize CE(f{w}(x), y) BY", "E010"),
    ("lower x' in linf(x, 0.1) maximize CE(f(x'), y) by linear(start = x)\nupper at x' minimize CE(f(x), y) BY", "E010"),
    ("lower q in simplex(3) maximize sum(j: q[j] * CE(f(x), j)) by linear(start = ones(K) / K)\nupper minimize sum(j: q[j] * CE(f(x), j)) BY", "E014"),
    ("lower q in simplex(K) maximize sum(j: q[j] * CE(f(x), j)) by linear\nupper minimize sum(j: q[j] * CE(f(x), j)) BY", "E018"),
])  # fmt: skip
def test_what_cannot_be_meant_is_one_clear_error(text: str, code: str) -> None:
    with pytest.raises(LossdslError) as caught:
        lossdsl.parse("recipe r\n" + text.replace("BY", BY)).plan  # noqa: B018
    found = [d for d in caught.value.diagnostics if d.severity == "error"]  # type: ignore[attr-defined]
    assert len(found) == 1 and found[0].code.startswith(code)
