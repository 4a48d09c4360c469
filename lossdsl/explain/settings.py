"""The sections of `explain` that spell out what a recipe's text leaves to defaults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from lossdsl.check.typed import TypedFind, TypedLevel, TypedSet, number_text, show, walk
from lossdsl.lang.ops import OPERATIONS
from lossdsl.lang.specs import OPTIMIZERS, SETS, SOLVERS
from lossdsl.lang.types import Kind
from lossdsl.syntax import tree as t
from lossdsl.syntax.format import format_expr

if TYPE_CHECKING:
    from lossdsl.front import Recipe

DEFAULT = "  (default)"
_WIDTH = 11
_COUNTS = {
    "worst": "an example is broken if any run breaks it; later runs get only the others",
    "best_loss": "accuracy at the point of the largest objective over all runs",
    "each": "one accuracy for each run",
}


def settings_sections(recipe: Recipe) -> list[list[str]]:
    """Values of params, sets, solvers, modes, gradient flow, reductions, training, formulas: sections of lines."""
    sections = [_params(recipe), _input(recipe), _models(recipe), _samples(recipe), _states(recipe)]
    sections += [_find(stage) if isinstance(stage, TypedFind) else _level(recipe, stage) for stage in recipe.typed.stages]
    return sections + [_upper(recipe), _logs(recipe), _train(recipe), _count(recipe), _formulas(recipe)]


def _row(name: str, text: str, default: bool = False) -> str:
    return f"  {name:<{_WIDTH}}{text}{DEFAULT if default else ''}".rstrip()


def heading(recipe: Recipe) -> list[str]:
    """Kind, name, title and source."""
    lines = [f"{recipe.kind} {recipe.name}"]
    if recipe.declared.title:
        lines.append(_row("title", recipe.declared.title))
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


def _models(recipe: Recipe) -> list[str]:
    kinds = {True: "frozen: in eval mode, its parameters are constants", False: "trained: it joins the upper level"}
    lines = [f"  {name}: {kinds[frozen]}" for name, frozen in recipe.models.items()]
    return ["models besides f, given when the recipe is compiled", *lines] if lines else []


def _states(recipe: Recipe) -> list[str]:
    """What lives across batches, with the first and the next value."""
    lines = []
    for s in recipe.typed.states:
        what = "memory, one number per training example" if s.per_example else "state"
        mode = f" (with f in {s.mode})" if s.mode else ""
        lines.append(f"  {s.name} = {show(s.init)}, then {show(s.update)}{mode}: {what}")
    head = "kept across batches: new values are computed without gradient and act, all at once, from the next batch"
    return [head, *lines] if lines else []


def _find(find: TypedFind) -> list[str]:
    """A root per example."""
    return [
        f"find {find.var}",
        _row("in", f"[{show(find.low)}, {show(find.high)}]"),
        _row("where", f"{show(find.value)} == 0"),
        _row("", f"one equation per example; {find.var} is a constant of the upper level"),
        _row("with f in", _mode(find.mode), True),
        _row("by", "bisection; without a change of sign: the upper end where the value is negative at both ends, else the lower"),
        *(_row("", text) for text in _options(find.options)),
    ]


def _problem(level: TypedLevel) -> str:
    if level.set.over != "input":
        return "one problem for the whole batch: the objective is averaged"
    return "one problem per example" + (" and class" if level.axis else "") + ": the objective is summed, never averaged"


def _through(level: TypedLevel) -> list[str]:
    """How the gradient of the upper level passes the solution."""
    through = level.through
    if through is None:
        if level.set.over == "weights":
            return [f"nothing: f{{{level.var}}} is taken at theta + stop({level.var} - theta)"]
        return [f"nothing: {level.var} is a constant of the upper level"]
    about = {
        "implicit": f"implicit: by the optimality conditions of this objective, on the coordinates of {level.var} strictly inside the set",
        "unrolling": "unrolling: the start and every update are differentiated",
        "danskin": "danskin: none of the runs is selected; the step is the min-norm convex combination of their gradients",
    }
    return [about[through.kind], *_options(through.options)]


def _level(recipe: Recipe, level: TypedLevel) -> list[str]:
    node = next(i for i in recipe.declaration.items if isinstance(i, t.Level) and (i.run or i.var) == (level.run or level.var))
    name = level.var + (f"[{level.axis.domain.text}]" if level.axis else "")
    lines = [
        (f"run {level.run}: " if level.run else "lower ") + name,
        _row("in", _set(recipe, level.set)),
        _row(level.sense, show(level.objective)),
        _row("", _problem(level)),
        _row("with f in", _mode(level.mode), node.mode is None),
    ]
    if not level.run:
        first, *rest = _through(level)
        lines += [_row("through", first, node.through is None), *(_row("", text) for text in rest)]
    return lines + _solver(level)


def _mode(mode: str) -> str:
    about = {
        "eval": "eval: running statistics of normalisation, no dropout",
        "train": "train: batch statistics, written to the running ones; dropout",
        "untracked": "untracked: as train, but running statistics are not written",
    }
    return about[mode]


def _set(recipe: Recipe, region: TypedSet) -> str:
    about = SETS[region.name].about
    if region.over == "classes":
        return f"{region.name}(K): {about}"
    named = f"{region.name}({show(region.center)}, {show(region.radius)}): {about}"
    if region.over == "weights":
        moved = {"all": "all trained parameters", "matrices": "tensors of one dimension stay as they are"}[region.only]
        return f"{named}, {moved}" + ("; of radius 0 now: the level is skipped" if region.radius.value == 0 else "")
    cut = "cut to the input domain" if region.boxed and recipe.domain is not None else "not cut to the input domain"
    return f"{named}, {cut}"


def _solver(level: TypedLevel) -> list[str]:
    solver = level.solver
    row = SOLVERS[solver.name]
    kinds = {
        "expression": f"{show(solver.start)}, projected on the set",
        "raw": f"{show(solver.start)}, not projected",
        "uniform": "uniform on the set",
        "corner": "a random corner of the set",
        "own": "as published",
        "sphere": "a random point at the radius, projected on the set",
        "previous": "the perturbations of the last batch (0 in the first), projected on the set",
    }
    texts = [f"start = {kinds[solver.start_kind]}"] if solver.at is None else [f"at = {show(solver.at)}, where its step is taken from"]
    if solver.start.op == "weights" and solver.start.span == solver.span:
        texts = ["start = theta" + DEFAULT]
    own = (
        {} if solver.step is None else {"step": f"{show(solver.step)}, per example" if solver.step.kind is Kind.REAL else show(solver.step)}
    )
    texts += _options(solver.options, own)
    if solver.noise is not None:
        texts.append(f"noise = {show(solver.noise)}, drawn in every update and added before the projection")
    if solver.until is not None:
        tau = show(solver.until)
        texts.append(f"until fooled({tau}): an example leaves where it is misclassified and has used up {tau} further updates")
    return [_row("by", f"{solver.name}: {row.update} ({row.source})"), *(_row("", text) for text in texts)]


def _options(options: BaseModel, own: Mapping[str, str] | None = None) -> Iterator[str]:
    """`name = value` for every option, the ones that the text left out marked. `own`: values that are no fixed numbers."""
    for name, value in options:
        if name != "kind":
            shown = (own or {}).get(name, _value(value))
            yield f"{name} = {shown}" + ("" if name in options.model_fields_set else DEFAULT)


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
    node = next(item for item in recipe.declaration.items if isinstance(item, t.Upper))
    at = recipe.typed.at
    lines = ["upper" if at is None else f"upper at {at}: f and p are f{{{at}}} and p{{{at}}}; the optimizer moves theta"]
    lines += [_row("minimize", show(objective)), _row("", reduction), _row("with f in", _mode(recipe.typed.mode), node.mode is None)]
    if recipe.typed.joint:
        lines.append(_row("", "joint: all points go through the model in one batch"))
    optimizers = {"": recipe.optimizer, **{f" for {name}": spec for name, spec in recipe.optimizers.items()}}
    for whom, spec in optimizers.items():
        if spec is not None:
            lines.append(_row("by", f"{spec.name} ({_torch_name(spec.name)}){whom}"))
            lines += [_row("", text) for text in _options(spec.options)]
    joined = [name for name, frozen in recipe.models.items() if not frozen and name not in recipe.optimizers]
    return lines + [_row("", f"the same optimizer for {name}") for name in joined]


def _torch_name(name: str) -> str:
    proper = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop"}
    return f"torch.optim.{proper[name]}" if name in proper and name in OPTIMIZERS else "registered"


def _logs(recipe: Recipe) -> list[str]:
    lines = [f"  {name} = {show(value)}" for name, value in recipe.typed.logs]
    return ["logged, without gradient", *lines] if lines else []


def _train(recipe: Recipe) -> list[str]:
    if recipe.train is None:
        return []
    mix = recipe.train.data
    own = {} if mix is None else {"data": f"mix(labelled, pseudo, fraction = {number_text(mix.fraction)})"}
    lines = list(_options(recipe.train, own))
    if recipe.typed.sampler is not None:
        lines.append(
            f"sampler = classes({show(recipe.typed.sampler)}): the class of every example is drawn from this law, then the example"
        )
    if recipe.train.data is not None:
        share = number_text(recipe.train.data.fraction)
        lines.append(
            f"labelled and pseudo-labelled examples: a share {share} of every batch is of the second kind, with the label -1 if unknown"
        )
    return ["train", *("  " + text for text in lines)]


def _count(recipe: Recipe) -> list[str]:
    count = recipe.typed.count
    return [f"count {count}: {_COUNTS[count]}"] if count else []


def _formulas(recipe: Recipe) -> list[str]:
    """The operations that occur, each with its formula."""
    typed = recipe.typed
    roots = [e for stage in typed.stages for e in stage.expressions] + [value for _, value in typed.logs]
    roots += [e for s in typed.states for e in (s.init, s.update)] + [s.draw for s in typed.samples]
    roots += [e for e in (typed.objective, typed.sampler) if e is not None]
    used = {e.op for root in roots for e in walk(root)}
    lines = []
    for row in OPERATIONS.values():
        if row.name in used and row.name not in ("max", "min"):
            source = f" ({row.source})" if row.source else ""
            lines.append(f"  {row.name:<7} {row.formula}: {row.about}{source}")
    return ["operations", *lines] if lines else []
