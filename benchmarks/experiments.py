"""Trains the runs of docs/experiments.md and writes its tables: large radii, catastrophic overfitting, robust overfitting.

    python benchmarks/experiments.py radius --out runs/radius --data-root ../mnist-t10k
    python benchmarks/experiments.py catastrophic --out runs/catastrophic --data-root ../mnist-t10k --page docs/experiments.md
    python benchmarks/experiments.py catastrophic-lenet --out runs/lenet --data-root ../mnist-t10k --page docs/experiments.md
    python benchmarks/experiments.py catastrophic-lenet-25 --out runs/lenet25 --data-root ../mnist-t10k --page docs/experiments.md
    python benchmarks/experiments.py overfitting --out runs/overfitting --data-root ../mnist-t10k --page docs/experiments.md
    python benchmarks/experiments.py overfitting-cifar --out runs/overfitting-cifar --data-root ../cifar10 --page docs/experiments.md

An experiment tests the best and the last checkpoint on the test images; a scan, such as radius-fixed, reads only what the runs measured
on the validation part. Runs that are there already are kept, so that a command can be interrupted and
repeated.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pieces import accuracies, cell, lossdsl, put

from lossdsl.run.data import DataRequest, DataSet, dataset, load_data
from lossdsl.run.examples import Split

HERE = Path(__file__).resolve().parent
PLAIN = "warmup = 0, augment = none"
FEW, FEW_CIFAR = 500, 1000


@dataset("cifar-few", f"of CIFAR-10's JPEG files {FEW_CIFAR:,} training and {FEW_CIFAR:,} test images, evenly spaced")
def cifar_few(request: DataRequest) -> DataSet:
    whole = load_data(replace(request, name=f"imagefolder:{request.root}"))
    train, test = (Split(s.examples, s.positions[:: len(s) // FEW_CIFAR]) for s in (whole.train, whole.test))
    note = f"{FEW_CIFAR:,} of CIFAR-10's images to train, {FEW_CIFAR:,} to test"
    return replace(whole, name="cifar-few", train=train, test=test, note=note)


@dataset("mnist-few", f"the first {FEW:,} training images of mnist-t10k")
def mnist_few(request: DataRequest) -> DataSet:
    whole = load_data(replace(request, name="mnist-t10k"))
    few = Split(whole.train.examples, whole.train.positions[:FEW])
    return replace(whole, name="mnist-few", train=few, note=f"the first {FEW:,} of MNIST's test images to train, the last 2,000 to test")


@dataclass(frozen=True)
class Experiment:
    """Rows (a recipe with arguments of its own) trained under common arguments, and the radius they are tested at."""

    eps: float
    common: tuple[str, ...]
    rows: dict[str, tuple[str, ...]]
    suites: tuple[str, ...] = ("fgsm", "pgd20")
    scan: bool = False
    own_radius: bool = False
    """The recipes say their radius; it is not set from outside."""


def small(model: str, data: str, train: str, lr: str = "1e-3") -> tuple[str, ...]:
    return "--data", data, "--model", model, "--by", f"adam(lr = {lr})", "--train", f"{train}, {PLAIN}"


def weighted(recipe: str, *weights: float) -> dict[str, tuple[str, ...]]:
    return {f"{recipe}, lambda = {w:g}": (recipe, "--set", f"lambda={w:g}") for w in weights}


def single_step(elle: tuple[float, ...], gradalign: tuple[float, ...]) -> dict[str, tuple[str, ...]]:
    return {"fgsm_at": ("fgsm_at",), **weighted("elle", *elle), **weighted("gradalign", *gradalign)}


MLP = "benchmarks.mlp:build"
LENET = small("lenet", "mnist-t10k", "epochs = 15, batch = 64, schedule = cyclic(peak = 0.4)", lr="2e-3")
METHODS = ("pgd_at", "trades", "bat")
ATTACKED = ("--set", "step=0.05")
EXPERIMENTS = {
    "radius": Experiment(
        0.45,
        small("lenet", "mnist-t10k", "epochs = 14, batch = 32, schedule = drop(at = [12], factor = 0.1)"),
        {name: (str(HERE / "mnist" / f"{name}_ramp.loss"),) for name in METHODS},
        suites=("pgd20",),
        own_radius=True,
    ),
    "radius-fixed": Experiment(
        0.45,
        small("lenet", "mnist-t10k", "epochs = 6, batch = 32, schedule = constant"),
        {name: (name, "--set", "step=0.09") for name in METHODS},
        scan=True,
    ),
    "catastrophic": Experiment(
        0.25,
        small(MLP, "mnist-t10k", "epochs = 12, batch = 64, schedule = constant"),
        {
            **{name: (name,) for name in ("fgsm_at", "fast_at")},
            **weighted("gradalign", 1, 4),
            **weighted("elle", 1000, 10000),
            "fast_bat": ("fast_bat",),
            "pgd_at": ("pgd_at", *ATTACKED),
        },
    ),
    "overfitting": Experiment(
        0.1,
        small(MLP, "mnist-few", "epochs = 100, batch = 32, schedule = drop(at = [60], factor = 0.1)"),
        {name: (name, "--set", "step=0.025") for name in ("pgd_at", "beta_at")},
        suites=("pgd20",),
    ),
    "overfitting-cifar": Experiment(
        4 / 255,
        small(MLP, "cifar-few", "epochs = 120, batch = 64, schedule = drop(at = [80], factor = 0.1)"),
        {name: (name, "--set", "step=1/255") for name in ("pgd_at", "beta_at")},
        suites=("pgd20",),
    ),
    "catastrophic-lenet": Experiment(0.3, LENET, {**single_step((2000, 4000), (1, 2)), "fast_bat": ("fast_bat",), "elle_a": ("elle_a",)}),
    "catastrophic-lenet-25": Experiment(0.25, LENET, single_step((1000, 4000), (0.2, 1))),
}


def train(name: str, seed: int, plan: Experiment, args: argparse.Namespace) -> Path:
    """The directory of one run, trained to its end."""
    recipe, *own = plan.rows[name]
    out: Path = args.out / f"{re.sub(r'[^a-z0-9._]+', '-', name)}-{seed}"
    radius = f"eps={plan.eps}"
    chosen = () if plan.own_radius else ("--set", radius)
    tested = ("--test-attack", "fgsm")  # the tables have their own tests
    lossdsl(
        "train", recipe, *chosen, "--attack-set", radius, *own, *plan.common, *root(args), *tested, "--seed", str(seed), "--out", str(out),
        "--resume", "--quiet",
    )  # fmt: skip
    return out


def root(args: argparse.Namespace) -> tuple[str, ...]:
    return ("--data-root", str(args.data_root)) if args.data_root else ()


def tested(out: Path, plan: Experiment, args: argparse.Namespace) -> dict[str, float]:
    """Accuracies in percent of the best and the last checkpoint on the test images."""
    numbers, found = out / "table.json", {}
    if not numbers.is_file():
        for which in ("best", "last"):
            for suite in plan.suites:
                clean, robust = accuracies(out, suite, plan.eps, "--checkpoint", which, *root(args))
                found[f"{which} clean"], found[f"{which} {suite}"] = clean, robust
        numbers.write_text(json.dumps(found))
    loaded: dict[str, float] = json.loads(numbers.read_text())
    return loaded


def validated(out: Path) -> dict[str, float]:
    """Accuracies in percent of the best and the last epoch on the validation part."""
    records: list[dict[str, Any]] = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    best = [r for r in records if r["best"]][-1]
    chosen = {"best": best, "last": records[-1]}
    return {f"{which} {what}": 100 * r["validation"][key] for which, r in chosen.items() for what, key in VALIDATED.items()}


VALIDATED = {"clean": "clean", "pgd10": "robust"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data-root", type=Path, help="directory of MNIST's test files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", nargs="+", help="some of the rows")
    parser.add_argument("--page", type=Path, help="a page whose table of this experiment is replaced, such as docs/experiments.md")
    args = parser.parse_args()
    plan = EXPERIMENTS[args.experiment]
    measures = tuple(VALIDATED) if plan.scan else ("clean", *plan.suites)
    columns = [f"{which} {what}" for which in ("best", "last") for what in measures]
    rows = []
    for name in args.rows or plan.rows:
        outs = [train(name, seed, plan, args) for seed in args.seeds]
        runs = [validated(out) if plan.scan else tested(out, plan, args) for out in outs]
        rows.append([name, *(cell([run[column] for run in runs]) for column in columns)])
        print(" | ".join(rows[-1]), flush=True)
    put(args.page, args.experiment, [["", *columns], *rows])


if __name__ == "__main__":
    main()
