"""`lossdsl diagnose`: its arguments, and what it hands to lossdsl.diagnose. Free of torch until it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from lossdsl.arguments import OK, Parser, add_set, parse_number, parse_settings, whole_number
from lossdsl.diagnose.catalog import DIAGNOSTICS
from lossdsl.diagnostics import UserError


def diagnose_arguments(parser: Parser) -> None:
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="directories that lossdsl train has written")
    parser.add_argument("--what", action="append", default=[], metavar="NAME,...", help="diagnostics by name or number; all: every one")
    parser.add_argument("--list", action="store_true", help="name the diagnostics and what each needs")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write NAME.json, .csv, .png and .svg of each there")
    parser.add_argument("--attack", default="pgd20", metavar="SUITE", help="the name or file of an attack suite (pgd20)")
    add_set(parser)
    parser.add_argument("--eps", metavar="A,B,...", help="radii where accuracy is measured (eight from 0 to twice the attack's)")
    parser.add_argument("--checkpoint", default="best", metavar="WHICH", help="best, last or epoch:N (best)")
    parser.add_argument("--split", choices=("test", "validation", "train"), default="test", help="which examples (test)")
    parser.add_argument("--limit", type=whole_number, metavar="N", help="the first N examples only")
    parser.add_argument("--example", type=int, default=0, metavar="I", help="the example that is looked at alone (0)")
    parser.add_argument("--starts", type=whole_number, metavar="N", help="random starts, where several are compared")
    parser.add_argument("--updates", type=whole_number, default=2000, metavar="N", help="how many first updates are replayed (2000)")
    parser.add_argument("--batch", type=whole_number, default=512, metavar="N", help="examples at a time (512)")
    parser.add_argument("--seed", type=int, default=0, help="seed of every random number (0)")
    parser.add_argument("--data-root", type=Path, help="where the data's files are now")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that decode image files (0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (auto)")
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")


def run_diagnose(arguments: argparse.Namespace) -> int:
    if arguments.list:
        for row in DIAGNOSTICS.values():
            print(f"{row.number:<8} {row.name:<14} {row.about}" + (f" (needs {row.needs})" if row.needs else ""))
        return OK
    names = [name.strip() for words in arguments.what for name in words.split(",") if name.strip()]
    if names == ["all"]:
        names = list(DIAGNOSTICS)
    if not names:
        raise UserError("no diagnostic is named", where="--what", fix="see: lossdsl diagnose --list")
    settings, radii = parse_settings(arguments.set), parse_radii(arguments.eps)
    from rich.console import Console

    from lossdsl.diagnose.api import diagnose, write
    from lossdsl.diagnose.show import show
    from lossdsl.diagnose.subject import Options

    options = Options(
        attack=arguments.attack, overrides=settings or None, checkpoint=arguments.checkpoint, split=arguments.split, limit=arguments.limit,
        seed=arguments.seed, batch=arguments.batch, device=arguments.device, data_root=arguments.data_root, workers=arguments.workers,
        radii=radii, example=arguments.example, starts=arguments.starts, updates=arguments.updates,
    )  # fmt: skip
    progress, console = Console(stderr=True, quiet=arguments.quiet), Console()
    for table in diagnose(arguments.runs, names, options, note=lambda text: progress.print(text, style="dim", highlight=False)):
        console.print(show(table))
        for path in write(table, arguments.out) if arguments.out is not None else ():
            print(path)
    return OK


def parse_radii(text: str | None) -> tuple[float, ...] | None:
    """The numbers of --eps. Raises UserError for another word, a negative number and numbers that do not rise."""
    if text is None:
        return None
    numbers = [parse_number(word) for word in text.split(",")]
    if any(number is None or number < 0 for number in numbers):
        raise UserError(f"{text!r} is no list of radii", where="--eps", fix="write for example --eps 0,0.1,0.2 or --eps 2/255,4/255")
    values = tuple(float(number or 0) for number in numbers)
    if sorted(set(values)) != list(values):
        raise UserError("the radii do not rise", where="--eps", fix="write each once, the smallest first")
    return values
