"""The result of an evaluation: its numbers, which examples were broken, what it cost; kept as JSON with the masks beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import Tensor

from lossdsl.diagnostics import UserError
from lossdsl.run.files import read_json, write_atomic, write_json
from lossdsl.run.measure import Clean, Measurement, Outcome, Rate, largest_loss
from lossdsl.run.passes import Passes

FORMAT = 1
"""Raised when the numbers of an evaluation change for the same suite, so that old results are not taken for new ones."""


@dataclass(frozen=True)
class Evaluation:
    """What one suite did to one model.

    attack, count: the suite and its rule. settings: a row per run, every option named. seed: of the random numbers. device: where it was
    computed. cached: read from an earlier evaluation.
    """

    attack: str
    count: str
    settings: tuple[Mapping[str, Any], ...]
    seed: int
    device: str
    cached: bool
    measurement: Measurement = field(repr=False)

    @property
    def clean(self) -> Rate:
        """Accuracy without an attack."""
        return self.measurement.clean

    @property
    def robust(self) -> Rate | None:
        """The suite's robust accuracy; None for `count each`, whose numbers are in `runs`."""
        return self.measurement.robust

    @property
    def runs(self) -> Mapping[str, Rate]:
        """Per run the accuracy that is left: after it and all before it (`worst`), or of this run alone."""
        return self.measurement.runs

    @property
    def broken(self) -> Tensor | None:
        """bool [N]: wrong when clean, or broken by the suite; None for `count each`."""
        return None if self.measurement.survivors is None else ~self.measurement.survivors

    @property
    def points(self) -> Tensor | None:
        """[N, *shape]: for each example the point that decided: under `worst` that of the run that broke it, else of the last run; under
        `best_loss` that of the largest objective; the clean input where it was wrong already. None unless points were asked for, and
        for `count each`, whose points are those of `measurement.outcomes`."""
        outcomes = self.measurement.outcomes
        held = [outcome.points for outcome in outcomes if outcome.points is not None]
        if len(held) != len(outcomes) or self.count == "each":
            return None
        every = torch.arange(len(held[0]))
        if self.count == "best_loss":
            return torch.stack(held)[largest_loss(outcomes), every]
        attacked = torch.stack([outcome.attacked for outcome in outcomes])  # a run only gets those that are still right
        last = len(held) - 1 - attacked.flip(0).to(torch.uint8).argmax(0)
        return torch.stack(held)[last, every]

    @property
    def not_finite(self) -> int:
        """How many examples have outputs that are not finite; they count as wrong."""
        return int((~self.measurement.predictions.finite).sum())

    @property
    def passes(self) -> Passes:
        """All passes through models: clean predictions, attacks, and the judging of their points."""
        return sum((outcome.passes for outcome in self.measurement.outcomes), self.measurement.predictions.passes)

    @property
    def passes_per_example(self) -> float:
        """Forward and backward passes, divided by the number of examples."""
        return self.passes.examples / self.clean.total

    @property
    def seconds(self) -> float:
        return self.measurement.predictions.seconds + sum(outcome.seconds for outcome in self.measurement.outcomes)

    def to_json(self) -> dict[str, Any]:
        """Every number; the masks are not in it."""
        found = self.measurement
        runs = {
            outcome.name: {
                **found.runs[outcome.name].to_json(),
                "attacked": int(outcome.attacked.sum()), "broken": int(outcome.broken.sum()),
                "passes": outcome.passes.to_json(), "seconds": outcome.seconds,
            }
            for outcome in found.outcomes
        }  # fmt: skip
        start, wild = found.predictions, self.not_finite
        clean = {**found.clean.to_json(), "not_finite": wild, "passes": start.passes.to_json(), "seconds": start.seconds}
        return {
            "attack": self.attack, "count": self.count, "seed": self.seed, "device": self.device, "cached": self.cached,
            "seconds": self.seconds, "passes": self.passes.to_json(), "passes_per_example": self.passes_per_example,
            "clean": clean, "robust": found.robust.to_json() if found.robust else None, "runs": runs,
            "settings": [dict(row) for row in self.settings],
        }  # fmt: skip

    def __str__(self) -> str:
        """The table, as text."""
        from lossdsl.run.report import as_text, evaluations_report

        return as_text(evaluations_report([self]))


def masks(found: Measurement) -> dict[str, Tensor]:
    """bool [N] by name: `right` (clean), `finite`, `survivors`, and per run `attacked.NAME` and `broken.NAME`."""
    held = {"right": found.predictions.right, "finite": found.predictions.finite}
    if found.survivors is not None:
        held["survivors"] = found.survivors
    for outcome in found.outcomes:
        held[f"attacked.{outcome.name}"], held[f"broken.{outcome.name}"] = outcome.attacked, outcome.broken
    return held


def masks_path(file: Path) -> Path:
    return file.with_suffix(".safetensors")


def write_result(file: Path, value: Mapping[str, Any], found: Measurement) -> None:
    """The JSON last: where it is there, all of the result is."""
    write_atomic(masks_path(file), save_tensors({name: mask.clone() for name, mask in masks(found).items()}))
    write_json(file, value)


def known_result(file: Path, key: str) -> tuple[dict[str, Any], Measurement] | None:
    """The result under a name, if it is the one of this key."""
    if not (file.exists() and masks_path(file).exists()):
        return None
    value, found = read_result(file)
    return (value, found) if value.get("key") == key else None


def read_result(file: Path) -> tuple[dict[str, Any], Measurement]:
    """The JSON and the measurement. Raises UserError for files that are damaged."""
    value = read_json(file, "result of an evaluation")
    try:
        held = load_file(masks_path(file))
        runs = value["runs"]
        outcomes = tuple(
            Outcome(name, held[f"attacked.{name}"], held[f"broken.{name}"], Passes.from_json(row["passes"]), float(row["seconds"]))
            for name, row in runs.items()
        )
        clean = value["clean"]
        start = Clean(held["right"], held["finite"], Passes.from_json(clean["passes"]), float(clean["seconds"]))
        robust = Rate.from_json(value["robust"]) if value["robust"] else None
        rates = {name: Rate.from_json(row) for name, row in runs.items()}
        return value, Measurement(Rate.from_json(clean), robust, rates, start, held.get("survivors"), outcomes)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, json.JSONDecodeError) as error:
        raise UserError(f"is no whole result of an evaluation ({error})", where=str(file), fix="measure again with --fresh") from error
