"""Many solutions of one inner problem: how far apart they lie (D17), and which direction descends (D18)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lossdsl.diagnose.runs import OpenRun
from lossdsl.diagnose.subject import Options, Subject
from lossdsl.diagnose.table import Cell, Column, Table
from lossdsl.diagnose.terms import compiled
from lossdsl.diagnostics import UserError
from lossdsl.engine.carried import gradient, trained
from lossdsl.engine.step import Step
from lossdsl.run.rng import derive, generator, seeded
from lossdsl.solve import min_norm_weights

STARTS, MAXIMISERS, EXAMPLES = 40, 4, 128
STEPS = (0.01, 0.02, 0.04, 0.07, 0.1)
"""How far the weights are moved along unit directions."""


def distances(subject: Subject, options: Options | None = None) -> Table:
    """D17: for one example, the Euclidean distances (units of x) between perturbations that the attack finds from `options.starts`
    random starts (40), pair by pair, and the cross-entropy (nats) at each, beside that of the clean example.

    The suite must start at random, or all solutions are one: that is an error. Source: Cevher (2024), "optimized perturbations are
    typically not unique"; Latorre et al., ICLR 2023.
    """
    options = options or Options()
    example, count = options.example, options.starts or STARTS
    if not 0 <= example < len(subject):
        raise UserError(f"there is no example {example}", where="--example", fix=f"it is one of 0..{len(subject) - 1}")
    one = slice(example, example + 1)
    x, y = subject.x[one], subject.y[one]
    many = subject.at(x.expand(count, *x.shape[1:]), y.expand(count))
    points, losses = many.adversarial, many.values({"loss": "CE(f(x'), y)"})["loss"]
    clean = float(subject.at(x, y).values({"loss": "CE(f(x), y)"}, {})["loss"])
    apart = torch.pdist((points - x).flatten(1).double())
    if not bool(apart.any()):
        raise UserError(f"{subject.attack.name} finds one point from every start", where="distances", fix="use a suite with random starts")
    rows: list[tuple[Cell, ...]] = [("distance", value) for value in apart.tolist()] + [("loss", value) for value in losses.tolist()]
    about = f"example {example}, {count} starts of {subject.attack.name}, {subject.norm} radius {subject.radius:.4g}"
    spread = f"distances from {float(apart.min()):.4g} to {float(apart.max()):.4g}"
    rise = f"clean loss {clean:.4g}, attacked {float(losses.min()):.4g} to {float(losses.max()):.4g}"
    columns = (Column("quantity"), Column("value", "units of x; nats"))
    title, notes = "Distances between optimised perturbations", (about, f"{spread}; {rise}")
    return Table("distances", title, "Cevher (2024)", columns, tuple(rows), notes, {"clean loss": clean})


# --- D18 ---


@dataclass(frozen=True)
class _Problem:
    """f(theta) = max over some maximisers of the recipe's loss on one batch, each found from a random start of its own."""

    step: Step
    x: Tensor
    y: Tensor
    index: Tensor
    count: int
    seed: int

    def evaluated(self, gradients: bool = False) -> tuple[list[float], list[Tensor]]:
        """The loss at each maximiser of the weights as they are, and its gradient as one vector, float64. Statistics are put back."""
        models, losses, found = self.step.trained, [], []
        buffers = [(b, b.clone()) for model in models for b in model.buffers()]
        for k in range(self.count):
            random = generator(self.x.device, derive(self.seed, "descent", k))
            solved = self.step.solve(self.x, self.y, generator=random, index=self.index)
            loss = self.step.objective(self.x, self.y, _one(solved), index=self.index)
            losses.append(float(loss.detach()))
            if gradients:
                found.append(torch.cat([g.reshape(-1) for g in gradient(loss, models)]).double())
            for buffer, saved in buffers:
                buffer.copy_(saved)
        return losses, found

    @torch.no_grad()
    def move(self, by: Tensor) -> None:
        """Subtract a vector from the trained weights."""
        parameters = trained(self.step.trained)
        for p, part in zip(parameters, by.split([p.numel() for p in parameters]), strict=True):
            p.sub_(part.reshape(p.shape).to(p))


