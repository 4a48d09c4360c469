"""A recipe with everything spelled out that its text leaves to defaults: `lossdsl explain`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from lossdsl.check.typed import Typed, TypedLevel, TypedSet, number_text, show
from lossdsl.lang.ops import OPERATIONS
from lossdsl.lang.specs import OPTIMIZERS, SETS, SOLVERS
from lossdsl.lang.types import Kind
from lossdsl.syntax import tree as t
from lossdsl.syntax.format import format_expr

if TYPE_CHECKING:
    from lossdsl.front import Recipe

DEFAULT = "  (default)"
_WIDTH = 11
_METHOD = re.compile(r"#\s*(?:method:\s*)?(T[0-9]+)\b")
_COUNTS = {
    "worst": "an example is broken if any run breaks it; later runs get only the others",
    "best_loss": "accuracy at the point of the largest objective over all runs",
    "each": "one accuracy for each run",
}


def explain(recipe: Recipe) -> str:
    """The recipe as a reader needs it: values of params, sets, solvers, modes, gradient flow, reductions, training, formulas."""
    sections = [_header(recipe), _params(recipe), _input(recipe), _samples(recipe)]
    sections += [_level(recipe, level) for level in recipe.typed.levels]
    sections += [_upper(recipe), _logs(recipe), _train(recipe), _count(recipe), _formulas(recipe)]
    return "\n\n".join("\n".join(section) for section in sections if section)


def describe(recipe: Recipe, path: Path) -> dict[str, Any]:
    """What `lossdsl list` tells of a file. `method`: the number in its first comment ("# T6: ..."); `lines`: without comments."""
    lines = [line.strip() for line in recipe.source.text.splitlines()]
    method = _METHOD.match(next((line for line in lines if line.startswith("#")), ""))
    return {
        "name": recipe.name, "title": recipe.title, "source": recipe.source_note, "method": method[1] if method else None,
        "file": str(path),
        "lines": sum(bool(line) and not line.startswith("#") for line in lines), "params": recipe.params,
    }  # fmt: skip


def _row(name: str, text: str, default: bool = False) -> str:
    return f"  {name:<{_WIDTH}}{text}{DEFAULT if default else ''}".rstrip()


def _header(recipe: Recipe) -> list[str]:
    lines = [f"{recipe.kind} {recipe.name}"]
    if recipe.typed.title:
        lines.append(_row("title", recipe.typed.title))
    if recipe.source_note:
        lines.append(_row("source", recipe.source_note))
    return lines


def _params(recipe: Recipe) -> list[str]:
    nodes = {item.name: item for item in recipe.declaration.items if isinstance(item, t.Param)}
    lines = []
    for name, value in recipe.params.items():
        written = format_expr(nodes[name].value)
        notes = ["set from outside"] if name in recipe.overrides else [] if written == number_text(value) else [f"written {written}"]
        if name in recipe.checked.changing:
            notes.append(f"in epoch {recipe.epoch}; it changes by epoch")
        limits = nodes[name].limits
        if limits is not None:
            notes.append(f"allowed: {format_expr(limits)}")
        lines.append(f"  {name} = {number_text(value)}" + (f"  ({'; '.join(notes)})" if notes else ""))
    return ["params", *lines] if lines else []


def _input(recipe: Recipe) -> list[str]:
    written = any(isinstance(item, t.Input) for item in recipe.declaration.items)
    if recipe.domain is None:
        return ["input", _row("x in", "reals: no set is cut to a domain")]
    low, high = (_bound(end) for end in recipe.domain)
    return ["input", _row("x in", f"[{low}, {high}]; radii are in these units", not written)]


def _bound(value: Any) -> str:
    return "[" + ", ".join(map(number_text, value)) + "]" if isinstance(value, tuple) else number_text(value)


def _samples(recipe: Recipe) -> list[str]:
    shapes = {
        "x": "one number per input coordinate",
        "example": "one number per example",
        "batch": "one number per batch",
        "classes": "one number per example and class",
    }
    lines = [f"  {s.name} ~ {show(s.draw)}, {shapes[s.over]}" for s in recipe.typed.samples]
    return ["drawn once per batch, shared by all levels, steps and restarts", *lines] if lines else []


def _level(recipe: Recipe, level: TypedLevel) -> list[str]:
    node = next(i for i in recipe.declaration.items if isinstance(i, t.Level) and (i.run or i.var) == (level.run or level.var))
    name = level.var + (f"[{level.axis.domain.text}]" if level.axis else "")
    problem = "one problem per example" + (" and class" if level.axis else "") + ": the objective is summed, never averaged"
    lines = [
        (f"run {level.run}: " if level.run else "lower ") + name,
        _row("in", _set(recipe, level.set)),
        _row(level.sense, show(level.objective)),
        _row("", problem),
        _row("with f in", _mode(level.mode), node.mode is None),
    ]
    if not level.run:
        lines.append(_row("through", f"nothing: {level.var} is a constant of the upper level", node.through is None))
    return lines + _solver(level)


def _mode(mode: str) -> str:
    about = {
        "eval": "eval: running statistics of normalisation, no dropout",
        "train": "train: batch statistics, written to the running ones; dropout",
        "untracked": "untracked: as train, but running statistics are not written",
    }
    return about[mode]


def _set(recipe: Recipe, region: TypedSet) -> str:
    cut = ", cut to the input domain" if region.boxed and recipe.domain is not None else ", not cut to the input domain"
    return f"{region.name}({show(region.center)}, {show(region.radius)}): {SETS[region.name].about}{cut}"


def _solver(level: TypedLevel) -> list[str]:
    solver = level.solver
    row = SOLVERS[solver.name]
    kinds = {
        "expression": f"{show(solver.start)}, projected on the set",
        "raw": f"{show(solver.start)}, not projected",
        "uniform": "uniform on the set",
        "corner": "a random corner of the set",
        "previous": "the perturbations of the last batch (0 in the first), projected on the set",
    }
    lines = [_row("by", f"{solver.name}: {row.update} ({row.source})"), _row("", f"start = {kinds[solver.start_kind]}")]
    return lines + [_row("", text) for text in _options(solver.options)]


def _options(options: BaseModel) -> Iterator[str]:
    """`name = value` for every option, the ones that the text left out marked."""
    for name, value in options:
        if name != "kind":
            yield f"{name} = {_value(value)}" + ("" if name in options.model_fields_set else DEFAULT)


def _value(value: Any) -> str:
    if isinstance(value, BaseModel):
        inner = ", ".join(f"{name} = {_value(part)}" for name, part in value if name != "kind")
        return f"{getattr(value, 'kind', type(value).__name__)}({inner})"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return "none" if value is None else number_text(value)


def _upper(recipe: Recipe) -> list[str]:
    objective = recipe.typed.objective
    if objective is None:
        return []
    reduction = (
        "a number of the batch, not averaged again" if objective.kind is Kind.CONST else "one number per example, averaged over the batch"
    )
    lines = ["upper", _row("minimize", show(objective)), _row("", reduction), _row("with f in", _mode("train"), True)]
    if recipe.optimizer is not None:
        lines.append(_row("by", f"{recipe.optimizer.name} ({_torch_name(recipe.optimizer.name)})"))
        lines += [_row("", text) for text in _options(recipe.optimizer.options)]
    return lines


def _torch_name(name: str) -> str:
    proper = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop"}
    return f"torch.optim.{proper[name]}" if name in proper and name in OPTIMIZERS else "registered"


def _logs(recipe: Recipe) -> list[str]:
    lines = [f"  {name} = {show(value)}" for name, value in recipe.typed.logs]
    return ["logged, without gradient", *lines] if lines else []


def _train(recipe: Recipe) -> list[str]:
    if recipe.train is None:
        return []
    return ["train", *("  " + text for text in _options(recipe.train))]


def _count(recipe: Recipe) -> list[str]:
    count = recipe.typed.count
    return [f"count {count}: {_COUNTS[count]}"] if count else []


def _formulas(recipe: Recipe) -> list[str]:
    """The operations that occur, each with its formula."""
    roots = [level.objective for level in recipe.typed.levels] + [value for _, value in recipe.typed.logs]
    roots += [recipe.typed.objective] if recipe.typed.objective is not None else []
    used = {e.op for root in roots for e in _graph(root)}
    lines = []
    for row in OPERATIONS.values():
        if row.name in used and row.name not in ("max", "min"):
            source = f" ({row.source})" if row.source else ""
            lines.append(f"  {row.name:<8}{row.formula}: {row.about}{source}")
    return ["operations", *lines] if lines else []


def _graph(root: Typed) -> Iterator[Typed]:
    """The expression and everything in it; a shared part may come more than once."""
    stack, seen = [root], set[int]()
    while stack:
        current = stack.pop()
        if id(current) not in seen:
            seen.add(id(current))
            yield current
            stack.extend(current.args)
