"""Results as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lossdsl.run.evaluate import EvaluateResult
from lossdsl.run.measure import CONFIDENCE, Rate
from lossdsl.run.train import TrainResult

COUNT_RULES = {
    "worst": "worst: an example is robust if it is right when clean and under every run and restart",
    "best_loss": "best_loss: an example is robust if it is right when clean and at the point of largest objective",
    "each": "each: one number per run; clean errors count as broken",
}
HIDDEN = ("name",)
MAX_DENOMINATOR = 255


def show_rate(rate: Rate) -> str:
    """Accuracy with its interval: 81.2% [78.9, 83.3]."""
    low, high = rate.interval
    return f"{rate.value:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def show_number(value: Any) -> str:
    """A setting as a person writes it: multiples of 1/255 as such."""
    if not isinstance(value, float):
        return str(value)
    near = Fraction(value).limit_denominator(MAX_DENOMINATOR)
    if abs(float(near) - value) < 1e-12 and near.denominator > 1 and MAX_DENOMINATOR % near.denominator == 0 and near.denominator > 5:
        return f"{near.numerator * MAX_DENOMINATOR // near.denominator}/255"
    return f"{value:g}"


def settings_line(row: Mapping[str, Any]) -> str:
    """One run of a suite, every setting named."""
    return f"{row['name']}: " + ", ".join(
        f"{key} {show_number(value)}" for key, value in row.items() if key not in HIDDEN and value is not None
    )


def train_report(result: TrainResult) -> RenderableType:
    """Best and last checkpoint on the test split; how to resume where the run was interrupted."""
    if result.best is None or result.last is None:
        return Text(f"stopped after {result.updates} updates; go on with: {result.resume_command}")
    table = Table(title=f"{result.out} on the test split")
    for heading in ("checkpoint", "epoch", "clean", f"robust ({result.attack['name']})", "validation"):
        table.add_column(heading, no_wrap=True)
    for name, report in (("best", result.best), ("last", result.last)):
        chosen = f"{report.validation['robust']:.1%}" if report.validation else ""
        table.add_row(name, str(report.epoch), show_rate(report.clean), show_rate(report.robust), chosen)
    attack = result.attack
    lines = [
        *_attack_lines(attack["count"], attack["settings"], attack["seed"]),
        f"data: {result.data}",
        f"training took {result.seconds:.1f} s, {result.updates} updates",
    ]
    if result.status == "already finished":
        lines.append("this run was finished before; nothing was trained")
    return Group(table, *(Text(line) for line in lines))


def evaluate_report(result: EvaluateResult) -> RenderableType:
    """Clean and robust accuracy, the count rule, and every setting they hold under."""
    table = Table(title=f"{result.run}, {result.checkpoint} checkpoint (epoch {result.epoch}), {result.split} split")
    for heading in ("accuracy", f"value [{CONFIDENCE:.0%} Wilson interval]", "right", "of"):
        table.add_column(heading)
    rows = [("clean", result.clean)]
    if result.robust is not None:
        rows.append((f"robust ({result.attack})", result.robust))
    if result.robust is None or len(result.runs) > 1:
        rows += [(f"after {name}" if result.count == "worst" else name, rate) for name, rate in result.runs.items()]
    for name, rate in rows:
        table.add_row(name, show_rate(rate), str(rate.right), str(rate.total))
    lines = [
        *_attack_lines(result.count, result.settings, result.seed),
        f"data: {result.data}",
        f"measured in {result.seconds:.1f} s; written to {result.file}",
    ]
    return Group(table, *(Text(line) for line in lines))


def _attack_lines(count: str, settings: Any, seed: int) -> list[str]:
    return [
        f"count {COUNT_RULES[count]}",
        *(settings_line(row) for row in settings),
        f"seed {seed}; intervals are Wilson's, {CONFIDENCE:.0%}",
    ]
