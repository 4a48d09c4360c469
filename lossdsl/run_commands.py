"""`lossdsl train`, `evaluate` and `plot`: their arguments, and what they hand to lossdsl.run. Free of torch until one of them runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lossdsl.arguments import INTERRUPTED, OK, Parser, add_recipe, add_set, chosen_recipe, parse_settings, whole_number
from lossdsl.diagnostics import UserError
from lossdsl.front import Recipe
from lossdsl.render import render_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from lossdsl.run.evaluate import SanityGate
    from lossdsl.run.request import TrainRequest


def print_rich(content: RenderableType) -> None:
    """To standard output."""
    from rich.console import Console

    Console().print(content)


def data_options(parser: Parser) -> None:
    """Where data and devices are, and how much is said."""
    parser.add_argument("--data-root", type=Path, help="directory of the data set's files, where downloads go too (data)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that decode image files (0)")
    parser.add_argument("--seed", type=int, default=0, help="seed of every random number (0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (auto)")
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")


def train_arguments(parser: Parser) -> None:
    train_options(parser)
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, if there is one")


def train_options(parser: Parser) -> None:
    """What a training run is given, alone or in a sweep."""
    add_recipe(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="directory of the run: manifest, metrics, checkpoints, result"
    )
    parser.add_argument("--data", default="digits", help="digits, mnist, cifar10, ... or imagefolder:PATH (digits)")
    parser.add_argument("--image-size", type=whole_number, metavar="N", help="resize and crop images of a folder to N pixels")
    parser.add_argument("--model", default="smallcnn", help="a model of the table, or module:factory (smallcnn)")
    parser.add_argument(
        "--bind", action="append", default=[], metavar="NAME=WHAT",
        help="another model of the recipe: a frozen one by the directory of its run (DIR, or DIR:last), a trained one by its architecture",
    )  # fmt: skip
    parser.add_argument(
        "--unlabelled", metavar="DATA",
        help="second stream of a recipe with data = mix(...): a data set, or split:0.5 for that share of the training examples",
    )  # fmt: skip
    parser.add_argument(
        "--teacher", metavar="DIR", help="run that labels the second stream (DIR, or DIR:last), or none: the label -1, which CE leaves out"
    )
    parser.add_argument("--epochs", type=whole_number, metavar="N", help="instead of the recipe's")
    parser.add_argument("--batch", type=whole_number, metavar="N", help="instead of the recipe's")
    parser.add_argument("--deterministic", action="store_true", help="only deterministic kernels on a GPU, which may be slower")
    parser.add_argument("--checkpoint-every", type=whole_number, metavar="N", help="save every N updates as well")
    parser.add_argument("--validation-attack", default="pgd10", metavar="SUITE", help="chooses the best checkpoint (pgd10)")
    parser.add_argument(
        "--alarm", default="fgsm", metavar="SUITE",
        help="measured beside it to see catastrophic overfitting; its seconds are recorded; none: no alarm (fgsm)",
    )  # fmt: skip
    parser.add_argument(
        "--keep-epochs", type=whole_number, nargs="?", const=1, metavar="N",
        help="keep the weights of every epoch (of every N-th), for lossdsl diagnose over epochs",
    )  # fmt: skip
    parser.add_argument("--test-attack", default="pgd20", metavar="SUITE", help="measures the finished run (pgd20)")
    parser.add_argument(
        "--attack-set", action="append", default=[], metavar="NAME=VALUE", help="another value for a param of both (eps: the recipe's)"
    )
    data_options(parser)


def run_train(arguments: argparse.Namespace) -> int:
    recipe = trainable_recipe(arguments)
    from lossdsl.run.report import train_report
    from lossdsl.run.train import train

    result = train(replace(train_request(arguments, recipe), resume=arguments.resume, console=console(arguments)))
    if result.status == "interrupted":
        return INTERRUPTED
    print_rich(train_report(result))
    return OK


def trainable_recipe(arguments: argparse.Namespace) -> Recipe:
    """The recipe of a command with everything its options change; what the checker warns of is printed."""
    recipe = chosen_recipe(arguments)
    if recipe.train is None or recipe.optimizer is None:
        what = "an attack suite" if recipe.kind == "attack" else "without a train statement"
        raise UserError(
            f"{recipe.name} is {what} and cannot be trained",
            where=arguments.recipe,
            fix="name a recipe, or add: train epochs = 100, batch = 128",
        )
    for finding in recipe.checked.diagnostics:
        print(render_text(recipe.source, finding), file=sys.stderr, end="\n\n")
    changes = {name: value for name in ("epochs", "batch") if (value := getattr(arguments, name)) is not None}
    return recipe.with_train(**changes) if changes else recipe


def train_request(arguments: argparse.Namespace, recipe: Recipe) -> TrainRequest:
    """The options of `train_options` as a request, silent and not resumed."""
    from lossdsl.engine.api import attack_compiler, step_compiler
    from lossdsl.run.data import DataRequest
    from lossdsl.run.request import AttackChoice, TrainRequest

    attacks = [AttackChoice(name, parse_settings(arguments.attack_set)) for name in (arguments.validation_attack, arguments.test_attack)]
    trainable: Any = recipe  # train and optimizer are there, which its type does not say
    return TrainRequest(
        recipe=trainable, compile_step=step_compiler(recipe), compile_attack=attack_compiler, out=arguments.out,
        data=DataRequest(arguments.data, arguments.data_root or Path("data"), arguments.image_size, arguments.workers),
        model=arguments.model, binds=parse_binds(arguments.bind), unlabelled=arguments.unlabelled, teacher=arguments.teacher,
        seed=arguments.seed, device=arguments.device, deterministic=arguments.deterministic,
        checkpoint_every=arguments.checkpoint_every, validation_attack=attacks[0], test_attack=attacks[1],
        keep_epochs=arguments.keep_epochs,
        alarm=None if arguments.alarm == "none" else AttackChoice(arguments.alarm, parse_settings(arguments.attack_set)),
        command=arguments.command_line,
    )  # fmt: skip


def parse_binds(words: Sequence[str]) -> dict[str, str]:
    """NAME=WHAT of every --bind. Raises UserError for another form and for a name bound twice."""
    found: dict[str, str] = {}
    for word in words:
        name, sign, what = (part.strip() for part in word.partition("="))
        if not (name and sign and what):
            raise UserError(f"{word!r} binds no model", where="--bind", fix="write NAME=DIR or NAME=ARCHITECTURE, for example g=runs/erm")
        if name in found:
            raise UserError(f"{name} is bound twice", where="--bind", fix="keep one of them")
        found[name] = what
    return found


def console(arguments: argparse.Namespace) -> Any:
    """Where progress goes: standard error, or nowhere with --quiet."""
    from rich.console import Console

    return None if arguments.quiet else Console(stderr=True)


def measure_options(parser: Parser) -> None:
    """Which models are measured, and on what."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="DIR", help="directories that lossdsl train has written")
    add_set(parser)
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="which checkpoint (best)")
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="which examples (test)")
    parser.add_argument("--batch", type=whole_number, default=512, metavar="N", help="examples at a time (512)")
    parser.add_argument("--limit", type=whole_number, metavar="N", help="the first N examples only")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="json: every number")
    parser.add_argument(
        "--surrogate", action="append", default=[], metavar="DIR",
        help="a run whose model the sanity gate transfers points from (DIR, or DIR:last)",
    )  # fmt: skip
    data_options(parser)


