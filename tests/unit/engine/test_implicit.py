"""`through implicit` against finite differences of the exact solution map, and against closed forms."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from engine_tools import Flat, data, gradients, seeded, step_of
from torch import Tensor, nn

import lossdsl
from lossdsl.diagnostics import RecipeError

pytestmark = pytest.mark.slow

EPS, WEIGHT = 0.1, 2.0

SCHEME = """
lower z in linf(x, {eps})
  maximize CE(f(z), y) by ascent(steps = 1, step = 0.2, start = x + uniform(linf(0, {eps}))){mode}
"""
LINEARISED = """
lower x' in linf(x, {eps})
  minimize dot(x' - z, grad(v = z: -CE(f(v), y))) + {weight}/2 * norm(x' - z, 2)^2
  by prox(at = z, weight = {weight}){mode}
  through implicit{options}
upper minimize CE(f(x'), y) by sgd(lr = 0.1)
"""
EXACT = """
lower x' in linf(x, {eps})
  minimize -CE(f(x'), y) + {weight}/2 * norm(x' - z, 2)^2
  by ascent(steps = {steps}, step = 0.4/{weight}, start = z){mode}
  through implicit{options}
upper minimize CE(f(x'), y) by sgd(lr = 0.1)
"""
LAYERS: dict[str, Callable[[], list[nn.Module]]] = {
    "celu": lambda: [nn.Linear(5, 7), nn.CELU()],
    "tanh": lambda: [nn.Linear(5, 7), nn.Tanh()],
    "relu": lambda: [nn.Linear(5, 9), nn.ReLU()],
    "batchnorm": lambda: [nn.Linear(5, 7), nn.BatchNorm1d(7), nn.CELU()],
}
X, Y = data()
BORDER = (X * 1.6 - 0.3).clamp(0, 1)
"""A batch that touches both ends of the domain."""


def network(name: str) -> nn.Module:
    """With slopes large enough that some coordinates of the solution reach the border of the box."""
    torch.manual_seed(4)
    layers = LAYERS[name]()
    model = Flat(*layers, nn.Linear(7 if name != "relu" else 9, 4)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5 if name != "batchnorm" else 0.8)
        if name == "batchnorm":
            for _ in range(3):
                model(torch.rand(20, 5, dtype=torch.float64))
    return model


def box(x: Tensor) -> tuple[Tensor, Tensor]:
    return (x - EPS).clamp(min=0), (x + EPS).clamp(max=1)


def into(v: Tensor, x: Tensor) -> Tensor:
    low, high = box(x)
    return torch.max(torch.min(v, high), low)


def slope(f: nn.Module, v: Tensor) -> Tensor:
    """The gradient of each example's loss."""
    v = v.detach().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(f(v), Y, reduction="sum"), v)[0]


def linearised(f: nn.Module, z: Tensor, x: Tensor) -> Tensor:
    """delta*(theta) of eq. 7, exactly."""
    return into(z + slope(f, z) / WEIGHT, x)


def exact(f: nn.Module, z: Tensor, x: Tensor) -> Tensor:
    """The minimiser of -CE + weight/2 |v - z|^2 on the box by projected gradient descent, run until it stands still."""
    v = z
    for _ in range(1000):
        new = into(v - 0.4 / WEIGHT * (WEIGHT * (v - z) - slope(f, v)), x)
        if (new - v).abs().max() < 1e-15:
            return new
        v = new
    assert (new - v).abs().max() < 1e-13
    return v


Solver = Callable[[nn.Module, Tensor, Tensor], Tensor]


def value(model: nn.Module, lower_train: bool, solver: Solver, z: Tensor, x: Tensor) -> float:
    """l_tr(theta, delta*(theta)), the upper pass in train mode."""
    with torch.no_grad():
        f = copy.deepcopy(model).train(lower_train)
        with torch.enable_grad():
            point = solver(f, z, x)
        return float(F.cross_entropy(f.train()(point), Y))


def finite_differences(model: nn.Module, lower_train: bool, solver: Solver, z: Tensor, x: Tensor, directions: Tensor) -> Tensor:
    """Central differences along the directions [n, parameters], z held fixed."""
    model, h, out = copy.deepcopy(model), 1e-5, []
    theta = nn.utils.parameters_to_vector(model.parameters()).detach()
    for direction in directions:
        values = []
        for moved in (theta + h * direction, theta - h * direction):
            nn.utils.vector_to_parameters(moved, model.parameters())
            values.append(value(model, lower_train, solver, z, x))
        out.append((values[0] - values[1]) / (2 * h))
    return torch.tensor(out, dtype=torch.float64)


def recipe(kind: str, options: str = "", mode: str = "", weight: float = WEIGHT) -> str:
    text = SCHEME + {"linearised": LINEARISED, "exact": EXACT}[kind]
    return text.format(eps=EPS, weight=weight, mode=mode, steps=300, options=options)


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def mixed(point: Tensor, x: Tensor) -> None:
    """Some coordinates are free, some are held."""
    low, high = box(x)
    free = float(((point > low) & (point < high)).double().mean())
    assert 0.1 < free < 0.95, free


@pytest.mark.parametrize("x", [X, BORDER], ids=["inside", "border"])
@pytest.mark.parametrize(("name", "mode"), [(name, "") for name in LAYERS] + [("batchnorm", " with f in train")])
@pytest.mark.parametrize("kind", ["linearised", "exact"])
def test_the_hypergradient_is_that_of_the_solution_map(kind: str, name: str, mode: str, x: Tensor) -> None:
    """Fast-BAT, linearised (theorem 1) and with the Hessian (eq. 21)."""
    model = network(name)
    options = "" if kind == "linearised" else "(steps = 200, tolerance = 1e-13)"
    step = step_of(recipe(kind, options, mode), copy.deepcopy(model))
    found = step.solve(x, Y, generator=seeded())
    solver = linearised if kind == "linearised" else exact
    ours = step_of(recipe(kind, options, mode), trained := copy.deepcopy(model))
    # the statistics that the first passes wrote are those the later ones see in eval mode; in train mode none is read
    loss = ours(x, Y, generator=seeded())
    z = found["z"]
    expected = solver(copy.deepcopy(model).train(bool(mode)), z, x)
    mixed(expected, x)
    assert (found["x'"] - expected).abs().max() < 1e-11
    size = sum(p.numel() for p in model.parameters())
    directions = (
        torch.eye(size, dtype=torch.float64) if kind == "linearised" else torch.randn(12, size, generator=seeded(), dtype=torch.float64)
    )
    wanted = finite_differences(model, bool(mode), solver, z, x, directions)
    assert (directions @ flat(gradients(loss, trained)) - wanted).norm() < 1e-6 * wanted.norm()
    plain = step_of(recipe(kind, "", mode).replace("through implicit", "through nothing"), nothing := copy.deepcopy(model))
    without = flat(gradients(plain(x, Y, generator=seeded()), nothing))
    assert (directions @ without - wanted).norm() > 1e-3 * wanted.norm()


@pytest.mark.parametrize("kind", ["linearised", "exact"])
def test_scale(kind: str) -> None:
    """It multiplies the implicit part alone; 0 is the plain gradient, bit by bit; the value never changes."""
    found = {}
    for options in ("(scale = 0)", "(scale = 0.3)", ""):
        model = network("celu")
        loss = step_of(recipe(kind, options), model)(X, Y, generator=seeded())
        found[options] = flat(gradients(loss, model)), float(loss.detach()), {k: float(v) for k, v in loss.terms.items()}
    model = network("celu")
    plain = step_of(recipe(kind).replace("through implicit", "through nothing"), model)(X, Y, generator=seeded())
    base = flat(gradients(plain, model))
    assert torch.equal(found["(scale = 0)"][0], base)
    part = found[""][0] - base
    assert part.norm() > 1e-3 * base.norm()
    assert (found["(scale = 0.3)"][0] - base - 0.3 * part).norm() < 1e-12
    for _, number, terms in found.values():
        assert number == pytest.approx(float(plain.detach()), rel=1e-15)
        assert sum(terms.values()) == pytest.approx(number, rel=1e-15)


def test_a_recipe_with_share_zero_is_plain() -> None:
    model, other = network("relu"), network("relu")
    bat = lossdsl.compile(lossdsl.load("fast_bat").with_params(share=0), model, num_classes=4)(X, Y, generator=seeded())
    found = lossdsl.compile("fast_bat", network("relu"), num_classes=4).solve(X, Y, generator=seeded())
    plain = F.cross_entropy(other.train()(found["x'"]), Y)
    torch.testing.assert_close(flat(gradients(bat, model)), flat(gradients(plain, other)), rtol=0, atol=1e-14)


# --- quadratic problems, solved by hand -------------------------------------------------------------------------------


class Linear(nn.Module):
    """Two logits <w, v> and <b, v>."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Linear(5, 4, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.rows.weight.copy_(torch.randn(4, 5, generator=seeded(3), dtype=torch.float64) / 8)

    def forward(self, v: Tensor) -> Tensor:
        return self.rows(v)  # type: ignore[no-any-return]


QUADRATIC = """
lower x' in linf(x, 0.03)
  {sense} {sign}(norm(x' - x, 2)^2 + 3 * f(x')[0]^2 - f(x')[1])
  by ascent(steps = 400, step = 0.3, start = x)
  through implicit(steps = 20, tolerance = 1e-15)
upper minimize f(x')[2]^2 + f(x')[0] by sgd(lr = 0.1)"""


@pytest.mark.parametrize(("sense", "sign"), [("minimize", ""), ("maximize", "-")])
def test_a_quadratic_problem(sense: str, sign: str) -> None:
    """min |v - x|^2 + 3 <a, v>^2 - <b, v> on the box: on the free coordinates (2 + 6 a a')_FF v_F = ..., whose derivative is autograd's."""
    model = Linear()
    step = step_of(QUADRATIC.format(sense=sense, sign=sign), model)
    found = step.solve(X, Y)["x'"]
    weight = model.rows.weight.detach().clone().requires_grad_()
    a, b, c = weight[0], weight[1], weight[2]
    total = torch.zeros((), dtype=torch.float64)
    held = []
    for x, v in zip(X, found, strict=True):
        low, high = (x - 0.03).clamp(min=0), (x + 0.03).clamp(max=1)
        free = (v > low + 1e-9) & (v < high - 1e-9)
        held.append(int((~free).sum()))
        fixed = torch.where(free, 0.0, v)
        matrix = 2 * torch.eye(5, dtype=torch.float64) + 6 * torch.outer(a, a)
        right = 2 * x + b - matrix @ fixed
        inside = torch.linalg.solve(matrix[free][:, free], right[free])
        point = fixed.masked_scatter(free, inside)
        assert (point - v).abs().max() < 1e-12
        total = total + ((c @ point) ** 2 + a @ point) / len(X)
    assert 0 < sum(held) < 30
    (wanted,) = torch.autograd.grad(total, weight)
    loss = step(X, Y)
    assert float(loss.detach()) == pytest.approx(float(total.detach()), rel=1e-11)
    (ours,) = gradients(loss, model)
    assert (ours - wanted).norm() < 1e-10 * wanted.norm()


def test_a_solution_that_is_held_everywhere_has_the_plain_gradient() -> None:
    model, other = Linear(), Linear()
    text = """
    lower x' in linf(x, 0.001) minimize f(x')[0] + 0.0001 * norm(x' - x, 2)^2 by ascent(steps = 200, step = 0.5, start = x) {}
    upper minimize f(x')[2]^2 by sgd(lr = 0.1)"""
    ours = flat(gradients(step_of(text.format("through implicit"), model)(X, Y), model))
    assert torch.equal(ours, flat(gradients(step_of(text.format(""), other)(X, Y), other)))


# --- what else the level meets ----------------------------------------------------------------------------------------


def test_the_loss_at_given_solutions_has_the_same_gradient() -> None:
    """step.objective(step.solve()) is step()."""
    for kind in ("linearised", "exact"):
        model, other = network("celu"), network("celu")
        whole = step_of(recipe(kind), model)(X, Y, generator=seeded())
        parts = step_of(recipe(kind), other)
        again = parts.objective(X, Y, parts.solve(X, Y, generator=seeded()))
        assert (flat(gradients(whole, model)) - flat(gradients(again, other))).norm() < 1e-12


def test_statistics_are_written_by_the_passes_of_the_levels_alone() -> None:
    """The optimality conditions are evaluated once more and leave no trace, whatever the mode."""
    for mode in ("", " with f in train", " with f in untracked"):
        model, other = network("batchnorm"), network("batchnorm")
        step_of(recipe("exact", "", mode), model)(X, Y, generator=seeded())
        step_of(recipe("exact", "", mode).replace("through implicit", ""), other)(X, Y, generator=seeded())
        for a, b in zip(model.buffers(), other.buffers(), strict=True):
            assert torch.equal(a, b)


def test_an_upper_level_over_the_whole_batch() -> None:
    """The upper derivative by the solution need not be of a mean over examples."""
    text = recipe("linearised").replace("upper minimize CE(f(x'), y)", "upper minimize batch_mean(CE(f(x'), y))^2")
    model, other = network("celu"), network("celu")
    squared = step_of(text, model)(X, Y, generator=seeded())
    mean = step_of(recipe("linearised"), other)(X, Y, generator=seeded())
    factor = 2 * float(mean.detach())
    assert (flat(gradients(squared, model)) - factor * flat(gradients(mean, other))).norm() < 1e-12


def test_two_levels_and_terms_that_do_not_speak_of_the_variable() -> None:
    """The implicit parts add up; an earlier solution is a constant of the later level."""
    first = "lower u in linf(x, 0.1) minimize norm(u - x, 2)^2 - f(u)[1] by ascent(steps = 60, step = 0.3, start = x) {a}\n"
    second = "lower v in linf(u, 0.1) minimize norm(v - u, 2)^2 - f(v)[0] by ascent(steps = 60, step = 0.3, start = u) {b}\n"
    upper = "upper minimize f(u)[2]^2 + f(v)[3]^2 + CE(f(x), y) by sgd(lr = 0.1)"

    def run(a: str, b: str) -> Tensor:
        model = Linear()
        return flat(gradients(step_of((first + second + upper).format(a=a, b=b), model)(X, Y), model))

    way, no = "through implicit", ""
    assert (run(way, way) - run(way, no) - run(no, way) + run(no, no)).norm() < 1e-12
    assert (run(way, no) - run(no, no)).norm() > 1e-4 < (run(no, way) - run(no, no)).norm()


def test_logs_have_no_say() -> None:
    model, other = network("celu"), network("celu")
    log = "\nlog r = norm(x' - z, 2)\nlog g = norm(grad(theta: CE(f(x'), y)), 2)"
    loss = step_of(recipe("linearised") + log, model)(X, Y, generator=seeded())
    plain = step_of(recipe("linearised"), other)(X, Y, generator=seeded())
    assert torch.equal(flat(gradients(loss, model)), flat(gradients(plain, other)))
    assert not loss.logs["r"].requires_grad
    direct = step_of(recipe("linearised").replace("through implicit", ""), fixed := network("celu"))(X, Y, generator=seeded())
    assert float(loss.logs["g"]) == pytest.approx(float(flat(gradients(direct, fixed)).norm()), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_keeps_its_precision(dtype: torch.dtype) -> None:
    x, y = data(dtype=dtype)
    for kind in ("linearised", "exact"):
        model = network("celu").to(dtype)
        loss = step_of(recipe(kind), model)(x, y, generator=seeded())
        assert loss.dtype == dtype
        assert all(g.dtype == dtype and bool(g.isfinite().all()) for g in gradients(loss, model))


def test_only_boxes() -> None:
    with pytest.raises(RecipeError, match="curved border"):
        step_of(recipe("exact").replace("lower x' in linf", "lower x' in l2"), network("celu"))
