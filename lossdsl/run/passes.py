"""How often models are called: counted at their doors, whoever calls them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Passes:
    """Calls of models, and the examples that went through in them: a call with a batch of 100 is one call and 100 example-passes."""

    forward_calls: int = 0
    backward_calls: int = 0
    forward_examples: int = 0
    backward_examples: int = 0

    @property
    def examples(self) -> int:
        """Example-passes, forward and backward together."""
        return self.forward_examples + self.backward_examples

    def __add__(self, other: Passes) -> Passes:
        return Passes(*(one + two for one, two in zip(asdict(self).values(), asdict(other).values(), strict=True)))

    def to_json(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Passes:
        return cls(**{name: int(value[name]) for name in asdict(cls())})


class Counter:
    """The passes since it was last asked."""

    def __init__(self) -> None:
        self._seen = Passes()

    def take(self) -> Passes:
        """The passes since the last call; begins anew."""
        seen, self._seen = self._seen, Passes()
        return seen

    def called(self, module: nn.Module, args: Any, output: Any) -> None:
        """A forward hook; the backward pass is counted when a gradient reaches the output."""
        if not isinstance(output, Tensor):
            return
        count = len(output)
        self._seen += Passes(forward_calls=1, forward_examples=count)
        if output.requires_grad:
            output.register_hook(lambda gradient: self._back(count))

    def _back(self, count: int) -> None:
        self._seen += Passes(backward_calls=1, backward_examples=count)


@contextmanager
def counted(*models: nn.Module) -> Iterator[Counter]:
    """Counts the passes through these models, all of them together; without a trace afterwards."""
    counter = Counter()
    handles = [model.register_forward_hook(counter.called) for model in models]
    try:
        yield counter
    finally:
        for handle in handles:
            handle.remove()
