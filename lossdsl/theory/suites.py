"""T10: attack suites against what their names, or the suites that they extend, promise."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lossdsl.check.typed import TypedLevel, TypedRecipe
from lossdsl.diagnostics import Diagnostic, Edit
from lossdsl.source import Span
from lossdsl.syntax import tree as t
from lossdsl.theory.bounds import Reason
from lossdsl.theory.lints import Finding

_COUNTED = re.compile(r"(?P<what>pgd|apgd|bim|mim|cw|beta|fab|square)_?(?P<steps>\d+)(?:x(?P<restarts>\d+))?(?!\d)")
_STRENGTH = ("steps", "queries", "restarts")
_ONLY_BY_NAME = frozenset(("apgd", "fab", "square"))


@dataclass(frozen=True)
class Promise:
    """Settings that a name stands for: by solver the least of every option, or by "" those of any run."""

    text: str
    least: dict[str, dict[str, int]] = field(default_factory=dict)


AUTOATTACK = Promise(
    "APGD on CE and on targeted DLR, FAB (100 steps each) and Square (5000 queries), standard version of Croce & Hein",
    {"apgd": {"steps": 100}, "fab": {"steps": 100}, "square": {"queries": 5000}},
)


def promise(name: str) -> Promise | None:
    """What the name of a suite promises; None for a name that promises nothing."""
    if name == "aa" or name.startswith("autoattack"):
        return AUTOATTACK
    found = _COUNTED.match(name)
    if found is None:
        return None
    what, steps, restarts = found["what"], int(found["steps"]), int(found["restarts"] or 1)
    unit = "queries" if what == "square" else "steps"
    solver = what if what in _ONLY_BY_NAME else ""
    text = f"{steps} {unit}" + (f" and {restarts} restarts" if restarts > 1 else "")
    return Promise(text, {solver: {unit: steps} | ({"restarts": restarts} if restarts > 1 else {})})


def suite(typed: TypedRecipe, node: t.Declaration, base: TypedRecipe | None = None) -> Iterator[Finding]:
    """T10 for one suite; `base`: the suite that it extends."""
    if typed.kind != "attack":
        return
    promised = promise(typed.name)
    if promised is not None:
        yield from _by_name(typed, node, promised)
    if base is not None and base.kind == "attack":
        yield from _by_base(typed, node, base)


def _by_name(typed: TypedRecipe, node: t.Declaration, promised: Promise) -> Iterator[Finding]:
    for solver, least in promised.least.items():
        runs = [level for level in typed.levels if not solver or level.solver.name == solver]
        if not runs:
            yield _weaker(
                f"{typed.name} promises {promised.text}, and no run attacks by {solver}", _head(node), f"add one, or rename {typed.name}"
            )
        elif any(all(_value(run, option) >= number for option, number in least.items()) for run in runs):
            continue
        else:
            strongest = max(runs, key=lambda run: [_value(run, option) for option in least])
            yield from _short(typed.name, f"promises {promised.text}", strongest, node, least)


def _short(name: str, promised: str, run: TypedLevel, node: t.Declaration, least: dict[str, int]) -> Iterator[Finding]:
    """One finding for every option of a run that falls short."""
    for option, number in least.items():
        if _value(run, option) < number:
            said = f"{name} {promised}, and its run {run.run} has {option} = {_value(run, option)}"
            place, edit = _argument(node, run, option, number)
            yield _weaker(said, place, f"write {option} = {number}, or rename {name}", edit)


def _by_base(typed: TypedRecipe, node: t.Declaration, base: TypedRecipe) -> Iterator[Finding]:
    """Runs taken out, weaker settings, a weaker rule of counting."""
    own = {level.run: level for level in typed.levels}
    for run in base.levels:
        here = own.get(run.run)
        if here is None:
            yield _weaker(
                f"{typed.name} extends {base.name} and drops its run {run.run}", _head(node), f"keep it, or do not extend {base.name}"
            )
        elif here.solver.name == run.solver.name:
            least = {option: _value(run, option) for option in _STRENGTH if _value(here, option) < _value(run, option)}
            yield from _short(typed.name, f"extends {base.name}", here, node, least)
    if base.count == "worst" and typed.count != "worst":
        said = f"{typed.name} extends {base.name}, where any run that breaks an example counts, and counts {typed.count}"
        yield _weaker(said, _head(node), "write count worst")


def _value(run: TypedLevel, option: str) -> int:
    return int(getattr(run.solver.options, option, 0))


def _head(node: t.Declaration) -> Span:
    return Span(node.span.start, node.span.start + len(node.kind) + 1 + len(node.name), node.span.file)


def _argument(node: t.Declaration, run: TypedLevel, option: str, number: int) -> tuple[Span, Edit | None]:
    """Where an option is written, and the edit that mends it; the solver itself for an option left out."""
    levels: Sequence[Any] = [i for i in node.items if isinstance(i, t.Level) and i.run == run.run]
    given = [a for level in levels if level.solver for a in level.solver.args if a.name == option]
    if not given:
        return run.solver.span, None
    place = given[0].value.span
    return place, Edit(place, str(number)) if isinstance(given[0].value, t.Number) else None


def _weaker(message: str, place: Span, help: str, edit: Edit | None = None) -> Finding:
    return Finding(
        Diagnostic("T10", message, place, help=help, edit=edit, severity="warning"), Reason("an accuracy under a weaker attack is higher")
    )
