"""The terms of a run's own objective and their gradients: angles (D9), margin increase (D11), R and R' (D14).

Nothing is written again in Python: the recipe gets `log` statements, and the engine evaluates them as it does the recipe.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from lossdsl.diagnose.quantities import MARGIN, at
from lossdsl.diagnose.runs import OpenRun, Weights
from lossdsl.diagnose.subject import Options
from lossdsl.diagnose.table import Cell, Column, Table
from lossdsl.diagnostics import UserError
from lossdsl.engine.api import compile
from lossdsl.engine.step import Step
from lossdsl.front import Recipe, parse_recipe
from lossdsl.run.rng import derive, generator, seeded
from lossdsl.syntax import tree as t
from lossdsl.syntax.format import format_expr

EXAMPLES = 1000
"""As many training examples as the FAIT paper takes (fig. 4)."""
_CLEAN_MARGIN = at(MARGIN, "x")


def terms(recipe: Recipe) -> list[str]:
    """The addends of the upper objective as the recipe writes them, signs included."""
    upper = next(item for item in recipe.declaration.items if isinstance(item, t.Upper))
    return [format_expr(e if sign > 0 else t.Unary("-", e)) for sign, e in _addends(upper.objective, 1)]


def _addends(e: t.Expr, sign: int) -> Iterator[tuple[int, t.Expr]]:
    if isinstance(e, t.Binary) and e.op in ("+", "-"):
        yield from _addends(e.left, sign)
        yield from _addends(e.right, sign if e.op == "+" else -sign)
    elif isinstance(e, t.Unary) and e.op == "-":
        yield from _addends(e.operand, -sign)
    else:
        yield sign, e


def with_logs(recipe: Recipe, expressions: Mapping[str, str], mode: str = "eval") -> Recipe:
    """The recipe with other numbers recorded, by name, in a mode ("" for that of the upper level), instead of its own."""
    items = tuple(item for item in recipe.declaration.items if not (isinstance(item, t.Let) and item.recorded))
    text = replace(recipe, declaration=replace(recipe.declaration, items=items)).text
    own = [f"log {name} = {expression}" + (f" with f in {mode}" if mode else "") for name, expression in expressions.items()]
    return parse_recipe("\n".join([text, *own]), recipe.source.name).with_params(**recipe.overrides)


def objective(recipe: Recipe) -> str:
    """The whole upper objective as one expression."""
    return " + ".join(f"({term})" for term in terms(recipe))


@dataclass(frozen=True)
class Seen:
    """Numbers at one checkpoint, averaged over batches."""

    epoch: int
    values: dict[str, float]


def _over_epochs(run: OpenRun, expressions: Mapping[str, str]) -> tuple[list[Seen], tuple[str, ...]]:
    """Expressions at every kept epoch (else the best and the last), on training examples, with the lower levels solved there."""
    recipe = with_logs(run.recipe, expressions)
    weights, notes = run.history()
    x, y, index = run.examples("train", run.options.limit or EXAMPLES)
    parts = torch.arange(len(y)).split(run.options.batch)
    seen = []
    for one in weights:
        step = compiled(run, recipe, one)
        sums = dict.fromkeys(expressions, 0.0)
        with seeded(derive(run.options.seed, "terms"), run.device):
            random = generator(run.device, derive(run.options.seed, "terms", "draws"))
            for rows in parts:
                solved = step.solve(x[rows], y[rows], generator=random, index=index[rows])
                found = step.logged(x[rows], y[rows], solved, index=index[rows])
                for name, value in found.items():
                    sums[name] += float(value.double().mean()) * len(rows) / len(y)
        seen.append(Seen(one.epoch, _finite(sums, run, one)))
    size = min(len(y), run.options.batch)
    about = f"{len(y)} training examples in batches of {size}, in eval mode, lower levels solved anew, seed {run.options.seed}"
    return seen, (about, *notes)


def compiled(run: OpenRun, recipe: Recipe, weights: Weights) -> Step:
    """The recipe on the models of a checkpoint, at its epoch and with its states."""
    step: Step = compile(
        recipe, run.model(weights), num_classes=len(run.data.classes), device=run.device, models=run.others(weights)
    )  # fmt: skip
    step.set_epoch(weights.epoch)
    step.load_state_dict(weights.found.part("recipe"))
    return step


def _finite(values: dict[str, float], run: OpenRun, weights: Weights) -> dict[str, float]:
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise UserError(
            f"{bad[0]} is {values[bad[0]]} in epoch {weights.epoch}",
            where=str(run.path),
            fix="the loss is not finite there: see metrics.jsonl",
        )
    return values


# --- D9 ---


def angles(run: OpenRun, options: Options) -> Table:
    """D9: per epoch and term of the objective the angle, in degrees in [0, 180], between grad_theta M(x) and -grad_theta of the term.

    Below 90 degrees a step along the term raises the margin, above it lowers it. Gradients are of batch means; cosines are averaged over
    batches. Where a gradient is 0 there is no angle. Source: Kim et al. (Bridged AT), fig. 4, which does not say how it averages.
    """
    names = terms(run.recipe)
    expressions: dict[str, str] = {"margin": f"norm(grad(theta: {_CLEAN_MARGIN}), 2)"}
    for n, term in enumerate(names):
        expressions[f"cosine{n}"] = f"cos(grad(theta: {_CLEAN_MARGIN}), grad(theta: -({term})))"
        expressions[f"length{n}"] = f"norm(grad(theta: {term}), 2)"
    seen, notes = _over_epochs(run, expressions)
    rows: list[tuple[Cell, ...]] = []
    for one in seen:
        for n, term in enumerate(names):
            length = one.values[f"length{n}"]
            defined = length > 0 and one.values["margin"] > 0
            cosine = max(-1.0, min(1.0, one.values[f"cosine{n}"])) if defined else None
            rows.append((one.epoch, term, cosine, None if cosine is None else math.degrees(math.acos(cosine)), length))
    if any(row[2] is None for row in rows):
        notes = (*notes, "no angle where the gradient of the term or of the margin is 0")
    columns = (
        Column("epoch", about="epoch"),
        Column("term"),
        Column("cosine"),
        Column("angle", "degrees", "angle to the margin's gradient"),
        Column("length", about="length of the term's gradient"),
    )
    return Table("angles", "Angles of the terms' gradients", "Kim et al. (Bridged AT), fig. 4", columns, tuple(rows), notes)


# --- D11 ---


def increase(run: OpenRun, options: Options) -> Table:
    """D11: per epoch the expected margin increase -<grad_theta M(x), grad_theta loss> and the mean margin M(x), in [-1, 1].

    Source: Kim et al. (Bridged AT), fig. 6 (the first 40 epochs).
    """
    loss = objective(run.recipe)
    seen, notes = _over_epochs(
        run, {"increase": f"dot(grad(theta: {_CLEAN_MARGIN}), grad(theta: -({loss})))", "margin": _CLEAN_MARGIN}
    )  # fmt: skip
    rows = tuple((one.epoch, one.values["increase"], one.values["margin"]) for one in seen)
    columns = (
        Column("epoch", about="epoch"),
        Column("increase", about="expected margin increase"),
        Column("margin", about="mean margin $M(x)$"),
    )
    return Table("increase", "Expected margin increase", "Kim et al. (Bridged AT), fig. 6", columns, rows, notes)


# --- D14 ---


def smoothness(run: OpenRun, options: Options) -> Table:
    """D14: per epoch R = KL(p(x) || p(x')) and R' = KL(p(x) || p(x*)) + KL(p(x*) || p(x')) in nats, x* the iterate after I updates.

    x' is the run's own lower level; I is the recipe's param I, else 2. Means over the first 1000 training examples. Source: Wu et al.
    (FAIT), fig. 4. Raises UserError for a recipe whose lower level over inputs has no such iterate.
    """
    name, steps = _attacked(run)
    middle = min(int(run.params.get("I", 2)), steps)
    start, between, end = "p(x)", f"p({name}@{middle})", f"p({name})"
    seen, notes = _over_epochs(run, {"r": f"KL({start} || {end})", "r1": f"KL({start} || {between}) + KL({between} || {end})"})
    rows = tuple((one.epoch, one.values["r"], one.values["r1"]) for one in seen)
    columns = (Column("epoch", about="epoch"), Column("R", "nats", "$R$"), Column("R'", "nats", "$R'$"))
    return Table(
        "smoothness", "R and R'", "Wu et al. (FAIT), fig. 4", columns, rows, (f"I = {middle} of {steps} updates of {name}", *notes)
    )


def _attacked(run: OpenRun) -> tuple[str, int]:
    """The first lower level over inputs that has iterates: its variable and its number of updates."""
    for level in run.recipe.typed.levels:
        if level.set.over == "input" and level.axis is None and (level.through is None or level.through.kind != "danskin"):
            steps = int(getattr(level.solver.options, "steps", 0))
            if steps >= 2:
                return level.var, steps
    raise UserError(
        f"{run.recipe.name} has no lower level over inputs with at least two updates",
        where=str(run.path),
        fix="use a run of trades or fait",
    )
