"""Writes docs/laws.md from the laws of the papers and the verdicts kept in docs/laws.json.

python docs/make_laws.py            writes the page
python docs/make_laws.py --run      first searches every law whose statements changed or have no verdict yet, saving after each
python docs/make_laws.py --all      first searches every law
"""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lossdsl.assets import law_paths, law_scripts  # noqa: E402
from lossdsl.laws.catalogue import Law, excerpt  # noqa: E402
from lossdsl.laws.python_laws import PythonLaw  # noqa: E402
from lossdsl.laws.search import Effort  # noqa: E402
from lossdsl.laws.testing import laws_at, verdict_on  # noqa: E402
from lossdsl.laws.verdict import LawReport, Verdict  # noqa: E402
from lossdsl.syntax import tree as t  # noqa: E402

PAGE, KEPT = Path(__file__).with_name("laws.md"), Path(__file__).with_name("laws.json")
PAPERS = {
    "beta": "BETA (Robey et al.)", "fast_bat": "Fast-BAT (Zhang et al.)", "slides": "Slides (Cevher)", "fait": "FAIT and MER",
    "bat": "Bridged AT",
}  # fmt: skip
REMARK = re.compile(r"[.:;,]?\s+(?:refuted|Refuted|[Tt]rue\b|Holds\b|corrected|Corrected|An existence|As printed)")
"""Where the printed statement ends in a comment of a law file."""


@dataclass
class Printed:
    """A statement of a paper: its id, whether it is true as printed, its words, and the names of the laws about it."""

    id: str
    mark: str
    words: str
    laws: list[str] = field(default_factory=list)


def printed(name: str) -> list[Printed]:
    """The statements that the comments of a law file give: # A01 [true]: words."""
    found: list[Printed] = []
    lines = law_paths()[name].read_text(encoding="utf-8").splitlines()
    names = re.findall(r"^(?:law|def) (\w+)", "\n".join(lines) + "\n" + _script(name), re.MULTILINE)
    names = [n for n in names if n.startswith(f"{name}_")]
    for n, line in enumerate(lines):
        head = re.match(r"# ([AFCDE]\d\d) \[([^\]]+)\]: (.*)", line)
        if head is None:
            continue
        words = [head[3]]
        for more in lines[n + 1 :]:
            if not more.startswith("# ") or re.match(r"# [AFCDE]\d\d\b", more):
                break
            words.append(more[2:])
        own = [one for one in names if one.startswith(f"{name}_{head[1].lower()}_")]
        after = next(one for line in lines[n:] for one in re.findall(r"^law (\w+)", line))
        text = REMARK.split(" ".join(words), maxsplit=1)[0]
        found.append(Printed(head[1], head[2], text.rstrip(". "), own or [after]))
    return sorted(found, key=lambda one: one.id)


def _script(name: str) -> str:
    return law_scripts()[name].read_text(encoding="utf-8") if name in law_scripts() else ""


def statements(law: Law | PythonLaw) -> list[str]:
    """The claims and refutes of a law, each on one line, as reports say them."""
    if isinstance(law, PythonLaw):
        return [law.said]
    return [excerpt(law.source, one.span) for one in law.first.statements]


def quantified(law: Law | PythonLaw) -> str:
    """What a law quantifies over, on one line."""
    if isinstance(law, PythonLaw):
        return law.header
    items = law.recipe.declaration.items
    return "for " + ", ".join(excerpt(law.source, item.span) for item in items if isinstance(item, t.Quantifier))


def in_order(law: Law | PythonLaw) -> Iterator[tuple[str, bool]]:
    """What stands below the quantifiers: lets, definitions and hypotheses, and the statements (True), which speak of what is above."""
    if isinstance(law, PythonLaw):
        yield law.said, True
        return
    for item in law.recipe.declaration.items:
        if not isinstance(item, t.Keyword | t.Quantifier):
            yield excerpt(law.source, item.span), isinstance(item, t.Claim)


def papers_laws() -> dict[str, Law | PythonLaw]:
    """Of the five papers, by name."""
    return {law.name: law for name in PAPERS for law in laws_at(name)}


def kept() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(KEPT.read_text(encoding="utf-8"))
    return found


def entry(report: LawReport, effort: Effort) -> dict[str, Any]:
    """What is kept of a report."""
    rows = [_row(v) for v in report.verdicts]
    return {"work": effort.work, "seed": effort.seed, "statements": rows}


def _row(v: Verdict) -> dict[str, Any]:
    row: dict[str, Any] = {
        "statement": v.text, "verdict": v.outcome, "passed": v.passed, "examples": v.tried.satisfied, "seconds": round(v.tried.seconds, 1)
    }  # fmt: skip
    if v.counterexample is not None:
        sides = next((c for c in v.counterexample.confirmation.comparisons if c.holds is False), None)
        values = {**v.counterexample.choices, **v.counterexample.values}
        row["counterexample"] = ", ".join(f"{n} = {value}".replace("'", "") for n, value in values.items())
        if sides is not None:
            row["sides"] = [f"{float(side):.6g}" for side in (sides.left, sides.right)]
    return row


