"""What the sanity gate says: one outcome per check, and the report that holds them all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lossdsl.run.passes import Passes

Status = Literal["passed", "finding", "error", "not run"]
Number = float | int | str


@dataclass(frozen=True)
class Check:
    """One row of the catalogue. `claim` is what holds for a sound model and a sound measurement; `remedy` what to do where it does not."""

    code: str
    title: str
    claim: str
    remedy: str
    reference: str


@dataclass(frozen=True)
class Verdict:
    """What a check found. `detail` says it in one sentence with its numbers; for "not run" it says why. An "error" makes every
    accuracy of the model meaningless, a "finding" makes the robust one doubtful."""

    status: Status
    detail: str
    numbers: Mapping[str, Number]


def passed(detail: str, **numbers: Number) -> Verdict:
    return Verdict("passed", detail, numbers)


def finding(detail: str, **numbers: Number) -> Verdict:
    return Verdict("finding", detail, numbers)


def error(detail: str, **numbers: Number) -> Verdict:
    return Verdict("error", detail, numbers)


def not_run(why: str) -> Verdict:
    return Verdict("not run", why, {})


@dataclass(frozen=True)
class Outcome:
    """A check with its verdict."""

    check: Check
    verdict: Verdict

    @property
    def code(self) -> str:
        return self.check.code

    @property
    def status(self) -> Status:
        return self.verdict.status

    @property
    def bad(self) -> bool:
        return self.status in ("finding", "error")

    def to_json(self) -> dict[str, Any]:
        check, verdict = self.check, self.verdict
        return {
            "code": check.code, "title": check.title, "status": verdict.status, "detail": verdict.detail, "numbers": dict(verdict.numbers),
            "claim": check.claim, "remedy": check.remedy, "reference": check.reference,
        }  # fmt: skip


@dataclass(frozen=True)
class Report:
    """Every check of one model under one threat: `radius` in `norm`, on `examples` examples of which `right` are classified correctly.
    `level` is that of each test; `passes` and `seconds` are what the checks cost."""

    outcomes: tuple[Outcome, ...]
    budget: str
    examples: int
    right: int
    norm: str
    radius: float
    level: float
    passes: Passes
    seconds: float

    @property
    def findings(self) -> tuple[Outcome, ...]:
        """Findings and errors, in the order of their codes."""
        return tuple(outcome for outcome in self.outcomes if outcome.bad)

    def __getitem__(self, code: str) -> Outcome:
        return next(outcome for outcome in self.outcomes if outcome.code == code)

    def summary(self) -> str:
        """One line: how many checks, how they ended, which found something, what it cost."""
        count = {status: sum(outcome.status == status for outcome in self.outcomes) for status in ("passed", "not run")}
        found = ", ".join(f"{outcome.code} {outcome.check.title}" for outcome in self.findings) or "none"
        each = max(self.examples, 1)
        return (
            f"sanity: {len(self.outcomes)} checks ({count['passed']} passed, {count['not run']} not run), findings: {found}; "
            f"{self.passes.forward_examples / each:.0f} forward and {self.passes.backward_examples / each:.0f} backward passes "
            f"per example on {self.examples} examples, {self.seconds:.1f} s"
        )

    def to_json(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in ("budget", "examples", "right", "norm", "radius", "level", "seconds")}
        checks = [outcome.to_json() for outcome in self.outcomes]
        return {**plain, "passes": self.passes.to_json(), "findings": [outcome.code for outcome in self.findings], "checks": checks}
