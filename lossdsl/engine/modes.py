"""The mode of the model during a step: set as the plan says, restored module by module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class Modes:
    """Switches models between eval, train and untracked, all of them together.

    train: the modules as the caller left them, if their model was in train mode (a BatchNorm frozen by the caller stays frozen);
    all modules in train mode otherwise. untracked: as train, but buffers (running statistics) are put back afterwards.
    """

    def __init__(self, *models: nn.Module) -> None:
        self._models = models
        self._modules = [(m, m.training, model.training) for model in models for m in model.modules()]
        self._buffers: list[tuple[Tensor, Tensor]] | None = None
        self._current = ""

    def ensure(self, mode: str) -> None:
        """Put the models in a mode; costs nothing when they are in it."""
        if mode == self._current:
            return
        self._put_back_buffers()
        for module, training, as_left in self._modules:
            module.training = mode != "eval" and (training if as_left else True)
        if mode == "untracked":
            self._buffers = [(b, b.clone()) for model in self._models for b in model.buffers()]
        self._current = mode

    def restore(self) -> None:
        """The mode every module had before."""
        self._put_back_buffers()
        for module, training, _ in self._modules:
            module.training = training
        self._current = ""

    def _put_back_buffers(self) -> None:
        for buffer, saved in self._buffers or ():
            buffer.data.copy_(saved)
        self._buffers = None


@contextmanager
def kept_modes(*models: nn.Module) -> Iterator[Modes]:
    """A Modes for one step, restored at the end whatever happens."""
    modes = Modes(*models)
    try:
        yield modes
    finally:
        modes.restore()


@contextmanager
def frozen(*models: nn.Module) -> Iterator[None]:
    """Models that are never trained: in eval mode, their parameters constants."""
    modes = Modes(*models)
    modes.ensure("eval")
    try:
        with constant_parameters(*models):
            yield
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
def constant_parameters(*models: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient: a lower level differentiates by its own variable only."""
    wanted = [p for model in models for p in model.parameters() if p.requires_grad]
    try:
        for p in wanted:
            p.requires_grad_(False)
        yield
    finally:
        for p in wanted:
            p.requires_grad_(True)
