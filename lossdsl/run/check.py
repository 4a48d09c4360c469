"""Checks before the first batch: what the data and the model must be for a run to mean anything."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lossdsl.diagnostics import UserError
from lossdsl.run.data import DataSet
from lossdsl.run.examples import Split
from lossdsl.run.measure import evaluation_mode
from lossdsl.run.protocols import Bound

CHUNK = 1024
PROBE = 8
"""Examples in the trial batch."""


def check_data(data: DataSet, domain: tuple[Bound, Bound] | None) -> None:
    """Labels in 0..K-1, inputs finite and in the recipe's domain.

    Everything is looked at where the data is in memory; of image files, which are in [0, 1] by their format, the first batch.
    Raises UserError that names the split, the example and the value.
    """
    for name, split in (("training", data.train), ("test", data.test)):
        where = f"{data.name}, {name} examples"
        labels = split.labels
        wrong = ((labels < 0) | (labels >= data.num_classes)).nonzero()
        if len(wrong):
            at = int(wrong[0])
            message = f"example {at} has label {int(labels[at])}, the classes are 0..{data.num_classes - 1}"
            raise UserError(message, where=where, fix="number the classes from 0, or give the right number of classes")
        for batch in split.in_order(CHUNK):
            check_inputs(batch.x, batch.index, domain, where)
            if not split.examples.in_memory:
                break


def check_inputs(x: Tensor, index: Tensor, domain: tuple[Bound, Bound] | None, where: str) -> None:
    """Raise UserError for an input that holds NaN or lies outside the domain; `index` [N] names the examples."""
    broken = (~torch.isfinite(x)).flatten(1).any(1).nonzero()
    if len(broken):
        raise UserError(f"example {int(index[broken[0]])} holds NaN or infinity", where=where, fix="remove or mend the example")
    if domain is None:
        return
    low, high = (as_bound(bound, x) for bound in domain)
    outside = ((x < low) | (x > high)).flatten(1).any(1).nonzero()
    if len(outside):
        at = int(outside[0])
        span = f"{float(x[at].min()):g} to {float(x[at].max()):g}"
        message = f"example {int(index[at])} has values from {span}, outside the recipe's domain [{_show(domain[0])}, {_show(domain[1])}]"
        raise UserError(message, where=where, fix="rescale the data, or declare its range in the recipe: input x in [low, high]")


def as_bound(bound: Bound, x: Tensor) -> Tensor:
    """A bound of the domain, scalar or per channel, in a shape that broadcasts against x [N, C, ...]."""
    value = torch.as_tensor(bound, dtype=x.dtype, device=x.device)
    if value.ndim == 0:
        return value
    if len(value) != x.shape[1]:
        raise UserError(
            f"the recipe's domain has {len(value)} channels, the data {x.shape[1]}", where="input x", fix="give one range per channel"
        )
    return value.reshape(-1, *(1,) * (x.ndim - 2))


def _show(bound: Bound) -> str:
    return f"{bound:g}" if isinstance(bound, float | int) else "(" + ", ".join(f"{b:g}" for b in bound) + ")"


def check_model(
    model: nn.Module, split: Split, num_classes: int, name: str, device: torch.device, dtype: torch.dtype, *, finite: bool = True
) -> None:
    """One trial batch in eval mode: logits [N, K], finite (unless that does not matter), and not probabilities. Raises UserError."""
    x = next(split.in_order(PROBE)).x.to(device, dtype)
    with evaluation_mode(model), torch.no_grad():
        try:
            z = model(x)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise UserError(
                f"the model fails on inputs of shape {list(x.shape)}: {error}", where=name, fix="use a model made for this data"
            ) from error
    if not isinstance(z, Tensor):
        raise UserError(f"the model returned {type(z).__name__}, not a tensor", where=name, fix="return the logits alone, [N, K]")
    if tuple(z.shape) != (len(x), num_classes):
        fix = f"give the model {num_classes} outputs per example"
        raise UserError(
            f"the model's output has shape {list(z.shape)}, [{len(x)}, {num_classes}] was expected (the data has {num_classes} classes)",
            where=name,
            fix=fix,
        )
    if finite and not torch.isfinite(z).all():
        raise UserError("the model's output on the first examples holds NaN or infinity", where=name, fix="check its initial weights")
    if num_classes > 1 and bool((z >= 0).all()) and bool(((z.sum(1) - 1).abs() < 1e-3).all()):
        raise UserError(
            "the model's outputs are probabilities (non-negative, rows sum to 1): it ends in a softmax, and the losses apply their own",
            where=name,
            fix="remove the softmax and return logits",
        )
