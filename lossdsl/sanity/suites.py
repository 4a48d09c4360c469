"""The gate behind an evaluation: the threat of a suite, a fair sample of a split, and the suite's own numbers on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lossdsl.diagnostics import UserError
from lossdsl.run.evaluate import EvaluateRequest, open_subject
from lossdsl.run.examples import Split
from lossdsl.run.measure import Measurement, Setting, evaluation_mode
from lossdsl.run.protocols import Attack
from lossdsl.run.request import AttackChoice
from lossdsl.run.rng import choose_device
from lossdsl.run.stored import open_run
from lossdsl.sanity.findings import Report
from lossdsl.sanity.gate import NORMS, check_model
from lossdsl.sanity.probes import Threat
from lossdsl.sanity.subject import BUDGETS, Measured, Settings


class NoThreat(UserError):  # noqa: N818  (what is missing, not a fault)
    """A suite without one radius for all examples."""


@dataclass(frozen=True)
class Gate:
    """`check_model` as `evaluate` calls it. `surrogates`: directories of runs (DIR or DIR:last) for the transfer check."""

    budget: str = "quick"
    surrogates: tuple[str, ...] = ()

    @property
    def name(self) -> Mapping[str, Any]:
        return {"budget": self.budget, "surrogates": {name: open_run(name).digest for name in self.surrogates}}

    def __call__(self, model: nn.Module, attack: Attack, split: Split, setting: Setting, found: Measurement | None) -> dict[str, Any]:
        try:
            return as_json(self.report(model, attack, split, setting, found))
        except NoThreat as none:
            return {"summary": f"sanity: not run, {none}", "findings": [], "checks": []}

    def report(self, model: nn.Module, attack: Attack, split: Split, setting: Setting, found: Measurement | None) -> Report:
        """Judge a model on a fair sample of the split; `found` is what the suite measured on all of it, None if it was not run."""
        sample = fair_sample(len(split), BUDGETS[self.budget].examples)
        batch = next(split.batches([sample]))
        x, y = batch.x.to(setting.device, setting.dtype), batch.y.to(setting.device)
        alive = None if found is None or found.survivors is None else found.survivors[sample].to(setting.device)
        measured = None if found is None else Measured(attack.name, found.clean, found.robust, alive)
        threat = threat_of(attack.name, attack.settings, attack.domain)
        helpers = [_surrogate(name, tuple(x.shape[1:]), model, x, setting) for name in self.surrogates]
        settings = Settings(self.budget, setting.seed, setting.batch)
        with evaluation_mode(model):  # as `measure` has it: S01 then speaks of modules that do not follow
            return check_model(model, x, y, threat, settings=settings, surrogates=helpers, measured=measured)


def as_json(report: Report) -> dict[str, Any]:
    return {"summary": report.summary(), **report.to_json()}


def fair_sample(total: int, wanted: int) -> Tensor:
    """Places [n] spread evenly over 0..total-1, so that a split ordered by class is met in all its classes."""
    return torch.linspace(0, total - 1, min(total, wanted)).round().long()


def threat_of(name: str, settings: Sequence[Mapping[str, Any]], domain: Any) -> Threat:
    """The largest ball of a suite in the norm of its first run. Raises NoThreat where no run has one radius for all examples."""
    known = [(str(row.get("norm")), row["radius"]) for row in settings if isinstance(row.get("radius"), int | float)]
    balls = [(norm, float(radius)) for norm, radius in known if norm in NORMS]
    if not balls:
        raise NoThreat(
            "has no run with one radius for all examples, which the sanity gate needs",
            where=f"attack {name}",
            fix="use --sanity off, or lossdsl sanity with another suite",
        )
    norm = balls[0][0]
    return Threat(max(radius for n, radius in balls if n == norm), norm, domain)


def _surrogate(name: str, shape: tuple[int, ...], model: nn.Module, x: Tensor, setting: Setting) -> nn.Module:
    found = open_run(name)
    with torch.no_grad():
        found.require(shape, model(x[:1]).shape[1], f"--surrogate {name}")
    return found.build(setting.device, setting.dtype)


def check_run(request: EvaluateRequest, gate: Gate) -> Report:
    """The gate on a run alone: the model of a checkpoint under the threat of a suite, which is not run itself.

    Raises UserError as `evaluate` does: not a run, damaged or foreign checkpoint, data that is not the run's, unknown attack.
    """
    device = choose_device(request.device)
    subject = open_subject(request, device)
    overrides = AttackChoice(request.attack, request.overrides).resolved(subject.params)
    attack = request.compile_attack(request.attack, overrides, subject.model, subject.data.num_classes, device)
    return gate.report(subject.model, attack, subject.split, Setting(device, subject.dtype, request.seed, request.batch), None)
