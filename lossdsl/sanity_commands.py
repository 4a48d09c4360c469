"""`lossdsl sanity`: its arguments, and what it hands to lossdsl.sanity. Free of torch until it runs."""

from __future__ import annotations

import argparse
import json

from lossdsl.arguments import FINDINGS, OK, Parser, parse_settings
from lossdsl.run_commands import measure_options, print_rich


def sanity_arguments(parser: Parser) -> None:
    measure_options(parser)
    parser.add_argument("--attack", default="pgd20", metavar="SUITE", help="the suite whose threat is meant; it is not run (pgd20)")
    parser.add_argument("--budget", choices=("quick", "full"), default="quick", help="128 examples, or 1,000 and longer attacks (quick)")


def run_sanity(arguments: argparse.Namespace) -> int:
    """Exit code 1 where something was found."""
    settings = parse_settings(arguments.set)
    from lossdsl.engine.api import attack_compiler
    from lossdsl.run.evaluate import EvaluateRequest
    from lossdsl.sanity.report import sanity_report
    from lossdsl.sanity.suites import Gate, as_json, check_run

    reports = {}
    for run in dict.fromkeys(arguments.runs):
        request = EvaluateRequest(
            run=run, compile_attack=attack_compiler, attack=arguments.attack, overrides=settings or None, which=arguments.checkpoint,
            split=arguments.split, seed=arguments.seed, device=arguments.device, batch=arguments.batch, limit=arguments.limit,
            data_root=arguments.data_root, workers=arguments.workers,
        )  # fmt: skip
        reports[run] = report = check_run(request, Gate(arguments.budget, tuple(arguments.surrogate)))
        if arguments.format == "text":
            print_rich(sanity_report(report, f"{run}, {arguments.checkpoint} checkpoint"))
    if arguments.format == "json":
        print(json.dumps([{"run": str(run), **as_json(report)} for run, report in reports.items()], indent=2))
    return FINDINGS if any(report.findings for report in reports.values()) else OK
