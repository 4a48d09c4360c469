"""Trains every recipe on scikit-learn's digits and writes the table of docs/results.md.

    python benchmarks/digits_table.py --out runs/table --eps 0.2 --seeds 0 1 2

    python benchmarks/digits_table.py --times docs/results.md

Runs that are there already are kept, so that the command can be interrupted and repeated. Seconds per epoch are those of the runs on the
clock; --times puts CPU seconds in their place, measured by turns with updates of pgd_at (update_time.py).
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from statistics import median

from pieces import accuracies, between, cell, lossdsl, put
from update_time import BATCH, relative

from lossdsl.assets import recipe_paths
from lossdsl.front import load
from lossdsl.plan.cost import cost
from lossdsl.run.data import DataRequest, load_data

MARK = "table"
ATTACKS = ("fgsm", "pgd20")
ROUNDS, VALIDATION = 5, 0.1
COLUMNS = ["recipe", "clean", "FGSM", "PGD-20", "passes", "s/epoch"]


HELPED = {"hat": ("--bind", "g={erm}")}
"""Recipes that need another run: the standard-trained one of the same seed."""
TAUGHT = ("at_rst", "trades_rst", "mart_rst", "bat_rst")
CHANGED = {
    "gairat": {"on": 1},  # no burn-in: it lasts longer than these runs
    "mma": {"hi": "eps", "least": "eps/6"},
}
FRACTIONS = ("fast_at", "pgd2_at", "llr")
"""Recipes whose step is a fixed multiple of the radius."""


def chosen_params(recipe: str, eps: float) -> dict[str, float]:
    """The radius and, where the recipe has one of its own, a step of a quarter of it."""
    chosen: dict[str, float] = {"eps": eps}
    if recipe not in FRACTIONS:
        chosen["step"] = eps / 4
    chosen |= {name: {"eps": eps, "eps/6": eps / 6}.get(str(value), value) for name, value in CHANGED.get(recipe, {}).items()}
    return {name: value for name, value in chosen.items() if name in load(recipe).params}


def settings(recipe: str, eps: float) -> list[str]:
    """The --set arguments."""
    return [part for name, value in chosen_params(recipe, eps).items() for part in ("--set", f"{name}={value}")]


def others(recipe: str, seed: int, args: argparse.Namespace) -> list[str]:
    """What else a run needs: a helper model, a teacher for half of the training examples."""
    erm = args.out / f"erm-{seed}"
    if recipe in HELPED or recipe in TAUGHT:
        one("erm", seed, args)
    if recipe in TAUGHT:
        return ["--unlabelled", "split:0.5", "--teacher", str(erm)]
    return [part.format(erm=erm) for part in HELPED.get(recipe, ())]


def one(recipe: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Clean and robust accuracy in percent of the best checkpoint of one run, and seconds per epoch."""
    out = args.out / f"{recipe}-{seed}"
    numbers = out / "table.json"
    if not numbers.is_file():
        lossdsl(
            "train", recipe, *settings(recipe, args.eps), "--attack-set", f"eps={args.eps}", "--by", args.by, "--train", args.train,
            "--model", args.model, "--seed", str(seed), "--out", str(out), "--resume", "--quiet", *others(recipe, seed, args),
        )  # fmt: skip
        found: dict[str, float] = {}
        for attack in ATTACKS:
            found["clean"], found[attack] = accuracies(out, attack, args.eps)
        result = json.loads((out / "result.json").read_text())
        found["seconds"] = result["seconds"] / result["epochs"]
        numbers.write_text(json.dumps(found))
    loaded: dict[str, float] = json.loads(numbers.read_text())
    return loaded


def retimed(recipes: list[str], eps: float) -> dict[str, float]:
    """CPU seconds of the updates of one epoch: batches times replays times the ratio to pgd_at's update times the median of that."""
    examples, _ = load_data(DataRequest()).validated(VALIDATION)
    chosen = {name: load(name).with_params(**chosen_params(name, eps)) for name in dict.fromkeys(["pgd_at", *recipes])}
    ratios, anchor = relative(chosen, ROUNDS)
    batches = math.ceil(len(examples) / BATCH)
    return {name: batches * load(name).train.replays * ratios[name] * anchor for name in recipes}


def passes(recipe: str) -> str:
    """Forward, input-backward and full backward passes of one update over one batch, as `lossdsl plan` counts them, for ten classes."""
    found, sizes = cost(load(recipe).plan), {"K": 10, "K - 1": 9}

    def batches(name: str) -> int:
        return math.prod(sizes.get(part.strip("()")) or int(part.strip("()")) for part in name.split(" * "))

    forward = found.forward + sum(n * batches(name) for name, n, _ in found.copies)
    backward = found.input_backward + sum(n * batches(name) for name, _, n in found.copies)
    return f"{forward} / {backward} / {found.full_backward}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/table"))
    parser.add_argument("--eps", type=float, default=0.2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipes", nargs="+", default=list(recipe_paths()))
    parser.add_argument("--model", default="smallcnn")
    parser.add_argument("--by", default="adam(lr = 2e-3)")
    parser.add_argument("--train", default="epochs = 10, batch = 64, schedule = cosine, warmup = 0, augment = none")
    parser.add_argument("--page", type=Path, help="a page whose table is replaced, such as docs/results.md")
    parser.add_argument("--times", type=Path, help="measure the update of every row of this page's table anew, and train nothing")
    args = parser.parse_args()
    if args.times:
        rows = [row[:-2] for row in table_of(args.times)]
        seconds = retimed([row[0] for row in rows], args.eps)
        put(args.times, MARK, [COLUMNS, *([*row, passes(row[0]), f"{seconds[row[0]]:.1f}"] for row in rows)])
        return
    rows = []
    for recipe in args.recipes:
        runs = [one(recipe, seed, args) for seed in args.seeds]
        accuracy = [cell([run[column] for run in runs]) for column in ("clean", *ATTACKS)]
        rows.append([recipe, *accuracy, passes(recipe), f"{median(run['seconds'] for run in runs):.1f}"])
        print(" | ".join(rows[-1]), flush=True)
    put(args.page, MARK, [COLUMNS, *rows])


def table_of(page: Path) -> list[list[str]]:
    """The rows of a page's table."""
    text = page.read_text()
    lines = text[between(text, MARK)].strip().splitlines()[2:]
    return [[part.strip() for part in line.strip("|").split("|")] for line in lines]


if __name__ == "__main__":
    main()
