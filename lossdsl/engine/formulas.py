"""The formulas of the reference evaluator: the values of one example in, the value of that example out.

Real and Const are 0-d float64 tensors, Logits, Prob (the probabilities themselves) and Vector [K], Input [*shape], Label and
Class ints. Where several values tie, max, min, sort and norm(v, inf) pass the gradient to the lowest class or index, and
max(a, b), min(a, b) to their first argument; sqrt, norm, unit and cos have no gradient at 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import Any

import torch
from torch import Tensor

Formula = Callable[..., Any]


def number(value: float) -> Tensor:
    return torch.tensor(float(value), dtype=torch.float64)


def plain(v: Any) -> float:
    return float(v.detach()) if isinstance(v, Tensor) else v


def _compare(holds: Callable[[float, float], bool]) -> Formula:
    return lambda a, b: number(holds(plain(a), plain(b)))


def _sqrt(v: Tensor) -> Tensor:
    positive = v > 0
    return torch.where(positive, torch.sqrt(torch.where(positive, v, 1.0)), torch.sqrt(v.detach()))


def _clip(v: Tensor, low: Tensor, high: Tensor) -> Tensor:
    raised = torch.where(v < low, low, v)
    return torch.where(raised > high, high, raised)


def softmax(z: Tensor) -> Tensor:
    return torch.exp(z) / torch.exp(z).sum()


def cross_entropy(q: Tensor, t: Tensor) -> Tensor:
    return sum((-t[i] * torch.log(q[i]) for i in range(len(t)) if t[i] != 0), number(0))


def _kl(t: Tensor, q: Tensor) -> Tensor:
    return sum((t[i] * (torch.log(t[i]) - torch.log(q[i])) for i in range(len(t)) if t[i] != 0), number(0))


def _js(p: Tensor, q: Tensor) -> Tensor:
    middle = (p + q) / 2
    return _kl(p, middle) / 2 + _kl(q, middle) / 2


def first_best(values: Iterable[Any], sign: float = 1.0) -> int:
    """Where the largest value is (the smallest, for sign -1), the first at a tie."""
    keys = [sign * plain(v) for v in values]
    return max(range(len(keys)), key=keys.__getitem__)


def _descending(values: Iterable[Tensor]) -> list[Tensor]:
    return sorted(values, key=lambda v: -plain(v))


def _runner_up(z: Tensor, y: int) -> Tensor:
    others = [z[i] for i in range(len(z)) if i != y]
    return others[first_best(others)]


def _dlr(z: Tensor, y: int, target: int | None = None) -> Tensor:
    ordered = _descending(z)
    if target is None:
        return -(z[y] - _runner_up(z, y)) / (ordered[0] - ordered[2] + 1e-12)
    return -(z[y] - z[target]) / (ordered[0] - (ordered[2] + ordered[3]) / 2 + 1e-12)


def _norm(v: Tensor, order: Tensor) -> Tensor:
    sizes = v.flatten().abs()
    if order == inf:
        return sizes[first_best(sizes)]
    return sizes.sum() if order == 1 else _sqrt((sizes * sizes).sum())


_TWO = number(2)


def _unit(v: Tensor) -> Tensor:
    return torch.zeros_like(v) if not v.any() else v / _norm(v, _TWO)


def _cos(a: Tensor, b: Tensor) -> Tensor:
    return number(1) if not a.any() or not b.any() else (a * b).sum() / (_norm(a, _TWO) * _norm(b, _TWO))


FORMULAS: dict[str, Formula] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "pow": torch.pow,
    "neg": lambda a: -a,
    "not": lambda a: number(a == 0),
    "and": _compare(lambda a, b: a != 0 and b != 0),
    "or": _compare(lambda a, b: a != 0 or b != 0),
    "lt": _compare(lambda a, b: a < b),
    "le": _compare(lambda a, b: a <= b),
    "gt": _compare(lambda a, b: a > b),
    "ge": _compare(lambda a, b: a >= b),
    "eq": _compare(lambda a, b: a == b),
    "ne": _compare(lambda a, b: a != b),
    "if": lambda c, a, b: a if c != 0 else b,
    "stop": lambda v: v.detach() if isinstance(v, Tensor) else v,
    "prob": softmax,
    "mix": lambda a, p, q: (1 - a) * p + a * q,
    "at": lambda v, c: v[int(plain(c))],
    "KL": _kl,
    "SE": lambda p, q: ((p - q) ** 2).sum(),
    "JS": _js,
    "TV": lambda p, q: (p - q).abs().sum() / 2,
    "H": lambda p: cross_entropy(p, p),
    "DLR": _dlr,
    "hinge": lambda z, y: torch.relu(1 + _runner_up(z, y) - z[y]),
    "error": lambda z, y: number(_runner_up(z, y) >= z[y]),
    "norm": _norm,
    "dot": lambda a, b: (a * b).sum(),
    "cos": _cos,
    "unit": _unit,
    "sign": lambda v: torch.sign(v.detach()),
    "abs": torch.abs,
    "exp": torch.exp,
    "sqrt": _sqrt,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sin": torch.sin,
    "clip": _clip,
    "max": lambda a, b: a if a >= b else b,
    "min": lambda a, b: a if a <= b else b,
}

REDUCTIONS: dict[str, Callable[[list[int], list[Any], int], Any]] = {
    # The classes of the domain in ascending order, the value of the body at each, and K.
    "max": lambda classes, values, k: values[first_best(values)],
    "min": lambda classes, values, k: values[first_best(values, -1)],
    "argmax": lambda classes, values, k: classes[first_best(values)],
    "argmin": lambda classes, values, k: classes[first_best(values, -1)],
    "sum": lambda classes, values, k: sum(values, number(0)),
    "mean": lambda classes, values, k: sum(values, number(0)) / len(values),
    "logsumexp": lambda classes, values, k: torch.log(sum((torch.exp(v) for v in values), number(0))),
    "softmax": lambda classes, values, k: _spread(classes, softmax(torch.stack(values)), k),
    "sort": lambda classes, values, k: torch.stack(_descending(values)),
}


def _spread(classes: list[int], weights: Tensor, k: int) -> Tensor:
    """A vector over all classes with the weights at their classes and 0 elsewhere."""
    return torch.stack([weights[classes.index(c)] if c in classes else number(0) for c in range(k)])
