"""The exact evaluator: it has a form of every operation, agrees with the kernels, and decides what float64 cannot."""

from __future__ import annotations

from fractions import Fraction

import mpmath
import pytest
from law_tools import assignment, law, problem, random_numbers, rows

from lossdsl.lang.ops import BINDERS, OPERATIONS
from lossdsl.laws.exact_forms import CORE, FORMS, REDUCTIONS
from lossdsl.laws.problem import Assignment, Problem

HEAD = "for K in {4}, p1 in simplex(K), p2 in simplex(K), z in logits(K), w in logits(K), y in label(K), a in [0, 1], b in reals, u in vector(3), v in vector(3)\n"
NETS = "for f in network, x in input, x' in linf(x, 0.1), y in label\n"

EXPRESSIONS = {
    "CE": "CE(z, y) + CE(p1, p2) + CE(z, smooth(y, 0.1))",
    "KL": "KL(p1 || p2)",
    "SE": "SE(p1, p2)",
    "JS": "JS(p1 || p2)",
    "TV": "TV(p1 || p2)",
    "H": "H(p1) + H((1 - a) * p1 + a * p2)",
    "DLR": "DLR(z, y) + DLR(z, y, argmax(j != y: w[j]))",
    "hinge": "hinge(z, y)",
    "error": "error(z, y) + error(p1, y)",
    "onehot": "KL(onehot(y) || softmax(z))",
    "smooth": "H(smooth(y, 0.3))",
    "norm": "norm(u, 1) + norm(u, 2) + norm(u, inf) + norm(z, 2)",
    "dot": "dot(u, v) + dot(z, w)",
    "cos": "cos(u, v)",
    "unit": "unit(u)[1]",
    "sign": "sign(b) + sign(u)[0]",
    "abs": "abs(b)",
    "exp": "exp(-abs(b)) + exp(w)[0]",
    "log": "log(1 + abs(b)) + log(p1[y] + 1) + log(softmax(z)[y]) + log(1 - softmax(z)[0])",
    "sqrt": "sqrt(abs(b))",
    "relu": "relu(b) + relu(u)[1]",
    "tanh": "tanh(b)",
    "sin": "sin(b)",
    "clip": "clip(b, -1, a)",
    "max": "max(a, b) + max(j != y: z[j])",
    "min": "min(a, b) + min(j: z[j])",
    "batch_mean": None,  # of objectives: rewritten before any evaluator sees it
    "batch_sum": None,
    "class_mean": None,
    "class_sum": None,
    "zeros": "H(softmax(zeros(K)))",
    "ones": "dot(ones(K), z)",
    "known": "known(y)",
    "project": "norm(project(u, linf(v, a)), 2) + norm(project(u, l2(v, a)), 1) + norm(project(u, l1(v, a)), inf)",
    "interior": "interior(u, linf(v, a))[0] + interior(u, l2(v, 2))[0]",
}  # fmt: skip
MORE = {
    "argmax": "softmax(z)[argmax(j: w[j])] + z[argmin(j != y: w[j])]",
    "binders": "sum(j: z[j] * w[j]) + mean(j != y: z[j]) + logsumexp(j != y: z[j]) + sort(j: z[j])[2] + softmax(j != y: z[j])[0]",
    "nested": "max(j != y: sum(i != j: z[i] * w[j]))",
    "whole numbers": "logsumexp(i in 0..2: u[i]) + max(i in 0..2: v[i])",
    "if": "if(a > b, a^2, (1 + abs(b))^a)",
    "logic": "(a > b and b > 0) + (not (a == b)) + (a >= 0.5 or b != 1)",
    "gradient by a number": "grad(b: sin(b) * tanh(b)^3 + log(1 + b^2) / (2 + cos(u, v)) + relu(b) * exp(-abs(b)) + sqrt(1 + b^2))",
    "gradient by logits": "dot(w, grad(z: KL(softmax(z) || p2) + hinge(z, y) + max(j != y: z[j]) + logsumexp(j: z[j])))",
    "gradient by a vector": "dot(v, grad(t = u: norm(t, 2)^3 + dot(t, v) / (1 + norm(t, 1)) + norm(project(t, l2(v, 0.5)), 1)))",
    "gradient through a projection": "dot(v, grad(t = u: dot(project(t, l1(v, 0.5)), v) + norm(project(0.2 * t, linf(0.1 * v, 0.5)), 2)))",
    "second derivative": "grad(b: sin(a * b) + grad(s = a: exp(s * b) * tanh(s) + s^3 * b^2))",
    "stopped": "grad(b: stop(b) * b^2)",
    "complement": "-log(1 - max(k != y: softmax(z)[k]))",
}  # fmt: skip
OF_NETWORKS = {
    "projections met with the domain": "sum(i in 0..1: sin(9 * project(3 * x' - 2 * x, l2(x, 0.3))[i]) + sin(7 * project(4 * x' - 3 * x, l1(x, 0.2))[i]))",
    "through a projection": "norm(grad(v = x': norm(project(5 * v - 3 * x, l2(x, 0.3)) - x', 2)^2 + norm(project(4 * v - 3 * x, l1(x, 0.2)), 2)), 1)",
    "logits": "f(x)[y] + p(x')[y] + CE(f(x'), y)",
    "by the input": "norm(grad(x: CE(f(x), y)), 2) + norm(grad(v = x': KL(p(x) || p(v))), 1)",
    "by the weights": "norm(grad(theta: CE(f(x), y)), 2)",
    "twice": "norm(grad(theta: norm(grad(v = x: CE(f(v), y)), 2)^2), 2)",
    "objective": "objective(trades, lambda = 6) + objective(mart, lambda = 5)",
}  # fmt: skip




