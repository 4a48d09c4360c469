"""`lossdsl laws`: its arguments, and what it hands to lossdsl.laws. Free of torch until it runs."""

from __future__ import annotations

import argparse
import ast
import fnmatch
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lossdsl.arguments import FINDINGS, OK, Parser
from lossdsl.diagnostics import UserError, did_you_mean

if TYPE_CHECKING:
    from lossdsl.laws.catalogue import Law
    from lossdsl.laws.python_laws import PythonLaw


def laws_arguments(parser: Parser) -> None:
    help = "a .loss file, a Python file with @lossdsl.law, a folder of them, or the name of a shipped file (default: all shipped)"
    parser.add_argument("files", nargs="*", metavar="FILE", help=help)
    parser.add_argument("--id", action="append", default=[], metavar="NAME", help="only this law, or laws like 'beta_a0*'; repeatable")
    parser.add_argument("--json", action="store_true", help="everything about each, for programs")
    parser.add_argument("--hard", action="store_true", help="search many times longer")
    parser.add_argument("--seed", type=int, default=0, help="seed of the search (0)")
    parser.add_argument("--time", type=float, metavar="S", help="at most so many seconds per statement")
    parser.add_argument("--jobs", type=int, metavar="N", help="processes side by side (as many as cores); no verdict depends on it")
    parser.add_argument("--database", metavar="FILE", help="past counterexamples, tried first; new ones are added")
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")


def list_laws(as_json: bool) -> int:
    """The shipped laws, one line each: name, file and source. Loads no torch, runs no Python file."""
    from lossdsl.assets import law_paths, law_scripts
    from lossdsl.front import parse_recipes, read_source

    rows = [
        {"name": law.name, "file": path.name, "title": law.title, "source": law.source_note}
        for path in law_paths().values()
        for law in parse_recipes(read_source(path))
        if law.kind == "law"
    ]
    rows = sorted([*rows, *(row for path in law_scripts().values() for row in _python_rows(path))], key=lambda row: row["file"])
    if as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return OK
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        print(f"{row['name']:<{width}}  {row['file']:<15}  {row['source']}".rstrip())
    return OK


def _python_rows(path: Path) -> list[dict[str, str]]:
    """What stands in the decorators of a Python file of laws, read and not run."""
    rows = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for call in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
            if isinstance(call, ast.Call) and ast.unparse(call.func) in ("lossdsl.law", "law"):
                said = {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}
                assert isinstance(node, ast.FunctionDef)
                about = {key: str(said.get(key, "")) for key in ("title", "source")}
                rows.append({"name": node.name, "file": path.name, **about})
    return rows


def _wanted(arguments: argparse.Namespace) -> list[Law | PythonLaw]:
    """The laws of the files given, of either kind, or all shipped ones; those that --id names or matches."""
    from lossdsl.laws.testing import laws_at

    found = laws_at(*arguments.files)
    known = {law.name for law in found}
    for name in arguments.id:
        if not fnmatch.filter(known, name):
            raise UserError(f"there is no law {name}", where="--id", fix=did_you_mean(name, known))
    return [law for law in found if not arguments.id or any(fnmatch.fnmatchcase(law.name, name) for name in arguments.id)]


def run_laws(arguments: argparse.Namespace) -> int:
    """The verdict on every law; 1 if a claim fails or a refute finds nothing."""
    from rich.console import Console
    from rich.progress import track

    from lossdsl.laws.past import Past
    from lossdsl.laws.report import as_json, lines
    from lossdsl.laws.search import Effort
    from lossdsl.laws.workers import cores, reports

    if arguments.jobs is not None and arguments.jobs < 1:
        raise UserError(f"{arguments.jobs} processes judge nothing", where="--jobs", fix="give 1 or more")
    laws = _wanted(arguments)
    effort = Effort(seed=arguments.seed)
    effort = effort.hard() if arguments.hard else effort
    if arguments.time is not None:
        effort = replace(effort, seconds=arguments.time)
    past = None if arguments.database is None else Past(Path(arguments.database))
    console = Console(stderr=True)
    found, judged = [], reports(laws, effort, past, arguments.jobs or cores())
    for report in track(
        judged, "laws", total=len(laws), console=console, transient=True, disable=arguments.quiet or not sys.stderr.isatty()
    ):
        found.append(report)
        if not arguments.json:
            print("\n".join(lines(report)), flush=True)
    if arguments.json:
        print(json.dumps([as_json(r) for r in found], indent=2, ensure_ascii=False))
    else:
        failed = sum(not r.passed for r in found)
        print(f"{len(found)} laws, " + (f"{failed} of them fail" if failed else "all pass"))
    return OK if all(r.passed for r in found) else FINDINGS
