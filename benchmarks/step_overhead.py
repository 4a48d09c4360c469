"""What a compiled step costs beyond the passes through the model that its plan lists.

    python benchmarks/step_overhead.py --threads 1 --rounds 9 --clock cpu

Per case (model and batch) and recipe, in interleaved rounds:

    bare       the model passes of the plan alone: as many forward passes, in the same modes, parameters frozen in the attack, input
               gradients by autograd.grad from fixed logit gradients, one full backward pass; no loss, no step, no projection
    step       loss = step(x, y); loss.backward()
    published  (trades only) the loop of the released code: the clean pass repeated in every inner step and in the loss, 23 forward
               passes, parameters not frozen in the attack

The ratio is the median of step / bare over the rounds; each round runs every variant once, in rotating order. The optimizer's step is
part of none of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

import lossdsl
from lossdsl.front import Recipe
from lossdsl.plan.ir import Solve
from lossdsl.run.models import ModelInput, build_model

Run = Callable[[], None]
CLASSES = 10


# --- models ---


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after BatchNorm and ReLU (He et al., ECCV 2016); the shortcut leaves after the first activation."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(before), nn.BatchNorm2d(after)
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False) if before != after or stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        active = functional.relu(self.norm1(x))
        skip = x if self.shortcut is None else self.shortcut(active)
        return self.conv2(functional.relu(self.norm2(self.conv1(active)))) + skip  # type: ignore[no-any-return]


def preact_resnet18() -> nn.Module:
    """Pre-activation ResNet-18 for 32x32 inputs, 11.2 million parameters."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False)]
    before = 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [PreActBlock(before, width, stride), PreActBlock(width, width, 1)]
        before = width
    return nn.Sequential(*layers, nn.BatchNorm2d(512), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, CLASSES))


def small_cnn() -> nn.Module:
    """The model `smallcnn` of the command line."""
    return build_model("smallcnn", ModelInput((1, 28, 28), CLASSES), (0.5,), (0.5,))


