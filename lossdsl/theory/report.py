"""Everything theory says about one declaration, as text and as data: `lossdsl theory`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lossdsl.check.typed import TypedRecipe, show
from lossdsl.theory.attacked import Facts
from lossdsl.theory.lints import Finding, findings
from lossdsl.theory.suites import suite
from lossdsl.theory.table import LINTS

if TYPE_CHECKING:
    from lossdsl.syntax import tree as t


def lint(typed: TypedRecipe, node: t.Declaration, base: TypedRecipe | None = None, classes: int | None = None) -> list[Finding]:
    """The findings on one declaration. `base`: the suite that an attack extends; `classes`: the number of classes, if it is known."""
    return [*findings(Facts(typed, classes)), *suite(typed, node, base)]


@dataclass(frozen=True)
class Report:
    """The facts and findings of a recipe or attack suite."""

    facts: Facts
    found: tuple[Finding, ...]
    epoch: int = 1

    def as_text(self) -> str:
        """Levels, bounds and findings, with their trees of reasons."""
        sections = [self._levels(), self._upper(), *(self._finding(f) for f in self.found)]
        if not self.found:
            sections.append(["no findings"])
        head = f"{self.facts.recipe.kind} {self.facts.recipe.name}" + (f", from epoch {self.epoch}" if self.epoch > 1 else "")
        note = "lower levels are taken as solved exactly, and f as one function in every mode; a tie is an error"
        return "\n\n".join("\n".join(lines) for lines in ([head, f"  {note}"], *sections) if lines)

    def _levels(self) -> list[str]:
        lines = []
        for level in self.facts.attacks:
            known = self.facts.surrogate(level)
            lines.append(f"{'run ' + level.run if level.run else 'lower ' + level.var}: {level.sense} {show(level.objective)}")
            if known is None:
                lines.append("  not a function of one prediction that the level moves: nothing is said about the error")
                continue
            where, words = show(known.event.point), known.event.words
            lines.append(f"  in {known.found.no} where {where} is {words[0]}, in {known.found.yes} where it is {words[1]}")
            exact = known.exact and self.facts.covers(level)
            lines.append("  exact: its maximiser is misclassified wherever a point of the set is" if exact else "  not exact for the error")
        return lines

    def _upper(self) -> list[str]:
        if self.facts.objective is None:
            return []
        lines = [f"upper: minimize {show(self.facts.objective)}"]
        if self.facts.robust is not None:
            lines += ["  bound of the robust 0-1 error", *self.facts.robust.reason.lines(2)]
        points = self.facts.pointwise
        lines += ["  bounds at the points", *(line for b in points for line in b.reason.lines(2))] if points else ["  no bound of an error"]
        return lines

    def _finding(self, found: Finding) -> list[str]:
        row, d = LINTS[found.code], found.diagnostic
        lines = [f"{d.severity}[{d.code}] {d.message}", *found.reason.lines(1)]
        lines.append(f"  reference: {row.reference}")
        if row.laws or row.refuted:
            refuted = f"; refuted: {', '.join(row.refuted)}" if row.refuted else ""
            lines.append(f"  laws: {', '.join(row.laws)}{refuted}".replace("laws: ;", "laws:"))
        return [*lines, f"  to mend it: {d.help}"] if d.help else lines

    def as_json(self) -> dict[str, Any]:
        """The same as data."""
        facts = self.facts
        levels = []
        for level in facts.attacks:
            known = facts.surrogate(level)
            ranges = None if known is None else {"right": str(known.found.no), "wrong": str(known.found.yes)}
            exact = known is not None and known.exact and facts.covers(level)
            levels.append({"variable": level.var, "run": level.run, "objective": show(level.objective), "ranges": ranges, "exact": exact})
        bounds = [
            {"at": show(b.event.point), "constant": b.factor, "missing": b.missing, "reason": b.reason.as_json()} for b in facts.pointwise
        ]
        robust = facts.robust
        own = None if robust is None else {"constant": robust.factor, "missing": robust.missing, "reason": robust.reason.as_json()}
        return {
            "kind": facts.recipe.kind,
            "name": facts.recipe.name,
            "epoch": self.epoch,
            "levels": levels,
            "robust": own,
            "bounds": bounds,
            "findings": [self._as_data(f) for f in self.found],
        }

    def _as_data(self, found: Finding) -> dict[str, Any]:
        row, d = LINTS[found.code], found.diagnostic
        return {
            "code": d.code,
            "severity": d.severity,
            "message": d.message,
            "help": d.help,
            "reference": row.reference,
            "laws": list(row.laws),
            "refuted": list(row.refuted),
            "reason": found.reason.as_json(),
        }


def report(typed: TypedRecipe, node: t.Declaration, base: TypedRecipe | None = None, classes: int | None = None, epoch: int = 1) -> Report:
    """Facts and findings of one recipe or suite, in an epoch of training."""
    facts = Facts(typed, classes)
    return Report(facts, (*findings(facts), *suite(typed, node, base)), epoch)
