"""Results as tables for the terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from lossdsl.run.evaluate import EvaluateResult
from lossdsl.run.measure import CONFIDENCE, Rate
from lossdsl.run.results import Evaluation
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


def evaluations_report(results: Sequence[Evaluation]) -> RenderableType:
    """Clean and robust accuracies of every model under every suite, what they cost, and every setting they hold under."""
    table = Table(title=_title(results), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("attack", "run", f"accuracy [{CONFIDENCE:.0%}]", "broken", "passes", "seconds"):
        table.add_column(heading, no_wrap=True, justify="left" if heading in ("attack", "run") else "right")
    for number, result in enumerate(results):
        if number == 0 or _model(result) != _model(results[number - 1]):
            _start_rows(table, result, named=_several(results))
        _result_rows(table, result)
    return Group(table, *(Text(line) for line in _notes(results)))


def _model(result: Evaluation) -> str:
    return f"{result.run}, {result.checkpoint}" if isinstance(result, EvaluateResult) else ""


def _several(results: Sequence[Evaluation]) -> bool:
    return len({_model(result) for result in results}) > 1


def _title(results: Sequence[Evaluation]) -> str | None:
    first = results[0]
    if not isinstance(first, EvaluateResult) or _several(results):
        return None
    return f"{first.run}, {first.checkpoint} checkpoint (epoch {first.epoch}), {first.split} split"


def _start_rows(table: Table, result: Evaluation, named: bool) -> None:
    if named:
        table.add_section()
        table.add_row(_model(result))
    clean = result.measurement.predictions
    per_example = f"{clean.passes.examples / result.clean.total:.1f}"
    table.add_row("", "clean", show_rate(result.clean), "", per_example, f"{clean.seconds:.1f}")


def _result_rows(table: Table, result: Evaluation) -> None:
    """A row per run, and one for the suite."""
    table.add_section()
    outcomes, total = result.measurement.outcomes, result.clean.total
    several = result.robust is None or len(outcomes) > 1
    for place, outcome in enumerate(outcomes if several else ()):
        broken = f"{int(outcome.broken.sum())} of {int(outcome.attacked.sum())}"
        cost = f"{outcome.passes.examples / total:.1f}"
        label = "" if place else result.attack
        table.add_row(label, outcome.name, show_rate(result.runs[outcome.name]), broken, cost, f"{outcome.seconds:.1f}")
    if result.robust is not None:
        lost = f"{result.clean.right - result.robust.right} of {result.clean.right}"
        costs = f"{result.passes_per_example:.1f}", f"{result.seconds:.1f}"
        label = "" if several else result.attack
        table.add_row(label, "robust", show_rate(result.robust), lost, *costs, style="bold")


def _notes(results: Sequence[Evaluation]) -> Iterator[str]:
    """Settings once per suite; what else a reader must know."""
    seen: list[list[str]] = []
    for result in results:
        lines = [f"{result.attack}: count {COUNT_RULES[result.count]}", *(f"  {settings_line(row)}" for row in result.settings)]
        if lines not in seen:
            seen.append(lines)
            yield from lines
    about = "Under count worst a run's accuracy is after it and those before. Intervals are Wilson's. Broken: of the examples attacked."
    yield f"{about} Passes: forward and backward, per example, judging included; seed {results[0].seed}."
    for result in results:
        if result.not_finite:
            yield f"{_model(result)} {result.not_finite} examples have outputs that are not finite; they count as wrong".strip()
    for result in results:
        if isinstance(result, EvaluateResult) and result.sanity is not None:
            yield f"{result.attack}: {result.sanity['summary']}" if len(results) > 1 else str(result.sanity["summary"])
    yield from dict.fromkeys(f"data: {result.data}" for result in results if isinstance(result, EvaluateResult))
    for result in results:
        if isinstance(result, EvaluateResult):
            yield f"{'known from' if result.cached else 'written to'} {result.file}"


def as_text(content: RenderableType, width: int = 140) -> str:
    """What a terminal would show, without colours."""
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(content)
    return console.file.getvalue()  # type: ignore[attr-defined]


def _attack_lines(count: str, settings: Any, seed: int) -> list[str]:
    return [
        f"count {COUNT_RULES[count]}",
        *(settings_line(row) for row in settings),
        f"seed {seed}; intervals are Wilson's, {CONFIDENCE:.0%}",
    ]
