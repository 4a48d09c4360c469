"""Who is fooled and since when, and the early stop of friendly adversarial training, against loops written out one example at a time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lossdsl.diagnostics import UserError
from lossdsl.solve import L1, L2, Ascent, InputSet, Linear, Linf, Momentum, Pgd, Power, Problem, Prox, Solver, TorchOptimizer, solve

WALL = Linf(torch.zeros(3), 100.0)


def walk(starts: list[list[float]], bounds: list[tuple[float, float]], until: Any, steps: int, **options: Any) -> Any:
    """Three examples that walk right by 1; example i is fooled where its point is within bounds[i]."""
    low, high = torch.tensor(bounds).T
    left, last = iter(starts), []

    def objective(v: Tensor) -> Tensor:
        last.append((v >= low) & (v <= high))
        return v

    problem = Problem(objective, WALL, lambda: torch.tensor(next(left)), fooled=lambda: last[-1])
    return solve(problem, Pgd(1.0), steps, until=until, captures=frozenset(range(steps + 1)), **options)


FAR = (50.0, 60.0)


def test_counts_without_a_stop() -> None:
    """Fooled at 2 and 3 of 0..4; never; from the start on."""
    found = walk([[0.0, 0.0, 0.0]], [(2, 3), FAR, (0, 9)], None, 5)
    assert found.survived.tolist() == [3.0, 5.0, 0.0]
    assert found.first_fooled.tolist() == [2.0, 5.0, 0.0]
    assert found.point.tolist() == [5.0, 5.0, 5.0]


def test_the_last_iterate_is_not_checked() -> None:
    found = walk([[0.0, 0.0, 0.0]], [(3, 9), (2, 9), FAR], 0, 3)
    assert found.first_fooled.tolist() == [3.0, 2.0, 3.0]
    assert found.survived.tolist() == [3.0, 2.0, 3.0]
    assert found.point.tolist() == [3.0, 2.0, 3.0]


def test_a_counter_is_spent_by_failed_checks_and_never_reset() -> None:
    """tau = 1: example 0 is fooled at 1, correct at 2, fooled at 3 where it leaves; example 1 is fooled from 1 on and leaves at 2."""
    low, high = torch.tensor([1.0, 1.0, 50.0]), torch.tensor([1.0, 9.0, 60.0])
    seen: list[Tensor] = []

    def objective(v: Tensor) -> Tensor:
        seen.append(((v >= low) & (v <= high)) | ((v >= 3) & (low < 50)))
        return v

    problem = Problem(objective, WALL, lambda: torch.zeros(3), fooled=lambda: seen[-1])
    found = solve(problem, Pgd(1.0), 6, until=1, captures=frozenset(range(7)))
    assert found.point.tolist() == [3.0, 2.0, 6.0]
    assert torch.stack([found.iterates[k] for k in range(7)]).T.tolist() == [
        [0, 1, 2, 3, 3, 3, 3],
        [0, 1, 2, 2, 2, 2, 2],
        [0, 1, 2, 3, 4, 5, 6],
    ]
    assert found.survived.tolist() == [2.0, 1.0, 6.0]  # at 0 and 2; at 0; always: none survives where it stands after leaving
    assert found.first_fooled.tolist() == [1.0, 1.0, 6.0]


@pytest.mark.parametrize(("until", "points"), [(0, [1.0, 1.0, 1.0]), (2, [3.0, 3.0, 3.0]), (torch.tensor([0, 1, 9]), [1.0, 2.0, 5.0])])
def test_the_counter_may_differ_by_example(until: Any, points: list[float]) -> None:
    assert walk([[0.0, 0.0, 0.0]], [(1, 99)] * 3, until, 5).point.tolist() == points


def test_a_counter_as_large_as_the_steps_is_no_stop() -> None:
    found = walk([[0.0, 0.0, 0.0]], [(0, 99)] * 3, 4, 4)
    assert found.point.tolist() == [4.0] * 3
    assert found.survived.tolist() == [0.0] * 3


def test_counts_belong_to_the_kept_restart() -> None:
    """The second run starts further right for examples 0 and 2 and is kept there; counters start anew in it."""
    found = walk([[0.0, 2.0, 0.0], [1.0, 0.0, 9.0]], [(3, 99), (4, 99), FAR], 0, 3, restarts=2)
    assert found.run.tolist() == [1, 0, 1]
    assert found.point.tolist() == [3.0, 4.0, 12.0]
    assert found.survived.tolist() == [2.0, 2.0, 3.0]
    assert found.first_fooled.tolist() == [2.0, 2.0, 3.0]
    assert found.iterates[0].tolist() == [1.0, 2.0, 9.0]


def test_no_counts_where_nobody_is_asked() -> None:
    found = solve(Problem(lambda v: v, WALL, lambda: torch.zeros(3)), Pgd(1.0), 2)
    assert found.survived is None
    assert found.first_fooled is None


def test_who_has_left_stays_fooled_even_where_the_model_changes_its_mind() -> None:
    """A model with dropout may answer otherwise the next time; example 0 left at the first check and survives none."""
    calls: list[int] = []

    def fooled() -> Tensor:
        calls.append(1)
        return torch.tensor([len(calls) == 1, False, False])

    found = solve(Problem(lambda v: v, WALL, lambda: torch.zeros(3), fooled=fooled), Pgd(1.0), 3, until=0)
    assert found.point.tolist() == [0.0, 3.0, 3.0]
    assert found.survived is not None
    assert found.survived.tolist() == [0.0, 3.0, 3.0]


def test_a_run_ends_when_all_have_left_and_still_shows_every_iterate() -> None:
    calls, seen = [], []

    def objective(v: Tensor) -> Tensor:
        calls.append(v.detach().clone())
        return v

    problem = Problem(objective, WALL, lambda: torch.zeros(3), fooled=lambda: calls[-1] >= 1)
    found = solve(problem, Pgd(1.0), 9, until=0, captures=frozenset({0, 9}), observe=lambda k, v: seen.append((k, v.tolist())))
    assert len(calls) == 2
    assert seen == [(0, [0.0] * 3), *((k, [1.0] * 3) for k in range(1, 10))]
    assert found.iterates[9].tolist() == [1.0] * 3
    assert found.survived is not None
    assert found.survived.tolist() == [1.0] * 3


# --- both ways of standing still agree ---------------------------------------------------------------------------------


@dataclass
class Batch:
    """An elementwise problem, so that rows computed apart agree bit by bit: objective sum(w v - v^2), fooled above a level."""

    weight: Tensor
    level: Tensor
    region: InputSet
    rows_seen: list[int] = field(default_factory=list)
    last: Tensor | None = None

    def objective(self, v: Tensor) -> Tensor:
        self.rows_seen.append(v.shape[0])
        value = (self.weight * v - v.square()).sum(1)
        self.last = value.detach() > self.level
        return value

    def fooled(self) -> Tensor:
        assert self.last is not None
        return self.last


def problem_of(seed: int, kind: type[InputSet], noisy: bool, restrict: bool) -> tuple[Problem, Batch]:
    g = torch.Generator().manual_seed(seed)
    n = 6
    weight = torch.randn(n, 4, generator=g)
    center, radius = torch.rand(n, 4, generator=g), torch.rand(n, generator=g) + 0.2
    level = 0.6 * torch.randn(n, generator=g) + 0.5
    batch = Batch(weight, level, kind(center, radius))
    draws = torch.Generator().manual_seed(seed + 1)

    def for_rows(rows: Tensor) -> Problem:
        part = Batch(weight[rows], level[rows], kind(center[rows], radius[rows]), batch.rows_seen)
        return Problem(part.objective, part.region, lambda: pytest.fail("a part does not start"), fooled=part.fooled)

    return (
        Problem(
            batch.objective,
            batch.region,
            lambda: batch.region.sample(draws),
            draws,
            noise=(lambda: 0.05 * torch.randn(n, 4, generator=draws)) if noisy else None,
            fooled=batch.fooled,
            restrict=for_rows if restrict else None,
        ),
        batch,
    )


STEPS = torch.linspace(0.05, 0.3, 6)
AT = torch.rand(6, 4, generator=torch.Generator().manual_seed(5))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 999),
    kind=st.sampled_from([Linf, L2, L1]),
    solver=st.sampled_from([Pgd(0.1), Pgd(STEPS), Ascent(0.1), Ascent(STEPS), Linear(), Prox(AT, 3.0), Momentum(0.1)]),
    tau=st.sampled_from([0, 1, 2, torch.tensor([0, 1, 2, 0, 1, 9])]),
    keep=st.sampled_from(["last", "best"]),
    restarts=st.integers(1, 3),
    noisy=st.booleans(),
)
def test_dropping_those_who_left_changes_no_number(
    seed: int, kind: type[InputSet], solver: Solver[Any], tau: Any, keep: Any, restarts: int, noisy: bool
) -> None:
    noisy = noisy and not isinstance(solver, Linear)
    options: dict[str, Any] = {"until": tau, "keep": keep, "restarts": restarts, "captures": frozenset(range(6))}
    (whole, all_rows), (parts, some_rows) = problem_of(seed, kind, noisy, False), problem_of(seed, kind, noisy, True)
    slow, fast = solve(whole, solver, 5, **options), solve(parts, solver, 5, **options)
    assert torch.equal(slow.point, fast.point)
    assert all(torch.equal(slow.iterates[k], fast.iterates[k]) for k in range(6))
    for name in ("objective", "run", "survived", "first_fooled"):
        a, b = getattr(slow, name), getattr(fast, name)
        assert (a is None and b is None) or torch.equal(a, b), name
    assert set(all_rows.rows_seen) <= {6}
    assert len(some_rows.rows_seen) == len(all_rows.rows_seen)
    if isinstance(solver, Momentum):
        assert set(some_rows.rows_seen) <= {6}


def test_those_who_left_are_not_computed() -> None:
    problem, batch = problem_of(3, Linf, True, True)
    batch.level[:] = torch.tensor([-9.0, -9.0, -9.0, 9.0, 9.0, 9.0])
    solve(problem, Pgd(STEPS), 4, until=torch.tensor([0, 1, 1, 3, 4, 9]))
    assert batch.rows_seen == [6, 5, 3, 3]


@pytest.mark.parametrize("solver", [Pgd(0.3), Momentum(0.3), TorchOptimizer(lambda p: torch.optim.Adam(p, lr=0.1, maximize=True))])
@pytest.mark.parametrize("tau", [0, 1])
def test_one_example_at_a_time(solver: Solver[Any], tau: int) -> None:
    """Friendly training on a network, against algorithm 1 of the paper for each example alone."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    x = torch.rand(8, 5, dtype=torch.float64)
    y = model(x).argmax(1)
    radius = torch.linspace(0.02, 2.0, 8).double()
    last: list[Tensor] = []

    def problem(rows: slice) -> Problem:
        def objective(v: Tensor) -> Tensor:
            scores = model(v)
            last.append(scores.detach().argmax(1) != y[rows])
            return nn.functional.cross_entropy(scores, y[rows], reduction="none")

        return Problem(objective, Linf(x[rows], radius[rows]), lambda: x[rows], fooled=lambda: last[-1])

    steps = 8
    found = solve(problem(slice(None)), solver, steps, until=tau)
    stopped = 0
    for i in range(8):
        free = solve(problem(slice(i, i + 1)), solver, steps, captures=frozenset(range(steps + 1)))
        counter, k = tau, 0
        while k < steps:
            wrong = bool((model(free.iterates[k]).argmax(1) != y[i]).item())
            if wrong and counter == 0:
                break
            counter -= wrong
            k += 1
        stopped += k < steps
        assert torch.allclose(found.point[i], free.iterates[k][0], rtol=0, atol=1e-12)
        assert found.first_fooled is not None
        assert free.first_fooled is not None
        assert found.first_fooled[i] == free.first_fooled[0]
    assert 2 <= stopped < 8


