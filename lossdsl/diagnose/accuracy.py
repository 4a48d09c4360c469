"""Accuracy against the radius of the attack (D3), at several radii of training (D13), over a swept param (D16), per class (D19)."""

from __future__ import annotations

import json

from lossdsl.diagnose.runs import OpenRun
from lossdsl.diagnose.subject import Options, Subject
from lossdsl.diagnose.table import Cell, Column, Table, column_rows
from lossdsl.diagnostics import UserError

POINTS = 9


def radii(subject: Subject, options: Options | None = None) -> Table:
    """D3: clean and robust accuracy, in [0, 1], of one model at each of `options.radii` (else nine from 0 to twice the attack's own).

    A note says where the accuracy rises with the radius: the attack is then too weak there. Source: Zhang et al. (Fast-BAT), fig. 1,
    without training anew at each radius (see `trained`).
    """
    wanted = options.radii if options and options.radii else tuple(2 * subject.radius * k / (POINTS - 1) for k in range(POINTS))
    rows: list[tuple[Cell, ...]] = []
    for eps in wanted:
        at = subject.under(eps=eps) if eps > 0 else None
        robust = at.robust if at else subject.clean
        rows.append((eps, float(subject.clean.double().mean()), float(robust.double().mean())))
    rising = [f"{b[0]:.4g}" for a, b in zip(rows, rows[1:], strict=False) if float(b[2] or 0) > float(a[2] or 0)]
    notes = [f"{subject.attack.name}, {subject.norm}, seed {subject.seed}, {len(subject)} examples"]
    notes += [f"robust accuracy rises with the radius at {', '.join(rising)}: the attack is too weak there"] if rising else []
    columns = (Column("eps", "units of x", "radius"), Column("clean", about="clean accuracy"), Column("robust", about="robust accuracy"))
    return Table("radii", "Accuracy against the radius", "Zhang et al. (Fast-BAT), fig. 1", columns, tuple(rows), tuple(notes))


def trained(run: OpenRun, options: Options) -> Table:
    """D13: the radius that a run was trained at, and its accuracies at that radius on the test split, best and last checkpoint (with and
    without early stopping), as the run itself measured them. A model that predicts one class alone is a finding.

    Source: Kim et al. (Bridged AT), fig. 3; Zhang et al. (Fast-BAT), fig. 1. Raises UserError: unfinished, or no param eps.
    """
    result = run.result()
    if result is None or "eps" not in run.params:
        problem = "is not finished" if result is None else "has a recipe without the param eps"
        raise UserError(problem, where=str(run.path), fix="finish it with --resume" if result is None else "leave this run out")
    rows = tuple(
        (run.recipe.name, float(run.params["eps"]), which, result[which]["clean"]["accuracy"], result[which]["robust"]["accuracy"])
        for which in ("best", "last")
    )
    notes = [f"under {result['attack']['name']}"]
    for which in ("best", "last"):
        subject = run.subject(run.weights(which), split="test")
        classes = subject.predicted(subject.x).unique()
        if len(classes) == 1:
            notes.append(f"the {which} checkpoint predicts class {subject.classes[int(classes)]} for every example")
    columns = (
        Column("recipe"),
        Column("eps", "units of x", "radius of training and attack"),
        Column("checkpoint"),
        Column("clean", about="clean accuracy"),
        Column("robust", about="robust accuracy"),
    )
    return Table("trained", "Accuracy of models trained at several radii", "Kim et al. (Bridged AT), fig. 3", columns, rows, tuple(notes))


def classes(subject: Subject, options: Options | None = None) -> Table:
    """D19: clean and robust accuracy of every class, in [0, 1], and the worst class. A class without examples has none.

    Source: Cevher (2024), CFOL; Cevher et al., ICLR 2023.
    """
    rows: list[tuple[Cell, ...]] = []
    for k, name in enumerate(subject.classes):
        own = subject.y == k
        count = int(own.sum())
        values = (float(subject.clean[own].double().mean()), float(subject.robust[own].double().mean())) if count else (None, None)
        rows.append((name, count, *values))
    known = [row for row in rows if row[1]]
    worst = [min(known, key=lambda row: float(row[place] or 0)) for place in (2, 3)]
    kinds = zip(("clean", "robust"), worst, (2, 3), strict=True)
    named = [f"worst {kind} accuracy: class {row[0]}, {float(row[place] or 0):.1%}" for kind, row, place in kinds]
    empty = [str(row[0]) for row in rows if not row[1]]
    columns = (Column("class"), Column("examples"), Column("clean", about="clean accuracy"), Column("robust", about="robust accuracy"))
    notes = (subject.about, *named, *([f"no examples of class {', '.join(empty)}"] if empty else []))
    return Table("classes", "Accuracy per class", "Cevher et al. (CFOL)", columns, tuple(rows), notes)


def frontier(run: OpenRun, options: Options) -> Table:
    """D16: one point of the frontier: clean and robust accuracy, in [0, 1], of a run under `options.attack`, with its recipe and params.

    The figure joins the runs of a recipe in the order of the param that they differ in. Source: Wu et al. (FAIT), fig. 1 (under
    AutoAttack, over lambda).
    """
    subject = run.subject()
    clean, robust = (float(mask.double().mean()) for mask in (subject.clean, subject.robust))
    rows = column_rows([[run.recipe.name], [json.dumps(dict(run.params), sort_keys=True)], [clean], [robust]])
    columns = (Column("recipe"), Column("params"), Column("clean", about="clean accuracy"), Column("robust", about="robust accuracy"))
    return Table("frontier", "Robustness and accuracy", "Wu et al. (FAIT), fig. 1", columns, rows, (subject.about,))
