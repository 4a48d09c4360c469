"""What a plan costs: its passes through the model, counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lossdsl.check.typed import Axis
from lossdsl.lang.types import Kind
from lossdsl.plan.gradients import depending
from lossdsl.plan.ir import Code, Plan, Solve


@dataclass(frozen=True)
class Cost:
    """Passes through the model in a step, each over one batch; per-class families count once per class, as multiples of `copies`.

    A joint pass over several points counts once. The most that a step takes: none of its solvers stops early.
    """

    forward: int
    input_backward: int
    full_backward: int
    copies: tuple[tuple[str, int, int], ...] = ()
    """Per family: the number of classes ("K - 1"), forward and input-backward passes over that many batches."""

    def __str__(self) -> str:
        forward = _plural(self.forward, "forward pass", self.copies, 1)
        backward = _plural(self.input_backward, "input-backward pass", self.copies, 2)
        return f"cost: {forward}, {backward}, {_plural(self.full_backward, 'full backward pass', (), 0)}"


def _plural(count: int, what: str, copies: tuple[tuple[str, int, int], ...], column: int) -> str:
    parts = [str(count)] if count or not any(c[column] for c in copies) else []
    parts += [f"{c[column]}*({c[0]})" for c in copies if c[column]]
    return f"{' + '.join(parts)} {what}{'' if parts == ['1'] else 'es'}"


def copies_text(axis: Axis) -> str:
    return {"all": "K", "not": "K - 1", "top": str(axis.domain.size)}[axis.domain.kind]


def cost(plan: Plan) -> Cost:
    """Count the passes a plan makes."""
    counts: dict[str, list[int]] = {"": [0, 0]}

    def add(code: Code, times: int = 1, over: Axis | None = None) -> None:
        for i in code:
            if i.op == "forward":
                axes = (*i.axes, *([over] if over else []))
                name = " * ".join(f"({copies_text(a)})" if len(axes) > 1 else copies_text(a) for a in axes)
                counts.setdefault(name, [0, 0])[0] += times
            if i.op == "grad" and i.kind is not Kind.VECTOR:  # a generator's gradient takes no pass
                counts[""][1] += times

    add(plan.samples)
    full = branches(plan) * (1 + sum(i.op == "grad_theta" for i in plan.upper.code)) if plan.upper else 0
    for s in plan.solves:
        add(s.before)
        add(s.start, s.runs, s.axis)
        add(s.body, s.updates + s.evaluations, s.axis)
        if not isinstance(s, Solve):
            continue
        if s.level.set.over == "weights":
            full += s.updates
        elif s.level.set.over == "input":
            counts.setdefault(copies_text(s.axis) if s.axis else "", [0, 0])[1] += s.backwards if _passes(s.body, s.var) else 0
        add(s.optimality)
        counts[""][1] += _implicit(s)
    if plan.upper:
        add(plan.upper.code, branches(plan))
    forward, backward = counts.pop("")
    return Cost(forward, backward, full, tuple((name, f, b) for name, (f, b) in counts.items()))


def _passes(code: Code, var: str) -> bool:
    """Whether the model lies between the variable and what is computed from it: not where the objective is linearised."""
    below = depending(code, var)
    return any(i.op == "forward" and i.id in below for i in code)


def _implicit(s: Solve) -> int:
    """Of the upper objective to the solution, and through the optimality conditions: their slope, and its products with vectors."""
    if s.through != "implicit" or s.level.through is None:
        return 0
    options: Any = s.level.through.options
    return 1 + (1 + int(options.steps) if _passes(s.optimality, s.var) else 0)


def branches(plan: Plan) -> int:
    """How often the upper level is evaluated: once, or once per maximiser that danskin keeps."""
    return max((s.runs for s in plan.solves if isinstance(s, Solve) and s.through == "danskin"), default=1)
