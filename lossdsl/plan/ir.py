"""The plan: every computation of a training step as numbered instructions, every pass through the model among them.

An instruction computes one value from earlier ones. Values of kind Real, Logits, ... carry the axes (classes of a binder
or of a family) they range over besides the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from lossdsl.check.typed import Axis, TypedFind, TypedLevel
from lossdsl.lang.search_options import SearchOptions
from lossdsl.lang.types import Kind
from lossdsl.source import NOWHERE, Span


@dataclass(frozen=True)
class Instr:
    """One computed value. `op` is a kernel of the engine; "forward" is a pass through a model, attrs (model, mode) or, at
    other weights, (f, mode, weights)."""

    id: int
    op: str
    args: tuple[int, ...]
    kind: Kind
    axes: tuple[Axis, ...] = ()
    attrs: tuple[Any, ...] = ()
    text: str = ""
    span: Span = NOWHERE
    gradient: str = ""
    """What the result is differentiated by: "parameters", "input" or "none" (forward passes), "graph" (a gradient that is differentiated
    again) or "value" (one that is not). Other instructions: "input" between the point of a gradient and its body."""

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
    step: int | None = None
    """A step per example, computed in `before`."""
    until: int | None = None
    """The number of further updates of a fooled example, computed in `before`."""
    noise: Code = Code()
    """Drawn once per update."""
    facts: bool = False
    """The second result of `body` says whether the point is misclassified."""
    stops: bool = False
    """Of an attack: an example is done at its first success."""
    optimality: Code = Code()
    """For an implicit gradient: the objective once more, differentiable in the variable and in the parameters."""
    fused: bool = False
    """The last update takes its gradient from the upper level's backward pass."""

    @property
    def var(self) -> str:
        return self.level.var

    @property
    def mode(self) -> str:
        return self.level.mode

    @property
    def axis(self) -> Axis | None:
        return self.level.axis

    @property
    def through(self) -> str:
        return self.level.through.kind if self.level.through else ""

    @property
    def runs(self) -> int:
        options: Any = self.level.through.options if self.level.through else None
        return int(options.starts) if self.through == "danskin" else self.level.solver.options.restarts

    @property
    def updates(self) -> int:
        """Those that make passes of their own."""
        return self.level.solver.options.updates * self.runs - self.fused

    @property
    def evaluations(self) -> int:
        """Evaluations of the objective without gradient: of final points, where restarts or best iterates are compared; of points tried."""
        options = self.level.solver.options
        if isinstance(options, SearchOptions):
            return self.runs * options.looks
        return self.runs if (self.runs > 1 and self.through != "danskin") or options.keep == "best" else 0

    @property
    def backwards(self) -> int:
        """Input-backward passes: at most one for every update; an attack that looks at every class takes one for each."""
        return 0 if self.level.solver.name == "square" else self.updates

    def with_codes(self, change: Any) -> Solve:
        """The level with every piece of its code changed, in the order of running."""
        before, start, noise = change(self.before, "before"), change(self.start, "start"), change(self.noise, "noise")
        body, optimality = change(self.body, "body"), change(self.optimality, "optimality")
        return replace(self, before=before, start=start, noise=noise, body=body, optimality=optimality)

    def renamed(self, at: Any) -> Solve:
        def maybe(value: int | None) -> int | None:
            return None if value is None else int(at(value))

        ends: dict[str, Any] = {"classes": maybe(self.classes), "step": maybe(self.step), "until": maybe(self.until)}
        return replace(self, center=at(self.center), radius=at(self.radius), **ends)


@dataclass(frozen=True)
class Find:
    """A root search per example: `before` once per batch, `body` once per evaluation."""

    stage: TypedFind
    before: Code
    body: Code
    low: int
    high: int
    start: Code = Code()

    @property
    def var(self) -> str:
        return self.stage.var

    @property
    def mode(self) -> str:
        return self.stage.mode

    @property
    def axis(self) -> Axis | None:
        return None

    @property
    def steps(self) -> int:
        options: Any = self.stage.options
        return int(options.steps)

    @property
    def runs(self) -> int:
        return 0

    @property
    def updates(self) -> int:
        return self.steps + 2

    @property
    def evaluations(self) -> int:
        return 0

    @property
    def backwards(self) -> int:
        return 0

    def with_codes(self, change: Any) -> Find:
        return replace(self, before=change(self.before, "before"), body=change(self.body, "body"))

    def renamed(self, at: Any) -> Find:
        return replace(self, low=at(self.low), high=at(self.high))


@dataclass(frozen=True)
class Upper:
    """The upper objective: `code.results` are the terms (to be added up), then the logged values, then the new values of states."""

    code: Code
    terms: tuple[str, ...]
    logs: tuple[str, ...]
    states: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """All of one training step (or of one attack suite, which has no upper level)."""

    name: str
    samples: Code
    solves: tuple[Solve | Find, ...]
    upper: Upper | None
    inits: Code = Code()
    """The first values of states, in their order."""
    sampling: Code = Code()
    """The law of the classes that a batch is drawn from."""
    joint: bool = False
    """All points of the upper level in one forward pass."""

    def __str__(self) -> str:
        from lossdsl.plan.text import render

        return render(self)

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return 1 + max((i.id for code in codes(self) for i in code), default=0)


def codes(plan: Plan) -> list[Code]:
    """Every piece of code, in the order of running."""
    found: list[Code] = []

    def note(code: Code, where: str) -> Code:
        found.append(code)
        return code

    map_codes(plan, note)
    return found


def writes_statistics(code: Code) -> bool:
    """Does the code hold a pass in train mode? (untracked passes put the statistics back)"""
    return any(i.op == "forward" and i.attrs[1] == "train" for i in code)


def map_codes(plan: Plan, change: Any) -> Plan:
    """The plan with `change(code, where)` applied to every piece of code, in the order of running."""
    samples, inits = change(plan.samples, "samples"), change(plan.inits, "inits")
    solves = tuple(s.with_codes(change) for s in plan.solves)
    upper = replace(plan.upper, code=change(plan.upper.code, "upper")) if plan.upper else None
    sampling = change(plan.sampling, "sampling")
    return replace(plan, samples=samples, inits=inits, solves=solves, upper=upper, sampling=sampling)


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
    return replace(plan, solves=tuple(s.renamed(at) for s in plan.solves))
