"""Each solver against a plain loop written out by hand, and the table against the language."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lossdsl.diagnostics import UserError
from lossdsl.lang.specs import SOLVERS, SolverRow, StepOptions
from lossdsl.solve import (
    L1,
    L2,
    SEARCHES_TORCH,
    SOLVERS_TORCH,
    Ascent,
    Domain,
    InputSet,
    Linear,
    Linf,
    Momentum,
    Pgd,
    Power,
    Problem,
    Prox,
    Solver,
    TorchOptimizer,
    build_solver,
    first_order,
    register_solver,
    solve,
)

UNIT = Domain(0.0, 1.0)
KINDS = [Linf, L2, L1]


@pytest.fixture
def lower() -> tuple[Any, Tensor, Tensor]:
    """A small network's cross-entropy in float64, clean inputs and radii per example."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.rand(5, 3, 4, dtype=torch.float64), torch.randint(3, (5,))
    return (lambda v: nn.functional.cross_entropy(model(v), y, reduction="none")), x, torch.linspace(0.05, 0.6, 5).double()


def gradient(objective: Any, point: Tensor) -> Tensor:
    leaf = point.clone().requires_grad_()
    return torch.autograd.grad(objective(leaf).sum(), leaf)[0]


def row(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)


def test_pgd_on_linf_is_the_textbook_loop(lower: tuple[Any, Tensor, Tensor]) -> None:
    objective, x, _ = lower
    v = x + 0.001 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    start = v.clamp(0, 1)
    g = torch.Generator().manual_seed(3)
    problem = Problem(objective, Linf(x, 0.1, UNIT), lambda: (x + 0.001 * torch.randn(x.shape, generator=g, dtype=x.dtype)).clamp(0, 1))
    solution = solve(problem, Pgd(0.03), 6, captures=frozenset(range(7)))
    v = start
    for k in range(7):
        assert torch.equal(solution.iterates[k], v)
        v = (v + 0.03 * gradient(objective, v).sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1)
    assert torch.equal(solution.point, solution.iterates[6])
    assert not torch.equal(solution.iterates[6], solution.iterates[5])


