"""fab, square and cw against the published algorithms written out plainly, and against mathematics."""

from __future__ import annotations

from typing import Any

import numpy as np
import published
import pytest
import torch
from attack_problems import RADIUS, UNIT, classifier
from conftest import Digits
from scipy.optimize import linprog, minimize
from torch import Tensor, nn

from lossdsl.diagnostics import UserError
from lossdsl.lang.search_options import CwOptions, FabOptions, SquareOptions
from lossdsl.solve import SETS_TORCH, Domain, ExampleStreams, Problem, SearchRequest, build_search, search
from lossdsl.solve.fab import Fab
from lossdsl.solve.hyperplane import to_hyperplane
from lossdsl.solve.search import Search
from lossdsl.solve.sight import look
from lossdsl.solve.square import SquareLinf, corners, signs

STOP = SearchRequest(stop=True)


def tried(given: Any, solver: Search[Any]) -> list[Tensor]:
    """Every point at which a success would count, of a run to its end."""
    state, points = solver.begin(given, solver.start(given.set, given.generator, 0)), []  # type: ignore[attr-defined]
    for _ in range(solver.evaluations):
        asked = solver.ask(given, state)
        if asked.counts:
            points.append(asked.point)
        seen = look(given, given, torch.arange(len(asked.point)), asked, "")
        with torch.no_grad():
            state = solver.tell(given, state, seen)
    return points


# --- FAB ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targeted", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_every_point_fab_tries_is_that_of_the_published_algorithm(norm: str, targeted: bool, digits: Digits) -> None:
    (x, y), steps = digits.some(8), 12
    order = digits.model(x).sort(dim=1, descending=True).indices
    targets = [order[:, 2]] if targeted else [order[:, n] for n in range(1, 10)]
    given = classifier(digits.model, norm, x, y, target=order[:, 2] if targeted else None)
    points = tried(given, Fab(steps, 0.1, 1.05, 0.9, several=not targeted))
    at = published.Attacked(digits.model, x, y, published.ce, RADIUS[norm], norm)
    expected = published.fab(at, targets, x, steps)
    assert len(points) == steps
    for k, (ours, theirs) in enumerate(zip(points, expected.points, strict=True)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8, msg=lambda m, k=k: f"point {k}: {m}")


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fab_breaks_the_same_examples_as_published(norm: str, digits: Digits) -> None:
    """Radius between the distances: those whose nearest fooling point is within it are broken, inside the set."""
    (x, y), steps = digits.some(40), 15
    target = digits.model(x).sort(dim=1, descending=True).indices[:, 1]
    at = published.Attacked(digits.model, x, y, published.ce, RADIUS[norm], norm)
    expected = published.fab(at, [target], x, steps)
    given = classifier(digits.model, norm, x, y, target=target)
    found = search(given, build_search("fab", FabOptions(steps=steps), given.set), STOP)
    broken = digits.model(found.point).argmax(1) != y
    assert 3 < int(broken.sum()) < 37
    assert bool((broken == ~expected.correct).all())
    assert bool((given.set.distance(found.point) <= RADIUS[norm]).all())


def shortest_offset(norm: str, point: np.ndarray, w: np.ndarray, gap: float) -> np.ndarray:
    """By scipy: a linear program on linf and l1, a quadratic one on l2."""
    d = len(point)
    low, high = -point, 1 - point
    if norm == "l2":
        found = minimize(
            lambda v: float(v @ v), np.clip(gap * w / (w @ w), low, high), jac=lambda v: 2 * v, method="SLSQP",
            bounds=list(zip(low, high, strict=True)), constraints={"type": "eq", "fun": lambda v: w @ v - gap, "jac": lambda v: w},
            options={"ftol": 1e-14, "maxiter": 500},
        )  # fmt: skip
        return found.x
    if norm == "linf":
        costs, bounds = np.r_[np.zeros(d), 1.0], [*zip(low, high, strict=True), (0, None)]
        most = np.c_[np.r_[np.eye(d), -np.eye(d)], -np.ones(2 * d)]
        return linprog(costs, most, np.zeros(2 * d), np.r_[w, 0.0][None], [gap], bounds=bounds).x[:d]
    pairs = [*((0, h) for h in high), *((0, -b) for b in low)]
    parts = linprog(np.ones(2 * d), A_eq=np.r_[w, -w][None], b_eq=[gap], bounds=pairs).x
    return parts[:d] - parts[d:]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_shortest_way_to_a_hyperplane(norm: str) -> None:
    g = np.random.default_rng(0)
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    for d in (1, 2, 6):
        for _ in range(12):
            point, w = g.random(d).round(1 if d > 1 else 3), g.normal(size=d) * (g.random(d) < 0.8)
            w[0] = w[0] or 1.0
            ends = sorted((w * -point, w * (1 - point)), key=lambda v: v.sum())
            reach = np.minimum(*ends).sum(), np.maximum(*ends).sum()
            gap = float(g.uniform(*reach)) if reach[0] < reach[1] else 0.0
            region = SETS_TORCH[norm](torch.tensor(point)[None], 0.1, UNIT)
            found = to_hyperplane(region, torch.tensor(point)[None], torch.tensor(w)[None], torch.tensor([gap], dtype=torch.float64))[0].numpy()
            assert abs(w @ found - gap) < 1e-9 and (point + found >= -1e-12).all() and (point + found <= 1 + 1e-12).all()
            least = np.linalg.norm(shortest_offset(norm, point, w, gap), order)
            assert np.linalg.norm(found, order) <= least + 1e-6


