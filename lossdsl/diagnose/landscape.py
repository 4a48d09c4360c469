"""The loss around one example (D5)."""

from __future__ import annotations

import torch

from lossdsl.diagnose.subject import Options, Subject
from lossdsl.diagnose.table import Column, Table, column_rows
from lossdsl.diagnostics import UserError
from lossdsl.engine.api import compile
from lossdsl.front import parse_recipe
from lossdsl.run.rng import derive, generator

SIDE = 31
_FGSM = """recipe fgsm
input x in reals
lower x' in linf(x, 1) maximize CE(f(x'), y) by linear(start = x)
upper minimize CE(f(x'), y) by sgd(lr = 1)"""
REACH = 1.5
"""The picture reaches 1.5 times the attack's radius to both sides, so that it shows what lies inside the ball and just outside."""


def landscape(subject: Subject, options: Options | None = None) -> Table:
    """D5: CE(x + a r1 + b r2) on a grid of a, b in [-1.5 eps, 1.5 eps], r1 = sign(grad_x CE(x)), r2 = +-1 with probability 1/2.

    For the example `options.example`; a and b in units of x, CE in nats. Nothing is clipped to the domain. Source: Zhang et al.
    (Fast-BAT), fig. A1, which says neither the units nor whether it clips. Raises UserError: no such example.
    """
    example = (options or Options()).example
    if not 0 <= example < len(subject):
        raise UserError(f"there is no example {example}", where="--example", fix=f"it is one of 0..{len(subject) - 1}")
    x, y = subject.x[example : example + 1], subject.y[example : example + 1]
    ascent = _ascent(subject.at(x, y))
    random = generator(x.device, derive(subject.seed, "landscape", example))
    sides = torch.where(torch.rand(x.shape, device=x.device, generator=random) < 0.5, -1.0, 1.0).to(x.dtype)
    reach = REACH * (subject.radius or 1.0)
    ticks = torch.linspace(-reach, reach, SIDE, dtype=x.dtype, device=x.device)
    grid = torch.cartesian_prod(ticks, ticks)
    steps = grid.reshape(-1, 2, *(1,) * (x.ndim - 1))
    points = x + steps[:, 0] * ascent + steps[:, 1] * sides
    loss = subject.at(points, y.expand(len(grid))).values({"loss": "CE(f(x), y)"}, {})["loss"]
    columns = (
        Column("a", "units of x", "$a$"),
        Column("b", "units of x", "$b$"),
        Column("loss", "nats", "cross-entropy"),
    )
    notes = [
        f"example {example}, label {subject.classes[int(y)]}; radius {subject.radius:.4g}; not clipped to the domain",
        "a: along the sign of the gradient; b: along random signs",
    ]
    if not bool(ascent.any()):
        notes.append("the gradient is 0 here: the loss does not change along a")
    rows = column_rows([grid[:, 0].tolist(), grid[:, 1].tolist(), loss.tolist()])
    title, source = "Loss landscape", "Zhang et al. (Fast-BAT), fig. A1"
    return Table("landscape", title, source, columns, rows, tuple(notes), {"radius": subject.radius, "example": example})


def _ascent(subject: Subject) -> torch.Tensor:
    """sign(grad_x CE(x)), [1, *shape]: the step of FGSM, without a domain to be clipped to."""
    if not subject.differentiable:
        return torch.zeros_like(subject.x)
    step = compile(parse_recipe(_FGSM, "<diagnostic>"), subject.model, num_classes=subject.num_classes)
    moved: torch.Tensor = step.solve(subject.x, subject.y)["x'"] - subject.x
    return moved.sign()
