"""`lossdsl sweep`: its arguments, and what it hands to lossdsl.sweep. Free of torch until it runs."""

from __future__ import annotations

import argparse
import sys

from lossdsl.arguments import INTERRUPTED, OK, Parser, parse_settings, whole_number
from lossdsl.front import Recipe
from lossdsl.render import render_text
from lossdsl.run_commands import add_sanity, console, print_rich, sanity_gate, train_options, train_request, trainable_recipe
from lossdsl.sweep.grid import Point, parse_over, points_of


def sweep_arguments(parser: Parser) -> None:
    train_options(parser)
    parser.add_argument(
        "--over", action="append", required=True, metavar="NAME=VALUES",
        help="a param and its values: --over lambda=1,3,6 (several: every combination)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=whole_number, default=1, metavar="N", help="so many seeds, from --seed on (1)")
    parser.add_argument("--attack", default="pgd20", metavar="SUITE", help="the suite that measures every run (pgd20)")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="which checkpoint is measured (best)")
    add_sanity(parser)


def _warn(recipe: Recipe, points: tuple[Point, ...]) -> None:
    """Print what the checker says of some combination and not of the recipe itself."""
    said = {(finding.code, finding.message) for finding in recipe.checked.diagnostics}
    for point in points:
        for finding in point.recipe.checked.diagnostics:
            if (finding.code, finding.message) not in said:
                said.add((finding.code, finding.message))
                print(f"{point.label}:", render_text(point.recipe.source, finding), sep="\n", file=sys.stderr, end="\n\n")


def run_sweep(arguments: argparse.Namespace) -> int:
    recipe, over = trainable_recipe(arguments), parse_over(arguments.over)
    _warn(recipe, points_of(recipe, over))  # before torch is loaded
    from lossdsl.run.request import AttackChoice
    from lossdsl.sweep.report import sweep_report
    from lossdsl.sweep.sweep import Interrupted, SweepRequest, sweep

    request = SweepRequest(
        train_request(arguments, recipe), recipe, over, tuple(range(arguments.seed, arguments.seed + arguments.seeds)),
        AttackChoice(arguments.attack, parse_settings(arguments.attack_set)), arguments.checkpoint, sanity_gate(arguments),
        console(arguments),
    )  # fmt: skip
    try:
        collected = sweep(request)
    except Interrupted:
        return INTERRUPTED
    print_rich(sweep_report(collected))
    return OK
