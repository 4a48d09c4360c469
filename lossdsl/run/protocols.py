"""What a run needs from a compiled recipe and a compiled attack: no more than is written here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lossdsl.lang.specs import OptimizerSpec, TrainOptions
from lossdsl.solve import Randomness

Bound = float | tuple[float, ...]


class Recipe(Protocol):
    """A checked training recipe with every parameter resolved; free of torch."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def source_note(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def hash(self) -> str: ...
    @property
    def params(self) -> Mapping[str, float | int]: ...
    @property
    def train(self) -> TrainOptions: ...
    @property
    def optimizer(self) -> OptimizerSpec: ...
    @property
    def domain(self) -> tuple[Bound, Bound] | None: ...
    @property
    def models(self) -> Mapping[str, bool]:
        """Every model besides the trained one, f: its name, and whether it is frozen."""
        ...

    @property
    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        """Optimizers of other trained models by name; those without one are trained by `optimizer`."""
        ...

    @property
    def needs_index(self) -> bool:
        """Whether it keeps memory per example."""
        ...

    @property
    def sampled(self) -> bool:
        """Whether it draws the classes of its batches by a law of its own."""
        ...

    def explain(self) -> str: ...


class Loss(Protocol):
    """The scalar a step returns: differentiable, with its additive terms and logged values beside it."""

    @property
    def terms(self) -> Mapping[str, Tensor]: ...
    @property
    def logs(self) -> Mapping[str, Tensor]: ...

    def backward(self) -> None: ...
    def detach(self) -> Tensor: ...


class Step(Protocol):
    """One evaluation of the recipe's upper objective on a batch, its lower levels solved."""

    def __call__(self, x: Tensor, y: Tensor, *, index: Tensor, generator: torch.Generator) -> Loss: ...
    def set_epoch(self, epoch: int) -> None: ...
    def after_update(self) -> None: ...
    def class_probabilities(self) -> Tensor | None:
        """[K], on the CPU: the law of the classes of the next batch; None if the recipe has no sampler."""
        ...

    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


class Attack(Protocol):
    """An attack suite bound to a model. `count` is "worst", "best_loss" or "each"; `settings` has one row per run, in order; `helpers` are
    the other models that it calls."""

    @property
    def name(self) -> str: ...
    @property
    def count(self) -> str: ...
    @property
    def settings(self) -> Sequence[Mapping[str, Any]]: ...
    @property
    def helpers(self) -> Sequence[nn.Module]: ...
    @property
    def domain(self) -> tuple[Bound, Bound] | None:
        """The range of the inputs; None: all reals."""
        ...

    @property
    def hash(self) -> str:
        """Equal for equal suites with equal params."""
        ...

    def run(
        self, x: Tensor, y: Tensor, *, generator: Randomness, only: str | None = None
    ) -> Mapping[str, tuple[Tensor, Tensor | None]]:
        """Adversarial points [N, *shape] and their objectives [N] of every run, or of the run named by `only`."""
        ...


CompileStep = Callable[[nn.Module, int, torch.device, Mapping[str, nn.Module]], Step]
"""(model, number of classes, device, the other models by name) -> the training step."""
CompileAttack = Callable[..., Attack]
"""(name or text of a suite, parameter overrides, model, number of classes, device, [other models by name]) -> the attack."""
