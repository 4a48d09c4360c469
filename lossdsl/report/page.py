"""One self-contained HTML page from the content of a report: no script, no file beside it, nothing fetched."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lossdsl import __version__
from lossdsl.diagnose.table import Table
from lossdsl.report.content import Content, Reported, rate
from lossdsl.report.figures import data_uri
from lossdsl.report.formula import formulas
from lossdsl.run.files import write_atomic
from lossdsl.run.report import settings_line, show_number

SECTIONS = {name.lower(): name for name in ("Summary", "Methods", "Figures", "Attacks", "Sanity", "Environment")}


def render(content: Content, title: str | None = None) -> str:
    """The page as HTML. Text of recipes, names and paths is escaped."""
    environment = Environment(
        loader=PackageLoader("lossdsl.report", "."), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template("page.html").render(
        title=title or ", ".join(dict.fromkeys(str(run.run.about["recipe"]["title"]) for run in content.runs)),
        version=__version__,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        sections=SECTIONS.items(),
        runs=[_run(run) for run in content.runs],
        methods=_methods(content),
        figures=[_figure(table, content) for table in content.tables],
        missing=content.missing,
        attacks=list(_attacks(content)),
        sanity=list(_sanity(content)),
    )


def write(content: Content, out: Path, title: str | None = None) -> Path:
    """The page in a file. Raises UserError: cannot be written."""
    write_atomic(out, render(content, title).encode())
    return out


def _run(run: Reported) -> dict[str, Any]:
    about = run.run.about
    identity, versions, hardware = about["identity"], about["versions"], about["hardware"]
    return {
        "name": run.name,
        "path": str(run.run.path),
        "title": about["recipe"]["title"],
        "data": identity["data"]["name"],
        "model": identity["model"],
        "results": list(_results(run)),
        "command": shlex.join(["lossdsl", *about["command"][1:]]),
        "environment": ", ".join([*(f"{name} {value}" for name, value in versions.items()), *(f"{k} {v}" for k, v in hardware.items())]),
        "hash": about["recipe"]["hash"][:12],
        "digest": str(identity["data"]["digest"])[:12],
        "seed": identity["seed"],
        "parameters": f"{about['model']['parameters']:,}",
        "examples": ", ".join(f"{count:,} {split}" for split, count in about["data"]["examples"].items()),
        "created": about["created"],
    }


def _results(run: Reported) -> Iterator[dict[str, Any]]:
    done = run.finished
    if done is None:
        return
    for which in ("best", "last"):
        row = done[which]
        yield {
            "checkpoint": which, "epoch": row["epoch"], "clean": rate(row["clean"]), "robust": rate(row["robust"]),
            "attack": done["attack"]["name"],
        }  # fmt: skip


def _methods(content: Content) -> list[dict[str, Any]]:
    """One for each method with its values; runs that differ in nothing but the seed or the data share it."""
    found: dict[str, dict[str, Any]] = {}
    for run in content.runs:
        recipe = run.run.recipe
        own = found.setdefault(
            recipe.hash,
            {
                "title": recipe.title,
                "source": recipe.source_note,
                "text": recipe.text,
                "formulas": formulas(recipe),
                "params": {name: show_number(value) for name, value in recipe.params.items()},
                "resolved": run.run.about["recipe"]["resolved"],
                "runs": [],
            },
        )
        own["runs"].append(run.name)
    for own in found.values():
        own["names"] = ", ".join(own["runs"]) if len(content.runs) > 1 else ""
    return list(found.values())


def _figure(table: Table, content: Content) -> dict[str, Any]:
    runs = " ".join(shlex.quote(str(run.run.path)) for run in content.runs)
    options = content.options
    words = [f"--attack {options.attack}" if options.attack != "pgd20" else "", f"--limit {options.limit}" if options.limit else ""]
    command = " ".join(["lossdsl diagnose", runs, f"--what {table.name}", *filter(None, words)])
    plain = {"name": table.name, "title": table.title, "source": table.source, "notes": [note.rstrip(".") for note in table.notes]}
    return {**plain, "image": data_uri(table), "command": command}


def _attacks(content: Content) -> Iterator[dict[str, Any]]:
    for run in content.runs:
        for found in run.evaluations:
            runs: Mapping[str, Any] = found["runs"]
            rows = [{"name": "clean", "left": found["clean"]["right"], "rate": rate(found["clean"]), "passes": 1}]
            rows += [
                {"name": name, "left": row["right"], "rate": rate(row), "passes": f"{_passes(row) / row['total']:.0f}"}
                for name, row in runs.items()
            ]
            if found["robust"] is not None:
                rows.append({
                    "name": "robust", "left": found["robust"]["right"], "rate": rate(found["robust"]),
                    "passes": f"{found['passes_per_example']:.0f}",
                })  # fmt: skip
            yield {
                "run": run.name, "suite": found["attack"], "count": found["count"],
                "checkpoint": f"{found['checkpoint']}, epoch {found['epoch']}", "rows": rows,
                "settings": "\n".join(map(settings_line, found["settings"])),
            }  # fmt: skip


def _passes(row: Mapping[str, Any]) -> int:
    return int(row["passes"]["forward_examples"]) + int(row["passes"]["backward_examples"])


def _sanity(content: Content) -> Iterator[dict[str, Any]]:
    for run in content.runs:
        for found in run.evaluations:
            checks = (found.get("sanity") or {}).get("checks")
            if checks is None:
                continue
            by_status = {status: [c for c in checks if c["status"] == status] for status in ("passed", "finding", "error", "not run")}
            yield {
                "run": run.name, "suite": found["attack"], "passed": len(by_status["passed"]),
                "findings": by_status["error"] + by_status["finding"], "skipped": by_status["not run"],
            }  # fmt: skip