def test_a_solver_that_probes_is_judged_at_its_iterates() -> None:
    """Power asks for gradients far away; checks and ratings are of x'@k."""
    asked: list[Tensor] = []

    def objective(v: Tensor) -> Tensor:
        asked.append(v.detach().clone())
        return v.square().sum(1)

    region = L2(torch.zeros(2, 3), 1.0)
    start = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.0, 0.2]])
    problem = Problem(objective, region, lambda: start, fooled=lambda: asked[-1].square().sum(1) > 0.5)
    found = solve(problem, Power(100.0), 2, keep="best", captures=frozenset(range(3)))
    assert found.survived is not None
    assert found.survived.tolist() == [1.0, 1.0]
    assert torch.allclose(found.point, torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    assert found.objective is not None
    assert torch.allclose(found.objective, torch.ones(2))
    assert len(asked) == 5  # judged and probed in both updates, and the final value


# --- refusals ------------------------------------------------------------------------------------------------------------


def test_refusals() -> None:
    problem = Problem(lambda v: v, WALL, lambda: torch.zeros(3))
    with pytest.raises(UserError, match="who is fooled"):
        solve(problem, Pgd(1.0), 1, until=0)
    for until in (-1, torch.tensor([0, -1, 0])):
        with pytest.raises(UserError, match="at least 0"):
            solve(replace(problem, fooled=lambda: torch.zeros(3, dtype=torch.bool)), Pgd(1.0), 1, until=until)
    for fooled in (torch.zeros(3), torch.zeros(2, dtype=torch.bool)):
        with pytest.raises(UserError, match="one bool per example"):
            solve(replace(problem, fooled=lambda f=fooled: f), Pgd(1.0), 1)


def test_errors_name_the_example_of_the_whole_batch() -> None:
    """Example 0 has left when example 2 goes wrong."""
    calls: list[int] = []

    def objective(v: Tensor) -> Tensor:
        calls.append(1)
        return v if len(calls) < 3 else v + torch.tensor([0.0, float("nan")])

    first = Problem(
        objective, WALL, lambda: torch.zeros(3), fooled=lambda: torch.tensor([len(calls) == 1, False, False][: 3 if len(calls) == 1 else 2])
    )
    part = Problem(objective, Linf(torch.zeros(2), 100.0), first.start, fooled=lambda: torch.zeros(2, dtype=torch.bool))
    with pytest.raises(UserError, match="the objective of example 2 is nan at iterate 2"):
        solve(replace(first, restrict=lambda rows: part), Pgd(1.0), 4, until=0)
