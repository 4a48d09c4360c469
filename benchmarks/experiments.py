"""Trains the runs of docs/experiments.md and writes its tables: large radii, catastrophic overfitting, robust overfitting.

    python benchmarks/experiments.py radius --out runs/radius --data-root ../mnist-t10k --page docs/experiments.md
    python benchmarks/experiments.py catastrophic --out runs/catastrophic --data-root ../mnist-t10k --page docs/experiments.md
    python benchmarks/experiments.py overfitting --out runs/overfitting --page docs/experiments.md

Runs that are there already are kept, so that a command can be interrupted and repeated.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from lossdsl.cli import main as command_line

HERE = Path(__file__).resolve().parent
MNIST = ("--data", "mnist-t10k", "--model", "lenet")


@dataclass(frozen=True)
class Experiment:
    """Recipes (with arguments of their own) trained under common settings, and the radius they are tested at."""

    eps: float
    common: tuple[str, ...]
    recipes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    suites: tuple[str, ...] = ("fgsm", "pgd20")


PLAIN = "warmup = 0, augment = none"
SINGLE_STEP = ("fgsm_at", "fast_at", "gradalign", "elle", "elle_a", "llr_fgsm", "cure", "fast_bat")
EXPERIMENTS = {
    "radius": Experiment(
        0.45,
        (*MNIST, "--by", "adam(lr = 1e-3)", "--train", f"epochs = 20, batch = 64, schedule = drop(at = [12, 16], factor = 0.1), {PLAIN}"),
        {f"{name} (40 steps)": (str(HERE / "mnist" / f"{name}_40.loss"),) for name in ("pgd_at", "trades", "bat")},
        suites=("fgsm", "pgd50x10"),
    ),
    "catastrophic": Experiment(
        0.3,
        (*MNIST, "--by", "adam(lr = 2e-3)", "--train", f"epochs = 15, batch = 128, schedule = cyclic(peak = 0.4), {PLAIN}"),
        {
            **{name: (name,) for name in SINGLE_STEP},
            "gradalign": ("gradalign", "--set", "lambda=5"),
            "elle": ("elle", "--set", "lambda=10000"),
            "pgd_at": ("pgd_at", "--set", "step=0.075"),
        },
    ),
    "overfitting": Experiment(
        0.2,
        ("--data", "digits", "--by", "adam(lr = 2e-3)", "--train", f"epochs = 120, batch = 64, schedule = constant, {PLAIN}"),
        {name: (name, "--set", "step=0.05") for name in ("pgd_at", "trades", "beta_at")},
    ),
}


def lossdsl(*arguments: str) -> str:
    """The command line in this process, so that torch is imported once; what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = command_line(list(arguments))
    if code:
        sys.exit(code)
    return printed.getvalue()


def one(name: str, seed: int, plan: Experiment, args: argparse.Namespace) -> dict[str, Any]:
    """Accuracies in percent of the best and the last checkpoint of one run, and seconds per epoch."""
    recipe, *own = plan.recipes[name]
    out = args.out / f"{Path(recipe).stem}-{seed}"
    numbers = out / "table.json"
    if not numbers.is_file():
        root = ("--data-root", str(args.data_root)) if args.data_root else ()
        radius = f"eps={plan.eps}"
        lossdsl(
            "train", recipe, "--set", radius, "--attack-set", radius, *own, *plan.common, *root, "--seed", str(seed), "--out", str(out),
            "--resume", "--quiet",
        )  # fmt: skip
        found: dict[str, Any] = {}
        for which in ("best", "last"):
            for suite in plan.suites:
                printed = lossdsl(
                    "evaluate", str(out), "--checkpoint", which, "--attack", suite, "--set", radius, "--format", "json", "--quiet", *root
                )
                (result,) = json.loads(printed)
                found[f"{which} clean"], found[f"{which} {suite}"] = 100 * result["clean"]["accuracy"], 100 * result["robust"]["accuracy"]
        result = json.loads((out / "result.json").read_text())
        found["s/epoch"] = result["seconds"] / result["epochs"]
        numbers.write_text(json.dumps(found))
    loaded: dict[str, Any] = json.loads(numbers.read_text())
    return loaded


def cell(values: list[float]) -> str:
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data-root", type=Path, help="directory of MNIST's test files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipes", nargs="+", help="some of the rows")
    parser.add_argument("--page", type=Path, help="a page whose table of this experiment is replaced, such as docs/experiments.md")
    args = parser.parse_args()
    plan = EXPERIMENTS[args.experiment]
    columns = [f"{which} {what}" for which in ("best", "last") for what in ("clean", *plan.suites)] + ["s/epoch"]
    rows = []
    for name in args.recipes or plan.recipes:
        runs = [one(name, seed, plan, args) for seed in args.seeds]
        rows.append([name, *(cell([run[column] for run in runs]) for column in columns)])
        print(" | ".join(rows[-1]), flush=True)
    table = "\n".join("| " + " | ".join(r) + " |" for r in [["recipe", *columns], ["---"] * (len(columns) + 1), *rows]) + "\n"
    if args.page:
        text = args.page.read_text()
        mark = f"<!-- {args.experiment} -->\n"
        start = text.index(mark) + len(mark)
        end = text.index("<!-- end -->", start)
        args.page.write_text(text[:start] + table + text[end:])
    else:
        print(table)


if __name__ == "__main__":
    main()