@dataclass(frozen=True)
class Case:
    """A model, its batch, and the largest ratio we accept."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int
    target: float | None
    """None: a model so small that the difference to the bare passes, in milliseconds, is what a step costs besides its passes."""


def linear_model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(CLASSES))


CASES = {
    "resnet": Case("pre-activation ResNet-18, batch 16, 3x32x32", preact_resnet18, (3, 32, 32), 16, 1.05),
    "cnn": Case("small CNN, batch 128, 1x28x28", small_cnn, (1, 28, 28), 128, 1.15),
    "linear": Case("linear model, batch 128, 1x28x28", linear_model, (1, 28, 28), 128, None),
    "linear32": Case("linear model, batch 16, 3x32x32", linear_model, (3, 32, 32), 16, None),
}


# --- the variants ---


def attack_passes(solve: Solve, model: nn.Module, x: Tensor, gradient: Tensor) -> None:
    """The passes of one lower level."""
    model.train(solve.level.mode != "eval")
    inner = [i.gradient == "input" for i in solve.body if i.op == "forward"]
    constant = solve.before.forwards() + solve.start.forwards() * solve.runs + len(inner) * solve.evaluations
    with torch.no_grad():
        for _ in range(constant):
            model(x)
    for wanted in inner * solve.updates:
        point = x.detach().requires_grad_(wanted)
        with torch.set_grad_enabled(wanted):
            logits = model(point)
        if wanted:
            torch.autograd.grad(logits, point, gradient)


def bare(recipe: Recipe, model: nn.Module, x: Tensor) -> Run:
    """The passes of the plan, and nothing else. For recipes without families."""
    plan = recipe.plan
    assert plan.upper is not None and all(s.level.axis is None for s in plan.solves), "the bare passes of families are not written"
    gradient = torch.randn(len(x), CLASSES, device=x.device) / len(x)
    upper = [i for i in plan.upper.code if i.op == "forward"]
    parameters = list(model.parameters())

    def run() -> None:
        for p in parameters:
            p.requires_grad_(False)
        for solve in plan.solves:
            attack_passes(solve, model, x, gradient)
        for p in parameters:
            p.requires_grad_(True)
        logits = []
        for i in upper:
            model.train(i.attrs[1] != "eval")
            with torch.set_grad_enabled(i.gradient == "parameters"):
                logits.append(model(x))
        wanted = [z for z in logits if z.requires_grad]
        torch.autograd.backward(wanted, [gradient] * len(wanted))

    return run


def compiled(recipe: Recipe, model: nn.Module, x: Tensor, y: Tensor) -> Run:
    step = lossdsl.compile(recipe, model, num_classes=CLASSES)
    return lambda: step(x, y).backward()


def published_trades(recipe: Recipe, model: nn.Module, x: Tensor, y: Tensor) -> Run:
    """The loop of the released code (Zhang et al., ICML 2019): 10 * 2 + 3 forward passes."""
    eps, step, beta = (float(recipe.params[name]) for name in ("eps", "step", "lambda"))

    def divergence(a: Tensor, b: Tensor) -> Tensor:
        return functional.kl_div(functional.log_softmax(a, dim=1), functional.softmax(b, dim=1), reduction="sum")

    def run() -> None:
        model.eval()
        adversarial = x.detach() + 0.001 * torch.randn_like(x)
        for _ in range(10):
            adversarial.requires_grad_()
            with torch.enable_grad():
                loss = divergence(model(adversarial), model(x))
            gradient = torch.autograd.grad(loss, [adversarial])[0]
            adversarial = adversarial.detach() + step * torch.sign(gradient.detach())
            adversarial = torch.min(torch.max(adversarial, x - eps), x + eps).clamp(0.0, 1.0)
        model.train()
        natural = functional.cross_entropy(model(x), y)
        robust = divergence(model(adversarial), model(x)) / len(x)
        (natural + beta * robust).backward()

    return run


# --- measuring ---


CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}
"""cpu: the time of this process, all threads together, which hardly sees what else runs on the machine.
wall: for several threads and GPUs."""


def timed(run: Run, model: nn.Module, device: str, clock: Callable[[], float]) -> float:
    """Seconds of one run, gradients cleared before."""
    model.zero_grad(set_to_none=True)
    if device != "cpu":
        torch.cuda.synchronize()
    start = clock()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def measure(case: Case, name: str, rounds: int, device: str, clock: Callable[[], float]) -> dict[str, object]:
    """Medians of every variant, and the median over the rounds of its ratio to the bare passes."""
    torch.manual_seed(0)
    recipe, model = lossdsl.load(name), case.build().to(device).train()
    x, y = torch.rand(case.batch, *case.shape, device=device), torch.randint(0, CLASSES, (case.batch,), device=device)
    model(x)  # lazy layers take their size
    runs = {"bare": bare(recipe, model, x), "step": compiled(recipe, model, x, y)}
    if name == "trades":
        runs["published"] = published_trades(recipe, model, x, y)
    for run in runs.values():
        timed(run, model, device, clock)
    times: dict[str, list[float]] = {variant: [] for variant in runs}
    order = list(runs)
    for n in range(rounds):
        for variant in order[n % len(order) :] + order[: n % len(order)]:
            times[variant].append(timed(runs[variant], model, device, clock))
    ratios = {v: [t / b for t, b in zip(times[v], times["bare"], strict=True)] for v in runs}
    return {
        "case": case.name,
        "recipe": name,
        "plan": str(recipe.plan).strip().splitlines()[-1],
        "target": case.target,
        "seconds": {v: round(statistics.median(t), 6) for v, t in times.items()},
        "ratio": {v: round(statistics.median(r), 4) for v, r in ratios.items()},
        "spread": {v: [round(min(r), 3), round(max(r), 3)] for v, r in ratios.items()},
    }


def show(found: dict[str, object]) -> str:
    seconds, ratio, spread = found["seconds"], found["ratio"], found["spread"]
    assert isinstance(seconds, dict) and isinstance(ratio, dict) and isinstance(spread, dict)
    lines = [f"{found['case']}, {found['recipe']}  ({found['plan']})"]
    for v in seconds:
        lines.append(f"  {v:<10} {1000 * seconds[v]:>9.2f} ms   ratio {ratio[v]:.3f}   [{spread[v][0]:.3f}, {spread[v][1]:.3f}]")
    if found["target"] is None:
        return "\n".join([*lines, f"  a step costs {1000 * (seconds['step'] - seconds['bare']):.2f} ms besides its passes"])
    verdict = "met" if ratio["step"] <= float(str(found["target"])) else "missed"
    return "\n".join([*lines, f"  target {found['target']} {verdict}"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of a compiled step against the bare passes of its plan.")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--recipes", nargs="+", default=["pgd_at", "trades"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", help="also write the numbers to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    where = f"{options.device}, {options.threads} threads, {platform.machine()}"
    print(f"torch {torch.__version__}, {where}, {options.rounds} rounds, {options.clock} time", flush=True)
    found = []
    for case in options.cases:
        for recipe in options.recipes:
            found.append(measure(CASES[case], recipe, options.rounds, options.device, CLOCKS[options.clock]))
            print(show(found[-1]), flush=True)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=2)


if __name__ == "__main__":
    main()
