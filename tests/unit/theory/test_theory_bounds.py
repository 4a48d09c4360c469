"""Bounds of the 0-1 error against a search for the smallest value in float64: no value lies below a bound, and most bounds are reached."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, log
from typing import Any

import pytest
import torch

from lossdsl.front import parse_recipe
from lossdsl.lang.ops import OPERATIONS
from lossdsl.theory.attacked import Facts
from lossdsl.theory.bounds import Analysis, Bound, bound
from lossdsl.theory.chains import cross_entropy_constant
from lossdsl.theory.events import Event
from lossdsl.theory.ranges import Range, number
from lossdsl.theory.sums import normal

Tensor = torch.Tensor
Z = list[Tensor]


def ce(z: Tensor) -> Tensor:
    return -z.log_softmax(-1)[..., 0]


def kl(a: Tensor, b: Tensor) -> Tensor:
    return (a.softmax(-1) * (a.log_softmax(-1) - b.log_softmax(-1))).sum(-1)


def se(a: Tensor, b: Tensor) -> Tensor:
    return (a.softmax(-1) - b.softmax(-1)).square().sum(-1)


def js(a: Tensor, b: Tensor) -> Tensor:
    p, q = a.softmax(-1), b.softmax(-1)
    m = (p + q) / 2
    return ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2


def to_label(z: Tensor) -> Tensor:
    """SE(p, onehot(y))."""
    return (z.softmax(-1) - torch.eye(z.shape[-1], dtype=z.dtype)[0]).square().sum(-1)


def entropy(z: Tensor) -> Tensor:
    return -(z.softmax(-1) * z.log_softmax(-1)).sum(-1)


def margin(z: Tensor) -> Tensor:
    return z[..., 1:].max(-1).values - z[..., 0]


def smoothed(z: Tensor, s: float) -> Tensor:
    logs = z.log_softmax(-1)
    return -(1 - s) * logs[..., 0] - s * logs.mean(-1)


def bce(z: Tensor) -> Tensor:
    q = z.softmax(-1)
    return -q[..., 0].log() - (1 - q[..., 1:].max(-1).values).log()


A, B, M = "f(x)", "f(x + 0.2)", "f(x + 0.1)"
"""Three points; the label is class 0, and the error that counts is that at B."""
P, Q, R = "p(x)", "p(x + 0.2)", "p(x + 0.1)"

CASES: dict[str, tuple[str, Callable[[Tensor, Tensor, Tensor], Tensor], float]] = {
    # text, the same by hand of the logits at A, B, M, and how far above the bound the smallest value may lie (a share of it)
    "CE": (f"CE({B}, y)", lambda a, b, m: ce(b), 0.001),
    "KL from the label": (f"KL(onehot(y) || {Q})", lambda a, b, m: ce(b), 0.001),
    "two CE": (f"(CE({A}, y) + CE({B}, y))/2", lambda a, b, m: (ce(a) + ce(b)) / 2, 0.001),
    "hinge": (f"hinge({B}, y)", lambda a, b, m: (1 + margin(b)).relu(), 0.001),
    "hinge written out": (f"relu(1 + max(j != y: {B}[j]) - {B}[y])", lambda a, b, m: (1 + margin(b)).relu(), 0.001),
    "SE": (f"SE({Q}, onehot(y))", lambda a, b, m: to_label(b), 0.001),
    "smoothed": (f"CE({B}, smooth(y, 0.2))", lambda a, b, m: smoothed(b, 0.2), 0.001),
    "BCE of MART": (f"-log({Q}[y]) - log(1 - max(j != y: {Q}[j]))", lambda a, b, m: bce(b), 0.001),
    "twice BCE less once": (f"-2 * log({Q}[y]) - log(1 - max(j != y: {Q}[j]))", lambda a, b, m: bce(b) + ce(b), 0.001),
    "TRADES 6": (f"CE({A}, y) + 6 * KL({P} || {Q})", lambda a, b, m: ce(a) + 6 * kl(a, b), 0.005),
    "TRADES 1": (f"CE({A}, y) + KL({P} || {Q})", lambda a, b, m: ce(a) + kl(a, b), 0.05),
    "TRADES 1/100": (f"CE({A}, y) + 0.01 * KL({P} || {Q})", lambda a, b, m: ce(a) + 0.01 * kl(a, b), 0.6),
    "half TRADES": (f"0.5 * (CE({A}, y) + 2 * KL({P} || {Q}))", lambda a, b, m: 0.5 * ce(a) + kl(a, b), 0.05),
    "the other order": (f"CE({A}, y) + 2 * KL({Q} || {P})", lambda a, b, m: ce(a) + 2 * kl(b, a), 0.2),
    "a bridge": (f"CE({A}, y) + 5 * (KL({P} || {R}) + KL({R} || {Q}))", lambda a, b, m: ce(a) + 5 * (kl(a, m) + kl(m, b)), 0.02),
    "unequal links": (f"CE({A}, y) + 3 * KL({P} || {R}) + KL({R} || {Q})", lambda a, b, m: ce(a) + 3 * kl(a, m) + kl(m, b), 0.1),
    "an anchor in the middle": (f"CE({R}, y) + 2 * KL({R} || {Q}) + KL({P} || {R})", lambda a, b, m: ce(m) + 2 * kl(m, b) + kl(a, m), 0.05),
    "JS": (f"CE({A}, y) + 8 * JS({P} || {Q})", lambda a, b, m: ce(a) + 8 * js(a, b), 0.1),
    "CE and SE": (f"CE({A}, y) + 4 * SE({P}, {Q})", lambda a, b, m: ce(a) + 4 * se(a, b), 0.3),
    "SCORE": (f"SE({P}, onehot(y)) + 4 * SE({Q}, {P})", lambda a, b, m: to_label(a) + 4 * se(a, b), 0.001),
    "SCORE, a bridge": (f"SE({P}, onehot(y)) + 4 * (SE({P}, {R}) + SE({R}, {Q}))", lambda a, b, m: to_label(a) + 4 * (se(a, m) + se(m, b)), 0.001),
    "MER": (f"CE({A}, y) + 6 * KL({P} || {Q}) - 0.5 * H({P})", lambda a, b, m: ce(a) + 6 * kl(a, b) - 0.5 * entropy(a), inf),
    "a weight of at least 1": (f"(2 - {P}[y]) * CE({B}, y)", lambda a, b, m: (2 - a.softmax(-1)[..., 0]) * ce(b), 0.001),
    "the larger of two": (f"max(CE({A}, y), CE({B}, y))", lambda a, b, m: torch.maximum(ce(a), ce(b)), 0.001),
    "a square": (f"exp(CE({B}, y)) - 1", lambda a, b, m: ce(b).exp() - 1, 0.001),
    "MART": (f"5 * KL({P} || {Q}) * (1 - {P}[y]) - log({Q}[y]) - log(1 - max(j != y: {Q}[j]))",
             lambda a, b, m: bce(b) + 5 * kl(a, b) * (1 - a.softmax(-1)[..., 0]), 0.001),
}  # fmt: skip


def bounded(text: str, kind: Any = "error") -> Bound:
    typed = parse_recipe(f"recipe r\nupper minimize {text} by sgd(lr = 0.1)").typed
    assert typed.objective is not None
    point = parse_recipe(f"recipe r\nupper minimize CE({B}, y) by sgd(lr = 0.1)").typed.objective
    assert point is not None
    return bound(normal(typed.objective), Event(normal(point.args[0].args[0]), (), kind))


def smallest(value: Callable[[Tensor, Tensor, Tensor], Tensor], kind: str, classes: int) -> float:
    """The least value found over logits where the event happens at B, by Adam from many starts."""
    generator = torch.Generator().manual_seed(classes)
    z = 2 * torch.randn(3, 40, classes, generator=generator, dtype=torch.float64)
    z.requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.2)
    best = inf
    for n in range(160):
        for group in optimizer.param_groups:
            group["lr"] = 0.2 * 0.97**n
        others = z[1, :, 1:]
        limit = others.max(-1).values if kind == "error" else others.logsumexp(-1)
        own = torch.minimum(z[1, :, 0], limit)
        found = value(z[0], torch.cat([own[:, None], others], -1), z[2])
        best = min(best, float(found.detach().min()))
        optimizer.zero_grad()
        found.sum().backward()
        optimizer.step()
    return best


FAST = ("CE", "BCE of MART", "TRADES 6", "a bridge", "SCORE", "a weight of at least 1")


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CASES])
def test_no_value_lies_below_the_bound(name: str) -> None:
    text, value, slack = CASES[name]
    own = bounded(text)
    assert own.constant > 0
    for classes in (2, 4):
        floor = own.constant - own.offset - own.entropy * log(classes)
        assert smallest(value, "error", classes) >= floor - 1e-9
    if slack < inf:
        assert smallest(value, "error", 2) <= own.constant * (1 + slack) + 1e-6, "the bound is far from what can be reached"


HALF = ("CE", "SE", "hinge", "TRADES 6", "SCORE", "BCE of MART", "smoothed", "a bridge", "CE and SE")


@pytest.mark.slow
@pytest.mark.parametrize("name", HALF)
def test_no_value_lies_below_the_bound_where_the_label_has_half(name: str) -> None:
    text, value, _ = CASES[name]
    own = bounded(text, "half")
    for classes in (2, 24):  # with many classes SE is little more than the square of one change
        assert smallest(value, "half", classes) >= max(own.constant, 0) - 1e-9


@pytest.mark.parametrize("name", [name for name, row in OPERATIONS.items() if row.surrogate is not None])
def test_rows_of_the_table(name: str) -> None:
    """Least values at wrong and at half points, upper ends at right ones; wrong is taken at a tie of two classes."""
    known = OPERATIONS[name].surrogate
    assert known is not None
    p = torch.distributions.Dirichlet(torch.full((4,), 0.4, dtype=torch.float64)).sample((20000,))
    p = torch.cat([p, torch.tensor([[0.5, 0.5, 0, 0], [0.4, 0.4, 0.2, 0], [0.25] * 4, [1, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.float64)])
    values = _scores(name, p)
    wrong, half = p[:, 1:].max(-1).values >= p[:, 0], p[:, 0] <= 0.5
    assert values[wrong].min() >= known.wrong - 1e-12 and values[half].min() >= known.half - 1e-12
    assert values[~wrong].max() <= known.right + 1e-12
    tie = _scores(name, torch.tensor([[0.5, 0.5]], dtype=torch.float64)) if name != "DLR" else torch.tensor([0.0])
    assert abs(float(tie[0]) - known.wrong) < 1e-9


def _scores(name: str, p: Tensor) -> Tensor:
    """The operation of a prediction and the label 0, by hand."""
    z = p.clamp_min(1e-300).log()
    e = torch.eye(p.shape[-1], dtype=p.dtype)[0].expand_as(p)
    m = ((p + e) / 2).clamp_min(1e-300)
    if name == "DLR":
        order = z.sort(-1, descending=True).values
        return margin(z) / (order[:, 0] - order[:, 2] + 1e-12)
    values = {
        "CE": ce(z),
        "KL": ce(z),
        "SE": (p - e).square().sum(-1),
        "JS": (torch.special.xlogy(p, p / m).sum(-1) + torch.special.xlogy(e, e / m).sum(-1)) / 2,
        "TV": (p - e).abs().sum(-1) / 2,
        "hinge": (1 + margin(z)).relu(),
        "error": (margin(z) >= 0).to(p.dtype),
    }
    return values[name]


def test_the_constant_of_a_chain_is_its_least() -> None:
    """The closed form against a fine grid, and its limits."""
    t = torch.linspace(0.5, 1, 200001, dtype=torch.float64)
    for anchor, conductance in ((1.0, 6.0), (1.0, 1.0), (0.3, 2.0), (2.0, 0.01)):
        grid = float((-anchor * t.log() + 2 * conductance * (t - 0.5) ** 2).min())
        assert abs(cross_entropy_constant(anchor, conductance) - grid) < 1e-8
    assert abs(cross_entropy_constant(1.0, 1e9) - log(2)) < 1e-8 and cross_entropy_constant(1.0, 1e-6) < 1e-6


def test_e21_has_no_constant_of_one() -> None:
    """CE + KL falls below 1 (and below log 2) at a misclassified point: the witness behind T02."""
    p, q = torch.tensor([0.78, 0.22], dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64)
    value = float(-p[0].log() + (p * (p / q).log()).sum())
    assert bounded(CASES["TRADES 1"][0]).constant <= value < log(2) < 1


def test_ranges() -> None:
    right, wrong = Range(-inf, 0.0, open_high=True), Range(0.0, inf)
    assert right.below(wrong) and not wrong.below(right) and not Range(0.0, 1.0).below(Range(1.0, 2.0))
    assert wrong.scaled(-1).below(right.scaled(-1)) and str(right) == "(-inf, 0)" and str(Range(log(2))) == "[log(2), inf)"
    assert (number(log(4)), number(-log(2)), number(0.25), number(-0.0)) == ("log(4)", "-log(2)", "0.25", "0")


@pytest.mark.parametrize(
    ("objective", "exact"),
    [
        ("max(j != y: f(x')[j]) - f(x')[y]", True),
        ("-(f(x')[y] - max(j != y: f(x')[j]))", True),
        ("exp(3 * (max(j != y: f(x')[j]) - f(x')[y]) - 1)", True),
        ("tanh(max(j != y: f(x')[j] - f(x')[y]))", True),
        ("max(j != y: (f(x') - f(x')[y])[j]) + CE(f(x), y)", True),
        ("max(j: f(x')[j]) - f(x')[y]", False),
        ("max(j != y: f(x')[j]) - 2 * f(x')[y]", False),
        ("max(j != y: f(x')[j]) - f(x)[y]", False),
        ("max(j != y: f(x)[j]) - f(x)[y] + CE(f(x'), y)", False),
        ("min(max(j != y: f(x')[j]) - f(x')[y], -1)", False),
    ],
)
def test_margins_are_recognised(objective: str, exact: bool) -> None:
    level = f"lower x' in linf(x, 0.1) maximize {objective} by pgd(steps = 2, step = 0.1, start = x)"
    facts = Facts(parse_recipe(f"recipe r\n{level}\nupper minimize CE(f(x'), y) by sgd(lr = 0.1)").typed)
    known = facts.surrogate(facts.attacks[0])
    assert (known is not None and known.exact) is exact


def test_with_two_classes_cross_entropy_is_exact() -> None:
    level = "lower x' in linf(x, 0.1) maximize {} by pgd(steps = 2, step = 0.1, start = x)"
    for goal, exact in (("CE(f(x'), y)", True), ("SE(p(x'), onehot(y))", True), ("KL(p(x) || p(x'))", False)):
        typed = parse_recipe(f"recipe r\n{level.format(goal)}\nupper minimize CE(f(x'), y) by sgd(lr = 0.1)").typed
        for classes, wanted in ((2, exact), (3, False), (None, False)):
            facts = Facts(typed, classes)
            known = facts.surrogate(facts.attacks[0])
            assert known is not None and known.exact is wanted


def test_states_that_are_never_negative() -> None:
    text = "state lam = 0 then if(lam > 1, 4, 0.99 * lam), m = 0 then 0.9 * m + CE(f(x), y) * 0, down = 1 then down - 1\n"
    typed = parse_recipe(
        f"recipe r\n{text.replace(' * 0, down', ', down').replace('CE(f(x), y)', 'batch_mean(CE(f(x), y))')}upper minimize lam * CE(f(x), y) + m + down by sgd(lr = 0.1)"
    ).typed
    assert set(Facts(typed).states) == {"lam", "m"}
    assert Analysis(None, None, Facts(typed).states).of(typed.states[0].update).no.low >= 0
