"""Chains: a loss at one point and divergences that lead from it to another bound the error there.

CE(p0, y) + sum_i w_i KL(p_i || p_{i+1}). Joining all classes but y makes every term smaller (data processing), so two classes are enough,
with t_i the probability of y; where p_n gives the label at most 1/2, t_n <= 1/2. With Pinsker, w KL >= 2 w (t_i - t_{i+1})^2, and the
terms of a chain add up as conductors in a row: at least 2 L (t_0 - 1/2)^2 with 1/L = sum_i 1/w_i. What is left is a minimum in t_0.
For SE the triangle inequality of the Euclidean norm does the same with the distance from onehot(y) to p_n, and is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, sqrt

from lossdsl.check.typed import Typed, same, show
from lossdsl.theory.events import Event, is_label, prediction
from lossdsl.theory.sums import Term

_PINSKER = {"KL": 1.0, "JS": 0.25, "SE": 0.5}
"""Weight as a KL: w * e >= 2 * (w * share) * (t - t')^2 for the label's probabilities t and t' (JS: Pinsker on both halves)."""


@dataclass(frozen=True)
class Chain:
    """A loss at `start` and the divergences up to the event's point, in order; `constant`: what their sum is worth at least."""

    anchor: Term
    links: tuple[Term, ...]
    constant: float
    quadratic: bool
    """An anchor SE with links SE."""


def cross_entropy_constant(anchor: float, conductance: float) -> float:
    """min over t in [1/2, 1] of -anchor * log t + 2 * conductance * (t - 1/2)^2, for positive arguments."""
    scale = conductance / anchor
    t = min(1.0, (1 + sqrt(1 + 4 / scale)) / 4)
    return anchor * (-log(t) + 2 * scale * (t - 0.5) ** 2)


def find_chain(parts: Sequence[Term], event: Event) -> Chain | None:
    """The chain to the event's point with the largest constant; None without one."""
    if event.toward is not None:
        return None
    nodes = _Points(event.model)
    target = nodes.number(event.point)
    links = [(n, link) for n, term in enumerate(parts) if (link := _link(term, nodes)) is not None]
    best: Chain | None = None
    for anchor in parts:
        at = _anchor(anchor, nodes)
        if at is None or at == target:
            continue
        quadratic = anchor.e.op == "SE"
        usable = [(n, a, b, parts[n]) for n, (a, b) in links if parts[n] is not anchor and (not quadratic or parts[n].e.op == "SE")]
        path = _path(at, target, usable, quadratic)
        if path is None:
            continue
        conductance = 1 / sum(1 / _weight(term, quadratic) for term in path)
        constant = _quadratic(anchor.factor, conductance, event) if quadratic else cross_entropy_constant(anchor.factor, conductance)
        if best is None or constant > best.constant:
            best = Chain(anchor, tuple(path), constant, quadratic)
    return best


def _quadratic(anchor: float, conductance: float, event: Event) -> float:
    """SE(p, onehot(y)) is at least 1/2 where p is wrong, and 1/4 where the label has half of the mass or less."""
    return (0.5 if event.kind == "error" else 0.25) / (1 / anchor + 1 / conductance)


def _weight(term: Term, quadratic: bool) -> float:
    return term.factor * (1.0 if quadratic else _PINSKER[term.e.op])


class _Points:
    """The points of one model, numbered."""

    def __init__(self, model: tuple[str, ...]) -> None:
        self.model = model
        self.known: dict[str, list[tuple[int, Typed]]] = {}
        self.count = 0

    def number(self, point: Typed) -> int:
        alike = self.known.setdefault(show(point), [])
        for n, other in alike:
            if same(point, other):
                return n
        alike.append((self.count, point))
        self.count += 1
        return self.count - 1

    def of(self, e: Typed) -> int | None:
        logits = prediction(e)
        return self.number(logits.args[0]) if logits is not None and logits.attrs == self.model else None


def _link(term: Term, nodes: _Points) -> tuple[int, int] | None:
    if term.factor <= 0 or term.e.op not in _PINSKER:
        return None
    a, b = (nodes.of(v) for v in term.e.args)
    return None if a is None or b is None or a == b else (a, b)


def _anchor(term: Term, nodes: _Points) -> int | None:
    """The point of a loss CE(prediction, y) or SE(prediction, onehot(y)); label smoothing does not count."""
    if term.factor <= 0 or term.e.op not in ("CE", "SE"):
        return None
    for one, other in (term.e.args, term.e.args[::-1]):
        if is_label(other) and (at := nodes.of(one)) is not None:
            return at
    return None


def _path(start: int, end: int, links: list[tuple[int, int, int, Term]], quadratic: bool) -> list[Term] | None:
    """The path of least resistance, by Dijkstra's rule; every link in either direction."""
    reached: dict[int, tuple[float, list[Term]]] = {start: (0.0, [])}
    done: set[int] = set()
    while True:
        open_points = [p for p in reached if p not in done]
        if not open_points:
            return None
        here = min(open_points, key=lambda p: reached[p][0])
        if here == end:
            return reached[end][1]
        done.add(here)
        length, path = reached[here]
        for _, a, b, term in links:
            there = b if a == here else a if b == here else None
            if there is None or there in done:
                continue
            longer = length + 1 / _weight(term, quadratic)
            if there not in reached or longer < reached[there][0]:
                reached[there] = (longer, [*path, term])
