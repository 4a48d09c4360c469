"""The search: every strategy by itself on a law that it is there for, and all together."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from law_tools import assignment, law, problem

from lossdsl.diagnostics import UserError
from lossdsl.laws.ascent import climb, restored
from lossdsl.laws.catalogue import load_laws
from lossdsl.laws.constants import constants
from lossdsl.laws.draws import Line, draw, masses, numbers
from lossdsl.laws.hunt import Budget, Hunt, generator
from lossdsl.laws.layout import Layout, layouts
from lossdsl.laws.moves import _MOVES, Moves
from lossdsl.laws.past import Past
from lossdsl.laws.pool import Pool, worth
from lossdsl.laws.problem import Assignment, Problem
from lossdsl.laws.refine import refined
from lossdsl.laws.search import Effort, check_law_file, check_statement
from lossdsl.laws.shapes import neighbours, shapes
from lossdsl.laws.shrink import complexity, shrunk
from lossdsl.laws.suspects import LIMITS, Judge, Tally

ENDLESS = Effort(seconds=float("inf"))
"""Only counted work ends it: a verdict that is the same on every machine."""
QUICK = replace(ENDLESS, shapes=24, examples=10, work=3e5)
TWO = "for K in {3}, p1 in simplex(K), p2 in simplex(K), z in logits(K), y in label(K), a in [0, 1], b in reals\n"
ANY = "claim KL(p1 || p2) + CE(z, y) + a + b >= 0"


def only(found: Problem) -> Layout:
    return layouts(found)[0]


def drawn(found: Layout, structured: bool = True, rows: int = 4000) -> np.ndarray:
    return found.tidy(torch.from_numpy(draw(generator(1), rows, found, (0.0, 1.0, 0.3), structured))).numpy()


# --- examples ---


def test_layouts_have_a_column_for_every_number_and_keep_the_limits() -> None:
    found = layouts(problem(TWO + ANY))
    assert [sorted(set(f.charts.values())) for f in found] == [["coordinates"], ["logits"]]
    x = drawn(found[0])
    assert x.shape == (4000, 3 + 3 + 3 + 1 + 1 + 1)
    flat = found[0].flat(torch.from_numpy(x))
    assert set(flat["y"].unique().tolist()) == {0, 1, 2}
    assert flat["a"].min() == 0
    assert flat["a"].max() == 1
    assert flat["p1"].min() == 0
    assert flat["b"].abs().max() > 1e200


@pytest.mark.parametrize(
    ("what", "there"),
    [
        ("ties", lambda v: (v[:, 0] == v[:, 1]) & (v[:, 0] != 0)),
        ("zeros", lambda v: (v == 0).any(1) & (v != 0).any(1)),
        ("tiny", lambda v: ((v != 0) & (abs(v) < 1e-100)).any(1)),
        ("huge", lambda v: (abs(v) > 1e100).any(1)),
        ("a known number", lambda v: (v == 0.3).any(1)),
        ("nearly a known number", lambda v: ((v != 0.3) & (abs(v - 0.3) < 1e-9)).any(1)),
    ],
)
def test_numbers_at_places_where_laws_break(what: str, there: object) -> None:
    v = numbers(generator(0), 4000, 4, Line(-np.inf, np.inf, (0.3,)))
    assert there(v).sum() >= 4, what  # type: ignore[operator]


@pytest.mark.parametrize(
    ("what", "there"),
    [
        ("one-hot", lambda p: (p > 0).sum(1) == 1),
        ("nearly one-hot", lambda p: (p.max(1) > 1 - 1e-9) & ((p > 0).sum(1) > 1)),
        ("uniform", lambda p: p.max(1) == p.min(1)),
        ("nearly uniform", lambda p: (p.max(1) > p.min(1)) & (p.max(1) < p.min(1) * (1 + 1e-9))),
        ("two levels", lambda p: (np.sort(p, 1)[:, 0] == np.sort(p, 1)[:, 2]) | (np.sort(p, 1)[:, 1] == np.sort(p, 1)[:, 3])),
        ("tiny", lambda p: ((p > 0) & (p < 1e-100)).any(1)),
    ],
)
def test_probabilities_at_places_where_laws_break(what: str, there: object) -> None:
    m = masses(generator(0), 4000, 4)
    m = m[m.sum(1) > 0]
    assert there(m / m.sum(1, keepdims=True)).sum() >= 10, what  # type: ignore[operator]


def test_constants_are_those_of_the_text_and_what_they_make() -> None:
    found = constants(problem("for a in [0, 1], b in [0, 1]\nwhere b >= 0.25\nclaim a * (3/8) <= log(5) + 2 * b"))
    assert {0.0, 1.0, 0.25, 0.375, float(np.log(5)), 2.0} <= set(found)


def test_moves_tie_quantities_and_numbers() -> None:
    found = only(problem("for K in {3}, p1 in simplex(K), p2 in simplex(K), a in [0, 1], b in [0, 1]\nclaim KL(p1 || p2) >= a - b"))
    moves, g = Moves(found, (0.0, 1.0)), generator(3)
    x = drawn(found, structured=False)
    moved = moves.some(g, x, 1, 1).numpy()
    assert (moved[:, :3] == moved[:, 3:6]).all(1).sum() > 20
    assert (moved[:, 6] == moved[:, 7]).sum() > 20
    assert (moved[:, 0] == moved[:, 1]).sum() > 20
    assert (moved[:, 6] == 1).sum() > 5


@pytest.mark.parametrize("move", [m for _, m in _MOVES])
def test_every_move_changes_some_rows_and_its_input_never(move: object) -> None:
    found = only(problem("for K in {3}, p1 in simplex(K), p2 in simplex(K), z[1..3] in [0, 1]\nclaim KL(p1 || p2) >= z[1] - z[2] - z[3]"))
    x = drawn(found, structured=False, rows=200)
    before = x.copy()
    moved = move(Moves(found, (0.0, 1.0)), generator(2), x, x)  # type: ignore[operator]
    assert moved.shape == x.shape
    assert (moved != x).any()
    assert (x == before).all()


# --- choices of whole numbers ---


def test_shapes_begin_small_then_large_and_hold_every_option() -> None:
    found = list(shapes(law("for K in 2..9, n in {1, 5}, q in simplex(K)\nclaim H(q) <= n + K"), 0, 40))
    chosen = [tuple(s.choices.values()) for s in found]
    assert chosen[:2] == [(2, 1), (9, 5)]
    assert len(set(chosen)) == len(chosen)
    assert {k for k, _ in chosen} == set(range(2, 10))
    assert list(neighbours(law("for K in 2..9, q in simplex(K)\nclaim H(q) <= K"), {"K": 4}))[1].choices == {"K": 5}


def test_of_many_choices_the_ends_and_some_between_are_tried() -> None:
    found = [s.choices["n"] for s in shapes(law("for n in 1..1000, a in [0, 1]\nclaim a <= n"), 0, 30)]
    assert {1, 1000, 2, 999} <= set(found)
    assert len(found) == len(set(found)) == 30


def test_laws_about_whole_numbers_alone() -> None:
    false = "for n in 1..40, m in {2, 3}\nclaim (n - 23)^2 + (m - 3)^2 > 0"
    assert check_statement(law(false), 0, ENDLESS).outcome == "refuted"
    verdict = check_statement(law(false.replace("m - 3", "m - 4")), 0, ENDLESS)
    assert verdict.outcome == "holds"
    assert verdict.tried.shapes == 80


def test_numbers_of_the_text_are_met_exactly() -> None:
    """The decimal itself, which is no float64."""
    verdict = check_statement(law("for a in [0, 1], b in [0, 1]\nclaim if(a == 0.123456, 1, 0) * b <= 0"), 0, ENDLESS)
    assert verdict.outcome == "refuted"
    assert verdict.tried.examples < 10_000


# --- hypotheses ---


@pytest.mark.parametrize(
    "text",
    [
        "for a in [0, 1], b in [0, 1]\nwhere a^2 + b^2 == 1/3\nclaim a <= b",
        "for K in {3}, p1 in simplex(K), p2 in simplex(K)\nwhere H(p1) == H(p2)\nclaim KL(p1 || p2) <= 1/100",
        "for a in reals, b in reals, c in reals\nwhere a + b == c\nwhere a * b >= c^2 / 5 + 1\nclaim a <= 2",
    ],
)
def test_rows_are_led_to_thin_hypotheses_and_made_exact(text: str) -> None:
    found = problem(text)
    layout = only(found)
    x = restored(layout, torch.from_numpy(drawn(layout, structured=False, rows=64)), 40)
    e = layout.evaluate(x)
    assert e.satisfied.sum() >= 32
    row = layout.assignment(x[int(torch.nonzero(e.satisfied)[0])])
    exact = refined(found, row)
    assert exact is not None
    assert found.confirm(exact).hypotheses is True


def test_refined_takes_the_nearest_fractions_where_they_do() -> None:
    found = problem("for a in [0, 1], b in [0, 1]\nwhere a + b == 1\nclaim a <= b")
    exact = refined(found, assignment(a=0.7500000001, b=0.25))
    assert exact is not None
    assert [exact.values["a"][0], exact.values["b"][0]] == [0.75, 0.25]


# --- gradients ---


def test_ascent_reaches_the_maximum_inside_and_at_the_border_of_a_hypothesis() -> None:
    for text, best in (
        ("for a in [-3, 3], b in [-3, 3]\nclaim -(a - 1)^2 - 3 * (b - a - 1)^2 <= 0", 0.0),
        ("for a in [-3, 3], b in [-3, 3]\nwhere a^2 + b^2 <= 1\nclaim a + b <= 10", (2**0.5 - 10) / (11 + 2**0.5)),
    ):
        found = only(problem(text))
        x = torch.from_numpy(drawn(found, structured=False, rows=64))
        last = climb(found, x, 60, torch.full((64,), 0.1, dtype=torch.float64), lambda rows, e: False)
        e = found.evaluate(last)
        assert abs(float(worth(e).max()) - best) < 1e-4


def test_pools_keep_the_best_rows_once() -> None:
    found = only(problem("for a in [0, 1]\nwhere a <= 1/2\nclaim a <= 1/4"))
    pool = Pool(1, 5)
    for seed in range(3):
        x = torch.from_numpy(np.round(generator(seed).random((50, 1)), 2))
        pool.add(x, found.evaluate(x), generator(0))
    rows = pool.rows[:5, 0]
    assert len(set(rows)) == 5
    assert rows[0] == rows.max() <= 0.5
    assert pool.best > 0
    assert pool.chosen(generator(0), 7).shape == (7, 1)


# --- counterexamples ---


def test_counterexamples_become_small_and_stay_counterexamples() -> None:
    found = problem("for K in {3}, p1 in simplex(K), p2 in simplex(K)\nclaim KL(p1 || p2) <= KL(p2 || p1)")
    start = Assignment({"p1": (-0.73, 2.11, -5.7), "p2": (1.93, -0.3, 0.21)}, {"p1": "logits", "p2": "logits"})
    if not found.confirm(start).refuted:
        start = Assignment({"p1": start.values["p2"], "p2": start.values["p1"]}, start.charts)
    small = shrunk(found, start)
    assert found.confirm(small).refuted
    assert set(small.charts.values()) == {"coordinates"}
    assert complexity(small) < (12, 9)


FALSE = {
    "for large K only": "for K in 2..12, q in simplex(K)\nclaim H(q) <= 2.39",
    "at ties only": "for K in 2..6, z in logits(K), y in label(K)\nclaim error(z, y) <= if(max(j != y: z[j]) == z[y], 0, 1)",
    "on 1e-5 of a square": "for a in [0, 1], b in [0, 1]\nlet c = a - sqrt(2)/3, d = b - sqrt(3)/4\nclaim c^2 + d^2 >= 1/300000",
    "in a corner": "for a in [0, 1], b in [0, 1], c in [0, 1], d in [0, 1]\nclaim a + b + c + d <= 3.99",
    "for a tiny probability": "for K in 2..5, r in simplex(K), q in simplex(K)\nclaim KL(r || q) <= 300",
    "on a curve": "for a in [0, 2], b in [0, 2]\nclaim (a * b - 1)^2 + (a - b)^2 / 1000000 > 1/1000000000",
    "for one whole number": "for n in 1..30, a in [0, 1]\nclaim (n - 17)^2 + a > 0",
    "at a kink": "for d in [-1, 1]\nlet h = 1/10000\nclaim relu(d + h) - 2 * relu(d) + relu(d - h) == 0",
    "under an equation": "for a in [0, 1], b in [0, 1]\nwhere a^2 + b^2 == 1/3\nclaim a <= 0.577",
    "to third order": "for K in 2..4, r in simplex(K), s in simplex(K), e in [0, 0.001]\nlet q = (1 - e) * r + e * s\nclaim KL(r || q) <= KL(q || r)",
}


@pytest.mark.parametrize("name", FALSE)
def test_falsehoods_are_refuted(name: str) -> None:
    verdict = check_statement(law(FALSE[name]), 0, ENDLESS)
    assert verdict.outcome == "refuted"
    assert verdict.counterexample is not None
    assert verdict.counterexample.confirmation.refuted


TRUE = {
    "to third order": "for K in 2..6, p1 in simplex(K), s in simplex(K), a in [0, 1], e in [0, 0.0001]\nlet p2 = (1 - e) * p1 + e * s\n"
    "let q = (1 - a) * p1 + a * p2\nclaim KL(p2 || p1) >= KL(p2 || q) + KL(q || p1)",
    "to fourth order": "for e in [-0.001, 0.001]\nclaim e^2/2 - e^4/24 <= 2 * sin(e/2)^2",
    "at 1e300": "for K in 2..6, z in logits(K), c in {1e300, 1e-300}\nclaim logsumexp(j: c * z[j]) <= max(j: c * z[j]) + log(K)",
    "with zeros": "for K in 2..6, q in simplex(K), y in label(K)\nclaim CE(q, y) == KL(onehot(y) || q)",
    "strictly": "for a in [0, 0.000001]\nwhere a > 0\nclaim 1 - a^2 + a^4 < 1",
}


@pytest.mark.parametrize("name", TRUE)
def test_delicate_truths_raise_no_alarm(name: str) -> None:
    verdict = check_statement(law(TRUE[name]), 0, QUICK)
    assert verdict.outcome == "holds", verdict.counterexample


def test_a_claim_about_nothing_is_vacuous() -> None:
    for condition in ("sum(j: q[j]^2) > 1.5", "q[0] > 0 and q[0] < 0"):
        found = law(f"for K in {{2}}, q in simplex(K)\nwhere {condition}\nclaim H(q) < 0")
        assert check_statement(found, 0, replace(ENDLESS, examples=5, work=5e4)).outcome == "vacuous"


def test_where_a_side_is_no_number_an_example_says_nothing() -> None:
    found = law("for K in 2..3, p1 in simplex(K), p2 in simplex(K)\nclaim KL(p1 || p2) - KL(p1 || p2) <= 0")
    assert check_statement(found, 0, QUICK).outcome == "holds"


def test_equal_seeds_search_equally() -> None:
    found = law("for K in 2..4, r in simplex(K), q in simplex(K)\nclaim KL(r || q) >= 2 * TV(r || q)^2")
    first, second, other = (check_statement(found, 0, replace(ENDLESS, seed=s, examples=5, work=2e5)).tried for s in (1, 1, 2))
    assert (first.examples, first.satisfied, first.closest) == (second.examples, second.satisfied, second.closest)
    assert first.satisfied > 1000
    assert (first.examples, first.confirmed, first.closest) != (other.examples, other.confirmed, other.closest)


def test_work_is_bounded_and_exact_looks_are() -> None:
    tally, budget = Tally(), Budget(1e9)
    hunt = Hunt(problem("for K in {2}, q in simplex(K)\nclaim H(q) >= H(q)"), tally, generator(0))
    for _ in range(60):
        assert not hunt.sweep(64, budget)
    assert tally.confirmed <= sum(LIMITS.values())
    assert budget.left < 1e9


def test_a_judge_confirms_before_it_refutes() -> None:
    found = problem("for a in [0, 1]\nclaim a + 1/3 - a <= 1/3")
    judge = Judge(found, Tally(), generator(0))
    assert judge.one(assignment(a=0.3))[1] is False
    assert judge.found is None


def test_hypotheses_that_hold_at_infinity_only_hold_nowhere() -> None:
    """1 - 1e-782 is 1 to any digits that are usual, and no number nearby makes it 1."""
    found = problem("for K in {2}, r in simplex(K), y in label(K)\nwhere r[y] == 1\nclaim CE(r, y) == 0")
    judge = Judge(found, Tally(), generator(0))
    assert not judge.confirms(Assignment({"r": (900.0, -900.0), "y": (0,)}, {"r": "logits"}))
    sphere = problem("for a in [0, 1], b in [0, 1]\nwhere a^2 + b^2 == 1\nclaim a <= 0.9 + 0 * b")
    judge = Judge(sphere, Tally(), generator(0))
    assert judge.confirms(assignment(a=0.99, b=(1 - 0.99**2) ** 0.5))


# --- past counterexamples ---


def test_past_counterexamples_are_tried_first_and_confirmed_anew(tmp_path: Path) -> None:
    file = tmp_path / "past" / "found.json"
    false = "for K in 2..12, q in simplex(K), y in label(K)\nclaim H(q) <= 2.39 + CE(q, y) * 0"
    (first,) = check_law_file(law(false), ENDLESS, Past(file)).verdicts
    assert first.outcome == "refuted"
    again = check_statement(law(false), 0, ENDLESS, Past(file))
    assert again.outcome == "refuted"
    assert again.tried.examples == 0
    assert again.counterexample is not None
    assert again.counterexample.choices["K"] in (11, 12)
    mended = law(false.replace("2.39", "log(K)"))
    assert check_statement(mended, 0, QUICK, Past(file)).outcome == "holds"
    other = law("for a in [0, 1]\nclaim a <= 2")
    assert list(Past(file).of(other)) == []


def test_a_file_that_holds_something_else_is_named(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    file.write_text('{"l": [{"choices": {}}]}')
    with pytest.raises(UserError, match="no file of past counterexamples"):
        Past(file)


# --- laws for measuring ---

LAWS = Path(__file__).parents[3] / "benchmarks" / "laws"


@pytest.mark.slow
@pytest.mark.parametrize("file", ["unseen", "tuned", "held_out", "fresh"])
def test_falsehoods_of_the_measured_laws_are_found(file: str) -> None:
    """All but b08: its counterexample is no float64, and finite sets are. The truths take too long for a test."""
    path = LAWS / f"{file}.loss"
    false = re.findall(r"^# expect: F.*\nlaw (\w+)", path.read_text(encoding="utf-8"), re.M)
    assert len(false) >= 15
    for found in (one for one in load_laws([str(path)]) if one.name in false and not one.name.startswith("b08")):
        for n in range(len(found.first.statements)):
            assert check_statement(found, n, replace(ENDLESS, seed=3)).outcome == "refuted", found.name
