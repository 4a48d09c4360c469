"""The typed recipe: every name resolved, every def and let put in its place, every expression with its type and facts.

Expressions form a graph: a `let` used twice is one node with two parents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any

from lossdsl.lang.options import Options
from lossdsl.lang.search_options import SearchOptions
from lossdsl.lang.specs import SETS, OptimizerSpec, SolverOptions, TrainOptions
from lossdsl.lang.types import Kind
from lossdsl.source import NOWHERE, Span


@dataclass(frozen=True, eq=False)
class Typed:
    """One typed expression.

    `op` is a row of the table of operations or one of the core forms:

    ======================  ==========================================================================================
    number                  a fixed number, `value`
    input, label, classes   `x`, `y`, the number K
    point                   a lower variable, attrs (name,); with `@k`: attrs (name, k)
    pick                    one member of a family, args (family point, class)
    sample                  a draw declared by `sample`, attrs (name,)
    state                   the value of a `state` or `memory` at the start of the step, attrs (name,)
    found                   the number per example of a `find`, attrs (name,)
    draw                    a draw inside a start, attrs (distribution,), args its numbers or its set's centre and radius
    logits, prob            the model at a point; softmax of logits. logits attrs: () the trained model, (g,) model g, (f, w) at weights w
    apply                   a model of a game at a point, attrs (name,)
    weights                 the parameters of f, attrs (theta,) or the lower variable (w,)
    grad, leaf              gradient per example, args (point, body), attrs (leaf,); the point inside the body, attrs (leaf,)
    grad_theta              gradient of the batch mean by the parameters of f, args (body,)
    mix                     (1 - a) P + a Q as a Prob, args (a, P, Q)
    at                      v[c], args (vector, class); `nth`: sorted vector, attrs (n,)
    add sub mul div pow neg not and or lt le gt ge eq ne if
    reduce                  a binder over classes, attrs (name,), args (body,), `axis`
    bound                   the class a binder or a family is at, `axis`
    fact                    fooled, survived, first_fooled: attrs (fact, level), args () or of a family (member,)
    bregman                 args (p, q, what the generator must be differentiated for), attrs (*leaf, generator)
    stop                    a constant from here on
    mode                    args (body,), attrs (mode,): `with f in mode`
    ======================  ==========================================================================================
    """

    op: str
    args: tuple[Typed, ...]
    kind: Kind
    span: Span = NOWHERE
    attrs: tuple[Any, ...] = ()
    value: float | int | None = None
    axis: Axis | None = None
    depends: frozenset[str] = frozenset()
    """"theta", "random", "batch" (other examples), the names of lower variables, and "@n" for the class of the n-th open binder."""
    low: float = -inf
    high: float = inf
    family: Domain | None = None
    """Of a lower variable with one member per class: the classes. Of a Class: the classes it is one of."""
    written: str | tuple[str, tuple[Typed, ...]] | None = field(default=None, compare=False)
    """Of a number: its digits in the text, or the operation and the numbers that it was folded from. Without rounding, unlike `value`."""


@dataclass(frozen=True)
class Domain:
    """The classes a binder runs over: "all" of them, all but one ("not"), or the "top" few by score."""

    kind: str
    text: str = field(compare=False)
    key: int = 0
    """Tells domains of one kind apart: equal keys are equal classes left out."""
    expr: Typed | None = field(default=None, compare=False)
    """not: the class left out; top: the score of class `bound` on `inner`."""
    size: int | None = None
    inner: Axis | None = field(default=None, compare=False)

    @property
    def depends(self) -> frozenset[str]:
        """What the choice of the classes depends on."""
        own = self.expr.depends if self.expr is not None else frozenset()
        return own if self.inner is None else (own | self.inner.domain.depends) - {f"@{self.inner.depth}"}


@dataclass(frozen=True)
class Axis:
    """A dimension over the classes of a domain; `depth` tells nested binders apart (0: a family's own index)."""

    depth: int
    domain: Domain


OWN, INNER = 90, 50
"""Depths of binders that may stand inside any others: those of a generator, and the class that the score of `top` speaks of (one number,
so that equal headers are equal wherever they stand)."""


def walk(e: Typed) -> list[Typed]:
    """The expression and its parts, each once; not what headers choose their classes by."""
    seen: dict[int, Typed] = {}
    stack = [e]
    while stack:
        part = stack.pop()
        if id(part) not in seen:
            seen[id(part)] = part
            stack.extend(part.args)
    return list(seen.values())


@dataclass(frozen=True)
class TypedSet:
    name: str
    center: Typed
    radius: Typed
    boxed: bool
    """Intersected with the input domain: the centre depends on x."""
    span: Span = NOWHERE
    only: str = "all"
    """Of a set of weights: "all" tensors, or "matrices" (those with at least two dimensions)."""

    @property
    def over(self) -> str:
        """What the points are: "input", "weights" or "classes"."""
        return "weights" if self.center.kind is Kind.WEIGHTS else SETS[self.name].over


@dataclass(frozen=True)
class SolverSpec:
    """A solver, its validated options (numbers), and its start expression (None for the set's own draws: see `start_kind`)."""

    name: str
    options: SolverOptions | SearchOptions
    start: Typed
    start_kind: str
    """An "expression" (projected on the set) or "raw"; a draw from the set: "uniform", "corner", "sphere"; "previous": the last batch's;
    "own": as the solver's authors start."""
    span: Span = NOWHERE
    step: Typed | None = None
    """A step per example, in place of that of the options."""
    at: Typed | None = None
    """Of prox: the point whose gradient step is projected."""
    noise: Typed | None = None
    """Drawn anew in every update and added before the projection."""
    until: Typed | None = None
    """FAT's tau: an example leaves at the first check where it is misclassified and has used up this many further updates."""


@dataclass(frozen=True)
class Through:
    """How the upper gradient passes a lower level: "implicit", "unrolling" or "danskin"."""

    kind: str
    options: Options
    span: Span = NOWHERE


@dataclass(frozen=True)
class TypedLevel:
    var: str
    axis: Axis | None
    set: TypedSet
    sense: str
    objective: Typed
    solver: SolverSpec
    mode: str
    span: Span
    run: str | None = None
    through: Through | None = None

    @property
    def expressions(self) -> tuple[Typed, ...]:
        """Everything the level is made of."""
        solver, domain = self.solver, self.axis.domain if self.axis else None
        parts = (self.set.center, self.set.radius, self.objective, solver.start, solver.step, solver.at, solver.noise, solver.until)
        return tuple(e for e in (*parts, domain.expr if domain else None) if e is not None)


@dataclass(frozen=True)
class TypedFind:
    """A root per example: the number in [low, high] where `value` is 0."""

    var: str
    low: Typed
    high: Typed
    value: Typed
    options: Options
    mode: str
    span: Span
    axis: Axis | None = None
    run: str | None = None

    @property
    def expressions(self) -> tuple[Typed, ...]:
        return self.low, self.high, self.value


@dataclass(frozen=True)
class TypedState:
    """A number or class vector that lives across batches, or with `per_example` one number per training example."""

    name: str
    init: Typed
    update: Typed
    per_example: bool
    mode: str | None
    span: Span


@dataclass(frozen=True)
class TypedSample:
    name: str
    draw: Typed
    over: str
    span: Span


@dataclass(frozen=True)
class TypedRecipe:
    """A recipe (or attack suite, with `count` and no upper level) ready for the planner."""

    kind: str
    name: str
    title: str
    source: str
    params: dict[str, float | int]
    samples: tuple[TypedSample, ...]
    stages: tuple[TypedLevel | TypedFind, ...]
    """Lower levels and root searches in the order of running."""
    objective: Typed | None
    logs: tuple[tuple[str, Typed], ...]
    optimizer: OptimizerSpec | None
    train: TrainOptions | None
    domain: tuple[Any, Any] | None
    count: str | None = None
    models: dict[str, bool] = field(default_factory=dict)
    """Every other model, and whether it is frozen."""
    optimizers: dict[str, OptimizerSpec] = field(default_factory=dict)
    """Optimizers of other models, by model."""
    states: tuple[TypedState, ...] = ()
    at: str | None = None
    """The weights the upper level is taken at: a lower variable."""
    mode: str = "train"
    """Of the upper level: "train", or "untracked" (running statistics are put back)."""
    joint: bool = False
    """All points of the upper level in one batch."""
    sampler: Typed | None = None
    """The law of the classes that a batch is drawn from."""

    @property
    def levels(self) -> tuple[TypedLevel, ...]:
        return tuple(s for s in self.stages if isinstance(s, TypedLevel))


_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "pow": "^",
    "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=", "and": "and", "or": "or",
}  # fmt: skip
_TIGHT = {
    "or": 1,
    "and": 2,
    "lt": 4,
    "le": 4,
    "gt": 4,
    "ge": 4,
    "eq": 4,
    "ne": 4,
    "add": 5,
    "sub": 5,
    "mul": 6,
    "div": 6,
    "neg": 7,
    "pow": 8,
}