def agrees(problem: Problem) -> None:
    """Float64 and 50 digits say the same about 12 assignments."""
    flat = random_numbers(problem, 12)
    found = problem.evaluate(flat)
    for n in range(12):
        (comparison,) = problem.confirm(rows(problem, flat, n)).comparisons
        left, right = comparison.left, comparison.right
        if not mpmath.isfinite(left):
            assert found.violation[n].isnan() or float(found.violation[n]) == 1
            continue
        exact = (left - right) / (1 + abs(left) + abs(right))
        assert abs(float(exact) - float(found.violation[n])) <= 1e-9, (n, mpmath.nstr(left, 15), rows(problem, flat, n))


def test_every_operation_has_an_exact_form_and_is_compared() -> None:
    assert set(OPERATIONS) == set(EXPRESSIONS)
    assert set(OPERATIONS) - {"class_mean", "class_sum"} <= {*CORE, *FORMS}
    assert set(REDUCTIONS) == set(BINDERS)


@pytest.mark.parametrize("name", [*(n for n, e in EXPRESSIONS.items() if e), *MORE])
def test_it_agrees_with_the_kernels(name: str) -> None:
    agrees(problem(f"{HEAD}claim {(EXPRESSIONS | MORE)[name]} <= 0.123"))


@pytest.mark.parametrize("name", OF_NETWORKS)
@pytest.mark.parametrize("network", ["tanh 1", "relu 1", "softplus 1", "linear"])
def test_it_agrees_on_networks(name: str, network: str) -> None:
    agrees(problem(f"{NETS}claim {OF_NETWORKS[name]} <= 0.123", f=network, K=3, dimension=2))


def test_bregman_divergences() -> None:
    text = "generator psi(p) = sum(j: p[j]^3) - H(p)\nfor K in {3}, a in simplex(K), b in simplex(K)\nlet q = 0.5 * a + 0.5 * softmax(zeros(K))\nclaim D[psi](b || q) <= 0.1"
    agrees(problem(text))


# --- what only high precision decides ---


@pytest.mark.parametrize(
    ("relation", "holds"),
    [
        ("t + 1 > 1", True),  # t = 1e-30
        ("(1 + t) - 1 == t", True),
        ("(1 + t)^2 - 1 - 2 * t == 0", False),
        ("(1 + t)^2 - 1 - 2 * t > 0", True),
        ("exp(t) - 1 - t - t^2 / 2 >= t^3 / 6", True),
        ("exp(t) - 1 - t - t^2 / 2 <= t^3 / 6", False),
        ("1 / t + 1 == 1 / t", False),
        ("sqrt(2)^2 == 2", True),
        ("log(exp(t)) == t", True),
        ("sqrt(2) * sqrt(3) == sqrt(6)", True),
        ("0 * log(0 * t) == 0", True),
        ("tanh(t) < t", True),
        ("tanh(t) <= t - t^3", False),
        ("t^4 + t^7 == t^4", False),
    ],
)
def test_differences_far_below_rounding(relation: str, holds: bool) -> None:
    found = problem(f"for t in reals\nclaim {relation}").confirm(assignment(t=Fraction(1, 10**30)))
    assert found.holds is holds


@pytest.mark.parametrize(
    ("relation", "holds"),
    [
        ("CE(z, y) >= log(2) * error(z, y)", True),
        ("CE(z, y) == 2000000000000000", True),
        ("CE(z, y) > 2000000000000000", True),
        ("tanh(z[1]) < 1", True),
        ("softmax(z)[0] > 0", True),
        ("CE(z, argmax(j: z[j])) > 0", True),
        ("H(softmax(z)) > 0", True),
        ("log(1 - softmax(z)[0]) >= -2000000000000000", True),
        ("log(1 - softmax(z)[0]) == 0", True),  # not so, but what is lost in the softmax could be as large
        ("softmax(z)[1] + softmax(z)[0] == 1", True),
    ],
)
def test_logits_of_1e15(relation: str, holds: bool) -> None:
    """e^-2e15 is a number; beside 2e15 it is lost, and a strict relation is given the benefit of the doubt."""
    found = problem(f"for K in {{2}}, z in logits(K), y in label(K)\nclaim {relation}", K=2)
    assert found.confirm(assignment(z=[-1e15, 1e15], y=0)).holds is holds


def test_what_is_too_large_for_any_number_is_undecided() -> None:
    assert problem("for t in reals\nclaim exp(exp(exp(t))) <= 1").confirm(assignment(t=50.0)).holds is None


