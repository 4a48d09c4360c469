"""Laws of lossdsl itself: gradients of the kernels against finite differences, and operations over a batch against plain loops."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import lossdsl
from lossdsl.engine.api import Step
from lossdsl.laws.catalogue import laws_of
from lossdsl.laws.problem import Problem
from lossdsl.source import Source

HEADER = "for K in {4}, z in logits(K), w in logits(K), u in vector(3), v in vector(3), b in reals, y in label(K), t in label(K)"
DIFFERENTIABLE = {
    "probabilities": {
        "CE": "CE(z, y) + CE(z, softmax(w)) + CE(softmax(z), smooth(t, 0.1))",
        "KL": "KL(softmax(z) || softmax(w))",
        "SE": "SE(softmax(z), softmax(w))",
        "JS": "JS(softmax(z) || softmax(w))",
        "TV": "TV(softmax(z) || softmax(w))",
        "H": "H(softmax(z)) + H(0.3 * softmax(z) + 0.7 * softmax(w))",
        "softmax": "softmax(j != y: z[j])[t] + log(softmax(z)[0]) + log(1 - softmax(w)[1])",
    },
    "logits": {
        "DLR": "tanh(DLR(z, y)/8) + tanh(DLR(w, y, t)/8)",
        "hinge": "hinge(z, y)",
        "max": "max(b, u[0]) + max(j != y: z[j])",
        "min": "min(b, u[0]) + min(j: w[j])",
        "logsumexp": "logsumexp(j != y: z[j]) + mean(j: z[j] * w[j])",
        "sort": "sort(j: w[j])[2] * sort(j: z[j])[3]",
        "sum": "sum(j: z[j] * w[j]^2)",
    },
    "vectors": {
        "norm": "norm(u, 1) + norm(u + v, 2) + norm(v, inf) + norm(z, 2)",
        "dot": "dot(u, v) + dot(z, w)",
        "cos": "cos(u, v)",
        "unit": "unit(u + v)[0] + dot(v, unit(u))",
        "project": "norm(project(u, linf(v, 1)), 2) + norm(project(u, l2(v, 1)), 2) + norm(project(u, l1(v, 1)), 2)",
    },
    "numbers": {
        "abs": "abs(b) + abs(u)[1]",
        "exp": "exp(b) + exp(u)[0]",
        "log": "log(1 + b^2)",
        "sqrt": "sqrt(1 + b^2)",
        "relu": "relu(b) + relu(u)[1]",
        "tanh": "tanh(b)",
        "sin": "sin(b) + sin(u)[2]",
        "clip": "clip(b, -1, u[0]^2)",
        "if": "if(b > 0, b^2, sin(b))",
        "grad": "grad(s = b: s^3 * sin(s) * u[0])",
    },
}  # fmt: skip
"""By operation, an expression in quantities of the header."""
STEP = 1e-5


@cache
def _problem(expression: str) -> Problem:
    (found,) = laws_of(Source(f"law l\n{HEADER}\nclaim {expression} <= 0\n", "operations.py"))
    return Problem(found.first, found.first.statements[0], found.source)


def _values(problem: Problem, flat: dict[str, Tensor]) -> Tensor:
    """The left side on every row."""
    (left, _) = problem._piece.run(problem._placement.frame(flat, {}))
    return left


def _slopes(expression: str, at: dict[str, Tensor], labels: dict[str, Tensor]) -> tuple[float, float] | None:
    """The derivative in a fixed direction, by the kernels and by differences; None at a corner, or too close to one for a difference."""
    problem = _problem(expression)
    way = {q: torch.cos(torch.arange(1.0, len(v) + 1, dtype=torch.float64) * (1 + len(q))) for q, v in at.items()}
    shifts = STEP * torch.arange(-2.0, 3.0, dtype=torch.float64).unsqueeze(1)
    moved = {q: v + shifts * way[q] for q, v in at.items()} | {q: v.expand(5, 1) for q, v in labels.items()}
    further_before, before, here, after, further_after = _values(problem, moved).tolist()
    if abs(after - 2 * here + before) > 1e-3 * STEP:
        return None
    if abs(further_after - further_before - 2 * (after - before)) > 1e-3 * STEP:  # a jump that is odd about this point, such as unit's at 0
        return None
    leaves = {q: v.unsqueeze(0).requires_grad_() for q, v in at.items()}
    total = _values(problem, {**leaves, **labels}).sum()
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
    product = sum(float((g[0] * way[q]).sum()) for q, g in zip(leaves, found, strict=True))
    return product, (after - before) / (2 * STEP)


def _tied(v: Tensor) -> bool:
    """Two entries closer than a difference sees."""
    return bool((v.sort().values.diff() < 100 * STEP).any())


def _gradient_law(family: str) -> Callable[..., Any]:
    def slope(K: int, y: int, t: int, **numbers: Any) -> tuple[float, str, float] | None:  # noqa: N803
        labels = {"y": torch.tensor([[y]]), "t": torch.tensor([[t]])}
        at = {q: 3 * torch.tanh(torch.as_tensor(v, dtype=torch.float64).reshape(-1) / 3) for q, v in numbers.items()}
        if family == "logits" and (_tied(at["z"]) or _tied(at["w"])):
            return None
        pairs = [_slopes(e, at, labels) for e in DIFFERENTIABLE[family].values()]
        found = [p for p in pairs if p is not None]
        left, right = max(found, key=lambda p: abs(p[0] - p[1]) / (1 + abs(p[0]) + abs(p[1])), default=(0.0, 0.0))
        return (left, "==", right) if found else None

    slope.__name__ = f"operations_gradients_of_{family}"
    slope.__doc__ = f"gradients are those of the values: {', '.join(DIFFERENTIABLE[family])}"
    return slope


for _family in DIFFERENTIABLE:
    lossdsl.law(HEADER, source="finite differences", tolerance=1e-6)(_gradient_law(_family))

# --- over a batch ---


class _Given(nn.Module):
    """A model whose logits are its inputs, up to a parameter that is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


