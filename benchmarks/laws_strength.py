"""How strong the search for counterexamples is, measured on laws that are broken on purpose and on laws written for it.

    python benchmarks/laws_strength.py mutants [FILE ...]   # one edit of a claim each: all must be refuted, except those listed as true
    python benchmarks/laws_strength.py truths [FILE ...] --seeds 20   # no claim may be refuted
    python benchmarks/laws_strength.py expected FILE ...    # laws with "# expect: F", T or V (about nothing) above each

Without files: the shipped laws, and the two files of benchmarks/laws. `--json FILE` keeps everything, `--part I N` takes every N-th law.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lossdsl.diagnostics import LossdslError
from lossdsl.laws.catalogue import Law, laws_of, load_laws
from lossdsl.laws.search import Effort, check_statement
from lossdsl.source import Source, Span
from lossdsl.syntax import tree as t

HERE = Path(__file__).parent / "laws"
EXPECTED = {"F": "refuted", "T": "holds", "V": "vacuous"}
OPPOSITE = {"<=": ">=", ">=": "<=", "<": ">", ">": "<", "==": "!=", "!=": "=="}
PER_CLAIM = 2


@dataclass(frozen=True)
class Edit:
    """Text in place of a span, and what it does."""

    span: Span
    text: str
    what: str


@dataclass(frozen=True)
class Mutant:
    name: str
    law: Law
    index: int


# --- one edit of a law ---


def edits(text: str, claim: t.Claim, hypotheses: list[t.Hypothesis]) -> Iterator[Edit]:
    """Every edit of one claim: relations, signs, constants, order of arguments, ends of binders, hypotheses."""
    for h in hypotheses:
        yield Edit(h.span, "", f"without {_quoted(text, h.span)}")
    for node in t.walk(claim.relation):
        yield from _of_node(text, node)


def _quoted(text: str, span: Span) -> str:
    return " ".join(text[span.start : span.end].split())


def _of_node(text: str, node: t.Node) -> Iterator[Edit]:
    said = _quoted(text, node.span)
    if isinstance(node, t.Compare):
        for op, a, b in zip(node.ops, node.operands, node.operands[1:], strict=False):
            yield Edit(_between(text, a, b, op), OPPOSITE[op], f"{op} -> {OPPOSITE[op]} in {said}")
            if op in ("<=", ">="):
                yield Edit(b.span, f"(({_quoted(text, b.span)}) {'-' if op == '<=' else '+'} 0.01)", f"{said} by 0.01 more")
    elif isinstance(node, t.Binary) and node.op in "+-":
        other = "-" if node.op == "+" else "+"
        yield Edit(_between(text, node.left, node.right, node.op), other, f"{node.op} -> {other} in {said}")
    elif isinstance(node, t.Number) and float(node.value) not in (0.0,):
        for factor in (0.95, 1.05):
            yield Edit(node.span, repr(float(node.value) * factor), f"{said} times {factor}")
    elif isinstance(node, t.Call) and node.double_bar:
        first, second = (_quoted(text, a.span) for a in node.args)
        yield Edit(Span(node.args[0].span.start, node.args[-1].span.end), f"{second} || {first}", f"{said} the other way round")
    elif isinstance(node, t.Binder) and node.func in ("max", "min"):
        other = "min" if node.func == "max" else "max"
        yield Edit(Span(node.span.start, node.span.start + 3), other, f"{node.func} -> {other} in {said}")


def _between(text: str, a: t.Node, b: t.Node, op: str) -> Span:
    """Where the operator between two operands stands."""
    start = text.index(op, a.span.end, b.span.start)
    return Span(start, start + len(op))


def mutants(law: Law, seed: int) -> Iterator[Mutant]:
    """A few mutants of every claim, drawn so that all kinds of edits occur."""
    generator = random.Random(f"{seed} {law.name}")
    items = law.recipe.declaration.items
    claims = [i for i in items if isinstance(i, t.Claim)]
    for n, claim in enumerate(claims):
        if claim.refuted:
            continue
        above = [i for i in items[: items.index(claim)] if isinstance(i, t.Hypothesis)]
        others = [Edit(c.span, "", "") for c in claims if c is not claim]
        found = list(edits(law.source.text, claim, above))
        generator.shuffle(found)
        taken = 0
        for edit in found:
            mutant = _applied(law, [edit, *others])
            if mutant is not None and taken < PER_CLAIM:
                taken += 1
                yield Mutant(f"{law.name}, claim {n + 1}: {edit.what}", mutant, 0)


def _applied(law: Law, changes: list[Edit]) -> Law | None:
    """The law alone with its file's definitions; None where the edit is no law."""
    text, declaration = law.source.text, law.recipe.declaration
    if any(c.span.file for c in changes):
        return None
    body = text
    for c in sorted(changes, key=lambda c: -c.span.start):
        body = body[: c.span.start] + c.text + body[c.span.end :]
    end = declaration.span.end + len(body) - len(text)
    shared = "\n".join(text[s.span.start : s.span.end] for s in law.recipe.shared)
    try:
        (found,) = laws_of(Source(f"{shared}\n{body[declaration.span.start : end]}\n", law.source.name))
    except (LossdslError, ValueError):
        return None
    return found