def test_a_hypothesis_gets_no_benefit_of_the_doubt() -> None:
    found = problem("for a in reals, b in reals\nwhere 1 + a^5 < 1 + b^5\nclaim a < b").confirm(assignment(a=1e-300, b=1e-300))
    assert found.hypotheses is None and not found.refuted


def test_both_sides_infinite_are_equal_and_a_difference_of_infinities_is_undecided() -> None:
    zero = assignment(p=[1.0, 0.0], y=1)
    text = "for K in {2}, p in simplex(K), y in label(K)\nclaim "
    assert problem(text + "CE(p, y) == KL(onehot(y) || p)").confirm(zero).holds is True
    assert problem(text + "CE(p, y) - KL(onehot(y) || p) == 0").confirm(zero).holds is None
    assert problem(text + "CE(p, y) >= 1").confirm(zero).holds is True


def test_probabilities_are_exactly_normalised() -> None:
    """0.1 + 0.2 + 0.7 is not 1 in float64."""
    found = problem("for K in {3}, p in simplex(K)\nclaim sum(j: p[j]) == 1").confirm(assignment(p=[0.1, 0.2, 0.7]))
    assert found.holds is True


def test_limits() -> None:
    assert problem("for b in reals\nclaim limit(t = 0: (exp(b * t) - 1) / t) == b").confirm(assignment(b=3.0)).holds is True
    assert problem("for b in reals\nclaim limit(t = 0: (exp(b * t) - 1) / t) == b + 0.0001").confirm(assignment(b=3.0)).holds is False
    text = "for K in {3}, z in logits(K)\nclaim limit(mu = inf: logsumexp(j: mu * z[j]) / mu) == max(j: z[j])"
    assert problem(text).confirm(assignment(z=[1.0, 1.0, 0.5])).holds is True
    assert problem("claim limit(t = 0: sin(1 / t)) == 0").confirm(Assignment({})).holds is None


def test_hypotheses_and_joined_relations() -> None:
    text = "for a in reals, b in reals\nwhere a > 0 and not (b < 0)\nclaim a <= 1 or b == 2\nclaim 0 < a <= 1"
    assert problem(text).confirm(assignment(a=0.0, b=1.0)).hypotheses is False
    assert problem(text).confirm(assignment(a=2.0, b=2.0)).holds is True
    assert problem(text).confirm(assignment(a=2.0, b=3.0)).refuted
    assert problem(text, 1).confirm(assignment(a=2.0, b=3.0)).violation == pytest.approx(1 / 4)


def test_a_one_hot_prediction_is_no_error() -> None:
    """Found by comparing the evaluators: all other log-probabilities are -inf, and tie with the label's own place."""
    found = problem("for K in {3}, q in simplex(K), y in label(K)\nclaim error(q, y) == 0")
    certain = assignment(q=[1, 0, 0], y=0)
    assert float(found.evaluate(found.tensors([certain])).violation[0]) == 0
    assert found.confirm(certain).holds is True


def test_names_of_a_law_are_found_again() -> None:
    assert law("for a in [0, 1]\nclaim a <= 1").first.quantities[0].name == "a"


@pytest.mark.parametrize("claim", ["(1/3) * t * 3 == t", "0.1 * t * 10 == t", "t * (t^(1/3))^3 == t^2", "sin(pi) == 0", "max(1/3, 0.1) * t * 3 == t"])
def test_numbers_are_what_the_text_writes_not_the_floats_beside_them(claim: str) -> None:
    assert problem(f"for t in [0, 1]\nclaim {claim}").confirm(assignment(t=Fraction(7, 10))).holds is True


def test_ends_of_intervals_are_exact_too() -> None:
    assert problem("for t in [0, 0.1]\nclaim 10 * t <= 1").confirm(assignment(t=0.2)).holds is True


@pytest.mark.parametrize("claim", ["(1 + t <= 1) == 0", "if(1 + t > 1, t, 1) == t", "sign(1 + t - 1) == 1"])
def test_a_number_lost_in_a_sum_tips_no_comparison(claim: str) -> None:
    assert problem(f"for t in reals\nclaim {claim}").confirm(assignment(t=3.0e-239)).holds is True


@pytest.mark.parametrize("power", [2, 3])
def test_rounding_that_a_power_carries_on_refutes_nothing(power: int) -> None:
    found = problem(f"for t in [0, 1], u in reals\nclaim ((1 - t) * u + t * u - u)^{power} == 0")
    assert not found.confirm(assignment(t=Fraction(1, 3), u=-2.0e89)).refuted


def test_the_terms_of_a_sum_round_too() -> None:
    w = [Fraction(-151795292, 3), 50598416.0, 0.0, Fraction(151795292, 3)]
    found = problem("for v in vector(4), w in vector(4), a in reals\nclaim dot(a * w, v) == a * dot(w, v)")
    assert not found.confirm(assignment(v=[-101196853.0, 50598423.0, 0.0, -151795257.0], w=w, a=Fraction(31, 3))).refuted
