"""Instructions that run a model or differentiate: forward passes, points in one batch, gradients as values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lossdsl.diagnostics import UserError
from lossdsl.engine.modes import own_copies
from lossdsl.lang.types import Kind
from lossdsl.plan.ir import Instr

if TYPE_CHECKING:
    from lossdsl.engine.closures import Frame, Function, Values


def forward(i: Instr, kinds: dict[int, Instr], written: bool) -> Function:
    """A pass through a model, in its mode, at its own parameters or at the variable of a level over weights.

    written: another pass of the same code writes statistics, maybe before this one is differentiated.
    """
    name, mode, place, axes = i.attrs[0], i.attrs[1], i.args[0], len(kinds[i.args[0]].axes)
    weights = i.attrs[2] if len(i.attrs) > 2 else None
    no_gradient = i.gradient == "none"
    kind = i.kind
    own_buffers = mode == "eval" and (i.gradient == "parameters" or (i.gradient == "input" and written))

    def run(frame: Frame, values: Values) -> Tensor:
        model = frame.model if name == "f" else frame.models[name]
        if name not in frame.frozen:
            frame.modes.ensure(mode)
        point = values[place]
        flat = point.flatten(0, axes) if axes else point
        at = None if weights is None else frame.weights[weights]
        if no_gradient and torch.is_grad_enabled():
            with torch.no_grad():
                logits = _applied(model, flat, at)
        elif own_buffers:
            with own_copies(model):
                logits = _applied(model, flat, at)
        else:
            logits = _applied(model, flat, at)
        if kind is Kind.LOGITS:
            check_logits(logits, flat, frame.num_classes, name)
        else:
            logits = checked_value(logits, len(flat), kind, frame.x.shape[1:], name)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        return logits.unflatten(0, point.shape[: axes + 1]) if axes else logits

    return run


def _applied(model: nn.Module, point: Tensor, weights: dict[str, Tensor] | None) -> Any:
    """Buffers are the model's own even at other weights."""
    return model(point) if weights is None else torch.func.functional_call(model, weights, (point,))


def check_logits(logits: Any, point: Tensor, num_classes: int, name: str = "f") -> None:
    """Raise UserError unless the model gives [N, K] logits."""
    which = "the model" if name == "f" else f"the model {name}"
    if not isinstance(logits, Tensor):
        raise UserError(f"{which} returned {type(logits).__name__}, not a tensor of logits", where="model", fix="return the logits alone")
    if logits.dim() != 2 or logits.shape[0] != point.shape[0] or logits.shape[1] != num_classes:
        expected = [point.shape[0], num_classes]
        raise UserError(
            f"{which} returned shape {list(logits.shape)} where [batch, classes] = {expected} is expected",
            where="model",
            fix="pass the model's number of classes as num_classes",
        )


def checked_value(value: Any, count: int, kind: Kind, shape: torch.Size, name: str) -> Tensor:
    """What a model of a game gives for `count` points: numbers [N] (or [N, 1]), inputs [N, *shape] or latent vectors [N, n].

    Raises UserError for anything else.
    """
    if kind is Kind.REAL and isinstance(value, Tensor) and value.shape == (count, 1):
        value = value.squeeze(1)
    expected = {Kind.REAL: [count], Kind.INPUT: [count, *shape]}.get(kind)
    if not isinstance(value, Tensor) or (list(value.shape) != expected if expected else value.dim() != 2 or len(value) != count):
        got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        wanted = {Kind.REAL: "one number per example", Kind.INPUT: "the shape of the data"}.get(kind, "one vector per example")
        fix = f"change the last layer of {name}, or choose other data"
        raise UserError(f"gives {got} where {expected or [count, 'n']}, {wanted}, is expected", where=f"the model {name}", fix=fix)
    return value


def leaf(i: Instr) -> Function:
    """The variable of a gradient at its point: a node of its own, which passes on the gradient of the point it stands at."""
    place = i.args[0]

    def variable(frame: Frame, values: Values) -> Tensor:
        point: Tensor = values[place]
        return point.view_as(point) if point.requires_grad else point.detach().requires_grad_()

    return variable


def gradient(i: Instr, kinds: dict[int, Instr]) -> Function:
    """The gradient of each example's own number: examples meet in the sum only through the model (BatchNorm in train mode)."""
    at, body = i.args
    again = i.gradient == "graph"

    def run(frame: Frame, values: Values) -> Tensor:
        point, value = values[at], values[body]
        if not value.requires_grad:
            return torch.zeros_like(point)
        found = torch.autograd.grad(value.sum(), point, create_graph=again, retain_graph=True, allow_unused=True)[0]
        return torch.zeros_like(point) if found is None else found

    return run


def gradient_by_weights(i: Instr, kinds: dict[int, Instr]) -> Function:
    """The gradient of the batch mean by the parameters of f, flattened in the order of the model."""
    body = i.args[0]

    def run(frame: Frame, values: Values) -> Tensor:
        value = values[body]
        parameters = [p for p in frame.model.parameters() if p.requires_grad]
        found = torch.autograd.grad(value.mean(), parameters, retain_graph=True, allow_unused=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for p, g in zip(parameters, found, strict=True)])

    return run


def stack(i: Instr, kinds: dict[int, Instr]) -> Function:
    """Several points in one batch, one after the other."""
    axes = [len(kinds[a].axes) for a in i.args]
    return lambda frame, values: torch.cat([values[a].flatten(0, n) for a, n in zip(i.args, axes, strict=True)])


def part(i: Instr, kinds: dict[int, Instr]) -> Function:
    """The logits of the n-th of the points that went through the model together."""
    whole, points, place = i.args[0], i.args[1:], i.attrs[0]
    axes = [len(kinds[a].axes) for a in points]

    def run(frame: Frame, values: Values) -> Tensor:
        shapes = [values[a].shape[: n + 1] for a, n in zip(points, axes, strict=True)]
        start = sum(shape.numel() for shape in shapes[:place])
        logits: Tensor = values[whole][start : start + shapes[place].numel()]
        return logits.unflatten(0, shapes[place]) if axes[place] else logits

    return run
