"""The restarts of a first-order attack, where any success counts: an example that is broken skips those that follow."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from lossdsl.diagnostics import UserError
from lossdsl.solve.base import Solution, Solver, solve
from lossdsl.solve.problem import Problem, fooled_at, values_at, where_rows


def solve_until_fooled(
    problem: Problem,
    solver: Solver[Any],
    steps: int,
    *,
    restarts: int,
    keep: Literal["last", "best"] = "last",
    until: float | Tensor | None = None,
    copies: int = 1,
) -> Solution:
    """As `solve`, but an example keeps the first restart whose point fools the model; only without one the largest objective decides.

    copies: consecutive rows that belong to one example, of which one success is enough.

    The point of each restart is evaluated once more (forward only). Where the problem can be restricted, broken examples are left out of
    later restarts; the numbers of the others are the same.
    Raises UserError as `solve` does, and without `problem.fooled`.
    """
    if problem.fooled is None:
        raise UserError("any success counts, and nothing says who is fooled", where=problem.name, fix="give the problem `fooled`")
    best, fooled = _rated(problem, solve(problem, solver, steps, keep=keep, until=until))
    for index in range(1, restarts):
        rows = (~fooled.view(-1, copies).any(1).repeat_interleave(copies)).nonzero()[:, 0]
        if len(rows) == 0:
            break
        moves = _for_rows(solver, rows, len(fooled))
        if problem.restrict is None or moves is None:
            new, now = _rated(problem, solve(problem, solver, steps, keep=keep, until=until))
            new, now = replace(new, point=new.point[rows], objective=_objective(new)[rows]), now[rows]
        else:
            part = problem.restrict(rows)
            limit = until[rows] if isinstance(until, Tensor) and until.dim() == 1 else until
            new, now = _rated(part, solve(part, moves, steps, keep=keep, until=limit))
        best, fooled = _merged(best, fooled, new, now, rows, index)
    return best


def _for_rows(solver: Solver[Any], rows: Tensor, count: int) -> Solver[Any] | None:
    """The solver for a new run of these rows of `count`; None for one that is no record of options."""
    record: Any = solver
    if not is_dataclass(record) or isinstance(record, type):
        return None
    own = {f.name: getattr(record, f.name) for f in fields(record)}
    cut = {name: v[rows] for name, v in own.items() if isinstance(v, Tensor) and v.dim() > 0 and v.shape[0] == count}
    return cast(Solver[Any], replace(record, **cut))


def _rated(problem: Problem, solution: Solution) -> tuple[Solution, Tensor]:
    """The solution with its objective, and who is fooled there."""
    with torch.no_grad():
        value = values_at(problem, solution.point)
    return replace(solution, objective=value), fooled_at(problem, solution.point)


def _objective(solution: Solution) -> Tensor:
    assert solution.objective is not None
    return solution.objective


def _merged(best: Solution, fooled: Tensor, new: Solution, now: Tensor, rows: Tensor, index: int) -> tuple[Solution, Tensor]:
    """The better restart of these rows, none of which is broken in `best`; ties of the objective to the later."""
    take = now | (_objective(new) >= _objective(best)[rows])
    point = best.point.index_copy(0, rows, where_rows(take, new.point, best.point[rows]))
    value = _objective(best).index_copy(0, rows, torch.where(take, _objective(new), _objective(best)[rows]))
    which = best.run.index_put((rows[take],), torch.full_like(rows[take], index))
    return replace(best, point=point, objective=value, run=which), fooled.index_put((rows,), now)
