"""Clean and robust accuracy of a model on a split: always in eval mode, always counted by the suite's own rule."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lossdsl.diagnostics import NotFiniteError, UserError
from lossdsl.run.examples import Batch, Split, chunks
from lossdsl.run.passes import Counter, Passes, counted
from lossdsl.run.pieces import NoPieces, Piece, Pieces
from lossdsl.run.protocols import Attack
from lossdsl.run.rng import derive, seed_global, seeded
from lossdsl.solve import ExampleStreams

CONFIDENCE = 0.95
FINITE = (
    "the model's outputs or their gradients are NaN or infinite near this example: look for a division by zero, a log or sqrt of 0, or "
    "weights that are not finite; `lossdsl sanity` says where else"
)
COUNT_RULES = ("worst", "best_loss", "each")


@dataclass(frozen=True)
class Rate:
    """`right` of `total` examples. The interval is Wilson's (1927), from scipy.stats.binomtest; it covers the test sample alone, not
    the randomness of training."""

    right: int
    total: int

    @property
    def value(self) -> float:
        return self.right / self.total

    @cached_property
    def interval(self) -> tuple[float, float]:
        from scipy.stats import binomtest

        found = binomtest(self.right, self.total).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
        return float(found.low), float(found.high)

    def to_json(self) -> dict[str, Any]:
        low, high = self.interval
        return {"accuracy": self.value, "right": self.right, "total": self.total, "low": low, "high": high, "confidence": CONFIDENCE}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Rate:
        return cls(int(value["right"]), int(value["total"]))

    @classmethod
    def of(cls, right: Tensor) -> Rate:
        """Of a mask, bool [N]."""
        return cls(int(right.sum()), len(right))


class Interrupted(Exception):  # noqa: N818  (a wish, not a fault)
    """The user asked to stop in the middle of a measurement."""


@dataclass(frozen=True)
class Setting:
    """How a measurement computes; `seed` is that of the attack's random numbers, `batch` the number of examples at a time. `points`: hand
    over the points of the runs."""

    device: torch.device
    dtype: torch.dtype
    seed: int
    batch: int
    points: bool = False


@dataclass(frozen=True)
class Clean:
    """Predictions without an attack, bool [N] on the CPU. Outputs that are not finite are wrong."""

    right: Tensor
    finite: Tensor
    passes: Passes
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What one run did, on the CPU.

    attacked, broken: bool [N], of broken only those attacked. objective: [N], larger is stronger, NaN where not attacked; None if the run
    was not asked. points: [N, *shape], the run's point for each example (of a family one that fools, else the strongest known), the clean
    input where it was not attacked; None unless wanted. The passes hold the one that judges the points.
    """

    name: str
    attacked: Tensor
    broken: Tensor
    passes: Passes
    seconds: float
    objective: Tensor | None = None
    points: Tensor | None = None


@dataclass(frozen=True)
class Measurement:
    """`robust` is the suite's number (None for `count each`); `runs` holds each run's own: the examples still right after this run
    and, under `worst`, all runs before it. survivors: bool [N], right when clean and after the attack (None for `count each`)."""

    clean: Rate
    robust: Rate | None
    runs: Mapping[str, Rate]
    predictions: Clean
    survivors: Tensor | None
    outcomes: tuple[Outcome, ...]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode and parameters without gradients inside; afterwards each module and parameter is as it was, frozen ones too."""
    modes = [(module, module.training) for module in model.modules()]
    wanting = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in wanting:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter in wanting:
            parameter.requires_grad_(True)


@torch.no_grad()
def right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which examples are classified correctly [N]; logits that are not finite count as wrong."""
    return right_of(model(x), y)


def right_of(z: Tensor, y: Tensor) -> Tensor:
    """Which logits [N, K] have their largest value at the label, bool [N]; not finite is wrong."""
    return (z.argmax(1) == y) & torch.isfinite(z).all(1)


def survives(model: nn.Module, points: Tensor, y: Tensor, rank: int) -> Tensor:
    """Which points are right, [N] or for a family, points [N, n, *shape] (`rank` is that of x), [N, n]."""
    if points.ndim == rank:
        return right(model, points, y)
    return right(model, points.flatten(0, 1), y.repeat_interleave(points.shape[1])).reshape(points.shape[:2])


def units(attack: Attack, split: Split) -> int:
    """How far `advance` counts in a measurement."""
    return len(split) * (1 + len(attack.settings))