SHOWN = 240
"""Longest text of an expression; lets that use lets double it at every step."""


def show(e: Typed) -> str:
    """The expression as text, the same each time, with lets and defs written out; cut with ... when it grows too long."""
    return _show(e, 0)


def same(a: Typed, b: Typed) -> bool:
    """Do two expressions say the same, word for word?"""
    return _same(a, b, {})


def _same(a: Typed, b: Typed, seen: dict[tuple[int, int], bool]) -> bool:
    if a is b:
        return True
    pair = (id(a), id(b))
    if pair not in seen:
        alike = (a.op, a.kind, a.attrs, a.value, a.axis, len(a.args)) == (b.op, b.kind, b.attrs, b.value, b.axis, len(b.args))
        seen[pair] = alike and all(_same(p, q, seen) for p, q in zip(a.args, b.args, strict=True))
    return seen[pair]


def _show(e: Typed, outer: int) -> str:
    rank = _TIGHT.get(e.op, 9)
    text = e.__dict__.get("_shown")
    if text is None:
        text = _text(e, rank)
        text = text if len(text) <= SHOWN else text[: SHOWN - 3].rstrip(".") + "..."
        object.__setattr__(e, "_shown", text)
    return f"({text})" if rank < outer else text


def _text(e: Typed, rank: int) -> str:
    if e.op in _INFIX:
        left, right = (rank + 1, rank) if e.op == "pow" else (rank, rank + 1)
        return f"{_show(e.args[0], left)} {_INFIX[e.op]} {_show(e.args[1], right)}"
    writer = _WRITERS.get(e.op)
    if writer:
        return writer(e)
    args = ", ".join(show(a) for a in e.args)
    if e.op in ("KL", "JS", "TV"):
        args = " || ".join(show(a) for a in e.args)
    return f"{e.op}({args})"


