"""Trains every recipe on scikit-learn's digits and writes the table of docs/results.md.

    python benchmarks/digits_table.py --out runs/table --eps 0.2 --seeds 0 1 2

Runs that are there already are kept, so that the command can be interrupted and repeated. Seconds per epoch are those of the runs, or,
with --retime, of two epochs of every recipe run alone one after the other.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from pathlib import Path
from statistics import mean, median, stdev

from lossdsl.assets import recipe_paths
from lossdsl.cli import main as command_line
from lossdsl.front import load

MARK = ("<!-- table -->\n", "<!-- end -->")
ATTACKS = ("fgsm", "pgd20")


HELPED = {"hat": ("--bind", "g={erm}")}
"""Recipes that need another run: the standard-trained one of the same seed."""
TAUGHT = ("at_rst", "trades_rst", "mart_rst", "bat_rst")
CHANGED = {
    "gairat": {"on": 1},  # no burn-in: it lasts longer than these runs
    "mma": {"hi": "eps", "least": "eps/6"},
}
FRACTIONS = ("fast_at", "pgd2_at", "llr")
"""Recipes whose step is a fixed multiple of the radius."""


def settings(recipe: str, eps: float) -> list[str]:
    """--set arguments: the radius and, where the recipe has one of its own, a step of a quarter of it."""
    chosen: dict[str, object] = {"eps": eps}
    if recipe not in FRACTIONS:
        chosen["step"] = eps / 4
    chosen |= {name: {"eps": eps, "eps/6": eps / 6}.get(str(value), value) for name, value in CHANGED.get(recipe, {}).items()}
    known = load(recipe).params
    return [part for name, value in chosen.items() if name in known for part in ("--set", f"{name}={value}")]


def others(recipe: str, seed: int, args: argparse.Namespace) -> list[str]:
    """What else a run needs: a helper model, a teacher for half of the training examples."""
    erm = args.out / f"erm-{seed}"
    if recipe in HELPED or recipe in TAUGHT:
        one("erm", seed, args)
    if recipe in TAUGHT:
        return ["--unlabelled", "split:0.5", "--teacher", str(erm)]
    return [part.format(erm=erm) for part in HELPED.get(recipe, ())]


def lossdsl(*arguments: str) -> str:
    """The command line in this process, so that torch is imported once; what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = command_line(list(arguments))
    if code:
        sys.exit(code)
    return printed.getvalue()


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
            printed = lossdsl("evaluate", str(out), "--attack", attack, "--set", f"eps={args.eps}", "--format", "json", "--quiet")
            (result,) = json.loads(printed)
            found["clean"], found[attack] = 100 * result["clean"]["accuracy"], 100 * result["robust"]["accuracy"]
        result = json.loads((out / "result.json").read_text())
        found["seconds"] = result["seconds"] / result["epochs"]
        numbers.write_text(json.dumps(found))
    loaded: dict[str, float] = json.loads(numbers.read_text())
    return loaded


def seconds_alone(recipe: str, args: argparse.Namespace) -> float:
    """Seconds per epoch of two epochs of seed 0."""
    out = args.out / f"{recipe}-time"
    if not (out / "result.json").is_file():
        lossdsl(
            "train", recipe, *settings(recipe, args.eps), "--attack-set", f"eps={args.eps}", "--by", args.by, "--train", args.train,
            "--epochs", "2", "--model", args.model, "--out", str(out), "--resume", "--quiet", *others(recipe, 0, args),
        )  # fmt: skip
    result = json.loads((out / "result.json").read_text())
    return float(result["seconds"] / result["epochs"])


def cell(values: list[float]) -> str:
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/table"))
    parser.add_argument("--eps", type=float, default=0.2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipes", nargs="+", default=list(recipe_paths()))
    parser.add_argument("--model", default="smallcnn")
    parser.add_argument("--by", default="adam(lr = 2e-3)")
    parser.add_argument("--train", default="epochs = 10, batch = 64, schedule = cosine, warmup = 0, augment = none")
    parser.add_argument("--retime", action="store_true", help="measure the seconds per epoch anew, each recipe alone")
    parser.add_argument("--page", type=Path, help="a page whose table is replaced, such as docs/results.md")
    args = parser.parse_args()
    rows = []
    for recipe in args.recipes:
        runs = [one(recipe, seed, args) for seed in args.seeds]
        accuracy = [cell([run[column] for run in runs]) for column in ("clean", *ATTACKS)]
        seconds = seconds_alone(recipe, args) if args.retime else median(run["seconds"] for run in runs)
        rows.append([recipe, *accuracy, f"{seconds:.1f}"])
        print(" | ".join(rows[-1]), flush=True)
    table = "\n".join("| " + " | ".join(r) + " |" for r in [["recipe", "clean", "FGSM", "PGD-20", "s/epoch"], ["---"] * 5, *rows]) + "\n"
    if args.page:
        text = args.page.read_text()
        start, end = text.index(MARK[0]) + len(MARK[0]), text.index(MARK[1])
        args.page.write_text(text[:start] + table + text[end:])
    else:
        print(table)


if __name__ == "__main__":
    main()
