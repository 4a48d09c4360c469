"""apgd against the published algorithm written out plainly, iterate by iterate, and against mathematics."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import published
import pytest
import torch
from attack_problems import RADIUS, UNIT, problem
from conftest import Digits
from torch import Tensor

from lossdsl.lang.search_options import ApgdOptions
from lossdsl.solve import SETS_TORCH, Domain, Problem, SearchRequest, Solution, build_search, search

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES = {"CE": published.ce, "DLR": published.dlr}


def run(given: Problem, steps: int, request: SearchRequest | None = None) -> Solution:
    return search(given, build_search("apgd", ApgdOptions(steps=steps), given.set), request)


def iterates(given: Problem, steps: int) -> Solution:
    """With all points that were evaluated."""
    return run(given, steps, SearchRequest(captures=frozenset(range(steps + 1))))


@pytest.mark.parametrize("name", ["CE", pytest.param("DLR", marks=pytest.mark.slow), "targeted DLR"])
@pytest.mark.parametrize("steps", [6, 50])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_every_iterate_is_that_of_the_published_algorithm(norm: str, steps: int, name: str, digits: Digits) -> None:
    """In 6 steps every one is a checkpoint, so that the first comparison alone decides the first of them."""
    x, y = digits.some(10)
    target = digits.model(x).sort(dim=1).indices[:, -3]
    loss = LOSSES.get(name) or partial(published.targeted_dlr, target=target)
    found = iterates(problem(lambda v: loss(digits.model(v), y), norm, x), steps)
    at = published.Attacked(digits.model, x, y, loss, RADIUS[norm], norm)
    start = SETS_TORCH[norm](x, RADIUS[norm], UNIT).sphere(torch.Generator().manual_seed(0))
    expected = published.sparse_apgd(at, start, steps) if norm == "l1" else published.apgd(at, start, steps)
    for k in range(steps + 1):
        torch.testing.assert_close(found.iterates[k], expected.points[k], rtol=0, atol=1e-9, msg=lambda m, k=k: f"iterate {k}: {m}")
    torch.testing.assert_close(found.point, expected.best, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.objective, torch.stack(expected.losses).amax(0), rtol=0, atol=1e-9)


@pytest.mark.parametrize("domain", [UNIT, None, Domain(torch.tensor([[[0.0]], [[0.2]]]), torch.tensor([[[1.0]], [[0.7]]]))])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_iterates_stay_in_the_set_and_the_best_is_kept(norm: str, domain: Domain | None) -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.rand(6, 2, 4, 3, generator=g, dtype=torch.float64)
    x = x if domain is None else torch.clamp(x, torch.as_tensor(domain.lo), torch.as_tensor(domain.hi))
    weights = torch.randn(6, 2, 4, 3, generator=g, dtype=torch.float64)
    given = problem(lambda v: torch.sin(3 * v * weights).flatten(1).sum(1), norm, x, domain=domain)
    found = iterates(given, 40)
    values = torch.stack([given.objective(found.iterates[k]) for k in range(41)])
    assert all(bool(given.set.contains(point, 1e-12).all()) for point in found.iterates.values())
    torch.testing.assert_close(found.objective, values.amax(0), rtol=0, atol=0)
    if norm == "l1":  # a step has length radius at first, and the Euclidean projection makes no way longer
        assert bool(((found.iterates[1] - found.iterates[0]).flatten(1).norm(dim=1) <= RADIUS[norm]).all())


@pytest.mark.parametrize("shape", [(30,), (5, 6), (2, 3, 5)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_linear_problem_is_solved(norm: str, shape: tuple[int, ...]) -> None:
    """The maximum of a linear function over the set, from the set's own closed form: exactly on linf, within 1 per cent on l2, where the
    published projection is not the nearest point. (On l1 the published sparse steps can stop far from it.)"""
    g = torch.Generator().manual_seed(2)
    x = torch.rand(5, *shape, generator=g, dtype=torch.float64)
    slope = torch.randn(5, *shape, generator=g, dtype=torch.float64)
    given = problem(lambda v: (slope * v).flatten(1).sum(1), norm, x)
    best = given.objective(given.set.linear_maximiser(slope, x))
    found = run(given, 100)
    assert found.objective is not None
    gap = (best - found.objective) / (best - given.objective(x))
    assert bool((gap >= -1e-12).all()) and bool((gap <= {"linf": 1e-12, "l2": 0.01}[norm]).all())


def test_a_point_that_comes_again_is_not_evaluated_again(digits: Digits) -> None:
    """The numbers are those without the saving, which needs a problem that can be restricted."""
    x, y = digits.some(10)

    def model(v: Tensor) -> Tensor:
        count.append(len(v))
        return digits.model(v)

    count: list[int] = []
    plain = run(problem(lambda v: published.ce(model(v), y), "linf", x), 60)
    whole, count = sum(count), []
    saving = run(restrictable(model, x, y), 60)
    assert sum(count) < whole == 610
    torch.testing.assert_close(saving.point, plain.point, rtol=0, atol=1e-12)
    torch.testing.assert_close(saving.objective, plain.objective, rtol=0, atol=1e-12)


def restrictable(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, loss: Loss = published.ce, eps: float = RADIUS["linf"]) -> Problem:
    """The attack on a model in linf, for all examples or some of them."""
    start = SETS_TORCH["linf"](x, eps, UNIT).sphere(torch.Generator().manual_seed(0))

    def of(rows: Tensor) -> Problem:
        seen: dict[str, Tensor] = {}

        def objective(v: Tensor) -> Tensor:
            z = model(v)
            seen["wrong"] = z.argmax(1) != y[rows]
            return loss(z, y[rows])

        region = SETS_TORCH["linf"](x[rows], eps, UNIT)
        return Problem(objective, region, lambda: start[rows], fooled=lambda: seen["wrong"], restrict=lambda at: of(rows[at]))

    return of(torch.arange(len(x)))


@pytest.mark.parametrize("name", ["CE", "DLR"])
def test_an_attack_stops_at_the_first_fooling_iterate(name: str, digits: Digits) -> None:
    """An example leaves at once, at the same point as in the published run; the others do not notice."""
    (x, y), steps = digits.some(60), 30
    loss = LOSSES[name]
    count: list[int] = []

    def model(v: Tensor) -> Tensor:
        count.append(len(v))
        return digits.model(v)

    found = run(restrictable(model, x, y, loss), steps, SearchRequest(stop=True))
    at = published.Attacked(digits.model, x, y, loss, RADIUS["linf"], "linf")
    start = SETS_TORCH["linf"](x, RADIUS["linf"], UNIT).sphere(torch.Generator().manual_seed(0))
    expected = published.apgd(at, start, steps)
    wrong = torch.stack([digits.model(point).argmax(1) != y for point in expected.points])
    first = torch.where(wrong.any(0), wrong.to(torch.uint8).argmax(0), steps + 1)
    assert 5 < int(wrong.any(0).sum()) < 55
    for i in range(len(x)):
        point = expected.points[int(first[i])][i] if first[i] <= steps else expected.best[i]
        torch.testing.assert_close(found.point[i], point, rtol=0, atol=1e-9)
    assert sum(count) <= int((first + 1).clamp(max=steps + 1).sum()) < 61 * (steps + 1)


def test_a_broken_example_takes_its_family_with_it_and_skips_restarts(digits: Digits) -> None:
    x, y = digits.some(150)
    count = len(x)
    rows = torch.arange(count).repeat_interleave(2)
    given = restrictable(digits.model, x[rows], y[rows], eps=0.4)
    alone = run(given, 0, SearchRequest(stop=True))
    wrong = digits.model(alone.point).argmax(1) != y[rows]
    one_of_two = wrong.view(count, 2)[:, 0] != wrong.view(count, 2)[:, 1]
    assert bool(one_of_two.any()), "the test needs an example that one of two starts breaks"
    pairs = run(given, 0, SearchRequest(stop=True, copies=2))
    assert bool(((digits.model(pairs.point).argmax(1) != y[rows]).view(count, 2).any(1) == wrong.view(count, 2).any(1)).all())
    assert bool(given.set.contains(pairs.point).all())
    again = run(given, 0, SearchRequest(stop=True, restarts=3))
    assert bool(((digits.model(again.point).argmax(1) != y[rows]) >= wrong).all())
    torch.testing.assert_close(again.point[wrong], alone.point[wrong], rtol=0, atol=0)
