"""`lossdsl report`: its arguments, and what it hands to lossdsl.report. Free of torch until it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from lossdsl.arguments import OK, Parser, add_set, parse_settings, whole_number


def report_arguments(parser: Parser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="directories that lossdsl train has written")
    parser.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help="the page (report.html)")
    parser.add_argument("--title", metavar="TEXT", help="its heading (the titles of the recipes)")
    parser.add_argument("--what", metavar="NAME,...", help="the diagnostics to show; see: lossdsl diagnose --list")
    parser.add_argument("--attack", default="pgd20", metavar="SUITE", help="the suite that leads diagnostics to their points (pgd20)")
    add_set(parser)
    parser.add_argument("--split", choices=("test", "validation", "train"), default="test", help="which examples (test)")
    parser.add_argument("--limit", type=whole_number, metavar="N", help="diagnostics look at the first N examples only")
    parser.add_argument("--seed", type=int, default=0, help="seed of every random number (0)")
    parser.add_argument("--data-root", type=Path, help="where the data's files are now")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (auto)")
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")


def run_report(arguments: argparse.Namespace) -> int:
    settings = parse_settings(arguments.set)
    from rich.console import Console

    from lossdsl.diagnose.subject import Options
    from lossdsl.report.content import gather
    from lossdsl.report.page import write

    what = None if arguments.what is None else [name.strip() for name in arguments.what.split(",") if name.strip()]
    options = Options(
        attack=arguments.attack, overrides=settings or None, split=arguments.split, limit=arguments.limit, seed=arguments.seed,
        device=arguments.device, data_root=arguments.data_root,
    )  # fmt: skip
    progress = Console(stderr=True, quiet=arguments.quiet)
    content = gather(arguments.runs, what, options, note=lambda text: progress.print(text, style="dim", highlight=False))
    print(write(content, arguments.out, arguments.title))
    return OK
