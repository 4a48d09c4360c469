"""Gradient alignment (D4): how far input gradients keep their direction inside the ball."""

from __future__ import annotations

import torch

from lossdsl.diagnose.runs import OpenRun
from lossdsl.diagnose.subject import Options, Subject
from lossdsl.diagnose.table import Cell, Column, Table
from lossdsl.run.rng import derive, generator

SLOPE = "grad(v = {0}: CE(f(v), y))"
_COLUMNS = (
    Column("epoch", about="epoch"),
    Column("alignment", about="$\\cos(\\nabla CE(x), \\nabla CE(x + \\eta))$, mean"),
    Column("fgsm and pgd", about="$\\cos(\\delta_{FGSM}, \\delta_{PGD})$, mean"),
    Column("zero gradients", about="examples with a zero gradient, counted as 1"),
)


def aligned(subject: Subject) -> tuple[float, float | None, int]:
    """The mean of cos(grad_x CE(x), grad_x CE(x + eta)), eta ~ U[-eps, eps]^d without clipping to the domain; the mean cosine of the
    perturbations of FGSM and of the subject's attack; the number of examples where a gradient is 0.

    Each mean is in [-1, 1]; a cosine with a zero vector counts as 1. Without any gradient there are no perturbations to compare: None.
    Source: Andriushchenko and Flammarion, NeurIPS 2020, eq. 5 and fig. 3 (eval mode); Zhang et al. (Fast-BAT), fig. 2.
    """
    random = generator(subject.x.device, derive(subject.seed, "alignment"))
    noise = 2 * torch.rand(subject.x.shape, dtype=subject.x.dtype, device=subject.x.device, generator=random) - 1
    near = subject.x + subject.radius * noise
    slopes = SLOPE.format("x"), SLOPE.format("u")
    expressions = {"alignment": f"cos({slopes[0]}, {slopes[1]})", **{f"size{n}": f"norm({slope}, inf)" for n, slope in enumerate(slopes)}}
    found = subject.values(expressions, {"u": near})
    zero = (found["size0"] == 0) | (found["size1"] == 0)
    return float(found["alignment"].double().mean()), _of_attacks(subject), int(zero.sum())


def _of_attacks(subject: Subject) -> float | None:
    if not subject.differentiable:
        return None
    points = {"a": subject.under("fgsm", eps=subject.radius).adversarial, "b": subject.adversarial}
    return float(subject.values({"cosine": "cos(a - x, b - x)"}, points)["cosine"].double().mean())


def alignment(run: OpenRun, options: Options) -> Table:
    """D4 for every kept epoch (else for the best and the last): what `aligned` gives."""
    weights, notes = run.history()
    rows: list[tuple[Cell, ...]] = []
    for one in weights:
        subject = run.subject(one)
        rows.append((one.epoch, *aligned(subject)))
        about = subject.about
    zero = sum(int(row[3] or 0) for row in rows)
    if zero:
        notes = (*notes, "where a gradient is 0 the cosine counts as 1: look for masked gradients or a loss of exactly 0 in float32")
    return Table("alignment", "Gradient alignment", "Zhang et al. (Fast-BAT), fig. 2", _COLUMNS, tuple(rows), (about, *notes))
