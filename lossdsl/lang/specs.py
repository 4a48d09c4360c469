"""The tables of solvers, sets, optimizers, schedules and training options, and the pydantic models of their arguments.

One row is all it takes to add one; the checker, `explain`, the docs and the engine read the same row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lossdsl.lang.options import Count, Fraction, NonNegative, Options, Positive, Steps
from lossdsl.lang.search_options import ApgdOptions, CwOptions, FabOptions, SearchOptions, SquareOptions

# --- solvers of lower levels -------------------------------------------------------------------------------------


class SolverOptions(Options):
    """What every lower-level solver takes. `start` is an expression and is handled by the checker."""

    steps: Steps
    restarts: Count = 1
    keep: Literal["last", "best"] = "last"

    @property
    def updates(self) -> int:
        """Of one restart."""
        return self.steps


class StepOptions(SolverOptions):
    step: NonNegative


class MomentumOptions(StepOptions):
    decay: NonNegative = 1.0


class LinearOptions(SolverOptions):
    steps: Literal[1] = 1


class SgdOptions(StepOptions):
    momentum: Fraction = 0.0
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> SgdOptions:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov = true needs momentum > 0")
        return self


class AdamOptions(StepOptions):
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    eps: Positive = 1e-8


class RmspropOptions(StepOptions):
    alpha: Fraction = 0.99
    eps: Positive = 1e-8
    momentum: Fraction = 0.0
    centered: bool = False


class ProxOptions(SolverOptions):
    """`at` is an expression and is handled by the checker: the point z whose projected gradient step is taken."""

    steps: Literal[1] = 1
    weight: Positive


class PowerOptions(SolverOptions):
    probe: Positive


@dataclass(frozen=True)
class SolverRow:
    """One lower-level solver: its options, what one update does, where it comes from."""

    name: str
    options: type[SolverOptions | SearchOptions]
    update: str
    source: str
    needs_start: bool = True
    sets: tuple[str, ...] = ()
    """The sets it works on; empty: all."""
    own_objective: bool = False
    """An attack that has its objective of its own, the margin: for runs of an attack alone."""

    @property
    def searches(self) -> bool:
        """Does it say itself which point is evaluated next? In an attack it then stops at the first fooling point."""
        return issubclass(self.options, SearchOptions)


SOLVERS: dict[str, SolverRow] = {
    row.name: row
    for row in (
        SolverRow(
            "pgd",
            StepOptions,
            "steepest step of the set's norm (sign for linf, unit(g) for l2, the largest coordinate that can still move for l1), then projection",
            "Madry et al., ICLR 2018",
        ),
        SolverRow("ascent", StepOptions, "raw per-example gradient times step, then projection", "gradient projection"),
        SolverRow(
            "linear",
            LinearOptions,
            "the maximiser over the set of the objective linearised at the start",
            "Goodfellow et al., ICLR 2015 (FGSM on linf)",
        ),
        SolverRow(
            "momentum",
            MomentumOptions,
            "accumulates gradients divided by their mean absolute value, steepest step along the sum, then projection",
            "Dong et al., CVPR 2018",
        ),
        SolverRow("sgd", SgdOptions, "torch.optim.SGD on the point (gradient ascent), then projection", "torch.optim.SGD"),
        SolverRow("adam", AdamOptions, "torch.optim.Adam on the point (gradient ascent), then projection", "torch.optim.Adam"),
        SolverRow(
            "rmsprop",
            RmspropOptions,
            "torch.optim.RMSprop on the point (gradient ascent), then projection",
            "torch.optim.RMSprop; Robey et al., alg. 1",
        ),
        SolverRow(
            "prox",
            ProxOptions,
            "projection of z - gradient at z / weight, for minimize (plus for maximize)",
            "Zhang et al. (Fast-BAT), eq. 8",
            needs_start=False,
        ),
        SolverRow(
            "power",
            PowerOptions,
            "power iteration on the Hessian at the centre by finite differences of length probe; the point is the radius along the result",
            "Miyato et al., TPAMI 2018, alg. 1 (VAT)",
        ),
        SolverRow(
            "apgd",
            ApgdOptions,
            "steepest step and momentum, the step halved at checkpoints where the objective stalls; on l1 a sparse step of adapted sparsity",
            "Croce & Hein, ICML 2020, alg. 1; on l1: Croce & Hein, ICML 2021, alg. 1",
            sets=("linf", "l2", "l1"),
        ),
        SolverRow(
            "fab",
            FabOptions,
            "projection on the boundary linearised at the iterate, inside the domain, drawn towards that of the clean point; back from a fooling point",
            "Croce & Hein, ICML 2020 (FAB), alg. 1",
            needs_start=False,
            sets=("linf", "l2", "l1"),
            own_objective=True,
        ),
        SolverRow(
            "square",
            SquareOptions,
            "one square of the image at the radius, kept where the objective grows; no gradients. Start: stripes (linf), windows (l2)",
            "Andriushchenko et al., ECCV 2020",
            needs_start=False,
            sets=("linf", "l2"),
        ),
        SolverRow(
            "cw",
            CwOptions,
            "Adam on |v - x|^2 + c * max(confidence - margin, 0) in tanh coordinates, c found by bisection; success within the radius counts",
            "Carlini & Wagner, S&P 2017, sec. V",
            needs_start=False,
            sets=("l2",),
            own_objective=True,
        ),
    )
}

# --- gradient flow through a lower level, root finding ----------------------------------------------------------


class ImplicitOptions(Options):
    """`through implicit(...)`. scale multiplies the implicit term; steps and tolerance are of the linear system's solver."""

    scale: NonNegative = 1.0
    steps: Count = 50
    tolerance: Positive = 1e-8


