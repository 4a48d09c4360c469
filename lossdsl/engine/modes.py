"""The mode of the model during a step: set as the plan says, restored module by module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class Modes:
    """Switches a model between eval, train and untracked.

    train: the modules as the caller left them, if the model was in train mode (a BatchNorm frozen by the caller stays frozen);
    all modules in train mode otherwise. untracked: as train, but buffers (running statistics) are put back afterwards.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules = list(model.modules())
        self._before = [m.training for m in self._modules]
        self._buffers: list[tuple[Tensor, Tensor]] | None = None
        self._current = ""

    def ensure(self, mode: str) -> None:
        """Put the model in a mode; costs nothing when it is in it."""
        if mode == self._current:
            return
        self._put_back_buffers()
        as_left = self._before[0]
        for module, training in zip(self._modules, self._before, strict=True):
            module.training = mode != "eval" and (training if as_left else True)
        if mode == "untracked":
            self._buffers = [(b, b.clone()) for b in self._model.buffers()]
        self._current = mode

    def restore(self) -> None:
        """The mode every module had before."""
        self._put_back_buffers()
        for module, training in zip(self._modules, self._before, strict=True):
            module.training = training
        self._current = ""

    def _put_back_buffers(self) -> None:
        for buffer, saved in self._buffers or ():
            buffer.data.copy_(saved)
        self._buffers = None


@contextmanager
def kept_modes(model: nn.Module) -> Iterator[Modes]:
    """A Modes for one step, restored at the end whatever happens."""
    modes = Modes(model)
    try:
        yield modes
    finally:
        modes.restore()


@contextmanager
def own_copies(model: nn.Module) -> Iterator[None]:
    """The buffers of a model, for one pass, as copies that nothing writes afterwards; what the pass writes is kept.

    BatchNorm's backward pass reads the running statistics, which a later pass in train mode may have written by then.
    """
    held = [(m, name, buffer) for m in model.modules() for name, buffer in m._buffers.items() if buffer is not None]
    try:
        for module, name, buffer in held:
            module._buffers[name] = buffer.clone()
        yield
    finally:
        for module, name, buffer in held:
            written = module._buffers[name]
            module._buffers[name] = buffer
            if written is not None and written._version > 0:
                buffer.data.copy_(written)


@contextmanager
def constant_parameters(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient: a lower level differentiates by its own variable only."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in wanted:
            p.requires_grad_(False)
        yield
    finally:
        for p in wanted:
            p.requires_grad_(True)
