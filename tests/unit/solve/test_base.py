"""The loop: what it evaluates, what it keeps, what it hands out, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lossdsl.diagnostics import UserError
from lossdsl.solve import L1, L2, Ascent, Domain, InputSet, Linear, Linf, Momentum, Pgd, Problem, Solver, solve, value_and_gradient

REALS = Linf(torch.zeros(2), 100.0)


def starts(*points: Iterable[float]) -> Callable[[], Tensor]:
    """Gives the points one after the other, one per restart."""
    left = iter([torch.tensor(list(point)) for point in points])
    return lambda: next(left)


class Counted:
    """An objective that counts its calls, and those with gradient tracking."""

    def __init__(self, objective: Callable[[Tensor], Tensor]) -> None:
        self.objective, self.calls, self.tracked = objective, 0, 0

    def __call__(self, point: Tensor) -> Tensor:
        self.calls += 1
        self.tracked += point.requires_grad
        return self.objective(point)


# --- counts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("restarts", "keep", "forward"), [(1, "last", 7), (1, "best", 8), (3, "last", 24), (3, "best", 24)])
def test_evaluations(restarts: int, keep: str, forward: int) -> None:
    objective = Counted(lambda v: -v.square())
    backward: list[int] = []
    problem = Problem(lambda v: _hooked(objective(v), backward), REALS, lambda: torch.ones(2))
    solve(problem, Pgd(0.1), 7, restarts=restarts, keep=keep, captures=frozenset(range(8)), observe=lambda k, v: None)  # type: ignore[arg-type]
    assert objective.calls == forward
    assert objective.tracked == len(backward) == 7 * restarts


def _hooked(values: Tensor, log: list[int]) -> Tensor:
    if values.requires_grad:
        values.register_hook(lambda gradient: log.append(1))
    return values


def test_no_steps_cost_nothing() -> None:
    objective = Counted(lambda v: v)
    solution = solve(Problem(objective, REALS, lambda: torch.ones(2)), Pgd(0.1), 0, captures=frozenset({0}))
    assert objective.calls == 0
    assert solution.point.tolist() == solution.iterates[0].tolist() == [1.0, 1.0]


def test_parameters_get_no_gradient_and_backward_stops_at_the_point() -> None:
    model = nn.Linear(3, 2)
    point = torch.rand(4, 3)
    problem = Problem(lambda v: model(v)[:, 0], Linf(point, 1.0), lambda: point)
    with torch.no_grad():
        solution = solve(problem, Pgd(0.1), 3, restarts=2)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not solution.point.requires_grad
    assert solution.objective is not None
    assert not solution.objective.requires_grad
    values, gradient = value_and_gradient(problem, point)
    assert not values.requires_grad
    assert torch.allclose(gradient, model.weight[0].expand(4, 3))


# --- what is kept ------------------------------------------------------------------------------------------------------


def test_last_hands_over_no_objective() -> None:
    solution = solve(Problem(lambda v: -v.square(), REALS, lambda: torch.tensor([1.0, -2.0])), Ascent(0.25), 2)
    assert solution.objective is None
    assert solution.point.tolist() == [0.25, -0.5]
    assert solution.run.tolist() == [0, 0]


def test_best_iterate_is_chosen_per_example() -> None:
    """Steps of 1 along sign(gradient) of -v^2: the first example oscillates 0.4, -0.6, 0.4, the second walks 5, 4, 3, 2."""
    problem = Problem(lambda v: -v.square(), REALS, starts([0.4, 5.0]))
    solution = solve(problem, Pgd(1.0), 3, keep="best", captures=frozenset({0, 1, 3}))
    assert torch.allclose(solution.point, torch.tensor([0.4, 2.0]))
    assert solution.objective is not None
    assert torch.allclose(solution.objective, torch.tensor([-0.16, -4.0]))
    assert torch.allclose(solution.iterates[1], torch.tensor([-0.6, 4.0]))
    assert torch.allclose(solution.iterates[3], torch.tensor([-0.6, 2.0]))


def test_best_iterate_ties_go_to_the_later_and_the_start_counts() -> None:
    """-|v| from 0.5 with step 1 goes 0.5, -0.5, 0.5, -0.5: all of the same value. From 0 there is no gradient: the start stays."""
    problem = Problem(lambda v: -v.abs(), REALS, starts([0.5, 0.0]))
    assert solve(problem, Pgd(1.0), 3, keep="best").point.tolist() == [-0.5, 0.0]
    overshoot = Problem(lambda v: -v.square(), REALS, starts([0.1, 0.2]))
    assert torch.allclose(solve(overshoot, Ascent(10.0), 1, keep="best").point, torch.tensor([0.1, 0.2]))


def test_restarts_keep_the_largest_per_example_with_its_iterates() -> None:
    """-(v - 1)^2 after one step of 0.5 towards 1: the runs end in (-0.5, 2.5), (2, 1.25) and (-1.5, 0)."""
    problem = Problem(lambda v: -(v - 1).square(), REALS, starts([-1.0, 3.0], [2.5, 1.75], [-2.0, -0.5]))
    solution = solve(problem, Pgd(0.5), 1, restarts=3, captures=frozenset({0, 1}))
    assert solution.run.tolist() == [1, 1]
    assert solution.point.tolist() == [2.0, 1.25]
    assert solution.iterates[0].tolist() == [2.5, 1.75]
    assert solution.iterates[1].tolist() == solution.point.tolist()
    assert solution.objective is not None
    assert solution.objective.tolist() == [-1.0, -0.0625]


def test_restarts_mix_runs_and_ties_go_to_the_later() -> None:
    problem = Problem(lambda v: -v.square(), REALS, starts([1.0, 4.0], [3.0, 2.0], [-1.0, 5.0]))
    solution = solve(problem, Ascent(0.0), 1, restarts=3, captures=frozenset({0}))
    assert solution.run.tolist() == [2, 1]
    assert solution.point.tolist() == solution.iterates[0].tolist() == [-1.0, 2.0]


def test_restarts_of_best_compare_best_iterates() -> None:
    """The first run visits 0.2 (value -0.04) and ends at -0.8; the second ends at 0.5 (-0.25)."""
    problem = Problem(lambda v: -v.square(), REALS, starts([0.2, 0.2], [1.5, 1.5]))
    solution = solve(problem, Pgd(1.0), 1, restarts=2, keep="best")
    assert torch.allclose(solution.point, torch.tensor([0.2, 0.2]))
    problem = Problem(lambda v: -v.square(), REALS, starts([0.2, 0.2], [1.5, 1.5]))
    assert torch.allclose(solve(problem, Pgd(1.0), 1, restarts=2, keep="last").point, torch.tensor([0.5, 0.5]))


def test_observer_sees_every_iterate_of_every_run() -> None:
    seen: list[tuple[int, list[float]]] = []
    problem = Problem(lambda v: v, REALS, starts([0.0, 1.0], [5.0, 5.0]))
    solution = solve(problem, Pgd(1.0), 2, restarts=2, captures=frozenset({1}), observe=lambda k, v: seen.append((k, v.tolist())))
    assert [k for k, _ in seen] == [0, 1, 2, 0, 1, 2]
    assert [v for _, v in seen] == [[0.0, 1.0], [1.0, 2.0], [2.0, 3.0], [5.0, 5.0], [6.0, 6.0], [7.0, 7.0]]
    assert solution.iterates[1].tolist() == [6.0, 6.0]


def test_iterates_share_no_memory_with_the_start_or_each_other() -> None:
    x = torch.rand(3, 4)
    before = x.clone()
    for solver in (Pgd(0.1), Ascent(0.1), Momentum(0.1), Linear()):
        held: list[Tensor] = []
        solution = solve(Problem(lambda v: v.sum(1), Linf(x, 0.5), lambda: x), solver, 3, observe=lambda k, v, held=held: held.append(v))
        copies = [v.clone() for v in held]
        solution.point.zero_()
        assert torch.equal(x, before)
        assert all(torch.equal(a, b) for a, b in zip(held[:-1], copies[:-1], strict=True))


def test_noise_is_drawn_in_each_update_before_the_projection() -> None:
    draws = iter([torch.tensor([0.5, -9.0]), torch.tensor([0.25, 1.0])])
    problem = Problem(lambda v: v, Linf(torch.zeros(2), 4.0), lambda: torch.zeros(2), noise=lambda: next(draws))
    solution = solve(problem, Pgd(1.0), 2, captures=frozenset({1}))
    assert solution.iterates[1].tolist() == [1.5, -4.0]
    assert solution.point.tolist() == [2.75, -2.0]


# --- one problem per example (never out of the set: recipes/laws/solvers.py) ------------------------------------------------------------------


def network(shape: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 16), nn.Tanh(), nn.Linear(16, 3)).double()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from([Linf, L2, L1]),
    solver=st.sampled_from([Pgd(0.3), Pgd(1e6), Ascent(5.0), Momentum(0.2, 0.7), Linear()]),
    keep=st.sampled_from(["last", "best"]),
    restarts=st.integers(1, 3),
    steps=st.integers(0, 4),
    box=st.booleans(),
    seed=st.integers(0, 999),
)
def test_examples_are_alone(
    kind: type[InputSet], solver: Solver[object], keep: str, restarts: int, steps: int, box: bool, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    center = torch.rand(4, 2, 3, generator=g, dtype=torch.float64)
    radius = 2 * torch.rand(4, generator=g, dtype=torch.float64)
    model, domain = network((2, 3)), Domain(0.0, 1.0) if box else None
    labels = torch.randint(3, (4,), generator=g)
    drawn = [kind(center, radius, domain).sample(g) for _ in range(restarts)]

    def answer(rows: slice) -> Tensor:
        def objective(v: Tensor) -> Tensor:
            return nn.functional.cross_entropy(model(v), labels[rows], reduction="none")

        left = iter([start[rows] for start in drawn])
        problem = Problem(objective, kind(center[rows], radius[rows], domain), lambda: next(left))
        return solve(problem, solver, steps, restarts=restarts, keep=keep).point  # type: ignore[arg-type]

    together = answer(slice(0, 4))
    for i in range(4):
        assert torch.allclose(answer(slice(i, i + 1)), together[i : i + 1], rtol=0, atol=1e-9)


def test_an_example_is_untouched_by_its_neighbours_bit_by_bit() -> None:
    """Elementwise arithmetic only, so that the comparison may be exact."""
    center = torch.rand(3, 5)
    for kind in (Linf, L2, L1):
        for solver in (Pgd(0.2), Ascent(0.2), Momentum(0.2), Linear()):
            answers = []
            for other in (0.1, 1e20):
                weight = torch.tensor([1.0, other, -other]).view(3, 1)
                problem = Problem(lambda v, w=weight: (w * v).sum(1), kind(center, 0.3), lambda: center)
                answers.append(solve(problem, solver, 3).point[0])
            assert torch.equal(*answers)


def test_an_empty_batch() -> None:
    empty = torch.zeros(0, 3)
    solution = solve(Problem(lambda v: v.sum(1), L2(empty, 1.0), lambda: empty), Pgd(0.1), 2, restarts=2, keep="best")
    assert solution.point.shape == (0, 3)
    assert solution.objective is not None
    assert solution.objective.shape == (0,)


# --- refusals -----------------------------------------------------------------------------------------------------------


def failing(at: int, example: int, bad: float, *, gradient: bool) -> Callable[[Tensor], Tensor]:
    """Goes wrong at one evaluation, for one of two examples: in its value, or in its gradient alone."""
    calls = iter(range(100))

    def objective(v: Tensor) -> Tensor:
        hit = torch.zeros(2)
        if next(calls) == at:
            hit[example] = 1.0
        wrong = torch.where(hit > 0, torch.tensor(bad), torch.tensor(0.0))
        return v + (v - v.detach()).nan_to_num() * wrong if gradient else v + wrong

    return objective


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_an_objective_that_is_not_finite_is_refused(bad: float, keep: str) -> None:
    problem = Problem(failing(2, 1, bad, gradient=False), REALS, lambda: torch.zeros(2), name="lower x'")
    with pytest.raises(UserError, match=rf"lower x': the objective of example 1 is {bad} at iterate 2\n"):
        solve(problem, Pgd(0.1), 4, keep=keep)  # type: ignore[arg-type]


def test_nan_in_a_restart_is_refused_and_never_compared() -> None:
    problem = Problem(failing(3, 0, math.nan, gradient=False), REALS, lambda: torch.zeros(2))
    with pytest.raises(UserError, match="the objective of example 0 is nan at iterate 1 of restart 2"):
        solve(problem, Pgd(0.1), 1, restarts=2)


def test_a_final_value_that_is_not_finite_is_refused() -> None:
    problem = Problem(failing(2, 1, math.inf, gradient=False), REALS, lambda: torch.zeros(2))
    with pytest.raises(UserError, match="the objective of example 1 is inf at iterate 2"):
        solve(problem, Pgd(0.1), 2, keep="best")


def test_a_gradient_that_is_not_finite_is_refused_although_its_sign_is() -> None:
    problem = Problem(lambda v: torch.stack((v[0], (v[1] - 1).abs().sqrt())), REALS, lambda: torch.tensor([0.0, 1.0]))
    with pytest.raises(UserError, match=r"the size of the gradient of example 1 is (nan|inf) at iterate 0"):
        solve(problem, Pgd(0.1), 3)


def test_a_point_that_is_not_finite_is_refused() -> None:
    problem = Problem(lambda v: v, REALS, lambda: torch.tensor([0.0, math.nan]))
    with pytest.raises(UserError, match="the size of the point of example 1 is nan at iterate 0"):
        solve(problem, Pgd(0.1), 0)
    with pytest.raises(UserError, match="the objective of example 1 is nan at iterate 0"):
        solve(problem, Pgd(0.1), 1)


def test_objectives_must_be_one_number_per_example_and_depend_on_the_point() -> None:
    for objective, message in (
        (lambda v: v.sum(), r"the objective has shape \(\) for 2 examples"),
        (lambda v: v.unsqueeze(1), r"the objective has shape \(2, 1\) for 2 examples"),
        (lambda v: (v > 0).float(), "does not depend on the point"),
        (lambda v: torch.zeros(2, requires_grad=True) * 2, "does not depend on the point"),
    ):
        with pytest.raises(UserError, match=message):
            solve(Problem(objective, REALS, lambda: torch.zeros(2)), Pgd(0.1), 1)


def test_requests_must_make_sense() -> None:
    problem = Problem(lambda v: v, REALS, lambda: torch.zeros(2))
    for arguments, message in (
        ({"steps": -1}, "steps = -1"),
        ({"steps": 1, "restarts": 0}, "restarts = 0"),
        ({"steps": 1, "keep": "first"}, "keep = first"),
        ({"steps": 2, "captures": frozenset({1, 3})}, "no iterate 3 in a run of 2 updates"),
        ({"steps": 2, "captures": frozenset({-1})}, "no iterate -1"),
    ):
        with pytest.raises(UserError, match=message):
            solve(problem, Pgd(0.1), **arguments)  # type: ignore[arg-type]
    for start in (torch.zeros(3), torch.zeros(2, 1), torch.zeros(2, dtype=torch.float64)):
        with pytest.raises(UserError, match="the start is"):
            solve(Problem(lambda v: v, REALS, lambda s=start: s), Pgd(0.1), 1)