@cache
def _batches() -> Step:
    text = """recipe batches
input x in reals
let e = f(x)[0] + 2 * f(x)[1]
def c(v) = f(v)[2] > 0
upper minimize e by sgd(lr = 0.1)
log mean = batch_mean(e), sum = batch_sum(e), mean_where = batch_mean(e where c(x)), sum_where = batch_sum(e where c(x))
log class_mean = class_mean(e)[1], class_sum = class_sum(e)[1], class_mean_where = class_mean(e where c(x))[1]
log known = batch_sum(known(y))
"""
    return lossdsl.compile(lossdsl.parse(text), _Given(), num_classes=3, check=False)


@lossdsl.law("for n in 1..4, a in vector(4, -9, 9), b in vector(4, -9, 9), c in vector(4), y[1..4] in label(3)", source="lossdsl")
def operations_over_a_batch(n: int, a: Tensor, b: Tensor, c: Tensor, y: list[int]) -> tuple[float, str, float]:
    """batch_mean, batch_sum, class_mean, class_sum and known are what a loop over the examples gives, nothing being 0"""
    labels = torch.tensor(y[:n])
    labels[0] = -1 if n > 2 else labels[0]
    found = _batches().objective(torch.stack((a, b, c.sign()), 1)[:n], labels, {}).logs
    rows = [(float(a[i] + 2 * b[i]), float(c[i]) > 0, int(labels[i])) for i in range(n)]

    def total(kept: list[float], mean: bool) -> float:
        return sum(kept) / (max(len(kept), 1) if mean else 1)

    expected = {
        "mean": total([e for e, _, _ in rows], True),
        "sum": total([e for e, _, _ in rows], False),
        "mean_where": total([e for e, keep, _ in rows if keep], True),
        "sum_where": total([e for e, keep, _ in rows if keep], False),
        "class_mean": total([e for e, _, label in rows if label == 1], True),
        "class_sum": total([e for e, _, label in rows if label == 1], False),
        "class_mean_where": total([e for e, keep, label in rows if label == 1 and keep], True),
        "known": float(sum(label >= 0 for _, _, label in rows)),
    }  # fmt: skip
    return max(abs(float(found[k]) - v) for k, v in expected.items()), "<=", 0.0
