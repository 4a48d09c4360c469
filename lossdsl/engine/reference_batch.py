"""The slow evaluator's forms that look at the whole batch, at missing labels, at sets and at generators."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lossdsl.check.typed import Typed
from lossdsl.diagnostics import UserError
from lossdsl.engine.formulas import REDUCTIONS, number, plain
from lossdsl.lang.types import CLASSES, Kind

if TYPE_CHECKING:
    from lossdsl.engine.reference import Rows, _Run

_PER_CLASS = ("class_mean", "class_sum")
_OVER_BATCH = (*_PER_CLASS, "batch_mean", "batch_sum")
_ARITHMETIC = ("add", "sub", "mul", "div", "pow", "neg", "if", "stop", "mode", "sqrt")


# --- vectors over the classes that the batch shares ---


def _counted(run: _Run, e: Typed, mode: str) -> list[list[int]]:
    """For every class the examples of the batch that count for it."""
    examples = run.rows(mode)
    holds = run.values(e.args[1], examples) if len(e.args) > 1 else [1] * len(examples.examples)
    return [[n for n in examples.examples if int(run.y[n]) == c and holds[n] != 0] for c in range(run.reference.num_classes)]


def class_vector(run: _Run, e: Typed, rows: Rows) -> list[Tensor]:
    """class_mean(e where c), class_sum(e where c)."""
    values = run.values(e.args[0], run.rows(rows.mode))
    entries = []
    for members in _counted(run, e, rows.mode):
        total = sum((values[n] for n in members), number(0))
        entries.append(total / max(len(members), 1) if e.op == "class_mean" else total)
    return [torch.stack(entries)] * len(rows.examples)


def _there(run: _Run, e: Typed, mode: str) -> set[int]:
    """The classes that a binder does not skip."""
    left = set(range(run.reference.num_classes))

    def visit(part: Typed, mode: str, inside: bool) -> None:
        if part.op in _PER_CLASS and inside:
            left.intersection_update(c for c, members in enumerate(_counted(run, part, mode)) if members)
        if part.op in _OVER_BATCH:
            return
        mode = part.attrs[0] if part.op == "mode" else mode
        own = part.op == "at" and part.args[1].op == "bound" and part.args[1].axis == e.axis
        passes = inside and part.op not in ("reduce", "at", "logits", "prob")
        for n, a in enumerate(part.args):
            visit(a, mode, passes or (own and n == 0))

    if e.attrs[0] != "sum":
        visit(e.args[0], mode, False)
    return left


def reduce(run: _Run, e: Typed, rows: Rows) -> list[Any]:
    """A binder over classes: its value is 0 where it has none, or where its header leaves out a missing label."""
    assert e.axis is not None
    name, k = e.attrs[0], run.reference.num_classes
    tables, there = run.domain(e.axis.domain, rows), _there(run, e, rows.mode)
    body = iter(run.values(e.args[0], rows.over(e.axis, tables)))
    lost = _lost(run, e, rows)
    found = []
    for classes, missing in zip(tables, lost, strict=True):
        values = [next(body) for _ in classes]
        kept = [] if missing else [n for n, c in enumerate(classes) if c in there]
        if kept:
            value = REDUCTIONS[name]([classes[n] for n in kept], [values[n] for n in kept], k)
            short = len(classes) - len(kept) if name == "sort" else 0
            found.append(torch.cat([value, value.new_zeros(short)]) if short else value)
        elif name in ("argmax", "argmin"):
            found.append(classes[0])
        else:
            size = {"softmax": k, "sort": len(classes)}.get(name)
            found.append(number(0) if size is None else torch.zeros(size, dtype=torch.float64))
    return found


# --- missing labels ---


def _lost(run: _Run, e: Typed, rows: Rows) -> list[bool]:
    """Where an operation takes a label that is missing."""
    if e.op == "reduce":
        domain = None if e.axis is None or e.kind is Kind.CLASS else e.axis.domain
        domain = domain.inner.domain if domain is not None and domain.inner is not None else domain
        labels = [] if domain is None or domain.expr is None else [domain.expr]
    else:
        labels = [a for a in e.args if a.kind in CLASSES]
    lost = [False] * len(rows.examples)
    for c in labels:
        lost = [before or v < 0 for before, v in zip(lost, run.values(c, rows), strict=True)]
    return lost


def _lost_inside(run: _Run, e: Typed, rows: Rows) -> list[bool]:
    if e.op in ("at", "reduce"):
        return _lost(run, e, rows)
    parts = [_lost_inside(run, a, rows) for a in e.args] if e.op in _ARITHMETIC else []
    return [any(row) for row in zip(*parts, strict=True)] if parts else [False] * len(rows.examples)


def or_nothing(run: _Run, e: Typed, rows: Rows, found: Any) -> list[Any]:
    """The values of an operation that takes a label, 0 where it is missing."""
    return [number(0) if gone else v for v, gone in zip(found, _lost(run, e, rows), strict=True)]


def logarithm(run: _Run, e: Typed, rows: Rows) -> Any:
    """0 where the number holds an entry or a binder that takes a missing label."""
    value = run.value(e.args[0], rows)
    if isinstance(value, Tensor):
        return torch.log(value)
    lost = _lost_inside(run, e.args[0], rows)
    return [torch.zeros_like(v) if gone else torch.log(v) for v, gone in zip(value, lost, strict=True)]


# --- sets ---


def _sets(run: _Run, e: Typed, rows: Rows) -> list[tuple[Tensor, Tensor, float, Any, Any]]:
    """Per row the point, the centre, the radius, and the ends of the input domain (None for a set of perturbations)."""
    points, centers, radii = (run.values(a, rows) for a in e.args)
    low, high = run.reference.typed.domain if "boxed" in e.attrs and run.reference.typed.domain else (None, None)
    out = []
    for v, c, r in zip(points, centers, radii, strict=True):
        center = c if e.args[1].kind is Kind.INPUT else torch.zeros_like(v)
        ends = [end if end is None else torch.as_tensor(end, dtype=v.dtype) for end in (low, high)]
        ends = [end.reshape(-1, *(1,) * (v.dim() - 1)) if end is not None and end.dim() else end for end in ends]
        out.append((v, center, r, *(None if end is None else end.expand_as(v) for end in ends)))
    return out


def _shrunk(name: str, v: Tensor, c: Tensor, by: float) -> Tensor:
    """The unconstrained minimiser of |u - v|^2 / 2 + by * (|u - c|_1, or |u - c|_2^2 / 2)."""
    d = v - c
    return c + (d / (1 + by) if name == "l2" else torch.sign(d) * (d.abs() - by).clamp_min(0))


def project(run: _Run, e: Typed, rows: Rows) -> list[Tensor]:
    """linf: the two clips. l2 and l1: the multiplier of the ball by bisection; only their value."""
    name, found = e.attrs[0], []
    for v, c, r, low, high in _sets(run, e, rows):

        def boxed(u: Tensor, low: Any = low, high: Any = high) -> Tensor:
            return u if low is None else torch.minimum(torch.maximum(u, low), high)

        if name == "linf":
            found.append(torch.minimum(torch.maximum(v, boxed(c - r)), boxed(c + r)))
            continue
        if v.requires_grad or c.requires_grad:
            raise UserError("the reference evaluator has no derivative of this projection", where=e.attrs[0])

        def size(u: Tensor, c: Tensor = c) -> float:
            return plain((u - c).abs().sum() if name == "l1" else (u - c).square().sum().sqrt())

        least, most = 0.0, 1e9
        if size(boxed(v)) <= r:
            most = 0.0
        for _ in range(200):
            middle = (least + most) / 2
            least, most = (middle, most) if size(boxed(_shrunk(name, v, c, middle))) > r else (least, middle)
        found.append(boxed(_shrunk(name, v, c, most)))
    return found


def interior(run: _Run, e: Typed, rows: Rows) -> list[Tensor]:
    """1 where the coordinate can move both ways."""
    found = []
    for v, c, r, low, high in _sets(run, e, rows):
        d = (v - c).detach().abs()
        free = d < r if e.attrs[0] == "linf" else ((d.sum() if e.attrs[0] == "l1" else d.square().sum().sqrt()) < r).expand_as(v)
        if low is not None:
            free = free & (v > low) & (v < high)
        found.append(free.double())
    return found


# --- generators ---


def bregman(run: _Run, e: Typed, rows: Rows) -> list[Tensor]:
    """psi(p) - psi(q) - <grad psi(q), p - q>, with autograd's gradient."""
    p, q, psi = e.args
    leaf = e.attrs[:-1]

    def at(v: Tensor) -> Tensor:
        one = replace(run.rows(rows.mode), examples=[0], leaves={leaf: [v]})
        value: Tensor = run.values(psi, one)[0]
        return value

    found = []
    for first, second in zip(run.values(p, rows), run.values(q, rows), strict=True):
        point = second if second.requires_grad else second.detach().requires_grad_()
        value = at(point)
        slope = torch.autograd.grad(value, point, create_graph=True)[0]
        found.append(at(first) - value - (slope * (first - point)).sum())
    return found