class UnrollingOptions(Options):
    """`through unrolling`: the updates themselves are differentiated."""


class DanskinOptions(Options):
    """`through danskin(starts = k)`: k runs, none selected."""

    starts: Count


THROUGH: dict[str, type[Options]] = {"implicit": ImplicitOptions, "unrolling": UnrollingOptions, "danskin": DanskinOptions}


class BisectionOptions(Options):
    steps: Count


FINDERS: dict[str, type[Options]] = {"bisection": BisectionOptions}

# --- optimizers of the upper level --------------------------------------------------------------------------------


class OptimizerOptions(Options):
    lr: Positive
    weight_decay: NonNegative = 0.0
    normalize: bool = False
    """Scale the whole gradient to length one before the optimizer's step (DDi); a zero gradient stays zero."""


class UpperSgdOptions(OptimizerOptions):
    momentum: Fraction = 0.0
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> UpperSgdOptions:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov = true needs momentum > 0")
        return self


class UpperAdamOptions(OptimizerOptions):
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    eps: Positive = 1e-8


class UpperRmspropOptions(OptimizerOptions):
    alpha: Fraction = 0.99
    eps: Positive = 1e-8
    momentum: Fraction = 0.0


OPTIMIZERS: dict[str, type[OptimizerOptions]] = {
    "sgd": UpperSgdOptions,
    "adam": UpperAdamOptions,
    "adamw": UpperAdamOptions,
    "rmsprop": UpperRmspropOptions,
}

# --- training ----------------------------------------------------------------------------------------------------


class Drop(Options):
    """Multiply the rate by `factor` at the start of each epoch after the epochs in `at` (at = [75] acts from epoch 76 on)."""

    kind: Literal["drop"] = "drop"
    at: tuple[Count, ...]
    factor: Positive = 0.1

    @model_validator(mode="after")
    def _increasing(self) -> Drop:
        if list(self.at) != sorted(set(self.at)):
            raise ValueError("the epochs in at must increase")
        return self


class Cyclic(Options):
    """Linear from 0 to the optimizer's rate at fraction `peak` of training, then linear to 0 (per batch)."""

    kind: Literal["cyclic"] = "cyclic"
    peak: Annotated[float, Field(gt=0, lt=1)] = 0.5


