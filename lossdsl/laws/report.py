"""Verdicts as a table and as JSON."""

from __future__ import annotations

from typing import Any

from lossdsl.laws.numbers import nstr
from lossdsl.laws.verdict import Counterexample, LawReport, Verdict


def lines(report: LawReport) -> list[str]:
    """A line per statement, and what a counterexample is; what was confirmed in float64 only says so."""
    out = []
    for v in report.verdicts:
        mark = "ok  " if v.passed else "FAIL"
        out.append(f"{mark}  {report.name:<32} {_word(v):<10} {v.tried.seconds:6.1f} s  {v.text}")
        if v.counterexample is not None:
            out += [f"        {line}" for line in counterexample_lines(v.counterexample, v.measured)]
        elif not v.passed:
            out.append(f"        {_reason(v)}")
        elif v.measured:
            out.append("        confirmed in float64: a side is what a solver, a game or Python leaves")
    return out


def _word(v: Verdict) -> str:
    return v.outcome


def _reason(v: Verdict) -> str:
    t = v.tried
    if v.outcome == "vacuous":
        return f"none of {t.examples} examples satisfies the hypotheses: a claim about nothing does not pass"
    if v.outcome == "undecided":
        return "float64 suspects a counterexample that 1200 digits do not settle"
    closest = "" if t.closest is None else f"; closest {t.closest:.3g}"
    return f"no counterexample among {t.satisfied} examples at {t.shapes} choices of whole numbers{closest}"


def counterexample_lines(c: Counterexample, measured: bool = False) -> list[str]:
    """What is chosen, and both sides of every link that fails."""
    parts = [f"{name} = {value}" for name, value in {**c.choices, **c.values}.items()]
    out = [", ".join(str(p).replace("'", "") for p in parts)]
    for link in c.confirmation.comparisons:
        if link.holds is False:
            precision = "confirmed in float64" if measured else f"{link.digits} digits"
            out.append(f"left {_short(link.left)}, right {_short(link.right)} ({precision})")
    return out


def _short(v: Any) -> str:
    return str(nstr(v, 12))


def as_json(report: LawReport) -> dict[str, Any]:
    """Everything about a law."""
    return {
        "law": report.name, "title": report.title, "source": report.source, "place": report.place, "passed": report.passed,
        "statements": [_statement(v) for v in report.verdicts],
    }  # fmt: skip


def _statement(v: Verdict) -> dict[str, Any]:
    found: dict[str, Any] = {
        "statement": v.text, "passed": v.passed, "verdict": v.outcome, "examples": v.tried.examples, "satisfied": v.tried.satisfied,
        "confirmations": v.tried.confirmed, "shapes": v.tried.shapes, "seconds": round(v.tried.seconds, 3), "closest": v.tried.closest,
        "confirmed_in": "float64" if v.measured else "high precision",
    }  # fmt: skip
    if v.counterexample is not None:
        c = v.counterexample
        links = [
            {"holds": link.holds, "left": _short(link.left), "right": _short(link.right), "digits": link.digits}
            for link in c.confirmation.comparisons
        ]
        found["counterexample"] = {
            "choices": c.choices, "values": c.values, "violation": c.confirmation.violation, "comparisons": links,
            "free": {name: [str(x) for x in v] for name, v in c.assignment.values.items()}, "charts": c.assignment.charts,
        }  # fmt: skip
    return found