# --- expectations ---


def expectations(path: Path) -> dict[str, str]:
    """By law, what "# expect:" says above it."""
    found = re.findall(r"^# expect: (\w).*\nlaw (\w+)", path.read_text(encoding="utf-8"), re.M)
    return {name: EXPECTED[letter] for letter, name in found}


# --- what is measured ---


def _checked(law: Law, index: int, effort: Effort) -> dict[str, Any]:
    began = time.process_time()
    v = check_statement(law, index, effort)
    found = v.counterexample
    return {
        "verdict": v.outcome, "seconds": round(time.process_time() - began, 2), "examples": v.tried.examples, "text": v.text,
        "counterexample": None if found is None else {**found.choices, **found.values},
        "violation": None if found is None else found.confirmation.violation,
    }  # fmt: skip


def measure_mutants(laws: list[Law], effort: Effort, limit: int) -> Iterator[dict[str, Any]]:
    known = _equivalent()
    all_of_them = [m for law in laws for m in mutants(law, effort.seed)][:limit]
    for m in all_of_them:
        row = _checked(m.law, m.index, effort)
        reason = known.get(m.name)
        good = (row["verdict"] == "refuted") if reason is None else row["verdict"] != "refuted"
        yield {"name": m.name, **row, "good": good, "equivalent": reason}


def _equivalent() -> dict[str, str]:
    """Mutants that are true, with the reason: lines "NAME => REASON"."""
    path = HERE / "equivalent.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return dict(line.split(" => ", 1) for line in lines if " => " in line)


def measure_truths(laws: list[Law], effort: Effort, seeds: int) -> Iterator[dict[str, Any]]:
    for seed in range(effort.seed, effort.seed + seeds):
        for law in laws:
            for n, statement in enumerate(law.first.statements):
                if not statement.refuted:
                    row = _checked(law, n, replace(effort, seed=seed))
                    yield {"name": f"{law.name}, statement {n + 1}, seed {seed}", **row, "good": row["verdict"] != "refuted"}


def measure_expected(laws: list[Law], effort: Effort) -> Iterator[dict[str, Any]]:
    wanted = {name: verdict for path in {Path(law.source.name) for law in laws} for name, verdict in expectations(path).items()}
    for law in laws:
        for n in range(len(law.first.statements)):
            row = _checked(law, n, effort)
            yield {"name": f"{law.name}, statement {n + 1}", **row, "good": row["verdict"] == wanted[law.name]}


def main() -> int:
    a = _arguments()
    torch.set_num_threads(1)
    files = a.files or ([str(HERE / "tuned.loss"), str(HERE / "held_out.loss")] if a.what == "expected" else [])
    laws = load_laws(files)[a.part[0] :: a.part[1]]
    effort = replace(Effort(seed=a.seed), work=a.work)
    rows: list[dict[str, Any]] = []
    measured = {
        "mutants": lambda: measure_mutants(laws, effort, a.limit), "truths": lambda: measure_truths(laws, effort, a.seeds),
        "expected": lambda: measure_expected(laws, effort),
    }[a.what]()  # fmt: skip
    for row in measured:
        rows.append(row)
        mark = "ok  " if row["good"] else "MISS"
        if a.verbose or not row["good"]:
            print(f"{mark} {row['verdict']:<9} {row['seconds']:6.2f} s  {row['name']}  {row['counterexample'] or ''}", flush=True)
    good, seconds = sum(r["good"] for r in rows), sum(r["seconds"] for r in rows)
    listed = sum(bool(r.get("equivalent")) for r in rows)
    print(f"{a.what}: {good} of {len(rows)} as they should be ({listed} listed as true), {len(laws)} laws, {seconds:.0f} s of one core")
    if a.json:
        Path(a.json).write_text(json.dumps(rows, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    return int(good < len(rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("mutants", "truths", "expected"))
    parser.add_argument("files", nargs="*")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=float, default=Effort().work)
    parser.add_argument("--limit", type=int, default=10**6)
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), metavar=("I", "N"))
    parser.add_argument("--json")
    parser.add_argument("--verbose", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