def measure(
    model: nn.Module,
    attack: Attack,
    split: Split,
    setting: Setting,
    *,
    clean: Clean | None = None,
    pieces: Pieces | None = None,
    stop: Callable[[], bool] = lambda: False,
    advance: Callable[[int], None] = lambda done: None,
) -> Measurement:
    """Clean and robust accuracy on all of `split`.

    Clean errors count as broken and are never attacked. `worst`: any success of any run breaks an example and later runs get only those
    still right; `best_loss`: the point with the largest objective decides, ties to the later run; `each`: one number per run. A success
    is judged on the point a run returns, by a forward pass of our own. Random numbers depend on seed, name of the run and place of the
    example in the split alone, so that neither the size of the batches nor another run or a resumption changes them.

    clean: predictions made before, of `predict`. pieces: where finished batches are kept and found again.
    Raises `Interrupted` when `stop` says so between batches.
    """
    if attack.count not in COUNT_RULES:
        raise UserError(f"has the unknown count rule {attack.count!r}", where=f"attack {attack.name}", fix="use worst, best_loss or each")
    with evaluation_mode(model), seeded(setting.seed, setting.device), counted(model, *attack.helpers) as calls:
        stages = _Stages(model, split, setting, pieces or NoPieces(), calls, stop, advance)
        clean = stages.skip(clean) if clean else stages.clean()
        alive, outcomes = clean.right, []
        for row in attack.settings:
            outcome = stages.attack(attack, row, alive)
            alive = alive & ~outcome.broken if attack.count == "worst" else alive
            outcomes.append(outcome)
    return _counted(attack, clean, tuple(outcomes))


def predict(model: nn.Module, split: Split, setting: Setting) -> Clean:
    """The predictions on a split without an attack."""
    with evaluation_mode(model), seeded(setting.seed, setting.device), counted(model) as calls:
        return _Stages(model, split, setting, NoPieces(), calls, lambda: False, lambda done: None).clean()


@dataclass
class _Stages:
    """The parts of a measurement, batch by batch, with what an earlier process has kept of them."""

    model: nn.Module
    split: Split
    setting: Setting
    pieces: Pieces
    calls: Counter
    stop: Callable[[], bool]
    advance: Callable[[int], None]

    def skip(self, clean: Clean) -> Clean:
        self.advance(len(self.split))
        return clean

    def clean(self) -> Clean:
        def compute(batch: Batch) -> dict[str, Tensor]:
            with torch.no_grad():
                z = self.model(batch.x)
            return {"right": right_of(z, batch.y), "finite": torch.isfinite(z).all(1)}

        done = self._done("clean", torch.ones(len(self.split), dtype=torch.bool), compute)
        return Clean(done.mask("right"), done.mask("finite"), done.passes, done.seconds)

    def attack(self, attack: Attack, row: Mapping[str, Any], wanted: Tensor) -> Outcome:
        """One run against the examples of a mask."""
        name = str(row["name"])

        def compute(batch: Batch) -> dict[str, Tensor]:
            try:
                found, objective = self._run(attack, name, batch)
            except NotFiniteError as error:
                raise self._placed(attack, name, batch, error) from error
            check_in_set(attack.name, row, batch.x, found)
            alive = survives(self.model, found, batch.y, batch.x.ndim)
            return _one_each(found, objective, alive, attack.count == "best_loss", self.setting.points)

        self.advance(int((~wanted).sum()))
        done = self._done(f"run.{name}", wanted, compute)
        held = done.points(self.split, self.setting.batch) if self.setting.points else None
        return Outcome(name, wanted, done.mask("fooled"), done.passes, done.seconds, done.numbers("objective"), held)

    def _run(self, attack: Attack, name: str, batch: Batch) -> tuple[Tensor, Tensor | None]:
        streams = ExampleStreams.of(derive(self.setting.seed, "run", name), batch.index.to(self.setting.device))
        return attack.run(batch.x, batch.y, generator=streams, only=name)[name]

    def _placed(self, attack: Attack, name: str, batch: Batch, error: NotFiniteError) -> NotFiniteError:
        """The error of the example that caused it, found by halving the batch: what happens to one does not depend on the others."""
        while len(batch.index) > 1:
            half = len(batch.index) // 2
            first, rest = (Batch(batch.x[at], batch.y[at], batch.index[at]) for at in (slice(half), slice(half, None)))
            batch = first if self._failure(attack, name, first) else rest
        alone = self._failure(attack, name, batch)
        place = f"example {int(batch.index[0])} of the split" if alone else "an example of the split"
        problem = re.sub(r" of example \d+", "", (alone or error).problem)
        return NotFiniteError(problem, where=f"attack {attack.name}, run {name}, {place}", fix=FINITE)

    def _failure(self, attack: Attack, name: str, batch: Batch) -> NotFiniteError | None:
        try:
            self._run(attack, name, batch)
        except NotFiniteError as error:
            return error
        return None

    def _done(self, stage: str, wanted: Tensor, compute: Callable[[Batch], dict[str, Tensor]]) -> _Done:
        """The stage for the examples of a mask: what is kept of it, and the rest computed."""
        done = _Done(len(wanted), self.pieces.load(stage))
        self.advance(int(done.seen.sum()))
        left = (wanted & ~done.seen).nonzero().squeeze(1)
        for batch in self.split.batches(chunks(left, self.setting.batch)) if len(left) else ():
            if self.stop():
                raise Interrupted
            started = time.monotonic()
            seed_global(derive(self.setting.seed, stage, int(batch.index[0])))  # for models that draw
            moved = Batch(batch.x.to(self.setting.device, self.setting.dtype), batch.y.to(self.setting.device), batch.index)
            values = {key: value.detach().cpu() for key, value in compute(moved).items()}
            piece = Piece(batch.index, values, self.calls.take(), time.monotonic() - started)
            self.pieces.save(stage, piece)
            done.add(piece)
            self.advance(len(batch.index))
        return done


