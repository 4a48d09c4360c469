"""`lossdsl laws`: its arguments, and what it hands to lossdsl.laws. Free of torch until it runs."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace

from lossdsl.arguments import FINDINGS, OK, Parser


def laws_arguments(parser: Parser) -> None:
    parser.add_argument("files", nargs="*", metavar="FILE", help="a .loss file with laws, or the name of a shipped one (all shipped ones)")
    parser.add_argument("--id", action="append", default=[], metavar="NAME", help="only this law; may be given several times")
    parser.add_argument("--json", action="store_true", help="everything about each, for programs")
    parser.add_argument("--hard", action="store_true", help="search many times longer")
    parser.add_argument("--seed", type=int, default=0, help="seed of the search (0)")
    parser.add_argument("--time", type=float, metavar="S", help="at most so many seconds per statement")
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")


def run_laws(arguments: argparse.Namespace) -> int:
    """The verdict on every law; 1 if a claim fails or a refute finds nothing."""
    from rich.console import Console
    from rich.progress import track

    from lossdsl.laws.catalogue import load_laws
    from lossdsl.laws.report import as_json, lines
    from lossdsl.laws.search import Effort, check_law_file

    laws = load_laws(arguments.files, arguments.id)
    effort = Effort(seed=arguments.seed)
    effort = effort.hard() if arguments.hard else effort
    if arguments.time is not None:
        effort = replace(effort, seconds=arguments.time)
    console = Console(stderr=True)
    reports = []
    for law in track(laws, "laws", console=console, transient=True, disable=arguments.quiet or not sys.stderr.isatty()):
        report = check_law_file(law, effort)
        reports.append(report)
        if not arguments.json:
            print("\n".join(lines(report)), flush=True)
    if arguments.json:
        print(json.dumps([as_json(r) for r in reports], indent=2, ensure_ascii=False))
    else:
        failed = sum(not r.passed for r in reports)
        print(f"{len(reports)} laws, " + (f"{failed} of them fail" if failed else "all pass"))
    return OK if all(r.passed for r in reports) else FINDINGS