def number_text(value: float | int) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _point_text(e: Typed) -> str:
    name = e.attrs[0] + (f"[{e.family.text}]" if e.family else "")
    return name if len(e.attrs) == 1 else f"{name}@{e.attrs[1]}"


def _pick_text(e: Typed) -> str:
    family, index = e.args
    name = f"{family.attrs[0]}[{show(index)}]"
    return name if len(family.attrs) == 1 else f"{name}@{family.attrs[1]}"


def _draw_text(e: Typed) -> str:
    args = ", ".join(show(a) for a in e.args)
    return f"{e.attrs[0]}({e.attrs[1]}({args}))" if len(e.attrs) > 1 else f"{e.attrs[0]}({args})"


def _logits_text(e: Typed, name: str = "f") -> str:
    which = e.attrs[0] if e.attrs else "f"
    weights = "{" + e.attrs[1] + "}" if len(e.attrs) > 1 else ""
    model = name if which == "f" else f"p[{which}]" if name == "p" else which
    return f"{model}{weights}({show(e.args[0])})"


def _prob_text(e: Typed) -> str:
    inner = e.args[0]
    if inner.op == "logits":
        return _logits_text(inner, "p")
    return f"softmax({show(inner)})"


def _grad_text(e: Typed) -> str:
    name, point = e.attrs[0], show(e.args[0])
    return f"grad({name if name == point else f'{name} = {point}'}: {show(e.args[1])})"


def bound_name(axis: Axis) -> str:
    return {0: "j", OWN: "k", INNER: "i"}.get(axis.depth) or "j" + str(axis.depth)


def _header(axis: Axis) -> str:
    return axis.domain.text.replace("j", bound_name(axis), 1)


_WRITERS: dict[str, Callable[[Any], str]] = {
    "number": lambda e: number_text(e.value),
    "input": lambda e: "x",
    "label": lambda e: "y",
    "classes": lambda e: "K",
    "point": _point_text,
    "pick": _pick_text,
    **dict.fromkeys(("sample", "state", "found", "weights", "leaf"), lambda e: e.attrs[0]),
    "grad": _grad_text,
    "grad_theta": lambda e: f"grad(theta: {show(e.args[0])})",
    "draw": _draw_text,
    "logits": _logits_text,
    "apply": lambda e: f"{e.attrs[0]}({show(e.args[0])})",
    "prob": _prob_text,
    "mix": lambda e: f"mix({', '.join(show(a) for a in e.args)})",
    "at": lambda e: f"{_show(e.args[0], 9)}[{show(e.args[1])}]",
    "nth": lambda e: f"{_show(e.args[0], 9)}[{e.attrs[0]}]",
    "neg": lambda e: f"-{_show(e.args[0], 7)}",
    "not": lambda e: f"not({show(e.args[0])})",
    "reduce": lambda e: f"{e.attrs[0]}({_header(e.axis)}: {show(e.args[0])})",
    "bound": lambda e: bound_name(e.axis),
    "fact": lambda e: f"{e.attrs[0]}({show(e.args[0]) if e.args else e.attrs[1]})",
    "mode": lambda e: f"[{show(e.args[0])} with f in {e.attrs[0]}]",
    "bregman": lambda e: f"D[{e.attrs[-1]}]({show(e.args[0])} || {show(e.args[1])})",
    **dict.fromkeys(("project", "interior"), lambda e: f"{e.op}({show(e.args[0])}, {e.attrs[0]}({show(e.args[1])}, {show(e.args[2])}))"),
}