@pytest.mark.parametrize("per_example", [False, True])
def test_pgd_and_ascent_on_l2_without_a_box(lower: tuple[Any, Tensor, Tensor], per_example: bool) -> None:
    objective, x, radius = lower
    size: Any = radius / 2 if per_example else 0.2
    for solver, normalise in ((Pgd(size), True), (Ascent(size), False)):
        v = x
        for _ in range(5):
            g = gradient(objective, v)
            if normalise:
                g = g / row(torch.linalg.vector_norm(g.flatten(1), dim=1))
            moved = v + (row(size) if per_example else size) * g - x
            length = torch.linalg.vector_norm(moved.flatten(1), dim=1)
            v = x + moved * row((radius / length).clamp(max=1.0))
        found = solve(Problem(objective, L2(x, radius), lambda: x), solver, 5).point
        assert torch.allclose(found, v, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_every_solver_is_a_step_and_a_projection(lower: tuple[Any, Tensor, Tensor], kind: type[InputSet]) -> None:
    objective, x, radius = lower
    members = kind(x, radius, UNIT)
    at = members.sample(torch.Generator().manual_seed(1))
    g = gradient(objective, at)
    expected = {
        Pgd(0.3): members.project(at + 0.3 * members.steepest(g, at)),
        Ascent(0.3): members.project(at + 0.3 * g),
        Momentum(0.3): members.project(at + 0.3 * members.steepest(g, at)),
        Linear(): members.linear_maximiser(g, at),
    }
    for solver, point in expected.items():
        assert torch.allclose(solve(Problem(objective, members, lambda: at), solver, 1).point, point, rtol=0, atol=1e-13)


def test_fgsm_in_float32_bit_by_bit() -> None:
    torch.manual_seed(1)
    model, x, y = nn.Sequential(nn.Flatten(), nn.Linear(48, 4)), torch.rand(6, 3, 4, 4), torch.randint(4, (6,))

    def objective(v: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(v), y, reduction="none")

    found = solve(Problem(objective, Linf(x, 8 / 255, UNIT), lambda: x), Linear(), 1).point
    assert torch.equal(found, (x + 8 / 255 * gradient(objective, x).sign()).clamp(0, 1))
    assert torch.equal(found, solve(Problem(objective, Linf(x, 8 / 255, UNIT), lambda: x), Pgd(8 / 255), 1).point)


@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
def test_momentum_is_mi_fgsm(lower: tuple[Any, Tensor, Tensor], decay: float) -> None:
    objective, x, _ = lower
    found = solve(Problem(objective, Linf(x, 0.3, UNIT), lambda: x), Momentum(0.1, decay), 6).point
    v, total = x, torch.zeros_like(x)
    for _ in range(6):
        g = gradient(objective, v)
        total = decay * total + g / row(g.flatten(1).abs().sum(1))  # the paper's l1 norm
        v = (v + 0.1 * total.sign()).clamp(x - 0.3, x + 0.3).clamp(0, 1)
    assert torch.allclose(found, v, rtol=0, atol=1e-12)


def test_momentum_weighs_gradients_of_every_size_alike_and_survives_zero() -> None:
    """Normalised slopes +1, -1, 0 through decay 0.5: the sum is 1, -0.5, -0.25, whatever the sizes of the raw gradients."""
    sizes = iter([1e30, -3e-30, 0.0])
    problem = Problem(lambda v: v * next(sizes), Linf(torch.zeros(1), 9.0), lambda: torch.zeros(1))
    solution = solve(problem, Momentum(1.0, 0.5), 3, captures=frozenset({1, 2, 3}))
    assert [float(solution.iterates[k]) for k in (1, 2, 3)] == [1.0, 0.0, -1.0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [lambda: Pgd(0.1), lambda: Momentum(0.1), Linear, lambda: Ascent(0.1)])
def test_a_zero_gradient_moves_nothing(kind: type[InputSet], make: Any) -> None:
    at = torch.rand(2, 3)
    found = solve(Problem(lambda v: (0.0 * v).sum(1), kind(at, 0.2, UNIT), lambda: at), make(), 3).point
    assert torch.equal(found, at)


@pytest.mark.parametrize(
    ("name", "options", "reference"),
    [
        ("sgd", {}, lambda p: torch.optim.SGD(p, lr=0.2)),
        ("sgd", {"momentum": 0.9, "nesterov": True}, lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9, nesterov=True)),
        ("adam", {"beta1": 0.8, "beta2": 0.95, "eps": 1e-6}, lambda p: torch.optim.Adam(p, lr=0.2, betas=(0.8, 0.95), eps=1e-6)),
        ("rmsprop", {}, lambda p: torch.optim.RMSprop(p, lr=0.2)),
        (
            "rmsprop",
            {"alpha": 0.9, "eps": 1e-5, "momentum": 0.5, "centered": True},
            lambda p: torch.optim.RMSprop(p, lr=0.2, alpha=0.9, eps=1e-5, momentum=0.5, centered=True),
        ),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_torch_optimizers_descend_the_negative_objective(
    lower: tuple[Any, Tensor, Tensor], kind: type[InputSet], name: str, options: dict[str, Any], reference: Any
) -> None:
    objective, x, radius = lower
    members = kind(x, radius, UNIT)
    row_options = SOLVERS[name].options(steps=5, step=0.2, **options)
    solver = build_solver(name, row_options)
    found = solve(Problem(objective, members, lambda: x), solver, 5, restarts=2, captures=frozenset({1, 5}))
    v = x.clone().requires_grad_()
    optimizer = reference([v])
    for k in range(5):
        optimizer.zero_grad()
        (-objective(v)).sum().backward()
        optimizer.step()
        with torch.no_grad():
            v.copy_(members.project(v))
        if k == 0:
            assert torch.allclose(found.iterates[1], v, rtol=0, atol=1e-12)
    assert torch.allclose(found.point, v, rtol=0, atol=1e-12)
    assert torch.equal(found.point, found.iterates[5])


def test_torch_optimizers_take_noise() -> None:
    solver = TorchOptimizer(lambda p: torch.optim.SGD(p, lr=1.0, maximize=True))
    problem = Problem(lambda v: v, Linf(torch.zeros(1), 9.0), lambda: torch.zeros(1), noise=lambda: torch.full((1,), 0.5))
    assert float(solve(problem, solver, 3).point) == 4.5


def test_torch_optimizers_hand_out_no_memory_of_their_own() -> None:
    class Everywhere(Linf):
        def project(self, point: Tensor) -> Tensor:
            return point

    solver = TorchOptimizer(lambda p: torch.optim.SGD(p, lr=1.0, maximize=True))
    problem = Problem(lambda v: v, Everywhere(torch.zeros(1), 1.0), lambda: torch.zeros(1))
    found = solve(problem, solver, 3, captures=frozenset(range(4)))
    assert [float(found.iterates[k]) for k in range(4)] == [0.0, 1.0, 2.0, 3.0]


def test_linear_refuses_noise() -> None:
    problem = Problem(lambda v: v, Linf(torch.zeros(1), 9.0), lambda: torch.zeros(1), noise=lambda: torch.zeros(1))
    with pytest.raises(UserError, match="linear takes no noise"):
        solve(problem, Linear(), 1)


def test_l1_pgd_does_not_stall_on_a_saturated_pixel() -> None:
    at = torch.tensor([[0.0, 0.5, 0.5]])
    problem = Problem(lambda v: v @ torch.tensor([-9.0, 2.0, 1.0]), L1(at, 0.4, UNIT), lambda: at)
    assert torch.allclose(solve(problem, Pgd(0.2), 4).point, torch.tensor([[0.0, 0.9, 0.5]]))


# --- the table ----------------------------------------------------------------------------------------------------------


def test_every_solver_of_the_language_is_there() -> None:
    assert set(SOLVERS_TORCH) | set(SEARCHES_TORCH) == set(SOLVERS) and not set(SOLVERS_TORCH) & set(SEARCHES_TORCH)


@pytest.mark.parametrize(
    ("name", "options", "solver"),
    [
        ("pgd", {"step": 0.1}, Pgd(0.1)),
        ("ascent", {"step": 0.1}, Ascent(0.1)),
        ("linear", {}, Linear()),
        ("momentum", {"step": 0.1, "decay": 0.5}, Momentum(0.1, 0.5)),
    ],
)
def test_options_reach_their_solver(name: str, options: dict[str, float], solver: Solver[Any]) -> None:
    assert build_solver(name, SOLVERS[name].options(steps=1, **options)) == solver


def test_a_step_per_example() -> None:
    size = torch.tensor([0.1, 0.2])
    solver = build_solver("pgd", StepOptions(steps=1, step=9.0), step=size)
    found = solve(Problem(lambda v: v.sum(1), Linf(torch.zeros(2, 3), 1.0), lambda: torch.zeros(2, 3)), solver, 2).point
    assert torch.allclose(found, torch.tensor([[0.2] * 3, [0.4] * 3]))
    for name in ("adam", "linear"):
        options = SOLVERS[name].options(steps=1, **({"step": 1.0} if name == "adam" else {}))
        with pytest.raises(UserError, match=f"{name} takes one step for all examples"):
            build_solver(name, options, step=size)


def test_faults_of_the_table() -> None:
    with pytest.raises(UserError, match=r"there is no solver pgb\n.*did you mean pgd"):
        build_solver("pgb", StepOptions(steps=1, step=0.1))
    with pytest.raises(ValueError, match="needs momentum > 0"):
        SOLVERS["sgd"].options(steps=1, step=0.1, nesterov=True)
    with pytest.raises(UserError, match="the solver pgd exists already"):
        register_solver("pgd")
    with pytest.raises(UserError, match="the language has no solver pgdd"):
        register_solver("pgdd")


def test_a_new_solver_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lossdsl.solve.first_order.SOLVERS", dict(SOLVERS))
    monkeypatch.setattr("lossdsl.solve.first_order.SOLVERS_TORCH", dict(SOLVERS_TORCH))

    @register_solver(SolverRow("half", StepOptions, "half a step of pgd", "a test"))
    def half(options: StepOptions) -> Pgd:
        return Pgd(options.step / 2)

    assert build_solver("half", StepOptions(steps=1, step=1.0)) == Pgd(0.5)
    assert first_order.SOLVERS["half"].update == "half a step of pgd"


# --- prox and power -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_prox_is_the_projected_gradient_step_from_its_own_point(lower: tuple[Any, Tensor, Tensor], kind: type[InputSet]) -> None:
    """Whatever the start, and noise on top."""
    objective, x, radius = lower
    members = kind(x, radius, UNIT)
    z = x + torch.linspace(-0.4, 0.4, 12, dtype=x.dtype).view(3, 4)
    noise = 0.01 * torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    expected = members.project(z + gradient(objective, z) / 3.0)
    for start in (x, members.project(z)):
        solver = build_solver("prox", SOLVERS["prox"].options(weight=3.0), at=z)
        assert torch.allclose(solve(Problem(objective, members, lambda s=start: s), solver, 1).point, expected, rtol=0, atol=1e-13)
        noisy = solve(Problem(objective, members, lambda s=start: s, noise=lambda: noise), solver, 1).point
        assert torch.allclose(noisy, members.project(z + gradient(objective, z) / 3.0 + noise), rtol=0, atol=1e-13)
    assert not torch.allclose(expected, members.project(x + gradient(objective, x) / 3.0))


def test_prox_maximises_its_quadratic_model(lower: tuple[Any, Tensor, Tensor]) -> None:
    """Fast-BAT, eq. 8: the solution beats every other point of the set on <g, v> - weight/2 |v - z|^2."""
    objective, x, radius = lower
    members = Linf(x, radius, UNIT)
    z = members.sample(torch.Generator().manual_seed(1))
    g = gradient(objective, z)

    def model(v: Tensor) -> Tensor:
        return (g * (v - z)).sum((1, 2)) - 0.5 * 0.7 * (v - z).square().sum((1, 2))

    best = model(solve(Problem(objective, members, lambda: z), Prox(z, 0.7), 1).point)
    for seed in range(40):
        assert (model(members.sample(torch.Generator().manual_seed(seed))) <= best).all()


def test_prox_needs_its_point_and_nobody_else_takes_one() -> None:
    options = SOLVERS["prox"].options(weight=1.0)
    with pytest.raises(UserError, match="prox needs the point it steps from"):
        build_solver("prox", options)
    with pytest.raises(UserError, match="pgd does not step from a point of its own"):
        build_solver("pgd", StepOptions(steps=1, step=0.1), at=torch.zeros(2))
    problem = Problem(lambda v: v, Linf(torch.zeros(2), 1.0), lambda: torch.zeros(2))
    for at in (None, torch.zeros(3)):
        with pytest.raises(UserError, match="prox steps from"):
            solve(problem, Prox(at, 1.0), 1)


def test_power_finds_the_leading_eigenvector_of_a_quadratic() -> None:
    """KL is quadratic at the center: for 1/2 v'Av the directions are those of power iteration, of any probe."""
    torch.manual_seed(2)
    root = torch.randn(3, 4, 4, dtype=torch.float64)
    hessian = root @ root.mT
    center = torch.rand(3, 4, dtype=torch.float64)
    radius = torch.tensor([0.5, 1.0, 2.0]).double()

    def objective(v: Tensor) -> Tensor:
        offset = v - center
        return 0.5 * torch.einsum("ni,nij,nj->n", offset, hessian, offset)

    start = center + 1e-3 * torch.randn(3, 4, dtype=torch.float64)
    problem = Problem(objective, L2(center, radius), lambda: start)
    solution = solve(problem, build_solver("power", SOLVERS["power"].options(steps=3, probe=0.1)), 3, captures=frozenset({0, 1, 3}))
    direction = torch.nn.functional.normalize(start - center)
    for k in range(1, 4):
        direction = torch.nn.functional.normalize(torch.einsum("nij,nj->ni", hessian, direction))
        if k in (1, 3):
            assert torch.allclose(solution.iterates[k], center + radius.view(3, 1) * direction, rtol=0, atol=1e-12)
    assert torch.equal(solution.iterates[0], start)
    far = solve(problem, Power(1e-2), 400).point
    leading = torch.linalg.eigh(hessian).eigenvectors[..., -1]
    assert torch.allclose(((far - center) / radius.view(3, 1) * leading).sum(1).abs(), torch.ones(3).double(), atol=1e-6)


def test_power_probes_at_its_length_around_the_center() -> None:
    asked: list[Tensor] = []

    def objective(v: Tensor) -> Tensor:
        asked.append(v.detach().clone())
        return (v * torch.tensor([[1.0, 0.0], [3.0, 4.0]])).sum(1)

    region = L2(torch.ones(2, 2), torch.tensor([0.25, 0.5]), Domain(0.0, 1.2))
    found = solve(Problem(objective, region, lambda: torch.ones(2, 2) + torch.tensor([0.0, -0.1])), Power(10.0), 2)
    assert torch.allclose(asked[0], torch.tensor([[1.0, -9.0], [1.0, -9.0]]))
    assert torch.allclose(asked[1], torch.tensor([[11.0, 1.0], [7.0, 9.0]]))
    assert torch.allclose(found.point, torch.tensor([[1.2, 1.0], [1.2, 1.2]]))  # 1.25 is outside the domain: landed in the set


def test_power_from_the_center_draws_a_unit_direction() -> None:
    """And only there: an example with a direction keeps it, and a zero gradient changes none."""
    region = L2(torch.zeros(3, 4), 2.0)
    start = torch.zeros(3, 4)
    start[1, 2] = -0.5
    flat = lambda v: (0.0 * v).sum(1)  # noqa: E731
    found = [solve(Problem(flat, region, lambda: start, torch.Generator().manual_seed(seed)), Power(1.0), 2).point for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert torch.allclose(torch.linalg.vector_norm(found[0], dim=1), torch.full((3,), 2.0))
    assert torch.allclose(found[0][1], torch.tensor([0.0, 0.0, -2.0, 0.0]))
    assert not torch.allclose(found[0][[0, 2]], found[2][[0, 2]])
    assert not torch.allclose(found[0][0], found[0][2])


def test_power_refuses_noise() -> None:
    problem = Problem(lambda v: v, Linf(torch.zeros(1), 9.0), lambda: torch.zeros(1), noise=lambda: torch.zeros(1))
    with pytest.raises(UserError, match="power takes no noise"):
        solve(problem, Power(1.0), 1)
