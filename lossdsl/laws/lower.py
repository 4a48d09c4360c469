"""Expressions of a law to closures of the engine: the plan's lowering and the recipes' kernels, one row per assignment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lossdsl.check.gradients import substituted
from lossdsl.check.law_typed import TypedLaw
from lossdsl.check.typed import Typed
from lossdsl.engine.closures import Closure, Frame, Values
from lossdsl.engine.modes import Modes
from lossdsl.lang.types import Kind
from lossdsl.plan.expressions import Emitter
from lossdsl.plan.gradients import mark_gradients
from lossdsl.plan.ir import Code, Instr, Plan, Upper, codes
from lossdsl.plan.pipeline import verify
from lossdsl.plan.prune import prune
from lossdsl.plan.share import share
from lossdsl.plan.simplify import simplify
from lossdsl.solve import Domain
from lossdsl.source import Source

NEARLY = {"zero": 2.0**-20, "infinity": 2.0**40}
"""Where float64 looks at a limit; the exact evaluator goes further."""


class Piece:
    """Several expressions as one closure: `run(frame)` gives their values, [B] or wider, and the largest intermediate number per row."""

    def __init__(self, name: str, expressions: Sequence[Typed], source: Source) -> None:
        code = Emitter([0])
        results = tuple(code.linear(_near(e), "eval") for e in expressions)
        upper = Upper(Code(tuple(code.instrs), results), ("",) * len(results), ())
        plan = Plan(name, Code(), (), upper)
        for change in (simplify, share, prune, mark_gradients):
            plan = change(plan)
            verify(plan)
        assert plan.upper is not None
        kinds: dict[int, Instr] = {i.id: i for piece in codes(plan) for i in piece}
        self._closure = Closure(plan.upper.code, kinds, lambda i: source.where(i.span))
        self._size = plan.size

    @property
    def length(self) -> int:
        """How many instructions it has."""
        return len(self._closure.steps)

    def run(self, frame: Frame) -> list[Tensor]:
        return self._results(frame, self._filled(frame))

    def run_with_size(self, frame: Frame) -> tuple[list[Tensor], Tensor]:
        """The values, and per row the largest finite number met on the way, [B]."""
        values = self._filled(frame)
        rows = len(frame.x)
        largest = frame.x.new_ones(rows)
        for v in values:
            if isinstance(v, Tensor) and v.dtype == torch.float64 and v.dim() and len(v) == rows:
                sizes = v.detach().abs().reshape(rows, -1)
                largest = torch.maximum(largest, torch.where(sizes.isfinite(), sizes, 0.0).amax(1))
        return self._results(frame, values), largest

    def _filled(self, frame: Frame) -> Values:
        values: Values = [None] * self._size
        self._closure.run(frame, values)
        return values

    def _results(self, frame: Frame, values: Values) -> list[Tensor]:
        found = [frame.tensor(values[r]) for r in self._closure.results]
        return [v.expand(len(frame.x)) if v.dim() == 0 else v for v in found]


def _near(e: Typed) -> Typed:
    """Limits at a point near their end, with the first-order error cancelled where the end is 0."""

    def visit(node: Typed, done: dict[int, Typed]) -> Typed:
        if id(node) not in done:
            args = tuple(visit(a, done) for a in node.args)
            same = all(a is b for a, b in zip(args, node.args, strict=True))
            found = node if same else replace(node, args=args)
            done[id(node)] = _at_limit(found) if node.op == "limit" else found
        return done[id(node)]

    return visit(e, {})


def _at_limit(e: Typed) -> Typed:
    near = NEARLY[e.attrs[2]]

    def at(value: float) -> Typed:
        number = Typed("number", (), Kind.CONST, e.span, value=value, low=value, high=value)
        return substituted(e.args[0], lambda n: n.op == "vanishing" and n.attrs == e.attrs, number)

    if e.attrs[2] == "infinity":
        return at(near)
    two = Typed("number", (), Kind.CONST, e.span, value=2.0)
    twice = Typed("mul", (two, at(near / 2)), Kind.REAL, e.span)
    return Typed("sub", (twice, at(near)), Kind.REAL, e.span)


def frame_of(law: TypedLaw, rows: int) -> Frame:
    """A frame without values: they are put in by the domains, in the order of declaration."""
    blank = torch.zeros(rows, 1, dtype=torch.float64)
    domain = Domain(*law.domain)
    return Frame(blank, torch.zeros(rows, dtype=torch.long), nn.Identity(), Modes(), max(law.classes, 1), domain)