class Cosine(Options):
    """Cosine from the optimizer's rate to `final` times it, without restarts (per batch)."""

    kind: Literal["cosine"] = "cosine"
    final: Fraction = 0.0


class OneCycle(Options):
    """torch.optim.lr_scheduler.OneCycleLR with the optimizer's rate as maximum (per batch)."""

    kind: Literal["onecycle"] = "onecycle"
    pct_start: Annotated[float, Field(gt=0, lt=1)] = 0.3


class Constant(Options):
    """The optimizer's rate throughout."""

    kind: Literal["constant"] = "constant"


class Phases(Options):
    """Piecewise linear: `factor[i]` times the optimizer's rate at the end of epoch `at[i]` (at = [0, 6, 12], factor = [0, 1, 0.1])."""

    kind: Literal["phases"] = "phases"
    at: tuple[NonNegative, ...]
    factor: tuple[NonNegative, ...]

    @model_validator(mode="after")
    def _matching(self) -> Phases:
        if len(self.at) != len(self.factor) or len(self.at) < 2 or list(self.at) != sorted(set(self.at)) or self.at[0] != 0:
            raise ValueError("at starts with 0 and increases, and factor has as many numbers as at")
        return self


Schedule = Drop | Cyclic | Cosine | OneCycle | Constant | Phases
SCHEDULES: dict[str, type[Options]] = {
    "drop": Drop, "cyclic": Cyclic, "cosine": Cosine, "onecycle": OneCycle, "constant": Constant, "phases": Phases,
}  # fmt: skip


class Mix(Options):
    """`data = mix(labelled, pseudo, fraction = 0.5)`: the share of every batch that comes from the second stream."""

    fraction: Annotated[float, Field(gt=0, lt=1)]


class TrainOptions(Options):
    """The `train` statement: everything about a run that is neither the objective nor the data."""

    epochs: Count
    batch: Count
    schedule: Schedule = Field(default_factory=Constant, discriminator="kind")
    warmup: NonNegative = 0.0
    """Epochs of linear warm-up from 0 to the scheduled rate."""
    clip: Positive | None = None
    """Largest l2 norm of the whole gradient; None leaves it as it is."""
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    augment: Literal["none", "crop_flip", "crop"] = "none"
    """crop_flip: random crop with 4 pixels of zero padding and horizontal flip; crop: the crop alone."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the training set held out to choose the best checkpoint."""
    patience: Count | None = None
    """Stop after this many epochs without a better PGD accuracy on the validation split; None never stops early."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the weights, which is what is validated, kept as best and tested; None: the weights."""
    replays: Count = 1
    """How often each batch is used in a row, with an optimizer step each time (Free-AT's m)."""
    data: Mix | None = None
    """Two streams of examples, labelled and pseudo-labelled; None: one."""


@dataclass(frozen=True)
class OptimizerSpec:
    """A named optimizer with validated options."""

    name: str
    options: OptimizerOptions


@dataclass(frozen=True)
class SetRow:
    """One kind of set: its arguments and the norm whose steepest step `pgd` takes."""

    name: str
    args: tuple[str, ...]
    about: str
    over: str = "input"


SETS: dict[str, SetRow] = {
    row.name: row
    for row in (
        SetRow("linf", ("center", "radius"), "max |v - center| <= radius"),
        SetRow("l2", ("center", "radius"), "Euclidean norm of v - center <= radius (inputs or weights)"),
        SetRow("l1", ("center", "radius"), "sum |v - center| <= radius"),
        SetRow("layerwise", ("center", "radius"), "per tensor, |v - theta| <= radius * |theta|", over="weights"),
        SetRow("adaptive", ("center", "radius"), "|(v - theta) / |theta|| <= radius (ASAM)", over="weights"),
        SetRow("simplex", ("K",), "non-negative class weights that sum to one", over="classes"),
    )
}