def test_a_hyperplane_out_of_reach_and_one_without_direction() -> None:
    x = torch.tensor([[0.2, 0.9], [0.2, 0.9]], dtype=torch.float64)
    w = torch.tensor([[1.0, -2.0], [0.0, 0.0]], dtype=torch.float64)
    for norm in ("linf", "l2", "l1"):
        found = to_hyperplane(SETS_TORCH[norm](x, 0.1, UNIT), x, w, torch.tensor([50.0, 1.0]))
        torch.testing.assert_close(found, torch.tensor([[0.8, -0.9], [0.0, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize("domain", [None, UNIT])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fab_finds_the_closest_point_of_a_linear_classifier(norm: str, domain: Domain | None) -> None:
    """Of two classes: the step is 1.05 times the shortest way to the boundary, and 0.9 of that is short of it."""
    g = torch.Generator().manual_seed(3)
    x, w = torch.rand(6, 5, generator=g, dtype=torch.float64), torch.randn(5, generator=g, dtype=torch.float64)
    bias = -float((x @ w).mean())

    def model(v: Tensor) -> Tensor:
        return torch.stack((torch.zeros(len(v), dtype=v.dtype), v @ w + bias), 1)

    y = model(x).argmax(1)
    margin = (x @ w + bias).abs()
    region = SETS_TORCH[norm](x, 10.0, domain)
    least = region.norm(to_hyperplane(region, x, w.expand_as(x), -(x @ w + bias)))
    given = classifier(model, norm, x, y, target=1 - y, domain=domain, eps=10.0)
    found = search(given, build_search("fab", FabOptions(steps=5), given.set), STOP)
    assert bool((model(found.point).argmax(1) != y).all()) and bool((margin > 0).all())
    assert bool((region.norm(found.point - x) >= least).all()) and bool((region.norm(found.point - x) <= 1.05 * least + 1e-12).all())


# --- Square ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_square_is_the_published_search_to_the_last_example(digits: Digits) -> None:
    (x, y), queries = digits.some(25), 150
    given = classifier(digits.model, "linf", x, y)
    solver = build_search("square", SquareOptions(queries=queries), given.set)
    found = search(given, solver, STOP)
    stripes = solver.start(given.set, ExampleStreams.of(0, torch.arange(25)), 0)  # type: ignore[attr-defined]
    drawn = ExampleStreams.of(0, torch.arange(25))
    drawn.uniform((25, 8))  # the stripes

    def draws(rows: Tensor, side: int) -> tuple[Tensor, Tensor]:
        own = drawn.rows(rows)
        return corners(own, (8, 8), (side, side)), signs(own, 1)

    at = published.Attacked(digits.model, x, y, published.margin, RADIUS["linf"], "linf")
    expected = published.square(at, stripes, draws, queries)
    broken = digits.model(found.point).argmax(1) != y
    assert 2 < int(broken.sum()) < 23
    assert bool((broken == ~expected.correct).all())
    torch.testing.assert_close(found.point, expected.best, rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 11, 11), (2, 10, 10)])
def test_square_on_l2_is_the_published_search_to_the_last_example(shape: tuple[int, ...]) -> None:
    count, queries, channels = 16, 120, shape[0]
    g = torch.Generator().manual_seed(2)
    x = torch.rand(count, *shape, generator=g, dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 8), nn.Tanh(), nn.Linear(8, 4)).double()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=g, dtype=torch.float64)
    model.requires_grad_(False)
    y, eps = model(x).argmax(1), 0.6
    given = classifier(model, "l2", x, y, eps=eps)
    found = search(given, build_search("square", SquareOptions(queries=queries), given.set), STOP)
    drawn = ExampleStreams.of(0, torch.arange(count))

    def axes(own: ExampleStreams) -> Tensor:
        return (own.uniform((len(own),)) >= 0.5).long()

    def tiles() -> tuple[Tensor, Tensor]:
        sign = signs(drawn, channels)
        return sign, axes(drawn)

    def pairs(rows: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        own = drawn.rows(rows)
        one, two = corners(own, shape[1:], (side, side)), corners(own, shape[1:], (side, side))
        return one, two, axes(own), signs(own, channels)

    expected = published.square_l2(published.Attacked(model, x, y, published.margin, eps, "l2"), tiles, pairs, queries)
    broken = model(found.point).argmax(1) != y
    assert 2 < int(broken.sum()) < count - 2
    assert bool((broken == ~expected.correct).all())
    torch.testing.assert_close(found.point[~broken], expected.best[~broken], rtol=0, atol=1e-7)


@pytest.mark.slow
def test_square_leaves_out_proposals_whose_answer_is_known(digits: Digits) -> None:
    (x, y), count = digits.some(10), []

    def model(v: Tensor) -> Tensor:
        count.append(len(v))
        return digits.model(v)

    def run(remember: bool) -> tuple[Tensor, int]:
        count.clear()
        given = classifier(model, "linf", x, y, eps=0.03)
        solver: Any = SquareLinf(600, 0.8)
        if not remember:
            solver = Forgetful(600, 0.8)
        return search(given, solver, STOP).point, sum(count)

    with_memory, few = run(True)
    without, many = run(False)
    torch.testing.assert_close(with_memory, without, rtol=0, atol=1e-12)
    assert few < 0.7 * many


class Forgetful(SquareLinf):
    """Evaluates everything."""

    def ask(self, problem: Any, state: Any) -> Any:
        asked = super().ask(problem, state)
        return type(asked)(asked.point)


@pytest.mark.parametrize("domain", [UNIT, None])
@pytest.mark.parametrize("shape", [(40,), (6, 7), pytest.param((3, 9, 8), marks=pytest.mark.slow), pytest.param((2, 4, 4, 5), marks=pytest.mark.slow)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_on_inputs_of_any_rank(norm: str, shape: tuple[int, ...], domain: Domain | None) -> None:
    """In the set at every query, never worse, and better than its start."""
    g = torch.Generator().manual_seed(4)
    x = torch.rand(5, *shape, generator=g, dtype=torch.float64)
    slope = torch.randn(5, *shape, generator=g, dtype=torch.float64)

    def given() -> Problem:
        y = torch.zeros(5, dtype=torch.long)
        return classifier(nn.Identity(), norm, x, y, domain=domain, objective=lambda v: (slope * v).flatten(1).sum(1))

    region = given().set
    solver = build_search("square", SquareOptions(queries=80), region)
    points = tried(given(), solver)
    assert all(bool(region.contains(point, 1e-9).all()) for point in points)
    found = search(given(), solver)
    values = torch.stack([(slope * point).flatten(1).sum(1) for point in points])
    torch.testing.assert_close(found.objective, values.amax(0))
    assert bool((values.amax(0) > values[0]).all())


def test_square_on_l2_needs_three_pixels() -> None:
    x = torch.rand(2, 2, dtype=torch.float64)
    given = classifier(nn.Identity(), "l2", x, torch.zeros(2, dtype=torch.long))
    with pytest.raises(UserError, match="windows of 3 pixels"):
        search(given, build_search("square", SquareOptions(queries=5), given.set))


# --- Carlini and Wagner ------------------------------------------------------------------------------------------------------------


def test_every_point_of_cw_is_that_of_the_published_attack(digits: Digits) -> None:
    (x, y), steps, searches = digits.some(6), 15, 4
    given = classifier(digits.model, "l2", x, y)
    points = tried(given, build_search("cw", CwOptions(steps=steps, step=0.05, searches=searches, constant=0.5), given.set))
    at = published.Attacked(digits.model, x, y, published.margin, RADIUS["l2"], "l2")
    expected = published.carlini_wagner(at, steps, 0.05, searches, 0.5)
    for k, (ours, theirs) in enumerate(zip(points, expected.points, strict=True)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8, msg=lambda m, k=k: f"point {k}: {m}")
    found = search(given, build_search("cw", CwOptions(steps=steps, step=0.05, searches=searches, constant=0.5), given.set), STOP)
    broken = digits.model(found.point).argmax(1) != y
    assert bool((broken == ~expected.correct).all()) and 0 < int(broken.sum()) < 6
    assert bool((given.set.distance(found.point) <= RADIUS["l2"]).all())