def add_sanity(parser: Parser) -> None:
    parser.add_argument(
        "--sanity", choices=("quick", "full", "off"), default="quick",
        help="check that the numbers can be believed: on 128 examples, on 1,000 with longer attacks, or not (quick)",
    )  # fmt: skip


def evaluate_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--attack", action="append", metavar="SUITE", help="the name or file of an attack suite; several, one after the other (pgd20)"
    )
    parser.add_argument(
        "--bind", action="append", default=[], metavar="NAME=DIR", help="another model of the suite, by the directory of its run (DIR:last)"
    )
    parser.add_argument("--fresh", action="store_true", help="measure again what is known or half done")
    add_sanity(parser)
    measure_options(parser)


def sanity_gate(arguments: argparse.Namespace) -> SanityGate | None:
    """The gate that --sanity and --surrogate ask for."""
    from lossdsl.sanity.suites import Gate

    return None if arguments.sanity == "off" else Gate(arguments.sanity, tuple(getattr(arguments, "surrogate", ())))


def run_evaluate(arguments: argparse.Namespace) -> int:
    settings = parse_settings(arguments.set)
    from lossdsl.engine.api import attack_compiler
    from lossdsl.run.evaluate import EvaluateRequest, EvaluateResult, evaluate_all
    from lossdsl.run.report import evaluations_report

    attacks = list(dict.fromkeys(arguments.attack or ["pgd20"]))
    results: list[EvaluateResult] = []
    for run in dict.fromkeys(arguments.runs):
        request = EvaluateRequest(
            run=run, compile_attack=attack_compiler, overrides=settings or None, which=arguments.checkpoint, split=arguments.split,
            seed=arguments.seed, device=arguments.device, batch=arguments.batch, limit=arguments.limit, data_root=arguments.data_root,
            workers=arguments.workers, binds=parse_binds(arguments.bind), fresh=arguments.fresh,
            sanity=sanity_gate(arguments), console=console(arguments),
        )  # fmt: skip
        results += evaluate_all(request, attacks)
    if arguments.format == "json":
        print(json.dumps([result.to_json() for result in results], indent=2))
    else:
        print_rich(evaluations_report(results))
    return OK


def plot_arguments(parser: Parser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="DIR", help="directories that lossdsl train has written")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="written as .png and .svg")


def run_plot(arguments: argparse.Namespace) -> int:
    from lossdsl.run.plots import plot_runs

    for path in plot_runs(arguments.runs, arguments.out):
        print(path)
    return OK
