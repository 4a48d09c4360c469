"""Over the epochs of a run: learning curves (D1), catastrophic overfitting (D2), early stopping (D20), time (D22)."""

from __future__ import annotations

from typing import Any

from lossdsl.diagnose.runs import OpenRun, Weights
from lossdsl.diagnose.subject import Options, Subject
from lossdsl.diagnose.table import Cell, Column, Table
from lossdsl.diagnostics import UserError
from lossdsl.run.overfitting import GAP, RULE, alarms
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


# --- D2 ---


def alarm(run: OpenRun, options: Options) -> Table:
    """D2: per epoch the accuracy on the validation split under FGSM and under the validation attack, in [0, 1], and the alarm's rule.

    The run's own record where it was trained with the alarm; else both are measured at the kept epochs. The rule and its source:
    lossdsl.run.overfitting. Raises UserError: neither an alarm nor kept epochs.
    """
    recorded = [(r["epoch"], r["alarm"]["accuracy"], r["validation"]["robust"]) for r in run.metrics() if "alarm" in r]
    suite = run.identity["validation_attack"]["name"]
    notes = [f"alarm: {RULE}"]
    if not recorded:
        if not kept_epochs(run.path):
            raise UserError(
                "recorded no accuracy under FGSM and kept no epochs",
                where=str(run.path),
                fix="train it with --alarm fgsm or with --keep-epochs",
            )
        recorded = [(w.epoch, _validated(run, w, "fgsm"), _validated(run, w, suite)) for w in run.epochs()]
        notes.append("measured at the kept epochs: the run itself recorded no alarm")
    on = alarms([row[1] for row in recorded], [row[2] for row in recorded])
    first = next((row[0] for row, now in zip(recorded, on, strict=True) if now), None)
    notes.append("no catastrophic overfitting" if first is None else f"catastrophic overfitting from epoch {first}")
    rows = tuple((*row, now) for row, now in zip(recorded, on, strict=True))
    columns = (
        Column("epoch", about="epoch"),
        Column("fgsm", about="accuracy under FGSM"),
        Column("pgd", about=f"accuracy under {suite}"),
        Column("alarm"),
    )
    return Table("alarm", "Catastrophic overfitting", "Wong et al., ICLR 2020, sec. 5.4", columns, rows, tuple(notes))


def _validated(run: OpenRun, weights: Weights, attack: str) -> float:
    """Robust accuracy on the validation split."""
    return _accuracies(run.subject(weights, split="validation", attack=attack))[1]


# --- D20 ---


def stopping(run: OpenRun, options: Options) -> Table:
    """D20: which epoch each rule of early stopping chooses among the kept ones, and the test accuracies there, in [0, 1].

    last: none. held-out: the best robust accuracy on the validation split (Robey et al.; Zhang et al., Fast-BAT). test: the best on the
    test split itself (Wu et al., FAIT, "per-epoch PGD", who do not name the split). first batch: the best under PGD-10 on the first test
    batch (Kim et al., app. B). drop: the epoch before the validation accuracy falls by more than 0.2 (Wong et al.'s code). Of equal
    epochs the first. Those on test examples choose by what is then reported. Raises UserError where no epochs are kept.
    """
    weights = run.epochs()
    recorded = {r["epoch"]: r["validation"]["robust"] for r in run.metrics()}
    held = [recorded[w.epoch] for w in weights]
    batch = int(run.identity["train"]["batch"])
    tested = [_accuracies(run.subject(w, split="test")) for w in weights]
    first = [_accuracies(run.subject(w, split="test", limit=batch, attack="pgd10"))[1] for w in weights]
    robust = [pair[1] for pair in tested]
    chosen = {
        "last": len(weights) - 1,
        "held-out": _first_best(held),
        "test": _first_best(robust),
        "first batch": _first_best(first),
        "drop": next((n for n in range(len(held) - 1) if held[n] - held[n + 1] > GAP), len(held) - 1),
    }
    rows = tuple((name, weights[n].epoch, tested[n][0], robust[n], max(robust) - robust[n]) for name, n in chosen.items())
    columns = (
        Column("rule"),
        Column("epoch", about="epoch chosen"),
        Column("clean", about="clean test accuracy"),
        Column("robust", about="robust test accuracy"),
        Column("lost", about="below the best kept epoch"),
    )
    note = f"robust: under {options.attack}, seed {options.seed}; first batch: {batch} examples; {len(weights)} kept epochs"
    return Table("stopping", "Rules of early stopping", "Kim et al. (Bridged AT), app. B", columns, rows, (note,))


def _first_best(values: list[float]) -> int:
    return max(range(len(values)), key=lambda n: values[n])


# --- D22 ---


def time(run: OpenRun, options: Options) -> Table:
    """D22: seconds per epoch and per update, on the machine of the run, and the passes of a step by its plan.

    The seconds of an epoch are those between two records: updates, validation, alarm and checkpoints. Source: Zhang et al. (Fast-BAT),
    tables 4 to 8; Rocamora et al. (ELLE).
    """
    from lossdsl.plan.cost import cost

    records = run.metrics()
    seconds, updates = float(records[-1]["seconds"]), int(records[-1]["updates"])
    passes = cost(run.recipe.plan)
    row = (run.recipe.name, len(records), updates, seconds / len(records), seconds / updates, str(passes).removeprefix("cost: "))
    columns = (
        Column("recipe"),
        Column("epochs"),
        Column("updates"),
        Column("epoch", "s", "time per epoch"),
        Column("update", "s", "time per update"),
        Column("passes", about="passes of an update"),
    )
    hardware = run.about["hardware"]
    notes = (f"{hardware['device']} on {hardware['machine']}, {hardware['threads']} threads; model {run.identity['model']}",)
    return Table("time", "Time", "Zhang et al. (Fast-BAT), tables 4 to 8", columns, (row,), notes)