def search(every: bool) -> None:
    """Search what has no verdict on its present statements, or every law; a law at a time is saved."""
    effort = Effort(seconds=120.0)
    found = kept() if KEPT.is_file() and not every else {"laws": {}}
    found["machine"] = f"{platform.machine()}, one core, Python {platform.python_version()}"
    laws = papers_laws()
    found["laws"] = {name: old for name, old in found["laws"].items() if name in laws}
    for name, law in laws.items():
        if [row["statement"] for row in found["laws"].get(name, {"statements": []})["statements"]] == statements(law):
            continue
        found["laws"][name] = entry(verdict_on(law, effort), effort)
        found["date"] = date.today().isoformat()
        KEPT.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(name, [row["verdict"] for row in found["laws"][name]["statements"]], flush=True)


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def _plain(text: str) -> str:
    return re.sub(r"([|*_<>\[\]])", r"\\\1", text)


def _source(law: Law | PythonLaw) -> str:
    return law.source_note if isinstance(law, PythonLaw) else law.first.source


def _law_rows(law: Law | PythonLaw, verdicts: dict[str, Any]) -> Iterator[str]:
    yield f"| | {law.name}: {_code(quantified(law))} | | | |"
    known = {row["statement"]: row for row in verdicts.get(law.name, {"statements": []})["statements"]}
    for said, stated in in_order(law):
        if not stated:
            yield f"| | {_code(said)} | | | |"
            continue
        row = known.get(said)
        if row is None:
            yield f"| | {_code(said)} | not searched yet | | |"
            continue
        against = row.get("counterexample", "")
        sides = f": left {row['sides'][0]}, right {row['sides'][1]}" if "sides" in row else ""
        verdict = row["verdict"] + (f", {row['examples']:,} examples" if row["verdict"] == "holds" else "")
        yield f"| | {_code(said)} | {verdict} | {_code(against + sides) if against else ''} | {row['seconds']} |"


def table(name: str, laws: dict[str, Law | PythonLaw], verdicts: dict[str, Any]) -> str:
    """One paper."""
    rows = ["| id | statement, law, claims | verdict | counterexample | s |", "|---|---|---|---|---|"]
    shown: set[str] = set()
    for one in printed(name):
        rows.append(f"| **{one.id}** | {_plain(one.words)} *({_source(laws[one.laws[0]])})* | **{one.mark}** | | |")
        for law in one.laws:
            rows += [f"| | see {law} | | | |"] if law in shown else _law_rows(laws[law], verdicts)
            shown.add(law)
    return f"## {PAPERS[name]}\n\n" + "\n".join(rows) + "\n"


def head(laws: dict[str, Law | PythonLaw], found: dict[str, Any]) -> str:
    """What was counted."""
    everything = [one for name in PAPERS for one in printed(name)]
    own = sum(any(f"_{one.id.lower()}_" in law for law in one.laws) for one in everything)
    rows = [row for name in laws for row in found["laws"].get(name, {"statements": []})["statements"]]
    total = sum(len(statements(law)) for law in laws.values())
    marks = {mark: sum(one.mark.partition(":")[0] == mark for one in everything) for mark in ("true", "false", "needs a hypothesis")}
    failed = sum(not row["passed"] for row in rows)
    seconds = sum(row["seconds"] for row in rows)
    return f"""# The laws of the papers

What the five papers claim, or imply, about losses, divergences, gradients and iterations, written as laws and searched for
counterexamples. Of {len(everything)} statements {own} have a law of their own, the others share one. {marks["true"]} are true as
printed, {marks["false"]} are false, {marks["needs a hypothesis"]} need a hypothesis that the paper leaves out or states softly.
A statement that is false stands with `refute` and its counterexample, confirmed in high precision, and the nearest
true one beside it with `claim`. *False: there is none* and *true: a witness* are claims that something exists.

{len(laws)} laws make {total} claims and refutations. {len(rows)} of them are searched here, of which {failed} do not have the verdict they
should, in {seconds / 60:.0f} minutes ({found["machine"]}, {found["date"]}; a core that was shared with other work). A verdict *holds*
says that no counterexample was found among so many examples that satisfy the hypotheses. How to read and write laws:
[laws_language.md](laws_language.md).

    lossdsl laws beta --id 'beta_a02*'      # one of them
    python docs/make_laws.py --all          # everything on this page; --run: what has no verdict yet, or changed
"""


def page() -> str:
    laws, found = papers_laws(), kept()
    return head(laws, found) + "\n" + "\n".join(table(name, laws, found["laws"]) for name in PAPERS)


def main(arguments: list[str]) -> None:
    if {"--run", "--all"} & set(arguments):
        search("--all" in arguments)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
