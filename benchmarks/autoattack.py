"""AutoAttack's suite against the published algorithms written out plainly, on the same random numbers, in float64.

    lossdsl train pgd2_at --data mnist-t10k --data-root ../mnist-t10k --model lenet --set eps=0.2 --by "adam(lr = 2e-3)" \
        --train "epochs = 8, batch = 128, schedule = cosine, augment = none" --attack-set eps=0.2 \
        --validation-attack fgsm --test-attack fgsm --out runs/mnist
    python benchmarks/autoattack.py runs/mnist --data-root ../mnist-t10k --examples 1000

The plain implementation is tests/attacks/published.py, run as the authors' release runs it: attack after attack and target after target,
on the examples that are still right, whole batches to the end (Square: an example stops at its success). It knows nothing of lossdsl but
the random numbers. Compared are the sets of broken examples after every run, and the passes through the model.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import lossdsl
from lossdsl.run.data import DataRequest, load_data
from lossdsl.run.passes import Passes, counted
from lossdsl.run.rng import derive
from lossdsl.run.stored import open_run
from lossdsl.solve import SETS_TORCH, Domain, ExampleStreams
from lossdsl.solve.square import SquareLinf, corners, signs

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "attacks"))
import published

UNIT = Domain(0.0, 1.0)
SEED, STEPS, TARGETS = 0, 100, 9


@dataclass(frozen=True)
class Case:
    """What is attacked."""

    model: nn.Module
    x: Tensor
    y: Tensor
    eps: float
    queries: int

    def at(self, rows: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> published.Attacked:
        return published.Attacked(self.model, self.x[rows], self.y[rows], loss, self.eps, "linf")

    def region(self, x: Tensor) -> object:
        return SETS_TORCH["linf"](x, self.eps, UNIT)

    def streams(self, run: str, rows: Tensor) -> ExampleStreams:
        return ExampleStreams.of(derive(SEED, "run", run), rows)

    def likeliest(self, rows: Tensor) -> Tensor:
        """The classes with the largest logits at x but for the label, [n, 9]."""
        z = self.model(self.x[rows]).scatter(1, self.y[rows].unsqueeze(1), -torch.inf)
        return z.sort(dim=1, descending=True, stable=True).indices[:, : min(TARGETS, z.shape[1] - 1)]


def apgd_ce(case: Case, rows: Tensor) -> Tensor:
    """bool [n]: still right."""
    start = case.region(case.x[rows]).sphere(case.streams("apgd_ce", rows))
    return published.apgd(case.at(rows, published.ce), start, STEPS).correct


def apgd_t(case: Case, rows: Tensor) -> Tensor:
    targets = case.likeliest(rows)
    wide = case.x[rows].repeat_interleave(targets.shape[1], 0)
    starts = case.region(wide).sphere(case.streams("apgd_t", rows).branches(targets)).unflatten(0, targets.shape)
    alive = torch.ones(len(rows), dtype=torch.bool)
    for n in range(targets.shape[1]):
        left = alive.nonzero()[:, 0]
        loss = partial(published.targeted_dlr, target=targets[left, n])
        alive[left] = published.apgd(case.at(rows[left], loss), starts[left, n], STEPS).correct
    return alive


def fab_t(case: Case, rows: Tensor) -> Tensor:
    targets = case.likeliest(rows)
    alive = torch.ones(len(rows), dtype=torch.bool)
    for n in range(targets.shape[1]):
        left = alive.nonzero()[:, 0]
        alive[left] = published.fab(case.at(rows[left], published.ce), [targets[left, n]], case.x[rows[left]], STEPS).correct
    return alive


def margin(z: Tensor, y: Tensor) -> Tensor:
    return z.scatter(1, y.unsqueeze(1), -torch.inf).amax(1) - z.gather(1, y.unsqueeze(1)).squeeze(1)


def square(case: Case, rows: Tensor) -> Tensor:
    streams = case.streams("square", rows)
    stripes = SquareLinf(case.queries, 0.8).start(case.region(case.x[rows]), streams, 0)
    sides, channels = tuple(case.x.shape[2:]), case.x.shape[1]

    def draws(examples: Tensor, side: int) -> tuple[Tensor, Tensor]:
        own = streams.rows(examples)
        return corners(own, sides, (side, side)), signs(own, channels)

    with torch.no_grad():
        return published.square(case.at(rows, margin), stripes, draws, case.queries).correct


RUNS = {"apgd_ce": apgd_ce, "apgd_t": apgd_t, "fab_t": fab_t, "square": square}


@dataclass
class Row:
    """One run of the plain suite: who is still right after it, its passes and seconds."""

    alive: Tensor
    passes: Passes
    seconds: float


def plain(case: Case, batch: int) -> dict[str, Row]:
    """The published suite."""
    found = {}
    with counted(case.model) as calls:
        with torch.no_grad():
            alive = torch.cat([case.model(part).argmax(1) for part in case.x.split(batch)]) == case.y
        found["clean"] = Row(alive.clone(), calls.take(), 0.0)
        for name, run in RUNS.items():
            started = time.monotonic()
            for rows in alive.nonzero()[:, 0].split(batch):
                alive[rows] = run(case, rows)
                print(f"published {name}: {int(rows[-1]) + 1} of {len(alive)}", file=sys.stderr, flush=True)
            found[name] = Row(alive.clone(), calls.take(), time.monotonic() - started)
    return found


def compared(case: Case, batch: int) -> list[dict[str, object]]:
    """Per run: accuracies, examples that only one of the two breaks, passes per example, calls."""
    suite = lossdsl.load("autoattack").text.replace("queries = 5000", f"queries = {case.queries}")
    ours = lossdsl.evaluate(case.model, case.x, case.y, suite, eps=case.eps, seed=SEED, batch=batch, points=False)
    theirs = plain(case, batch)
    alive = ours.measurement.predictions.right
    rows = [_line("clean", alive, ours.measurement.predictions.passes, ours.measurement.predictions.seconds, theirs["clean"])]
    for outcome in ours.measurement.outcomes:
        alive = alive & ~outcome.broken
        rows.append(_line(outcome.name, alive, outcome.passes, outcome.seconds, theirs[outcome.name]))
    return rows


def _line(name: str, alive: Tensor, passes: Passes, seconds: float, theirs: Row) -> dict[str, object]:
    count = len(alive)
    return {
        "run": name, "accuracy": int(alive.sum()) / count, "published accuracy": int(theirs.alive.sum()) / count,
        "differ": int((alive != theirs.alive).sum()), "passes": passes.examples / count,
        "published passes": theirs.passes.examples / count, "calls": passes.forward_calls + passes.backward_calls,
        "published calls": theirs.passes.forward_calls + theirs.passes.backward_calls, "seconds": seconds,
        "published seconds": theirs.seconds,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="directory that lossdsl train has written")
    parser.add_argument("--data", default="mnist-t10k")
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--eps", type=float, default=0.2)
    parser.add_argument("--queries", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--json", type=Path, help="write the numbers there")
    args = parser.parse_args()
    stored = open_run(args.run)
    model = stored.build(torch.device("cpu"), torch.float64)
    batch = next(load_data(DataRequest(args.data, args.data_root)).test.in_order(args.examples))
    rows = compared(Case(model, batch.x.double(), batch.y, args.eps, args.queries), args.batch)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")
    print(table(rows))


def table(rows: list[dict[str, object]]) -> str:
    """Markdown, with a last row of sums."""
    names = list(rows[0])
    summed = names[names.index("passes") :]
    total = {name: sum(row[name] for row in rows) if name in summed else "" for name in names}
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in [*rows, {**total, "run": "total"}]:
        cells = (f"{value:.1%}" if "accuracy" in name else f"{value:.1f}" for name, value in row.items() if isinstance(value, float))
        lines.append("| " + " | ".join(next(cells) if isinstance(value, float) else str(value) for value in row.values()) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
