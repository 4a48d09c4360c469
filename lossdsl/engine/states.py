"""What lives across batches besides the model: `state`, and `memory` with one number per training example."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lossdsl.check.typed import TypedState
from lossdsl.diagnostics import UserError
from lossdsl.engine.closures import Closure, Frame, Values
from lossdsl.lang.types import Kind


class States:
    """The values of a recipe's states; new ones act after `commit`."""

    def __init__(self, declared: tuple[TypedState, ...]) -> None:
        self.declared = declared
        self.values: dict[str, Tensor] = {}
        """States by name; a memory is [N], as long as the largest index so far needs."""
        self._first: dict[str, Tensor] = {}
        self._pending: list[tuple[TypedState, Tensor, Tensor | None]] = []

    def begin(self, frame: Frame, inits: Closure, values: Values, index: Tensor | None, name: str) -> None:
        """Put the values into the frame; the first time they are the `init`s. Raises UserError where a memory lacks the index."""
        if not self.declared:
            return
        if not self._first:
            with torch.no_grad():
                inits.run(frame, values)
            for state, result in zip(self.declared, inits.results, strict=True):
                first = frame.tensor(values[result]).detach()
                self._first[state.name] = first[0].clone() if state.init.kind is Kind.VECTOR else first.clone()
        for state in self.declared:
            if state.per_example:
                frame.points["state", state.name] = self._remembered(state, _checked(index, frame, name), frame)
            else:
                frame.shared[state.name] = self.values.get(state.name, self._first[state.name]).to(frame.x)

    def _remembered(self, state: TypedState, index: Tensor, frame: Frame) -> Tensor:
        first, held = self._first[state.name], self.values.get(state.name)
        longest = int(index.max()) + 1
        have = 0 if held is None else len(held)
        if held is None or have < longest:
            more = first.expand(longest - have).clone()
            held = more if held is None else torch.cat([held.to(more), more])
            self.values[state.name] = held
        return held.to(frame.x)[index]

    def propose(self, results: Mapping[str, Tensor], index: Tensor | None) -> None:
        """New values, computed from this batch; all of them replace the old ones at `commit`."""
        self._pending = [(s, _one(s, results[s.name]), index if s.per_example else None) for s in self.declared]

    def commit(self) -> None:
        """All states take their new values at once."""
        for state, value, index in self._pending:
            if index is None:
                self.values[state.name] = value
            else:
                self.values[state.name][index.to(self.values[state.name].device)] = value.to(self.values[state.name])
        self._pending = []

    def state_dict(self) -> dict[str, Tensor]:
        """Copies: a memory is written in place."""
        kept = [s for s in self.declared if s.name in self.values]
        return {f"{'memory' if s.per_example else 'state'}.{s.name}": self.values[s.name].clone() for s in kept}

    def names(self) -> set[str]:
        return {f"{'memory' if s.per_example else 'state'}.{s.name}" for s in self.declared}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._pending = []
        self.values = {key.partition(".")[2]: value.clone() for key, value in state.items() if key in self.names()}


def _one(state: TypedState, value: Tensor) -> Tensor:
    """A shared value once: Reals and Vectors of the batch have the same row for every example."""
    value = value.detach()
    if state.per_example:
        return value
    rank = 1 if state.init.kind is Kind.VECTOR else 0
    return (value[0] if value.dim() > rank else value).clone()


def _checked(index: Tensor | None, frame: Frame, name: str) -> Tensor:
    """The examples' places in the training set."""
    if index is None:
        raise UserError("the recipe has a memory and needs to know which examples these are", where=name, fix="pass step(x, y, index=...)")
    wrong = not isinstance(index, Tensor) or index.is_floating_point() or index.shape != frame.y.shape or bool((index < 0).any())
    if wrong:
        raise UserError(
            "index must hold the place of each example in the training set: whole numbers from 0, one per example", where="index"
        )
    return index.long().to(frame.x.device)
