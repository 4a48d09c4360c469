"""The slow evaluator's forms that run models, differentiate, and read what lives across batches or was counted by a level."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import functional_call

from lossdsl.check.typed import Typed
from lossdsl.engine.formulas import first_best, number
from lossdsl.lang.types import Kind

if TYPE_CHECKING:
    from lossdsl.engine.reference import Rows, _Run


# --- models ---


def logits(run: _Run, e: Typed, rows: Rows) -> list[Tensor]:
    """f(v), g(v), f{w}(v); in an upper level at w the model f is meant at w unless the text says otherwise."""
    model = e.attrs[0] if e.attrs else "f"
    weights = e.attrs[1] if len(e.attrs) > 1 else run.at if model == "f" else None
    return forward(run, run.values(e.args[0], rows), rows.mode, model, weights)


def forward(run: _Run, points: list[Tensor], mode: str, name: str = "f", weights: str | None = None) -> list[Tensor]:
    """The logits of the whole batch, in a mode; a frozen model is in eval mode, and its parameters are constants."""
    reference = run.reference
    model = reference.model if name == "f" else reference.models[name]
    frozen = name != "f" and reference.typed.models[name]
    before = {module: module.training for module in model.modules()}
    train_all = not model.training
    tensors: dict[str, Tensor] = {key: buffer.clone() for key, buffer in model.named_buffers()}
    if frozen:
        tensors |= {key: p.detach() for key, p in model.named_parameters()}
    elif weights is not None:
        tensors |= parameters(run, weights)
    try:
        for module, training in before.items():
            module.training = mode != "eval" and not frozen and (train_all or training)
        found: Tensor = functional_call(model, tensors, (torch.stack(points),))
    finally:
        for module, training in before.items():
            module.training = training
    return list(found)


def trained(run: _Run) -> dict[str, Tensor]:
    """The parameters that a level over weights moves: those that asked for gradients when the evaluator was made."""
    return {name: p for name, p in run.reference.model.named_parameters() if name in run.reference.trained}


def parameters(run: _Run, name: str) -> dict[str, Tensor]:
    """The parameters of f at theta, or at the variable of a level over weights: theta + stop(w - theta)."""
    own = trained(run)
    if name == "theta" or _still(run, name):
        return own
    flat = run.moving[name] if name in run.moving else run.given(name)
    parts = torch.split(flat, [p.numel() for p in own.values()])
    at = {key: part.reshape(p.shape) for (key, p), part in zip(own.items(), parts, strict=True)}
    return at if name in run.moving else {key: own[key] + (at[key] - own[key]).detach() for key in own}


def _still(run: _Run, name: str) -> bool:
    """A set of radius 0 leaves the weights where they are."""
    return any(level.var == name and level.set.radius.value == 0 for level in run.reference.typed.levels)


def weights(run: _Run, e: Typed, rows: Rows) -> Tensor:
    """theta or w as one vector, in the order of the model."""
    return torch.cat([p.reshape(-1) for p in parameters(run, e.attrs[0]).values()])


# --- gradients ---


def gradient(run: _Run, e: Typed, rows: Rows) -> list[Tensor]:
    """Of the sum of all examples' numbers by each example's own point: examples meet only through the model."""
    at = [v.view_as(v) if v.requires_grad else v.detach().requires_grad_() for v in run.values(e.args[0], rows)]
    body = run.values(e.args[1], replace(rows, leaves={**rows.leaves, e.attrs: at}))
    total = sum(body, number(0))
    if not total.requires_grad:
        return [torch.zeros_like(v) for v in at]
    found = torch.autograd.grad(total, at, create_graph=True, allow_unused=True)
    return [torch.zeros_like(v) if g is None else g for v, g in zip(at, found, strict=True)]


def gradient_by_theta(run: _Run, e: Typed, rows: Rows) -> Tensor:
    """Of the mean over the batch by the trained parameters, as one vector; a constant."""
    own = list(trained(run).values())
    body = run.values(e.args[0], run.rows(rows.mode))
    found = torch.autograd.grad(sum(body, number(0)) / len(body), own, allow_unused=True, retain_graph=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for p, g in zip(own, found, strict=True)])


# --- levels over the batch, roots, states, facts ---


def distribution(run: _Run, e: Typed, rows: Rows) -> list[Tensor]:
    """A variable over the simplex: the same [K] for every example."""
    name = e.attrs[0]
    value = run.moving[name] if name in run.moving else run.given(name)
    return [value] * len(rows.examples)


def found(run: _Run, e: Typed, rows: Rows) -> list[Tensor]:
    """A root per example; inside its own equation the number tried."""
    if rows.own and rows.own[0] == e.attrs[0]:
        return rows.own[1]
    return run.solution(e.attrs[0], rows)


def state(run: _Run, e: Typed, rows: Rows) -> Any:
    """The value given: [] of a state, [K] of a class vector, [B] of a memory; its first value if none is given."""
    name = e.attrs[0]
    if name not in run.solutions:
        declared = next(s for s in run.reference.typed.states if s.name == name)
        return run.value(declared.init, rows) if not declared.per_example else run.values(declared.init, rows)
    if e.kind is Kind.REAL:
        return run.solution(name, rows)
    value = run.given(name)
    return value if e.kind is Kind.CONST else [value] * len(rows.examples)


def fact(run: _Run, e: Typed, rows: Rows) -> list[Tensor]:
    """fooled: the prediction in eval mode at theta; survived and first_fooled were counted: given as "x'@survived"."""
    name, level = e.attrs
    if name != "fooled":
        counts = run.solution(f"{level}@{name}", rows)
        if not e.args:
            return counts
        places = _places(run, e.args[0], rows)
        return [row[place] for row, place in zip(counts, places, strict=True)]
    kind = Kind.INPUT
    points = run.values(e.args[0] if e.args else Typed("point", (), kind, attrs=(level,)), rows)
    predicted = [first_best(z) for z in forward(run, points, "eval")]
    return [number(int(run.y[n]) not in (c, -1)) for c, n in zip(predicted, rows.examples, strict=True)]


def _places(run: _Run, member: Typed, rows: Rows) -> list[int]:
    """Where the members of a family stand along its axis."""
    family, index = member.args
    level = next(level for level in run.reference.typed.levels if level.var == family.attrs[0])
    assert level.axis is not None
    tables = run.domain(level.axis.domain, run.rows(level.mode))
    return [tables[n].index(c) for n, c in zip(rows.examples, run.values(index, rows), strict=True)]
