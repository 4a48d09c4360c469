"""Quantities of examples and their attacked points, as expressions of the language: the engine evaluates them, as it does losses."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor, nn

from lossdsl.diagnostics import UserError
from lossdsl.engine.api import compile
from lossdsl.front import Recipe, parse_recipe

MARGIN = "p({0})[y] - max(j != y: p({0})[j])"
"""M(x) = p_y(x) - max over i != y of p_i(x), in [-1, 1]: Kim et al. (Bridged AT), sec. 3."""
DIVERGENCE = "KL(p(x) || p(x'))"
LARGEST_BATCH = 1024


def at(quantity: str, point: str) -> str:
    """A quantity with `{0}` as an expression at one point."""
    return quantity.format(point)


@cache
def _recipe(expressions: tuple[tuple[str, str], ...], points: tuple[str, ...]) -> Recipe:
    levels = [f"lower {name} in linf(x, 1) maximize CE(f({name}), y) by linear(start = x)" for name in points]
    logs = [f"log {name} = {expression} with f in eval" for name, expression in expressions]
    lines = ["recipe quantities", "input x in reals", *levels, "upper minimize CE(f(x), y) by sgd(lr = 0.1)", *logs]
    return parse_recipe("\n".join(lines), "<diagnostic>")


def measured(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    expressions: Mapping[str, str],
    points: Mapping[str, Tensor] | None = None,
    *,
    num_classes: int,
    batch: int = LARGEST_BATCH,
) -> dict[str, Tensor]:
    """The value of each expression for every example, [N], the model in eval mode and left as it was.

    x [N, *shape], y [N]; points: what names besides x stand for, each [N, *shape]. expressions: per example, in the language, by name.
    Raises UserError that names the first example with a value that is not finite.
    """
    points = dict(points or {})
    step = compile(_recipe(tuple(expressions.items()), tuple(points)), model, num_classes=num_classes)
    found: dict[str, list[Tensor]] = {name: [] for name in expressions}
    for rows in torch.arange(len(y)).split(batch):
        got = step.logged(x[rows], y[rows], {name: point[rows] for name, point in points.items()})
        for name, values in found.items():
            values.append(got[name].expand(len(rows)))
    whole = {name: torch.cat(values) for name, values in found.items()}
    for name, value in whole.items():
        bad = (~value.isfinite()).nonzero()
        if len(bad):
            raise UserError(
                f"{name} is {float(value[bad[0]])} for example {int(bad[0])}",
                where="diagnose",
                fix="look at the model's outputs for this example and at its weights",
            )
    return whole
