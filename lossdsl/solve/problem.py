"""What a lower level over inputs is (`Problem`), and its evaluations: values, gradients, who is fooled, and that all is finite.

The examples of a batch are N problems solved side by side: no line here lets one of them see another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lossdsl.diagnostics import NotFiniteError, UserError
from lossdsl.solve.draws import Randomness
from lossdsl.solve.input_set import InputSet


@dataclass(frozen=True)
class Problem:
    """maximise objective(point) over point in set, one problem per example.

    objective: [N, *shape] -> [N], differentiable in its argument; example i of the result depends on example i of the point only.
    set: where the iterates live.
    start: gives x'@0, [N, *shape]; called once per restart and used as it comes (its closure projects, unless the recipe says `raw`).
    generator: the source of randomness for solvers that draw (lossdsl.solve.draws).
    noise: drawn anew in each update and added to the step before the projection.
    name: how errors call this level.
    fooled: bool [N], is the point last given to `objective` misclassified? Asked right after that call, so that it costs no forward pass.
    restrict: the same problem for some rows (LongTensor, increasing). Give it only where an example's numbers do not depend on which
        others are computed with it and `objective` draws nothing. Its start and noise are those of these rows.
    margins: [n, m], for attacks that look at every class: logit j minus that of the label, for the m classes that may win. It stands for a
        call of `objective` where `fooled` is asked.
    """

    objective: Callable[[Tensor], Tensor]
    set: InputSet
    start: Callable[[], Tensor]
    generator: Randomness = None
    noise: Callable[[], Tensor] | None = None
    name: str = "lower level"
    fooled: Callable[[], Tensor] | None = None
    restrict: Callable[[Tensor], Problem] | None = None
    margins: Callable[[Tensor], Tensor] | None = None

    def land(self, moved: Tensor) -> Tensor:
        """The end of an update: adds the noise of the loop to the moved point, in place, and projects."""
        return self.set.project(moved if self.noise is None else moved.add_(self.noise()))


def value_and_gradient(problem: Problem, point: Tensor, differentiable: bool = False) -> tuple[Tensor, Tensor]:
    """The objective of every example, [N], a constant, and its gradient in the point, [N, *shape], with its graph if `differentiable`.

    One forward pass and one backward pass to the point alone: gradients of model parameters are neither computed nor touched.
    Raises UserError if the objective is not [N] or does not depend on the point.
    """
    leaf = point if differentiable and point.requires_grad else point.detach().requires_grad_()
    gradient = None
    with torch.enable_grad():
        values = values_at(problem, leaf)
        if values.requires_grad:
            gradient = torch.autograd.grad(values.sum(), leaf, create_graph=differentiable, allow_unused=True)[0]
    if gradient is None:
        fix = "maximise something with a gradient: comparisons and stop(...) have none"
        raise UserError("the objective does not depend on the point, as far as gradients can see", where=problem.name, fix=fix)
    return values.detach(), gradient


def values_at(problem: Problem, point: Tensor) -> Tensor:
    values = problem.objective(point)
    if values.shape != point.shape[:1]:
        wrong = f"the objective has shape {tuple(values.shape)} for {point.shape[0]} examples"
        raise UserError(wrong, where=problem.name, fix="return one number per example")
    return values


def fooled_at(problem: Problem, point: Tensor) -> Tensor:
    """Who was misclassified in the last call of the objective, bool [N]."""
    assert problem.fooled is not None
    fooled = problem.fooled()
    if fooled.shape != point.shape[:1] or fooled.dtype != torch.bool:
        wrong = f"fooled is {tuple(fooled.shape)} {fooled.dtype} for {point.shape[0]} examples"
        raise UserError(wrong, where=problem.name, fix="return one bool per example")
    return fooled


def checked_start(problem: Problem, differentiable: bool) -> Tensor:
    point, center = problem.start(), problem.set.center
    point = point if differentiable else point.detach()
    if point.shape != center.shape or point.dtype != center.dtype:
        wrong = f"the start is {tuple(point.shape)} {point.dtype}, the center of the set {tuple(center.shape)} {center.dtype}"
        raise UserError(wrong, where=problem.name, fix="start from a point of the same shape and precision")
    return point


def where_rows(take: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Per example the new or the old point."""
    return torch.where(take.view(-1, *(1,) * (new.dim() - 1)), new, old)


def check_finite(problem: Problem, marks: list[tuple[str, int, Tensor]], which: str) -> None:
    """Raises UserError with the first number that is not finite: its iterate and its example."""
    finite = torch.stack([values.to(marks[-1][2].dtype) for _, _, values in marks]).isfinite()
    if bool(finite.all()):
        return
    row = int((~finite).any(1).nonzero()[0])
    example = int((~finite[row]).nonzero()[0])
    what, k, values = marks[row]
    raise NotFiniteError(
        f"the {what} of example {example} is {float(values[example])} at iterate {k}{which}",
        where=problem.name,
        fix="look for a division by zero, a log or sqrt of 0, a step that is far too large, or weights that are not finite",
    )
