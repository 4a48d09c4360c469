"""The command line. Each command imports what it needs inside its own function, so that only train, evaluate and plot load torch.

Exit codes: 0 all is well; 1 `check` has errors or warnings, `fmt --check` a file to change or `diff` a difference; 2 wrong usage, input or
environment; 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lossdsl import (
    __version__,
    diagnose_commands,
    law_commands,
    play_commands,
    report_commands,
    run_commands,
    sanity_commands,
    sweep_commands,
)
from lossdsl.arguments import (
    BROKEN_PIPE,
    FINDINGS,
    INTERRUPTED,
    OK,
    USAGE,
    Parser,
    add_recipe,
    chosen_recipe,
    standard_input,
    whole_number,
)
from lossdsl.assets import attack_paths, game_paths, recipe_paths
from lossdsl.check_commands import check_arguments, print_difference, print_findings, rewrite, run_check, run_theory, theory_arguments
from lossdsl.diagnostics import LossdslError, RecipeError, UserError, did_you_mean
from lossdsl.front import load, parse_recipe, read_source
from lossdsl.source import Source


@dataclass(frozen=True)
class Command:
    """One subcommand: a line for --help, its arguments, and what it does (returning the exit code)."""

    about: str
    arguments: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], int]


# --- fmt --------------------------------------------------------------------------------------------------------------


def _fmt_arguments(parser: Parser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="a .loss file, or - to read standard input and write standard output")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file would change")
    parser.add_argument("--diff", action="store_true", help="write nothing; show what would change")


def _fmt(arguments: argparse.Namespace) -> int:
    """Files in canonical layout. One with errors is reported and left alone."""
    from lossdsl.syntax.format import format_text

    worst = OK
    for name in arguments.files:
        try:
            source = standard_input() if name == "-" else read_source(Path(name))
            worst = max(worst, _fmt_one(source, format_text(source.text, source.name), arguments))
        except LossdslError as error:
            _print_error(error)
            worst = USAGE
    return worst


def _fmt_one(source: Source, text: str, arguments: argparse.Namespace) -> int:
    changed = text != source.text
    if arguments.diff and changed:
        print_difference(source.text, text, source.name, f"{source.name} (formatted)")
    if arguments.check or arguments.diff:
        if changed and not arguments.diff:
            print(f"{source.name} would change")
        return FINDINGS if changed and arguments.check else OK
    if source.name == "<stdin>":
        print(text, end="")
    elif changed:
        rewrite(Path(source.name), text)
        print(f"{source.name} reformatted")
    else:
        print(f"{source.name} unchanged")
    return OK


# --- plan, explain, list ---------------------------------------------------------------------------------------------


def _plan(arguments: argparse.Namespace) -> int:
    print(str(chosen_recipe(arguments).plan).rstrip("\n"))
    return OK


def _explain_arguments(parser: Parser) -> None:
    add_recipe(parser)
    parser.add_argument("--latex", action="store_true", help="programme, algorithm, gradient flow and cost as a LaTeX document")


def _explain(arguments: argparse.Namespace) -> int:
    from lossdsl.explain import explain, explain_latex

    write = explain_latex if arguments.latex else explain
    print(write(chosen_recipe(arguments)))
    return OK


def _list_arguments(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="everything about each, for programs")
    parser.add_argument("--attacks", action="store_true", help="attack suites instead of recipes and games")
    parser.add_argument("--laws", action="store_true", help="the laws of every shipped file of laws")


def _list(arguments: argparse.Namespace) -> int:
    """What is shipped, one line each: its name, the methods it is, title and source."""
    if arguments.laws:
        return law_commands.list_laws(arguments.json)
    from lossdsl.catalog import describe

    paths = attack_paths() if arguments.attacks else {**recipe_paths(), **game_paths()}
    rows = [describe(load(name), path) for name, path in paths.items()]
    if arguments.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return OK
    table = [(row["name"], ", ".join(row["method"]) or "-", row["title"], row["source"]) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())
    return OK


# --- attack-from --------------------------------------------------------------------------------------------------------


def _attack_from_arguments(parser: Parser) -> None:
    from lossdsl.adaptive import RESTARTS, STEPS

    add_recipe(parser)
    parser.add_argument("--steps", type=whole_number, default=STEPS, metavar="N", help=f"of every run but one-step solvers ({STEPS})")
    parser.add_argument("--restarts", type=whole_number, default=RESTARTS, metavar="N", help=f"of runs with a random start ({RESTARTS})")
    parser.add_argument("--name", help="the name of the suite (RECIPE_adaptive)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="a new .loss file; standard output if left out")


def _attack_from(arguments: argparse.Namespace) -> int:
    """The suite, and on standard error what could not be carried over."""
    from lossdsl.adaptive import attack_from

    found = attack_from(chosen_recipe(arguments), arguments.name, arguments.steps, arguments.restarts)
    for line in found.left:
        print(f"warning: {line}", file=sys.stderr)
    if arguments.out is None:
        print(found.text, end="")
        return OK
    try:
        with arguments.out.open("x", encoding="utf-8", newline="\n") as file:
            file.write(found.text)
    except FileExistsError:
        raise UserError("is there already", where=str(arguments.out), fix="name another file, or remove it") from None
    except OSError as error:
        raise UserError(f"the file cannot be written: {error.strerror}", where=str(arguments.out)) from error
    print(arguments.out)
    return OK


# --- diff -------------------------------------------------------------------------------------------------------------


def _diff_arguments(parser: Parser) -> None:
    for name in ("old", "new"):
        parser.add_argument(name, metavar=name.upper(), help="a recipe, attack or game by name, a .loss file, or - for standard input")
    parser.add_argument("--json", action="store_true", help="every difference as data")


def _diff(arguments: argparse.Namespace) -> int:
    """What the second recipe has otherwise than the first; 1 if there is anything."""
    from lossdsl.compare.difference import compare

    names = arguments.old, arguments.new
    if names == ("-", "-"):
        raise UserError("standard input can be read once", where="diff", fix="give one of the two as a file")
    old, new = (parse_recipe(standard_input().text, "<stdin>") if name == "-" else load(name) for name in names)
    found = compare(old, new)
    width = shutil.get_terminal_size((120, 24)).columns
    print(json.dumps(found.as_json(), indent=2, ensure_ascii=False) if arguments.json else found.as_text(width))
    return FINDINGS if found.differences else OK


# --- the door --------------------------------------------------------------------------------------------------------

COMMANDS: dict[str, Command] = {
    "check": Command("find every mistake in recipe files", check_arguments, run_check),
    "fmt": Command("rewrite recipe files in canonical layout", _fmt_arguments, _fmt),
    "plan": Command("print every computation of a training step and its cost", add_recipe, _plan),
    "explain": Command("print a recipe as programme and algorithm, with every default spelled out", _explain_arguments, _explain),
    "theory": Command("print what is known of a recipe's bounds, with reasons", theory_arguments, run_theory),
    "diff": Command("show what differs between two recipes, term by term", _diff_arguments, _diff),
    "list": Command("list the shipped recipes and games", _list_arguments, _list),
    "train": Command("train a model by a recipe", run_commands.train_arguments, run_commands.run_train),
    "attack-from": Command("write an adaptive attack suite from a training recipe", _attack_from_arguments, _attack_from),
    "evaluate": Command("measure a trained model under an attack suite", run_commands.evaluate_arguments, run_commands.run_evaluate),
    "report": Command("one self-contained HTML page about runs", report_commands.report_arguments, report_commands.run_report),
    "diagnose": Command(
        "measure and draw why a model is as robust as it is", diagnose_commands.diagnose_arguments, diagnose_commands.run_diagnose
    ),
    "sanity": Command("check that a model's robust accuracy can be believed", sanity_commands.sanity_arguments, sanity_commands.run_sanity),
    "sweep": Command("train a recipe at several values and seeds", sweep_commands.sweep_arguments, sweep_commands.run_sweep),
    "play": Command("play a game and draw its trajectories", play_commands.play_arguments, play_commands.run_play),
    "laws": Command("search for counterexamples of laws", law_commands.laws_arguments, law_commands.run_laws),
    "plot": Command("draw the accuracy of runs over their epochs", run_commands.plot_arguments, run_commands.run_plot),
}


def build_parser() -> tuple[Parser, dict[str, Parser]]:
    """The parser and those of its commands."""
    parser = Parser(prog="lossdsl", description="A language for adversarial training, compiled to PyTorch.")
    parser.add_argument("--version", action="version", version=f"lossdsl {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    built = {}
    for name, command in COMMANDS.items():
        built[name] = commands.add_parser(name, help=command.about, description=command.about)
        command.arguments(built[name])
    return parser, built


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command line; ends the process with code 2 and a message if they are wrong."""
    parser, commands = build_parser()
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        parser.error(f"there is no command {words[0]}: {did_you_mean(words[0], COMMANDS)}")
    arguments, extra = parser.parse_known_args(words)
    if extra:
        commands[arguments.command].refuse(extra)
    arguments.command_line = ("lossdsl", *words)
    return arguments


def _print_error(error: LossdslError) -> None:
    if isinstance(error, RecipeError):
        print_findings(error.source, error.diagnostics, sys.stderr)
    else:
        print(f"error: {error}", file=sys.stderr)


def main(words: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name; None: the process's own) and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        arguments = parse_arguments(sys.argv[1:] if words is None else words)
        code = COMMANDS[arguments.command].run(arguments)
        sys.stdout.flush()
        return code
    except LossdslError as error:
        _print_error(error)
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`lossdsl list | head -1`); what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
