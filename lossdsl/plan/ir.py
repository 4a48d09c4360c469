"""The plan: every computation of a training step as numbered instructions, every pass through the model among them.

An instruction computes one value from earlier ones. Values of kind Real, Logits, ... carry the axes (classes of a binder
or of a family) they range over besides the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from lossdsl.check.typed import Axis, TypedLevel, number_text
from lossdsl.lang.types import Kind
from lossdsl.source import NOWHERE, Span


@dataclass(frozen=True)
class Instr:
    """One computed value. `op` is a kernel of the engine; "forward" is a pass through the model, attrs (model, mode)."""

    id: int
    op: str
    args: tuple[int, ...]
    kind: Kind
    axes: tuple[Axis, ...] = ()
    attrs: tuple[Any, ...] = ()
    text: str = ""
    span: Span = NOWHERE
    gradient: str = ""
    """Of a forward pass: "parameters", "input" or "none": what its result is differentiated by."""

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal keys compute equal values."""
        return self.op, self.args, self.kind, self.axes, self.attrs

    @property
    def repeatable(self) -> bool:
        """Computing it again, or once instead of twice, changes nothing: no draw, no pass in a mode that draws or writes statistics."""
        return self.op != "draw" and not (self.op == "forward" and self.attrs[1] != "eval")


@dataclass(frozen=True)
class Code:
    """Instructions in order, and the ids of the values wanted from them."""

    instrs: tuple[Instr, ...] = ()
    results: tuple[int, ...] = ()

    def __iter__(self) -> Iterator[Instr]:
        return iter(self.instrs)

    def forwards(self) -> int:
        return sum(i.op == "forward" for i in self.instrs)


@dataclass(frozen=True)
class Solve:
    """One lower level: `before` once per batch, `start` once per restart, `body` once per update."""

    level: TypedLevel
    before: Code
    start: Code
    body: Code
    center: int
    radius: int
    classes: int | None = None
    """The classes of a family, computed in `before`."""
    captures: tuple[int, ...] = ()

    @property
    def runs(self) -> int:
        return self.level.solver.options.restarts

    @property
    def updates(self) -> int:
        return self.level.solver.options.steps * self.runs

    @property
    def evaluations(self) -> int:
        """Evaluations of the objective without gradient: of final points, where restarts or best iterates are compared."""
        options = self.level.solver.options
        return self.runs if self.runs > 1 or options.keep == "best" else 0


@dataclass(frozen=True)
class Upper:
    """The upper objective: `code.results` are the terms (to be added up), then the logged values."""

    code: Code
    terms: tuple[str, ...]
    logs: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """All of one training step (or of one attack suite, which has no upper level)."""

    name: str
    samples: Code
    solves: tuple[Solve, ...]
    upper: Upper | None

    def __str__(self) -> str:
        return render(self)

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return 1 + max((i.id for code in codes(self) for i in code), default=0)


def codes(plan: Plan) -> list[Code]:
    """Every piece of code, in the order of running."""
    found = [plan.samples]
    for solve in plan.solves:
        found += [solve.before, solve.start, solve.body]
    return [*found, plan.upper.code] if plan.upper else found


def writes_statistics(code: Code) -> bool:
    """Does the code hold a pass in train mode? (untracked passes put the statistics back)"""
    return any(i.op == "forward" and i.attrs[1] == "train" for i in code)


def map_codes(plan: Plan, change: Any) -> Plan:
    """The plan with `change(code, where)` applied to every piece of code, in the order of running."""
    samples = change(plan.samples, "samples")
    solves = []
    for s in plan.solves:
        before, start, body = change(s.before, "before"), change(s.start, "start"), change(s.body, "body")
        solves.append(replace(s, before=before, start=start, body=body))
    upper = replace(plan.upper, code=change(plan.upper.code, "upper")) if plan.upper else None
    return replace(plan, samples=samples, solves=tuple(solves), upper=upper)


