"""The slow and obvious evaluator: what an expression means, as one would write it down from the language page.

It is the oracle against which the compiler is tested, and shares no code with it: it walks the typed graph itself (never the
plan), in float64 on the CPU, with textbook formulas, one example and one class after the other.

A value for the whole batch is a list with one entry per example (a 0-d tensor for Real, [K] for Logits, Prob and Vector,
[*shape] for Input, an int for Label and Class), or one 0-d tensor for a Const. A Prob is the probabilities themselves.
A binder over n classes evaluates its body on a batch n times as large: every example once per class.

f(v) is run on the whole stacked batch at every occurrence, in the mode of the place; modes are restored module by module, and
buffers (running statistics) are never written.

Gradients are autograd's through the formulas, with the conventions of the language: lower solutions and `stop` are constants;
comparisons, sign, argmax, argmin, onehot and error have none; `if` has that of the branch taken; cos has none if a vector is
zero; unit, norm and sqrt have none at 0, abs and relu none at their kink. Where several values tie, max, min, sort and
norm(v, inf) pass the gradient to the lowest class or index, and max(a, b), min(a, b) to their first argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lossdsl.check.typed import Axis, Domain, Typed, TypedFind, TypedLevel, TypedRecipe, show
from lossdsl.diagnostics import UserError
from lossdsl.engine import reference_batch, reference_models
from lossdsl.engine.formulas import FORMULAS, Formula, cross_entropy, number, plain, softmax
from lossdsl.lang.types import CLASSES, Kind

Value = list[Any] | Tensor


# --- where an expression is evaluated ---


@dataclass(frozen=True)
class Rows:
    """The problems side by side: which example of the batch each row is, and the class every open binder is at in it."""

    examples: list[int]
    mode: str
    classes: Mapping[Axis, list[int]] = field(default_factory=dict)
    own: tuple[str, list[Tensor]] | None = None
    """Inside a level's objective: its variable, and its value in each row."""
    leaves: Mapping[tuple[Any, ...], list[Tensor]] = field(default_factory=dict)
    """Variables that an expression is differentiated by, with their value in each row."""

    def over(self, axis: Axis, table: list[list[int]]) -> Rows:
        """Every row once per class, the classes of a row next to each other."""
        rows = [r for r, classes in enumerate(table) for _ in classes]
        inner = {a: [c[r] for r in rows] for a, c in self.classes.items()} | {axis: [c for classes in table for c in classes]}
        own = self.own and (self.own[0], [self.own[1][r] for r in rows])
        leaves = {key: [v[r] for r in rows] for key, v in self.leaves.items()}
        return Rows([self.examples[r] for r in rows], self.mode, inner, own, leaves)

    def spread(self, value: Value) -> list[Any]:
        """One entry per row; a Const is the same in each."""
        return value if isinstance(value, list) else [value] * len(self.examples)


@dataclass(frozen=True)
class _Run:
    """One evaluation: a batch, its lower solutions and samples."""

    reference: Reference
    x: Tensor
    y: Tensor
    solutions: Mapping[str, Tensor]
    at: str | None = None
    """The weights that f means; None: theta."""
    moving: Mapping[str, Tensor] = field(default_factory=dict)
    """Inside a level over weights or the simplex: its variable, not a constant."""

    def rows(self, mode: str) -> Rows:
        return Rows(list(range(len(self.x))), mode)

    def value(self, e: Typed, rows: Rows) -> Value:
        if e.op in CORE:
            found = CORE[e.op](self, e, rows)
            return reference_batch.or_nothing(self, e, rows, found) if e.op == "CE" else found
        formula = FORMULAS.get(e.op) or self.reference.formulas.get(e.op)
        if formula is None:
            raise UserError(f"the reference evaluator has no formula for {e.op}", where=show(e), fix=f"pass formulas={{{e.op!r}: ...}}")
        args = [self.value(a, rows) for a in e.args]
        if all(isinstance(a, Tensor) for a in args):
            value: Tensor = formula(*args)
            return value
        found = [formula(*row) for row in zip(*(rows.spread(a) for a in args), strict=True)]
        return reference_batch.or_nothing(self, e, rows, found) if e.op in ("at", "DLR", "hinge", "error") else found

    def values(self, e: Typed, rows: Rows) -> list[Any]:
        return rows.spread(self.value(e, rows))

    def domain(self, domain: Domain, rows: Rows) -> list[list[int]]:
        """Per row the classes in ascending order."""
        everything = range(self.reference.num_classes)
        if domain.expr is None:
            return [list(everything) for _ in rows.examples]
        if domain.inner is not None:
            return self.top(domain, domain.inner, rows)
        return [[c for c in everything if c != max(out, 0)] for out in self.values(domain.expr, rows)]

    def top(self, domain: Domain, inner: Axis, rows: Rows) -> list[list[int]]:
        """Per row the classes of the largest scores in eval mode, in descending order, the lower class first at a tie."""
        rows = replace(rows, mode="eval")
        tables = self.domain(inner.domain, rows)
        assert domain.expr is not None
        scores = iter(self.values(domain.expr, rows.over(inner, tables)))
        return [[c for _, c in sorted((-plain(next(scores)), c) for c in classes)][: domain.size] for classes in tables]

    def given(self, name: str) -> Tensor:
        """A lower solution or a sample: a constant."""
        if name not in self.solutions:
            raise UserError(f"no value of {name} is given, only of {sorted(self.solutions)}", where="reference evaluator")
        return self.solutions[name].detach()

    def solution(self, name: str, rows: Rows) -> list[Tensor]:
        return [self.given(name)[n] for n in rows.examples]


