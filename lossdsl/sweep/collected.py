"""What a sweep found: each run, and mean and deviation over the seeds of each combination."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

from lossdsl.sweep.grid import Number, Point

FORMAT = "lossdsl-sweep"
Status = Literal["finished", "diverged", "missing"]


@dataclass(frozen=True)
class Run:
    """One run. clean, robust: accuracies in [0, 1] of its checkpoint under the sweep's suite; None unless it is finished. reason: why it
    diverged. findings: the codes of the sanity gate, None where it was off."""

    seed: int
    out: Path
    status: Status
    clean: float | None = None
    robust: float | None = None
    epoch: int | None = None
    seconds: float | None = None
    reason: str = ""
    findings: tuple[str, ...] | None = None
    evaluation: str = ""

    def to_json(self, root: Path) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in ("seed", "status", "clean", "robust", "epoch", "seconds", "reason", "evaluation")}
        return {**plain, "out": str(self.out.relative_to(root)), "findings": None if self.findings is None else list(self.findings)}


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (divisor n - 1) of n numbers; a deviation of None has n < 2, a mean of None n = 0."""

    n: int
    mean: float | None
    std: float | None

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        return cls(len(values), mean(values) if values else None, stdev(values) if len(values) > 1 else None)

    def __str__(self) -> str:
        if self.mean is None:
            return "-"
        return f"{100 * self.mean:.1f}" + ("" if self.std is None else f" ± {100 * self.std:.1f}")

    def to_json(self) -> dict[str, Any]:
        return {"n": self.n, "mean": self.mean, "std": self.std}


@dataclass(frozen=True)
class Row:
    """One combination of values with its runs."""

    values: Mapping[str, Number]
    label: str
    runs: tuple[Run, ...]

    @property
    def clean(self) -> Spread:
        return Spread.of([run.clean for run in self.runs if run.clean is not None])

    @property
    def robust(self) -> Spread:
        return Spread.of([run.robust for run in self.runs if run.robust is not None])

    @property
    def diverged(self) -> tuple[int, ...]:
        """The seeds of the runs that diverged."""
        return tuple(run.seed for run in self.runs if run.status == "diverged")

    @property
    def findings(self) -> dict[str, int]:
        """In how many runs the sanity gate reported each code."""
        codes = [code for run in self.runs for code in run.findings or ()]
        return {code: codes.count(code) for code in sorted(set(codes))}

    def to_json(self, root: Path) -> dict[str, Any]:
        return {
            "values": dict(self.values), "clean": self.clean.to_json(), "robust": self.robust.to_json(), "diverged": list(self.diverged),
            "findings": self.findings, "runs": [run.to_json(root) for run in self.runs],
        }  # fmt: skip


@dataclass(frozen=True)
class Collected:
    """A sweep, finished or not. `settings` are those of the suite's runs, as they were at the first finished run."""

    out: Path
    recipe: str
    title: str
    over: Mapping[str, tuple[Number, ...]]
    seeds: tuple[int, ...]
    attack: str
    checkpoint: str
    rows: tuple[Row, ...]
    data: str = ""

    @property
    def missing(self) -> int:
        return sum(run.status == "missing" for row in self.rows for run in row.runs)

    def to_json(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in ("recipe", "title", "attack", "checkpoint", "data")}
        over = {name: list(values) for name, values in self.over.items()}
        rows = [row.to_json(self.out) for row in self.rows]
        return {"format": FORMAT, **plain, "over": over, "seeds": list(self.seeds), "missing": self.missing, "rows": rows}


def empty_rows(points: tuple[Point, ...], seeds: tuple[int, ...], out: Path) -> tuple[Row, ...]:
    """Every run still missing."""
    return tuple(
        Row(point.values, point.label, tuple(Run(seed, out / point.folder(seed), "missing") for seed in seeds)) for point in points
    )
