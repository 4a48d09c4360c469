"""What a batch must be before a step touches it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lossdsl.diagnostics import UserError
from lossdsl.solve import Domain


def domain_of(ends: tuple[Any, Any] | None, x: Tensor) -> Domain | None:
    """The box of an `input x in ...` statement, for inputs like x; ends per channel lie along its second dimension."""
    if ends is None:
        return None
    channels = {len(e) for e in ends if isinstance(e, tuple)}
    if channels and (x.dim() < 2 or x.shape[1] not in channels):
        found = f"inputs of shape {list(x.shape[1:])}"
        raise UserError(
            f"the input domain has {channels.pop()} channels, and these are {found}", where="x", fix="write one range per channel"
        )
    tail = (1,) * (x.dim() - 2)
    low, high = (torch.tensor(e, dtype=x.dtype, device=x.device).reshape(-1, *tail) if isinstance(e, tuple) else float(e) for e in ends)
    return Domain(low, high)


def check_batch(
    x: Tensor, y: Tensor, num_classes: int, values: bool, domain: Callable[[], Domain | None], unlabelled: bool = False
) -> None:
    """Raise UserError for shapes and types that cannot be meant and, with `values`, for bad labels, NaN and inputs outside the domain.

    unlabelled: the label -1 is allowed (an example without one).
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
        raise UserError(f"inputs are floating-point tensors, and this is {kind}", where="x", fix="scale images to [0, 1]: x.float() / 255")
    if not isinstance(y, Tensor) or y.is_floating_point() or y.dim() != 1 or y.dtype == torch.bool:
        shape = f"{y.dtype} of shape {list(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise UserError(
            f"labels are class indices of shape [batch], and this is {shape}", where="y", fix="pass y as torch.long, one index per example"
        )
    if x.dim() == 0 or x.shape[0] != y.shape[0]:
        raise UserError(f"x has shape {list(x.shape)} and y has {y.shape[0]} labels", where="x, y", fix="one label per example")
    if y.shape[0] == 0:
        raise UserError("the batch is empty", where="x, y", fix="drop empty batches")
    if values:
        _check_values(x, y, num_classes, domain(), -1 if unlabelled else 0)


def _check_values(x: Tensor, y: Tensor, num_classes: int, domain: Domain | None, lowest: int) -> None:
    bad_label = ((y < lowest) | (y >= num_classes)).any()
    bad_value = ~torch.isfinite(x).all() if domain is None else ~_inside(x, domain)
    if not bool(bad_label | bad_value):
        return
    if bool(bad_label):
        at = int(((y < lowest) | (y >= num_classes)).nonzero()[0])
        raise UserError(
            f"the label of example {at} is {int(y[at])}, and classes are 0..{num_classes - 1}",
            where="y",
            fix="check the labels, or num_classes",
        )
    per_example = x.reshape(x.shape[0], -1)
    wrong = ~torch.isfinite(per_example).all(1)
    if bool(wrong.any()):
        raise UserError(f"example {int(wrong.nonzero()[0])} holds NaN or an infinity", where="x", fix="clean the data")
    assert domain is not None
    outside = ((x < domain.lo) | (x > domain.hi)).reshape(x.shape[0], -1).any(1)
    at = int(outside.nonzero()[0])
    low, high = float(x[at].min()), float(x[at].max())
    raise UserError(
        f"example {at} lies outside the input domain: its values run from {low:g} to {high:g}",
        where="x",
        fix="scale the data to the domain, or declare another one: input x in [lo, hi], or input x in reals",
    )


def _inside(x: Tensor, domain: Domain) -> Tensor:
    """NaN is not inside."""
    if isinstance(domain.lo, float) and isinstance(domain.hi, float):
        low, high = torch.aminmax(x)
        return (low >= domain.lo) & (high <= domain.hi)
    return ((x >= domain.lo) & (x <= domain.hi)).all()