# --- core forms ---


def _point(run: _Run, e: Typed, rows: Rows) -> list[Tensor]:
    if rows.own and e.attrs == (rows.own[0],):
        return rows.own[1]
    return reference_models.distribution(run, e, rows) if e.kind is Kind.VECTOR else run.solution(_key(e), rows)


def _key(e: Typed) -> str:
    return "@".join(str(part) for part in e.attrs)


def _pick(run: _Run, e: Typed, rows: Rows) -> list[Tensor]:
    """The member of a family at a class; the classes of the family are those its level had, in its mode."""
    family, index = e.args
    if rows.own and family.attrs == (rows.own[0],):
        return rows.own[1]
    level = next(level for level in run.reference.typed.levels if level.var == family.attrs[0])
    assert level.axis is not None
    tables = run.domain(level.axis.domain, run.rows(level.mode))
    members, found = run.solution(_key(family), rows), []
    for n, member, c in zip(rows.examples, members, run.values(index, rows), strict=True):
        if c not in tables[n]:
            raise UserError(f"example {n} has no member of class {c}", where=show(e), fix=f"its classes are {tables[n]}")
        found.append(member[tables[n].index(c)])
    return found


def _sample(run: _Run, e: Typed, rows: Rows) -> Value:
    return run.given(_key(e)) if e.kind is Kind.CONST else run.solution(_key(e), rows)


def _bound(run: _Run, e: Typed, rows: Rows) -> list[int]:
    assert e.axis is not None
    return rows.classes[e.axis]


def _nth(run: _Run, e: Typed, rows: Rows) -> list[Tensor]:
    return [v[e.attrs[0] - 1] for v in run.values(e.args[0], rows)]


def _onehot(run: _Run, e: Typed, rows: Rows) -> list[Tensor]:
    share = (e.args[1].value or 0) if e.op == "smooth" else 0
    k = run.reference.num_classes
    classes = run.values(e.args[0], rows)
    return [torch.stack([number((c >= 0) * ((1 - share) * (c == i) + share / k)) for i in range(k)]) for c in classes]


def _ce(run: _Run, e: Typed, rows: Rows) -> list[Tensor]:
    prediction, target = e.args
    q = [softmax(z) if prediction.kind is Kind.LOGITS else z for z in run.values(prediction, rows)]
    if target.kind in CLASSES:
        return [-torch.log(v[c]) for v, c in zip(q, run.values(target, rows), strict=True)]
    return [cross_entropy(v, t) for v, t in zip(q, run.values(target, rows), strict=True)]


def _batch(run: _Run, e: Typed, rows: Rows) -> Tensor:
    """Over the examples of the batch, each once, whatever binders are open; a Const counts once per example."""
    examples = run.rows(rows.mode)
    if rows.examples == examples.examples:
        examples = replace(examples, own=rows.own, leaves=rows.leaves)
    values = run.values(e.args[0], examples)
    if len(e.args) > 1:
        values = [v for v, c in zip(values, run.values(e.args[1], examples), strict=True) if c != 0]
    total = sum(values, number(0))
    return total / max(len(values), 1) if e.op == "batch_mean" else total


CORE: dict[str, Callable[[_Run, Typed, Rows], Value]] = {
    "number": lambda run, e, rows: number(e.value or 0),
    "classes": lambda run, e, rows: number(run.reference.num_classes),
    "input": lambda run, e, rows: [run.x[n] for n in rows.examples],
    "label": lambda run, e, rows: [int(run.y[n]) for n in rows.examples],
    "bound": _bound,
    "logits": reference_models.logits,
    "weights": reference_models.weights,
    "grad": reference_models.gradient,
    "grad_theta": reference_models.gradient_by_theta,
    "found": reference_models.found,
    "state": reference_models.state,
    "mode": lambda run, e, rows: run.value(e.args[0], replace(rows, mode=e.attrs[0])),
    "point": _point,
    "pick": _pick,
    "sample": _sample,
    "reduce": reference_batch.reduce,
    "nth": _nth,
    "fact": reference_models.fact,
    "onehot": _onehot,
    "smooth": _onehot,
    "CE": _ce,
    "log": reference_batch.logarithm,
    "known": lambda run, e, rows: [number(float(run.y[n] >= 0)) for n in rows.examples],
    "zeros": lambda run, e, rows: [torch.zeros(run.reference.num_classes, dtype=torch.float64)] * len(rows.examples),
    "ones": lambda run, e, rows: [torch.ones(run.reference.num_classes, dtype=torch.float64)] * len(rows.examples),
    "class_mean": reference_batch.class_vector,
    "class_sum": reference_batch.class_vector,
    "project": reference_batch.project,
    "interior": reference_batch.interior,
    "bregman": reference_batch.bregman,
    "leaf": lambda run, e, rows: rows.leaves[e.attrs],
    "batch_mean": _batch,
    "batch_sum": _batch,
}


