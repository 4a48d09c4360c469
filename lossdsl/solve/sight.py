"""One evaluation of the points that an attack asks for: of all examples, or of those whose answer is not known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lossdsl.diagnostics import NotFiniteError, UserError
from lossdsl.solve.problem import Problem, fooled_at, value_and_gradient, values_at
from lossdsl.solve.rows import largest, rows, taken


@dataclass(frozen=True)
class Asked:
    """Points to evaluate, [n, *shape].

    gradient: is the gradient wanted too? bool [n], or the same for all.
    by_class: value and gradient of every margin of the problem, not of its objective.
    known: bool [n], examples to leave out, since the attack knows the answer; None: those whose point is the last one again.
    counts: is a fooling point a success of the attack?
    inside: are the points in the set by construction? Otherwise a fooling point counts only within the radius.
    """

    point: Tensor
    gradient: bool | Tensor = False
    by_class: bool = False
    known: Tensor | None = None
    counts: bool = True
    inside: bool = True


@dataclass(frozen=True)
class Seen:
    """What was found. value: [n], the objective; -inf where the attack knew the answer.

    gradient: [n, *shape], 0 where it was not wanted; None if nobody wanted it. With `by_class` margins: [n, m] and gradient [n, m, *shape].
    fooled: bool [n], False where the attack knew; None where the problem does not say.
    """

    value: Tensor
    gradient: Tensor | None
    fooled: Tensor | None
    margins: Tensor | None = None


@dataclass(frozen=True)
class Memory:
    """The last evaluation of every example: point and what was seen there. `seen` has gradients unless nobody wanted one."""

    point: Tensor
    seen: Seen

    def holds(self, asked: Asked) -> Tensor:
        """bool [n]: the point is the last one, and what is wanted of it is known."""
        answers = self.seen.gradient is not None or not (isinstance(asked.gradient, Tensor) or asked.gradient)
        same = (rows(asked.point) == rows(self.point)).all(1)
        return same if answers and not asked.by_class else torch.zeros_like(same)


def look(whole: Problem, problem: Problem, at: Tensor, asked: Asked, when: str, memory: Memory | None = None) -> Seen:
    """Evaluates the points of `problem`, which holds these rows of the whole one (for which errors are told and parts are made).

    Where the problem can be restricted, an example whose answer is known is not evaluated.
    Raises NotFiniteError for a number that is not finite.
    """
    again = None if memory is None or whole.restrict is None or asked.known is not None else memory.holds(asked)
    known = again if asked.known is None else asked.known
    todo = torch.ones_like(at, dtype=torch.bool) if known is None else ~known
    wanted = asked.gradient if isinstance(asked.gradient, Tensor) else torch.full_like(todo, asked.gradient)
    if whole.restrict is None or bool(todo.all() & (wanted == wanted[0]).all()):
        return _evaluated(problem, asked.point, bool(wanted.any()), asked.by_class, at, when)
    parts = []
    for chosen, needs in ((todo & wanted, True), (todo & ~wanted, False)):
        if bool(chosen.any()):
            place = chosen.nonzero()[:, 0]
            part = whole.restrict(at[place])
            parts.append((place, _evaluated(part, asked.point[place], needs, asked.by_class, at[place], when)))
    if again is not None and memory is not None and bool(again.any()):
        place = again.nonzero()[:, 0]
        parts.append((place, taken(memory.seen, place)))
    return _together(parts, asked, whole.fooled is not None)


def _evaluated(problem: Problem, point: Tensor, gradient: bool, by_class: bool, at: Tensor, when: str) -> Seen:
    margins = slope = None
    if by_class and gradient:
        margins, slope = margins_and_gradients(problem, point)
        value = margins.amax(1)
    elif gradient:
        value, slope = value_and_gradient(problem, point)
    else:
        with torch.no_grad():
            value = values_at(problem, point)
    fooled = fooled_at(problem, point) if problem.fooled is not None else None
    finite = value.isfinite() if slope is None else value.isfinite() & largest(slope).isfinite()
    if not bool(finite.all()):
        first = int((~finite).nonzero()[0])
        what = "objective" if not bool(value[first].isfinite()) else "gradient"
        wrong = f"the {what} of example {int(at[first])} is not finite {when}"
        fix = "look for a division by zero, a log or sqrt of 0, or weights that are not finite"
        raise NotFiniteError(wrong, where=problem.name, fix=fix)
    return Seen(value, slope, fooled, margins)


def _together(parts: list[tuple[Tensor, Seen]], asked: Asked, says: bool) -> Seen:
    """The answers of some rows among those of all."""
    n = len(asked.point)

    def merged(name: str, empty: float) -> Tensor | None:
        found = [(place, value) for place, seen in parts if (value := getattr(seen, name)) is not None]
        whole = None
        for place, value in found:
            whole = value.new_full((n, *value.shape[1:]), empty) if whole is None else whole
            whole = whole.index_copy(0, place, value)
        return whole

    value, fooled = merged("value", -math.inf), merged("fooled", 0)
    value = asked.point.new_full((n,), -math.inf) if value is None else value
    fooled = torch.zeros_like(value, dtype=torch.bool) if fooled is None and says else fooled
    return Seen(value, merged("gradient", 0), fooled, merged("margins", 0))


def margins_and_gradients(problem: Problem, point: Tensor) -> tuple[Tensor, Tensor]:
    """The margins of every example, [n, m], and their gradients in the point, [n, m, *shape]: one forward pass, m backward passes.

    Raises UserError if the problem has none or they do not depend on the point.
    """
    if problem.margins is None:
        raise UserError("this attack needs the margins of the classes", where=problem.name, fix="give the problem `margins`")
    leaf = point.detach().requires_grad_()
    with torch.enable_grad():
        margins = problem.margins(leaf)
        if not margins.requires_grad:
            raise UserError("the margins do not depend on the point, as far as gradients can see", where=problem.name)
        columns = margins.unbind(1)
        slopes = [torch.autograd.grad(c.sum(), leaf, retain_graph=n + 1 < len(columns))[0] for n, c in enumerate(columns)]
    return margins.detach(), torch.stack(slopes, 1)
