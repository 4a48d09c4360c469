"""Over the epochs of a run: learning curves (D1)."""

from __future__ import annotations

from typing import Any

from lossdsl.diagnose.runs import OpenRun
from lossdsl.diagnose.subject import Options, Subject
from lossdsl.diagnose.table import Cell, Column, Table
from lossdsl.run.stored import kept_epochs

_ACCURACIES = (
    Column("split"),
    Column("epoch", about="epoch"),
    Column("clean", about="clean accuracy"),
    Column("robust", about="robust accuracy"),
    Column("best", about="chosen by the validation split"),
)


def curves(run: OpenRun, options: Options) -> Table:
    """D1: clean and robust accuracy per epoch, in [0, 1], with the accuracies of the best and of the last checkpoint (robust overfitting).

    The validation curve is what the run recorded under its validation attack. The curves of training and test examples (under
    `options.attack`) need the weights of the epochs (train --keep-epochs); `options.limit` takes the first examples of each. Source:
    Robey et al. (BETA), fig. 1 and table 1; Rice et al., ICML 2020.
    """
    records, result = run.metrics(), run.result()
    best = max(r["epoch"] for r in records if r["best"])
    rows: list[tuple[Cell, ...]] = [
        ("validation", r["epoch"], r["validation"]["clean"], r["validation"]["robust"], r["epoch"] == best) for r in records
    ]
    notes = [f"validation: under {run.identity['validation_attack']['name']}"]
    if kept_epochs(run.path):
        for split in ("train", "test"):
            for weights in run.epochs():
                rows.append((split, weights.epoch, *_accuracies(run.subject(weights, split=split)), weights.epoch == best))
        notes.append(f"train and test: under {options.attack}, seed {options.seed}")
    else:
        notes.append("no curves of training and test examples: they need lossdsl train ... --keep-epochs")
    if result:
        notes.append(f"test examples under {result['attack']['name']}: {_checkpoint(result, 'best')}, {_checkpoint(result, 'last')}")
        fall = result["best"]["robust"]["accuracy"] - result["last"]["robust"]["accuracy"]
        notes.append(f"robust overfitting (best minus last): {100 * fall:+.1f} points")
    return Table("curves", "Learning curves", "Robey et al. (BETA), fig. 1", _ACCURACIES, tuple(rows), tuple(notes))


def _checkpoint(result: dict[str, Any], name: str) -> str:
    report = result[name]
    return f"{name} (epoch {report['epoch']}) clean {report['clean']['accuracy']:.1%}, robust {report['robust']['accuracy']:.1%}"


def _accuracies(subject: Subject) -> tuple[float, float]:
    """Clean and robust accuracy."""
    return float(subject.clean.double().mean()), float(subject.robust.double().mean())