class Reference:
    """The meaning of a checked recipe (or attack suite) for one model.

    model: used as it is; its parameters should be float64, on the CPU. num_classes: K.
    formulas: for operations registered by the user, name -> function of the values of one example (Prob as probabilities [K],
    Logits and Vector [K], Input [*shape], Real and Const [], Label and Class int) that returns the value of that example.
    models: the other models that the recipe names. Not modelled: `joint` (points in one batch differ only under BatchNorm), and how
    gradients pass a lower level (`through`).
    """

    def __init__(
        self,
        typed: TypedRecipe,
        model: nn.Module,
        num_classes: int,
        formulas: Mapping[str, Formula] | None = None,
        models: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.typed = typed
        self.models: Mapping[str, nn.Module] = {name: (models or {})[name] for name in typed.models}
        self.model = model
        self.trained = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
        self.num_classes: int = num_classes
        self.formulas: Mapping[str, Formula] = formulas or {}

    def value(self, e: Typed, x: Tensor, y: Tensor, solutions: Mapping[str, Tensor], mode: str | None = None) -> Value:
        """An expression of the upper level, outside every binder, on x [B, *shape] in float64 and y [B]. mode: that of the upper level.

        solutions: by name, "x'" and "x'@2" [B, *shape]; of a family [B, n, *shape] with its classes in ascending order; counts
        "x'@survived" [B]; weights [P] in the order of the model; a distribution [K]; a root [B]; states and memories [], [K] or [B]
        (without one: the first value); samples by their name, as their kind says: Input [B, *shape], Real [B], Const [], Vector [B, K].
        Raises UserError if a value is missing, or an operation has no formula.
        """
        run = _Run(self, x, y, solutions, self.typed.at)
        return run.value(e, run.rows(mode or self.typed.mode))

    def updates(self, x: Tensor, y: Tensor, solutions: Mapping[str, Tensor]) -> dict[str, Value]:
        """The next values of states and memories."""
        return {s.name: self.value(s.update, x, y, solutions, s.mode) for s in self.typed.states}

    def objective(self, x: Tensor, y: Tensor, solutions: Mapping[str, Tensor]) -> Tensor:
        """The upper loss, differentiable in the parameters: the mean of a Real over the batch; a Const as it is."""
        if self.typed.objective is None:
            raise UserError(f"{self.typed.name} has no upper level", where="reference evaluator", fix="use level_objective")
        value = self.value(self.typed.objective, x, y, solutions)
        return value if isinstance(value, Tensor) else torch.stack(value).mean()

    def batch_objective(self, level: TypedLevel, point: Tensor, x: Tensor, y: Tensor, solutions: Mapping[str, Tensor]) -> Tensor:
        """What a level over weights or over the simplex maximises or minimises, differentiable in `point` [P] or [K]: a mean."""
        run = _Run(self, x, y, solutions, moving={level.var: point})
        value = run.value(level.objective, run.rows(level.mode))
        return value if isinstance(value, Tensor) else torch.stack(value).mean()

    def equation(self, find: TypedFind, t: Tensor, x: Tensor, y: Tensor, solutions: Mapping[str, Tensor]) -> list[Any]:
        """What is 0 at the root, per example, at the numbers t [B]."""
        run = _Run(self, x, y, solutions)
        return run.values(find.value, replace(run.rows(find.mode), own=(find.var, list(t))))

    def level_objective(self, level: TypedLevel, point: Tensor, x: Tensor, y: Tensor, solutions: Mapping[str, Tensor]) -> list[Any]:
        """What a level maximises or minimises, per example, differentiable in `point` [B, *shape].

        Of a family: point [B, n, *shape], and a list of n values per example.
        """
        run = _Run(self, x, y, solutions)
        rows = run.rows(level.mode)
        if level.axis is None:
            return run.values(level.objective, replace(rows, own=(level.var, list(point))))
        tables = run.domain(level.axis.domain, rows)
        wide = replace(rows.over(level.axis, tables), own=(level.var, list(point.flatten(0, 1))))
        values = iter(run.values(level.objective, wide))
        return [[next(values) for _ in classes] for classes in tables]