def _one(solved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a level through danskin every maximiser is the first: the loss and gradient are then those of that one."""
    firsts = {name.partition("#")[0]: value for name, value in reversed(list(solved.items())) if "#" in name}
    return {name: firsts.get(name.partition("#")[0], value) if "#" in name else value for name, value in solved.items()}


def descent(run: OpenRun, options: Options) -> Table:
    """D18: f(theta - t g / |g|) for the min-norm direction of several maximisers (DDi) and for the gradient at each one of them.

    f is the largest of the run's own loss over `options.starts` (4) maximisers of a training batch, found anew at each t; g_k are the
    gradients at the maximisers at t = 0. The predicted slope is Danskin's, max_k <g_k, -g> / |g|. The note counts the negative inner
    products among the g_k. Whether a single gradient descends on f is what the table shows: the theorem promises it for DDi alone. Source:
    Latorre et al., ICLR 2023 (DDi); Cevher (2024). Weights and statistics are put back after each evaluation.
    """
    weights = run.weights(options.checkpoint)
    x, y, index = run.examples("train", options.limit or EXAMPLES)
    with seeded(derive(options.seed, "descent"), run.device):
        count = options.starts or MAXIMISERS
        if count < 2:
            raise UserError("one maximiser has nothing to be compared with", where="--starts", fix="use 2 or more")
        problem = _Problem(compiled(run, run.recipe, weights), x, y, index, count, options.seed)
        return _descended(problem, f"{len(y)} training examples, checkpoint {options.checkpoint} (epoch {weights.epoch})")


def _descended(problem: _Problem, about: str) -> Table:
    held = [copy.deepcopy(model.state_dict()) for model in problem.step.trained]
    here, found = problem.evaluated(gradients=True)
    gradients = torch.stack(found)
    gram = gradients @ gradients.mT
    if not bool(gram.diagonal().any()):
        raise UserError("every gradient of the loss is 0", where="descent", fix="the model does not learn there: look at the loss")
    directions = {"DDi": min_norm_weights(gram).to(gram) @ gradients, **{f"maximiser {k + 1}": g for k, g in enumerate(gradients)}}
    rows: list[tuple[Cell, ...]] = []
    for name, direction in directions.items():
        length = float(direction.norm())
        slope = float((gradients @ -direction).max()) / length if length else None
        rows.append((name, 0.0, max(here), slope))
        for t in STEPS if length else ():
            problem.move(direction * (t / length))
            rows.append((name, t, max(problem.evaluated()[0]), slope))
            for model, state in zip(problem.step.trained, held, strict=True):
                model.load_state_dict(state)
    columns = (
        Column("direction"),
        Column("t", "length in weights", "step $t$"),
        Column("f", "nats", "largest loss"),
        Column("slope", about="Danskin's slope at 0"),
    )
    notes = (about, _products(gram))
    return Table("descent", "Descent along DDi and single maximisers", "Latorre et al. (DDi)", columns, tuple(rows), notes)


def _products(gram: Tensor) -> str:
    """What the inner products of the maximisers' gradients are like."""
    lengths = gram.diagonal().sqrt()
    above = torch.triu(torch.ones_like(gram, dtype=torch.bool), 1)
    cosines = (gram / lengths.outer(lengths))[above & lengths.bool() & lengths.bool().unsqueeze(1)]
    negative = int((gram[above] < 0).sum())
    spread = f"; cosines {float(cosines.min()):.4f} to {float(cosines.max()):.4f}" if len(cosines) else ""
    return f"{negative} of {int(above.sum())} pairs of maximisers' gradients have a negative inner product{spread}"