def rename(plan: Plan, new: dict[int, int]) -> Plan:
    """Every use of a value replaced by another, where `new` says so."""

    def at(old: int) -> int:
        while old in new:
            old = new[old]
        return old

    def change(code: Code, where: str) -> Code:
        instrs = tuple(replace(i, args=tuple(map(at, i.args))) for i in code)
        return Code(instrs, tuple(map(at, code.results)))

    plan = map_codes(plan, change)
    solves = tuple(
        replace(s, center=at(s.center), radius=at(s.radius), classes=None if s.classes is None else at(s.classes)) for s in plan.solves
    )
    return replace(plan, solves=solves)


# --- cost ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Passes through the model in a step, each over one batch; per-class families count once per class, as multiples of `copies`."""

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

    add(plan.samples)
    for s in plan.solves:
        add(s.before)
        add(s.start, s.runs, s.level.axis)
        add(s.body, s.updates + s.evaluations, s.level.axis)
        counts.setdefault(copies_text(s.level.axis) if s.level.axis else "", [0, 0])[1] += s.updates
    if plan.upper:
        add(plan.upper.code)
    forward, backward = counts.pop("")
    return Cost(forward, backward, int(plan.upper is not None), tuple((name, f, b) for name, (f, b) in counts.items()))


# --- text ----------------------------------------------------------------------------------------------------------


def render(plan: Plan) -> str:
    """The plan as text, the same each time: values are numbered in the order they appear."""
    names: dict[int, str] = {}
    for code in codes(plan):
        for i in code:
            names[i.id] = f"%{len(names) + 1}"
    lines = [f"plan {plan.name}"]
    if plan.samples.instrs:
        lines += ["", "draw once per batch", *_lines(plan.samples, names)]
    for s in plan.solves:
        lines += ["", *_solve_lines(s, names)]
    if plan.upper:
        lines += ["", "upper", *_lines(plan.upper.code, names)]
        for term, result in zip(plan.upper.terms, plan.upper.code.results, strict=False):
            lines.append(f"  term {names[result]:<5} {term}")
        for log, result in zip(plan.upper.logs, plan.upper.code.results[len(plan.upper.terms) :], strict=False):
            lines.append(f"  log  {names[result]:<5} {log}")
        lines.append("  full backward")
    return "\n".join([*lines, "", str(cost(plan)), ""])


def _solve_lines(s: Solve, names: dict[int, str]) -> list[str]:
    level, solver = s.level, s.level.solver
    name = level.var + (f"[{level.axis.domain.text}]" if level.axis else "")
    lines = [
        f"solve {name} in {level.set.name}({names[s.center]}, {names[s.radius]})" + (" and the input domain" if level.set.boxed else "")
    ]
    if s.before.instrs:
        lines += ["  once per batch, without gradient", *_lines(s.before, names, 4)]
    own = "    the perturbations of the last batch" if solver.start_kind == "previous" else f"    the set's own {solver.start_kind} draw"
    start = own if not s.start.results else f"    start at {names[s.start.results[0]]}"
    projected = "" if solver.start_kind != "expression" else ", projected"
    lines += [f"  once per restart ({s.runs})", *_lines(s.start, names, 4), start + projected]
    shown = solver.options.model_dump(exclude={"steps", "restarts"})
    options = ", ".join(f"{k} = {v if isinstance(v, str) else number_text(v)}" for k, v in shown.items())
    lines += [f"  {solver.options.steps} updates by {solver.name}({options})", *_lines(s.body, names, 4)]
    lines.append(f"    input-backward of {names[s.body.results[0]]}, {level.sense}")
    if s.evaluations:
        lines.append(f"  the objective once more at {s.evaluations} final points")
    if s.captures:
        lines.append("  keep the iterates " + ", ".join(map(str, s.captures)))
    return lines


def _lines(code: Code, names: dict[int, str], indent: int = 2) -> list[str]:
    out = []
    for i in code:
        args = " ".join(names.get(a, f"?{a}") for a in i.args)
        head = f"{names[i.id]:<4} = {i.op}"
        attrs = " ".join(number_text(a) if isinstance(a, int | float) else str(a) for a in i.attrs)
        mark = f" gradient: {i.gradient}" if i.gradient else ""
        text = " ".join(part for part in (head, args, attrs) if part) + mark
        shown = i.text if len(i.text) <= 60 else i.text[:57] + "..."
        out.append(f"{' ' * indent}{text:<44} # {shown}".rstrip() if shown else " " * indent + text)
    return out
