"""Margins and smoothness of every example (D6), their quadrants (D7) and the decomposition of the robust error (D8)."""

from __future__ import annotations

import torch
from torch import Tensor

from lossdsl.diagnose.quantities import DIVERGENCE, MARGIN, at
from lossdsl.diagnose.subject import Options, Subject
from lossdsl.diagnose.table import Column, Table, column_rows
from lossdsl.run.rng import derive, generator

QUADRANTS = {"I": "robust", "II": "repaired", "III": "natural error", "IV": "boundary error"}
"""By the signs of M(x), M(x*): I both right, IV broken by the attack, III wrong before it, II wrong at x and right at x*."""
DIRECTIONS = 100
BRIDGED = "Kim et al. (Bridged adversarial training)"
_COLUMNS = (
    Column("example", about="place of the example"),
    Column("margin", about="margin $M(x)$"),
    Column("adversarial margin", about="margin $M(x^*)$"),
    Column("kl", "nats", "$KL(p(x) \\| p(x^*))$"),
    Column("js", "nats", "$JS(p(x) \\| p(x^*))$"),
    Column("l2", about="$\\|p(x) - p(x^*)\\|_2$"),
)


def margins(subject: Subject, options: Options | None = None) -> Table:
    """D6: M(x), M(x*), KL(p(x) || p(x*)), JS (in [0, ln 2]) and |p(x) - p(x*)|_2 (in [0, sqrt 2]) of every example. KL and JS in nats.

    M(x) = p_y - max over the other classes, in [-1, 1]. Source: Kim et al. (Bridged AT), fig. 2, who use PGD-50. A note gives the
    sliced Wasserstein-1 distance between the clouds p(x) and p(x*), another measure of smoothness they name.
    """
    expressions = {
        "margin": at(MARGIN, "x"), "adversarial": at(MARGIN, "x'"), "kl": DIVERGENCE, "js": "JS(p(x) || p(x'))",
        "l2": "norm(p(x) - p(x'), 2)",
    }  # fmt: skip
    found = subject.values(expressions)
    rows = column_rows([range(len(subject)), *(found[name].tolist() for name in expressions)])
    distance = sliced_wasserstein(subject.probabilities(subject.x), subject.probabilities(subject.adversarial), subject.seed)
    notes = (subject.about, f"sliced Wasserstein-1 distance between p(x) and p(x*): {distance:.4f}")
    return Table("margins", "Margins and smoothness", f"{BRIDGED}, fig. 2", _COLUMNS, rows, notes, {"radius": subject.radius})


def sliced_wasserstein(one: Tensor, two: Tensor, seed: int) -> float:
    """The mean Wasserstein-1 distance between the projections of two clouds [N, d] on 100 random unit vectors (Bonneel et al., 2015)."""
    from scipy.stats import wasserstein_distance

    directions = torch.randn(one.shape[1], DIRECTIONS, dtype=torch.float64, generator=generator("cpu", derive(seed, "sliced")))
    shadows = [(cloud.double().cpu() @ (directions / directions.norm(dim=0))).numpy() for cloud in (one, two)]
    return float(sum(wasserstein_distance(a, b) for a, b in zip(shadows[0].T, shadows[1].T, strict=True)) / DIRECTIONS)


def quadrants(subject: Subject, options: Options | None = None) -> Table:
    """D7: for every example M(x), M(x*), KL(p(x) || p(x*)) and its quadrant by what the model predicts at x and at x*.

    Source: Kim et al. (Bridged AT), fig. 8 and B.1. Quadrant II holds examples that the attack repairs (it has no reason to, and does
    so only where it fails); they are clean errors and count as robust errors in `decomposition`. At a tie the prediction is the lowest
    of the largest classes, so that an example with M = 0 can be right.
    """
    found = subject.values({"margin": at(MARGIN, "x"), "adversarial": at(MARGIN, "x'"), "kl": DIVERGENCE})
    names = [_quadrant(*pair) for pair in zip(subject.clean.tolist(), subject.right_at(subject.adversarial).tolist(), strict=True)]
    rows = column_rows([range(len(subject)), *(found[name].tolist() for name in ("margin", "adversarial", "kl")), names])
    columns = (*_COLUMNS[:4], Column("quadrant"))
    repaired = [n for n, name in enumerate(names) if name == "II"]
    which = ", ".join(map(str, repaired[:10])) + (", ..." if len(repaired) > 10 else "")
    second = f"quadrant II holds {len(repaired)} examples that the attack repairs: {which}" if repaired else "quadrant II is empty"
    return Table("quadrants", "Margins before and after the attack", f"{BRIDGED}, fig. 8", columns, rows, (subject.about, second))


def decomposition(subject: Subject, options: Options | None = None) -> Table:
    """D8: R_rob = R_nat + R_bdy, as counts and as shares of all examples; the counts add up exactly.

    R_nat: wrong at x (quadrants II and III). R_bdy: right at x, wrong at x* (IV). R_rob: wrong at x or at x*. Source: Kim et al.
    (Bridged AT), eq. 7, after Zhang et al., ICML 2019 (TRADES), eq. 3.
    """
    return _table(decomposed(subject.clean, subject.right_at(subject.adversarial)), len(subject), subject.about)


def decomposed(clean: Tensor, attacked: Tensor) -> dict[str, int]:
    """Counts by name from two masks [N], right at x and right at x*; "robust" = "natural" + "boundary"."""
    natural, boundary = int((~clean).sum()), int((clean & ~attacked).sum())
    repaired = int((~clean & attacked).sum())
    return {"natural": natural, "boundary": boundary, "robust": int((~(clean & attacked)).sum()), "repaired": repaired}


def _table(counts: dict[str, int], total: int, about: str) -> Table:
    names = {"natural": "R_nat", "boundary": "R_bdy", "robust": "R_rob"}
    rows = tuple((names[name], count, count / total) for name, count in counts.items() if name in names)
    columns = (Column("error"), Column("examples"), Column("share", about="share of all examples"))
    repaired = counts["repaired"]
    note = f"{repaired} clean errors are right at x* (quadrant II) and stay errors" if repaired else "quadrant II is empty"
    return Table("decomposition", "Natural and boundary error", f"{BRIDGED}, eq. 7", columns, rows, (about, note), {"examples": total})


def _quadrant(clean: bool, attacked: bool) -> str:
    if clean:
        return "I" if attacked else "IV"
    return "II" if attacked else "III"