@dataclass
class _Done:
    """Pieces of one stage put together."""

    total: int
    parts: list[Piece] = field(default_factory=list)

    @property
    def seen(self) -> Tensor:
        return self._filled(torch.zeros(self.total, dtype=torch.bool), lambda piece: torch.ones_like(piece.index, dtype=torch.bool))

    @property
    def passes(self) -> Passes:
        return sum((piece.passes for piece in self.parts), Passes())

    @property
    def seconds(self) -> float:
        return sum(piece.seconds for piece in self.parts)

    def add(self, piece: Piece) -> None:
        self.parts.append(piece)

    def mask(self, name: str) -> Tensor:
        return self._filled(torch.zeros(self.total, dtype=torch.bool), lambda piece: piece.values[name])

    def numbers(self, name: str) -> Tensor | None:
        if not self.parts or any(name not in piece.values for piece in self.parts):
            return None
        empty = torch.full((self.total,), torch.nan, dtype=self.parts[0].values[name].dtype)
        return self._filled(empty, lambda piece: piece.values[name])

    def points(self, split: Split, batch: int) -> Tensor:
        """The run's points, clean inputs elsewhere."""
        clean = torch.cat([piece.x for piece in split.in_order(batch)])
        return self._filled(clean.to(self.parts[0].values["points"].dtype) if self.parts else clean, lambda piece: piece.values["points"])

    def _filled(self, empty: Tensor, value: Callable[[Piece], Tensor]) -> Tensor:
        for piece in self.parts:
            empty[piece.index] = value(piece)
        return empty


def _one_each(found: Tensor, objective: Tensor | None, alive: Tensor, by_loss: bool, points: bool) -> dict[str, Tensor]:
    """A run's answer with one point per example. Of a family, any fooling point breaks the example; `by_loss`, the one of the largest
    objective decides, as among runs."""
    rows = torch.arange(len(found), device=found.device)
    if alive.ndim == 2:
        decisive = objective.argmax(1) if objective is not None and by_loss else (~alive).to(torch.uint8).argmax(1)
        if objective is not None and not by_loss:
            decisive = torch.where(alive.all(1), objective.argmax(1), decisive)
        found, alive = found[rows, decisive], alive[rows, decisive]
        objective = None if objective is None else objective[rows, decisive]
    values = {"fooled": ~alive}
    if objective is not None:
        values["objective"] = objective
    if points:
        values["points"] = found
    return values


def _counted(attack: Attack, clean: Clean, outcomes: tuple[Outcome, ...]) -> Measurement:
    """The suite's own rule."""
    survivors: Tensor | None = None
    rates = {outcome.name: Rate.of(clean.right & ~outcome.broken) for outcome in outcomes}
    if attack.count == "worst":
        survivors = clean.right
        for outcome in outcomes:
            survivors = survivors & ~outcome.broken
            rates[outcome.name] = Rate.of(survivors)
    elif attack.count == "best_loss":
        survivors = clean.right & ~_by_loss(attack, outcomes)
    return Measurement(Rate.of(clean.right), None if survivors is None else Rate.of(survivors), rates, clean, survivors, outcomes)


def _by_loss(attack: Attack, outcomes: tuple[Outcome, ...]) -> Tensor:
    """Who is broken at the point with the largest objective, bool [N]."""
    if len(outcomes) > 1 and outcomes[0].attacked.any() and any(outcome.objective is None for outcome in outcomes):
        raise UserError("count best_loss needs an objective from every run", where=f"attack {attack.name}", fix="use count worst")
    return torch.stack([outcome.broken for outcome in outcomes])[largest_loss(outcomes), torch.arange(len(outcomes[0].broken))]


def largest_loss(outcomes: tuple[Outcome, ...]) -> Tensor:
    """The run with the largest objective for each example, int64 [N]; ties to the later."""
    known = [outcome.objective for outcome in outcomes if outcome.objective is not None]
    if len(outcomes) == 1 or not known:
        return torch.zeros(len(outcomes[0].broken), dtype=torch.long)
    # argmax takes the first of equals, which after the flip is the later run
    return len(known) - 1 - torch.stack(known).nan_to_num(0.0).flip(0).argmax(0)


def check_in_set(attack: str, row: Mapping[str, Any], x: Tensor, points: Tensor) -> None:
    """A guard against an attack that cheats: its points stay within the radius it reports. Raises RuntimeError (a fault of ours)."""
    radius, norm = row.get("radius"), row.get("norm")
    if not isinstance(radius, float | int) or norm not in ("linf", "l2", "l1"):
        return
    difference = (points - (x if points.ndim == x.ndim else x.unsqueeze(1))).flatten(points.ndim - x.ndim + 1)
    size = torch.linalg.vector_norm(difference, {"linf": torch.inf, "l2": 2, "l1": 1}[norm], dim=-1)
    if bool((size > radius * (1 + 1e-4) + 1e-6).any()):
        raise RuntimeError(
            f"attack {attack}, run {row['name']}: a point is {float(size.max()):g} away in {norm}, outside the radius {radius:g}"
        )
