"""How many passes AutoAttack's four attacks cost here, and as published: the same random numbers, the same broken examples.

    python benchmarks/attack_passes.py --examples 1000 --eps 0.15

Trains a small convolutional network on scikit-learn's digits by PGD-AT (797 images), attacks the other 1000 with the suite of AutoAttack's
standard version, once by lossdsl and once by the plain code of tests/attacks/published.py, which runs every batch to its end as the
authors' release does, with its passes for predictions; and prints a table of example-passes (an example that goes through the model
once, forward or backward). Everything in float64.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import lossdsl
from lossdsl.run.measure import survives
from lossdsl.run.passes import Passes, counted
from lossdsl.solve import Domain, ExampleStreams, Linf
from lossdsl.solve.square import SquareLinf, corners, signs

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "attacks"))
import published

TARGETS, STEPS, QUERIES = 9, 100, 5000
SUITE = """
attack autoattack
  source "Croce & Hein, ICML 2020 (standard version)"
param eps = {eps}
run apgd_ce : x' in linf(x, eps) maximize CE(f(x'), y) by apgd(steps = {steps}, start = sphere)
run apgd_t  : x'[j in top(9, i != y: f(x)[i])] in linf(x, eps) maximize DLR(f(x'[j]), y, j) by apgd(steps = {steps}, start = sphere)
run fab_t   : x'[j in top(9, i != y: f(x)[i])] in linf(x, eps) by fab(steps = {steps})
run square  : x' in linf(x, eps) maximize max(j != y: f(x')[j]) - f(x')[y] by square(queries = {queries})
count worst
"""


@dataclass
class Side:
    """What one of the two did: who is still robust, and the passes of every run."""

    robust: Tensor
    passes: dict[str, Passes] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def data(examples: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float64).unsqueeze(1) / 16, torch.tensor(digits.target)
    return x[:797], y[:797], x[797 : 797 + examples], y[797 : 797 + examples]


def trained(x: Tensor, y: Tensor, eps: float, epochs: int) -> nn.Module:
    """PGD-AT: five steps of eps / 3."""
    torch.manual_seed(0)
    features = (nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten())
    model = nn.Sequential(*features, nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for at in torch.randperm(len(x)).split(50):
            v = x[at].clone()
            for _ in range(5):
                v.requires_grad_()
                (slope,) = torch.autograd.grad(nn.functional.cross_entropy(model(v), y[at]), v)
                v = torch.minimum(torch.maximum(v.detach() + eps / 3 * slope.sign(), x[at] - eps), x[at] + eps).clamp(0, 1)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(v), y[at]).backward()
            optimizer.step()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()


def ours(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, queries: int) -> Side:
    suite = lossdsl.compile(lossdsl.parse(SUITE.format(eps=eps, steps=steps, queries=queries)), model, num_classes=10)
    begun = time.monotonic()
    with counted(model) as counter:
        side = Side(model(x).argmax(1) == y)
        side.passes["clean"] = counter.take()
        for name in ("apgd_ce", "apgd_t", "fab_t", "square"):
            at = side.robust.nonzero()[:, 0]
            points, _ = suite.run(x[at], y[at], generator=ExampleStreams.of(0, at), only=name)[name]
            side.robust[at] = survives(model, points, y[at], x.ndim).reshape(len(at), -1).all(1)
            side.passes[name], side.left[name] = counter.take(), int(side.robust.sum())
    side.seconds = time.monotonic() - begun
    return side


def as_published(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, queries: int) -> Side:
    """Run after run on the examples that are left, with the predictions that the release makes before and after each."""
    begun = time.monotonic()
    runs: dict[str, Callable[[published.Attacked, Tensor], Tensor]] = {
        "apgd_ce": partial(apgd_ce, steps=steps), "apgd_t": partial(apgd_t, steps=steps), "fab_t": partial(fab_t, steps=steps),
        "square": partial(square, queries=queries),
    }  # fmt: skip
    with counted(model) as counter:
        side = Side(model(x).argmax(1) == y)
        side.passes["clean"] = counter.take()
        for name, run in runs.items():
            at = side.robust.nonzero()[:, 0]
            attacked = published.Attacked(model, x[at], y[at], published.ce, eps, "linf")
            model(x[at])  # which examples are still correct: the attack asks for itself
            side.robust[at] = run(attacked, at)
            model(x[at])  # and the suite asks again, at the points it got
            side.passes[name], side.left[name] = counter.take(), int(side.robust.sum())
    side.seconds = time.monotonic() - begun
    return side


def part(at: published.Attacked, rows: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> published.Attacked:
    return published.Attacked(at.model, at.x[rows], at.y[rows], loss, at.eps, at.norm)


def sphere(x: Tensor, eps: float, source: ExampleStreams) -> Tensor:
    return Linf(x, eps, Domain(0.0, 1.0)).sphere(source)


def apgd_ce(at: published.Attacked, index: Tensor, steps: int) -> Tensor:
    return published.apgd(at, sphere(at.x, at.eps, ExampleStreams.of(0, index)), steps).correct


def apgd_t(at: published.Attacked, index: Tensor, steps: int) -> Tensor:
    targets = at.model(at.x).sort(dim=1, descending=True).indices[:, 1 : TARGETS + 1]
    starts = sphere(at.x.repeat_interleave(TARGETS, 0), at.eps, ExampleStreams.of(0, index).branches(targets)).unflatten(0, (-1, TARGETS))
    correct = torch.ones(len(index), dtype=torch.bool)
    for n in range(TARGETS):
        rows = correct.nonzero()[:, 0]
        at.model(at.x[rows])  # the release sorts the clean logits anew for every target
        loss = partial(published.targeted_dlr, target=targets[rows, n])
        correct[rows] = published.apgd(part(at, rows, loss), starts[rows, n], steps).correct
    return correct


def fab_t(at: published.Attacked, index: Tensor, steps: int) -> Tensor:
    targets = at.model(at.x).sort(dim=1, descending=True).indices[:, 1 : TARGETS + 1]
    correct = torch.ones(len(index), dtype=torch.bool)
    for n in range(TARGETS):
        rows = correct.nonzero()[:, 0]
        for _ in range(3):  # who is correct, which class is the target, and who is correct afterwards
            at.model(at.x[rows])
        correct[rows] = published.fab(part(at, rows, published.ce), [targets[rows, n]], at.x[rows], steps).correct
    return correct


def square(at: published.Attacked, index: Tensor, queries: int) -> Tensor:
    streams = ExampleStreams.of(0, index)
    stripes = SquareLinf(queries, 0.8).start(Linf(at.x, at.eps, Domain(0.0, 1.0)), streams, 0)

    def draws(rows: Tensor, side: int) -> tuple[Tensor, Tensor]:
        own = streams.rows(rows)
        return corners(own, (8, 8), (side, side)), signs(own, 1)

    return published.square(part(at, torch.arange(len(index)), published.margin), stripes, draws, queries).correct


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--eps", type=float, default=0.15)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--queries", type=int, default=QUERIES)
    args = parser.parse_args()
    x, y, points, labels = data(args.examples)
    model = trained(x, y, args.eps, args.epochs)
    mine = ours(model, points, labels, args.eps, args.steps, args.queries)
    theirs = as_published(model, points, labels, args.eps, args.steps, args.queries)
    print("| run | still robust | as published, still robust | forward | backward | as published, forward | backward | share |")
    print("|---|---|---|---|---|---|---|---|")
    for name in mine.passes:
        own, other = mine.passes[name], theirs.passes[name]
        left = (mine.left[name], theirs.left[name]) if name in mine.left else ("", "")
        print(
            f"| {name} | {left[0]} | {left[1]} | {own.forward_examples} | {own.backward_examples} | {other.forward_examples} | "
            f"{other.backward_examples} | {own.examples / other.examples:.2f} |"
        )
    total, others = (sum(side.passes.values(), Passes()).examples for side in (mine, theirs))
    print(f"| all | | | | | | | {total / others:.3f} |")
    print(f"{total / len(points):.0f} example-passes per example, {others / len(points):.0f} as published")
    same = int((mine.robust == theirs.robust).sum())
    accuracy = " and ".join(f"{side.robust.double().mean():.4f}" for side in (mine, theirs))
    print(f"robust accuracy {accuracy}; the same verdict for {same} of {len(points)}")
    print(f"{mine.seconds:.0f} s and {theirs.seconds:.0f} s")


if __name__ == "__main__":
    main()
