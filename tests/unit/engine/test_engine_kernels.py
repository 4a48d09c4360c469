"""Kernels against formulas: value, gradient, and logits as large as float32 networks produce."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from engine_tools import seeded
from torch import Tensor

from lossdsl.engine.kernels import COMPARISONS, KERNELS

N, K = 7, 5
ROWS = torch.arange(N)


def logits(seed: int, scale: float = 1.5) -> Tensor:
    return scale * torch.randn(N, K, generator=seeded(seed), dtype=torch.float64)


def p(z: Tensor) -> Tensor:
    return z.exp() / z.exp().sum(-1, keepdim=True)


def logs(z: Tensor) -> Tensor:
    return KERNELS["log_softmax"](z)


Y = torch.tensor([0, 4, 2, 2, 1, 3, 0])
T = torch.tensor([1, 0, 4, 0, 2, 4, 3])
OTHERS = torch.tensor([[j for j in range(K) if j != y] for y in Y.tolist()])


def others(z: Tensor) -> Tensor:
    """The K - 1 entries j != y."""
    return z.gather(1, OTHERS)


def ordered(z: Tensor, n: int) -> Tensor:
    return z.topk(n, dim=-1).values[:, -1]


KINKY: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    # name: (kernel on logits, formula on logits), both of z and w; derivatives exist at random points
    "log_softmax": (lambda z, w: logs(z), lambda z, w: p(z).log()),
    "KL": (lambda z, w: KERNELS["KL"](logs(z), logs(w)), lambda z, w: (p(z) * (p(z) / p(w)).log()).sum(-1)),
    "cross_entropy": (lambda z, w: KERNELS["cross_entropy"](logs(z), logs(w)), lambda z, w: -(p(w) * p(z).log()).sum(-1)),
    "H": (lambda z, w: KERNELS["H"](logs(z)), lambda z, w: -(p(z) * p(z).log()).sum(-1)),
    "SE": (lambda z, w: KERNELS["SE"](logs(z), logs(w)), lambda z, w: ((p(z) - p(w)) ** 2).sum(-1)),
    "TV": (lambda z, w: KERNELS["TV"](logs(z), logs(w)), lambda z, w: (p(z) - p(w)).abs().sum(-1) / 2),
    "JS": (
        lambda z, w: KERNELS["JS"](logs(z), logs(w)),
        lambda z, w: sum((q * (2 * q / (p(z) + p(w))).log()).sum(-1) / 2 for q in (p(z), p(w))),
    ),
    "mix": (
        lambda z, w: KERNELS["mix"](torch.tensor(0.3, dtype=torch.float64), logs(z), logs(w)).exp(),
        lambda z, w: 0.7 * p(z) + 0.3 * p(w),
    ),
    "mix per example": (
        lambda z, w: KERNELS["mix"](p(w)[:, 0], logs(z), logs(w)).exp(),
        lambda z, w: (1 - p(w)[:, :1]) * p(z) + p(w)[:, :1] * p(w),
    ),
    "at": (lambda z, w: KERNELS["at"](z, Y), lambda z, w: z[ROWS, Y]),
    "log_at": (lambda z, w: KERNELS["log_at"](logs(z), Y), lambda z, w: p(z)[ROWS, Y].log()),
    "log_not_at": (lambda z, w: KERNELS["log_not_at"](logs(z), Y), lambda z, w: (1 - p(z)[ROWS, Y]).log()),
    "hinge": (lambda z, w: KERNELS["hinge"](z, Y), lambda z, w: (1 + others(z).amax(1) - z[ROWS, Y]).clamp(min=0)),
    "DLR": (
        lambda z, w: KERNELS["DLR"](z, Y),
        lambda z, w: -(z[ROWS, Y] - others(z).amax(1)) / (ordered(z, 1) - ordered(z, 3)),
    ),
    "DLR with a target": (
        lambda z, w: KERNELS["DLR"](z, Y, T),
        lambda z, w: -(z[ROWS, Y] - z[ROWS, T]) / (ordered(z, 1) - (ordered(z, 3) + ordered(z, 4)) / 2),
    ),
    "reduce_max": (lambda z, w: KERNELS["reduce_max"](others(z), OTHERS), lambda z, w: others(z).amax(1)),
    "reduce_min": (lambda z, w: KERNELS["reduce_min"](others(z), OTHERS), lambda z, w: others(z).amin(1)),
    "reduce_sum": (lambda z, w: KERNELS["reduce_sum"](others(z), OTHERS), lambda z, w: z.sum(1) - z[ROWS, Y]),
    "reduce_mean": (lambda z, w: KERNELS["reduce_mean"](others(z), OTHERS), lambda z, w: (z.sum(1) - z[ROWS, Y]) / (K - 1)),
    "reduce_logsumexp": (lambda z, w: KERNELS["reduce_logsumexp"](others(z), OTHERS), lambda z, w: others(z).exp().sum(1).log()),
    "reduce_sort": (lambda z, w: KERNELS["reduce_sort"](others(z), OTHERS), lambda z, w: -torch.sort(-others(z), dim=1).values),
    "reduce_softmax": (
        lambda z, w: KERNELS["reduce_softmax"](others(z), OTHERS, K),
        lambda z, w: torch.zeros_like(z).scatter(1, OTHERS, p(others(z))),
    ),
    "norm 1": (lambda z, w: KERNELS["norm"](z, 1.0, 1), lambda z, w: z.abs().sum(1)),
    "norm 2": (lambda z, w: KERNELS["norm"](z, 2.0, 1), lambda z, w: (z * z).sum(1) ** 0.5),
    "norm inf": (lambda z, w: KERNELS["norm"](z, math.inf, 1), lambda z, w: z.abs().amax(1)),
    "dot": (lambda z, w: KERNELS["dot"](z, w, 1), lambda z, w: (z * w).sum(1)),
    "unit": (lambda z, w: KERNELS["unit"](z, 1), lambda z, w: z / (z * z).sum(1, keepdim=True) ** 0.5),
    "cos": (lambda z, w: KERNELS["cos"](z, w, 1), lambda z, w: (z * w).sum(1) / ((z * z).sum(1) * (w * w).sum(1)) ** 0.5),
    "pow": (lambda z, w: KERNELS["pow"](z, 3), lambda z, w: z * z * z),
    "pow of tensors": (lambda z, w: KERNELS["pow"](z.exp(), w), lambda z, w: (z * w).exp()),
    "sqrt": (lambda z, w: KERNELS["sqrt"](z.exp()), lambda z, w: (z / 2).exp()),
    "clip": (
        lambda z, w: KERNELS["clip"](z, torch.tensor(-0.5, dtype=torch.float64), w),
        lambda z, w: torch.minimum(torch.where(z > -0.5, z, -0.5), w),
    ),
    "max": (KERNELS["max"], lambda z, w: (z + w + (z - w).abs()) / 2),
    "min": (KERNELS["min"], lambda z, w: (z + w - (z - w).abs()) / 2),
    "if": (lambda z, w: KERNELS["if"](COMPARISONS["gt"](z, w, z), z, 2 * w), lambda z, w: torch.where(z > w, z, 2 * w)),
    "gate": (lambda z, w: KERNELS["gate"](z, torch.ones_like(w)) * w, lambda z, w: z * w),
    "batch_mean": (lambda z, w: KERNELS["batch_mean"](z[:, 0] * w[:, 0]), lambda z, w: (z * w)[:, 0].sum() / N),
    "batch_mean where": (
        lambda z, w: KERNELS["batch_mean"](z[:, 0] * w[:, 0], (Y > 1).double()),
        lambda z, w: (z * w)[Y > 1, 0].sum() / int((Y > 1).sum()),
    ),
    "batch_sum": (lambda z, w: KERNELS["batch_sum"](z[:, 0] * w[:, 0]), lambda z, w: (z * w)[:, 0].sum()),
    "batch_sum where": (lambda z, w: KERNELS["batch_sum"](z[:, 0] * w[:, 0], (Y > 1).double()), lambda z, w: (z * w)[Y > 1, 0].sum()),
}  # fmt: skip


@pytest.mark.parametrize("name", KINKY)
def test_value_and_gradient_are_those_of_the_formula(name: str) -> None:
    kernel, formula = KINKY[name]
    z, w = logits(1).requires_grad_(), logits(2).requires_grad_()
    found, expected = kernel(z, w), formula(z, w)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    weights = torch.randn(found.shape, generator=seeded(3), dtype=torch.float64)
    a = torch.autograd.grad((found * weights).sum(), (z, w), allow_unused=True, materialize_grads=True)
    b = torch.autograd.grad((expected * weights).sum(), (z, w), allow_unused=True, materialize_grads=True)
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9 if name.startswith("DLR") else 1e-11)  # its 1e-12 keeps 0/0 away
    assert any(bool(g.abs().sum() > 0) for g in a)


@pytest.mark.parametrize("name", [n for n in KINKY if n not in ("gate",)])
def test_gradcheck(name: str) -> None:
    kernel, _ = KINKY[name]
    assert torch.autograd.gradcheck(kernel, (logits(1).requires_grad_(), logits(2).requires_grad_()))


# --- large logits ---

EXTREME = ("log_softmax", "KL", "cross_entropy", "H", "SE", "TV", "JS", "mix", "log_at", "log_not_at", "hinge", "DLR", "norm 2", "unit", "cos", "reduce_logsumexp")  # fmt: skip


def extreme_logits() -> list[Tensor]:
    """float32 logits up to 1e4: one huge entry, ties, all equal, opposite signs."""
    hot = torch.zeros(N, K)
    hot[ROWS, T] = 1e4
    tie = torch.full((N, K), -1e4)
    tie[:, :2] = 1e4
    return [hot, -hot, tie, torch.zeros(N, K), logits(4, 3e3).float(), logits(5, 20).float()]


def double(name: str, z: Tensor, w: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    z, w = z.double().requires_grad_(), w.double().requires_grad_()
    value = KINKY[name][0](z, w)
    return value.detach(), torch.autograd.grad(value.sum(), (z, w), allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("name", EXTREME)
def test_large_float32_logits_give_finite_and_right_values_and_gradients(name: str) -> None:
    for a in extreme_logits():
        for b in extreme_logits():
            if name == "DLR" and bool((ordered(a, 1) == ordered(a, 3)).any()):
                continue  # a quotient of zeros by definition
            z, w = a.clone().requires_grad_(), b.clone().requires_grad_()
            value = KINKY[name][0](z, w)
            found = torch.autograd.grad(value.sum(), (z, w), allow_unused=True, materialize_grads=True)
            expected, slopes = double(name, a, b)
            assert bool(value.isfinite().all()) and all(bool(g.isfinite().all()) for g in found), name
            torch.testing.assert_close(value.detach().double(), expected, rtol=1e-4, atol=1e-5)
            for g, s in zip(found, slopes, strict=True):
                torch.testing.assert_close(g.double(), s, rtol=1e-3, atol=5e-3)  # log-probabilities near -2e4 are 1e-3 apart


def test_the_logarithm_of_the_rest_is_right_where_one_minus_p_would_be_zero() -> None:
    z = torch.tensor([[60.0, 0.0, 0.0]])
    assert float(KERNELS["log_not_at"](logs(z), torch.tensor([0]))) == pytest.approx(math.log(2) - 60, rel=1e-6)


@pytest.mark.parametrize("name", ["KL", "SE", "TV", "JS"])
def test_divergences_of_equal_distributions_are_not_negative(name: str) -> None:
    """sqrt(JS(p || p)) must not become NaN by rounding."""
    for scale in (0.1, 1.0, 10.0, 1000.0):
        z = scale * torch.randn(2000, 10, generator=seeded(1))
        value = KERNELS[name](logs(z), logs(z))
        assert float(value.max()) <= 1e-6
        assert float(value.min()) >= 0


# --- certain targets: probabilities that are exactly 0 ---


def test_zero_probabilities_add_nothing_and_leave_finite_gradients() -> None:
    hot = KERNELS["onehot"](Y, torch.zeros((), dtype=torch.float64), K)
    assert bool((hot.exp() == torch.eye(K, dtype=torch.float64)[Y]).all())
    z = logits(1).requires_grad_()
    expected = -p(z)[ROWS, Y].log()
    for value in (KERNELS["KL"](hot, logs(z)), KERNELS["cross_entropy"](logs(z), hot)):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
        (gradient,) = torch.autograd.grad(value.sum(), z, retain_graph=True)
        torch.testing.assert_close(gradient, p(z) - torch.eye(K, dtype=torch.float64)[Y], rtol=1e-9, atol=1e-12)
    assert bool((KERNELS["H"](hot) == 0).all())
    js = KERNELS["JS"](hot, logs(z))
    assert torch.autograd.grad(js.sum(), z)[0].isfinite().all()
    q, e = p(z), torch.eye(K, dtype=torch.float64)[Y]
    middle = (q + e) / 2
    torch.testing.assert_close(js, -middle[ROWS, Y].log() / 2 + (q * (q / middle).log()).sum(1) / 2)


def test_a_target_without_mass_where_the_target_has_some_is_infinitely_far() -> None:
    hot = KERNELS["onehot"](torch.tensor([0]), torch.zeros(()), 3)
    assert float(KERNELS["KL"](logs(torch.zeros(1, 3)), hot)) == math.inf


def test_smoothing_is_that_of_torch() -> None:
    z = logits(1)
    target = KERNELS["smooth"](Y, 0.2, z, K)
    expected = torch.nn.functional.cross_entropy(z, Y, label_smoothing=0.2, reduction="none")
    torch.testing.assert_close(KERNELS["cross_entropy"](logs(z), target), expected)
    torch.testing.assert_close(target.exp().sum(1), torch.ones(N, dtype=torch.float64))


# --- conventions where a derivative does not exist ---


def slope(function: Callable[[Tensor], Tensor], at: list[float] | float) -> Tensor:
    v = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(function(v).sum(), v)[0]


def test_ties_pass_the_gradient_to_the_lowest_class() -> None:
    classes = torch.arange(3).expand(1, 3)
    for name in ("reduce_max", "reduce_min"):
        assert slope(lambda v, name=name: KERNELS[name](v, classes), [[1.0, 1.0, 1.0]]).tolist() == [[1, 0, 0]]
    assert int(KERNELS["reduce_argmax"](torch.zeros(1, 3), classes)) == 0
    assert int(KERNELS["reduce_argmin"](torch.zeros(1, 3), classes)) == 0
    for name in ("max", "min"):
        a = torch.ones((), dtype=torch.float64, requires_grad=True)
        b = torch.ones((), dtype=torch.float64, requires_grad=True)
        assert [float(g) for g in torch.autograd.grad(KERNELS[name](a, b), (a, b))] == [1.0, 0.0]


def test_no_gradient_at_the_corner_of_a_norm() -> None:
    for order in (1.0, 2.0, math.inf):
        zero = slope(lambda v, order=order: KERNELS["norm"](v, order, 1), [[0.0, 0.0, 0.0]])
        assert zero.tolist() == [[0, 0, 0]], order
    assert slope(lambda v: KERNELS["unit"](v, 1), [[0.0, 0.0]]).tolist() == [[0, 0]]
    assert slope(KERNELS["sqrt"], 0.0).tolist() == 0
    assert not KERNELS["sign"](torch.ones(1, requires_grad=True)).requires_grad
    assert slope(KERNELS["relu"], 0.0).tolist() == 0
    assert slope(KERNELS["abs"], 0.0).tolist() == 0


def test_cos_and_unit_of_zero() -> None:
    v = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    w = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    value = KERNELS["cos"](v, w, 1)
    assert value.tolist() == [1, 1]
    assert all(bool((g == 0).all()) for g in torch.autograd.grad(value.sum(), (v, w)))
    assert KERNELS["unit"](v, 1).tolist() == [[0.0, 0.0], [0.6, 0.8]]


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e30])
def test_norms_neither_under_nor_overflow(size: float) -> None:
    v = torch.tensor([[3.0, 4.0]]) * size
    assert float(KERNELS["norm"](v, 2.0, 1)) == pytest.approx(5 * size, rel=1e-5)
    assert KERNELS["unit"](v, 1)[0].tolist() == pytest.approx([0.6, 0.8], rel=1e-5)
    assert float(KERNELS["cos"](v, 2 * v, 1)) == pytest.approx(1, rel=1e-5)


def test_the_root_of_a_negative_number_is_nan() -> None:
    assert KERNELS["sqrt"](torch.tensor([-1.0, 0.0, 4.0])).isnan().tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("name", "expected"), [("lt", [1, 0, 0]), ("le", [1, 1, 0]), ("gt", [0, 0, 1]), ("ge", [0, 1, 1]), ("eq", [0, 1, 0]), ("ne", [1, 0, 1])]
)
def test_comparisons(name: str, expected: list[int]) -> None:
    a, b = torch.tensor([1.0, 2.0, 3.0], requires_grad=True), torch.tensor([2.0, 2.0, 2.0])
    value = COMPARISONS[name](a, b, a)
    assert value.tolist() == expected and value.dtype == a.dtype and not value.requires_grad


def test_conjunction_disjunction_negation() -> None:
    a, b = torch.tensor([0.0, 0.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 0.0, -1.0])
    assert COMPARISONS["and"](a, b, a).tolist() == [0, 0, 0, 1]
    assert COMPARISONS["or"](a, b, a).tolist() == [0, 1, 1, 1]
    assert COMPARISONS["not"](a, a).tolist() == [1, 1, 0, 0]


def test_errors_count_ties() -> None:
    z = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.0]])
    assert KERNELS["error"](z, torch.tensor([0, 0, 0])).tolist() == [1, 0, 1]
    assert KERNELS["misclassified"](z, torch.tensor([0, 0, 0])).tolist() == [0, 0, 1]


# --- classes and families ---


def test_class_ranges_are_ascending_and_leave_one_class_out() -> None:
    assert KERNELS["class_range"]("all", None, Y, K).tolist() == [list(range(K))] * N
    assert KERNELS["class_range"]("not", Y, Y, K).tolist() == OTHERS.tolist()
    nested = KERNELS["class_range"]("not", OTHERS, Y, K)
    assert nested.shape == (N, K - 1, K - 1)
    assert nested[0, 2].tolist() == [j for j in range(K) if j != OTHERS[0, 2]]


def test_select_takes_the_member_of_the_class() -> None:
    family = torch.arange(N * (K - 1) * 2.0).reshape(N, K - 1, 2)
    chosen = OTHERS[:, 2]
    assert torch.equal(KERNELS["select"](family, OTHERS, chosen), family[:, 2])
    both = torch.stack([OTHERS[:, 3], OTHERS[:, 0]], 1)
    assert torch.equal(KERNELS["select"](family, OTHERS, both), family[:, [3, 0]])


def test_nothing_kept_in_a_batch_mean_is_zero_without_gradient_or_nan() -> None:
    e = torch.tensor([math.nan, math.inf, 1.0], dtype=torch.float64, requires_grad=True)
    for name in ("batch_mean", "batch_sum"):
        value = KERNELS[name](e, torch.zeros(3))
        assert float(value.detach()) == 0
        assert torch.autograd.grad(value, e)[0].tolist() == [0, 0, 0]


def test_a_closed_gate_stops_infinite_and_nan_gradients() -> None:
    v = torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64, requires_grad=True)
    gated = KERNELS["gate"](v, torch.tensor([0.0, 1.0, 1.0]))
    (gradient,) = torch.autograd.grad(torch.sqrt(gated)[0] + torch.sqrt(gated)[2], v)
    assert gradient.tolist() == [0, 0, 0.25]


def test_a_gate_sums_the_gradient_over_what_it_was_spread_over() -> None:
    v = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    gated = KERNELS["gate"](v, torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]))
    assert gated.shape == (2, 3)
    assert torch.autograd.grad(gated.sum(), v)[0].tolist() == [[2.0], [1.0]]
