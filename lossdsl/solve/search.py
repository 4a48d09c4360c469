"""Attacks that say themselves which point is evaluated next (`Search`: begin, ask, tell), and the loop that runs them.

In an attack an example is done at its first fooling point: it leaves the batch at once, takes no part in later restarts, and takes the
other members of its family with it. The numbers of the examples that stay are the same, and so are the draws made for them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from lossdsl.diagnostics import UserError
from lossdsl.solve.base import Solution
from lossdsl.solve.draws import Randomness
from lossdsl.solve.input_set import InputSet
from lossdsl.solve.problem import Problem, checked_start, where_rows
from lossdsl.solve.rows import taken
from lossdsl.solve.sight import Asked, Memory, Seen, look

State = TypeVar("State")


class Search(Protocol[State]):
    """An attack. Frozen; what changes during a run is the state: a dataclass with the examples in the first dimension of every tensor."""

    @property
    def evaluations(self) -> int:
        """Of one restart: points asked for, the start among them."""

    def begin(self, problem: Problem, start: Tensor) -> State:
        """The state that asks for the start first."""

    def ask(self, problem: Problem, state: State) -> Asked:
        """The points to evaluate. Neither the caller nor `tell` writes to them."""

    def tell(self, problem: Problem, state: State, seen: Seen) -> State:
        """The state after an evaluation of the points asked for. `problem` is that of the examples left."""

    def best(self, problem: Problem, state: State) -> tuple[Tensor, Tensor]:
        """The point to return so far and its objective: [n, *shape], in the set, and [n]."""


@runtime_checkable
class OwnStart(Protocol):
    """A search that is not told where to start."""

    def start(self, region: InputSet, source: Randomness, run: int) -> Tensor:
        """x'@0 of one restart (counted from 0), [n, *shape], in the set."""


@dataclass(frozen=True)
class Request:
    """restarts: runs, of which each example keeps the one with the larger objective, ties to the later.

    captures: the k of the points x'@k to hand over (x'@0 is the start, x'@k the point asked for after update k).
    stop: an example is done at its first fooling point, which is its solution whatever its objective.
    copies: consecutive rows that belong to one example: a success of one ends the others too.
    """

    restarts: int = 1
    captures: frozenset[int] = frozenset()
    stop: bool = False
    copies: int = 1


def search(problem: Problem, solver: Search[Any], request: Request | None = None) -> Solution:
    """Runs an attack. An evaluation costs a forward pass, and a backward pass to the point where the attack wants the gradient.

    Raises UserError as `solve` does, for an objective that is not finite or not one number per example, and for `stop` without
    `problem.fooled` and `problem.restrict`.
    """
    request = request or Request()
    if request.stop and (problem.fooled is None or problem.restrict is None):
        fix = "give the problem `fooled` and `restrict`"
        raise UserError("stopping at success needs to know who is fooled and to go on without them", where=problem.name, fix=fix)
    hunt = _Hunt(problem, solver, request)
    for index in range(request.restarts):
        hunt.run(index)
    return Solution(hunt.point, hunt.iterates, hunt.value, hunt.which)


@dataclass
class _Part:
    """The examples still in a run: their rows among all, their problem and state."""

    problem: Problem
    rows: Tensor
    state: Any
    memory: Memory | None = None


class _Hunt:
    """One request: what every example has found so far."""

    def __init__(self, problem: Problem, solver: Search[Any], request: Request) -> None:
        self.problem, self.solver, self.request = problem, solver, request
        center = problem.set.center
        count = center.shape[0]
        self.point = center
        self.value = torch.full((count,), -math.inf, dtype=center.dtype, device=center.device)
        self.which = torch.zeros(count, dtype=torch.long, device=center.device)
        self.done = torch.zeros(count, dtype=torch.bool, device=center.device)
        self.iterates: dict[int, Tensor] = {}

    def run(self, index: int) -> None:
        """One restart, of the examples that are not done."""
        rows = (~self.done).nonzero()[:, 0]
        if len(rows) == 0:
            return
        problem = self.problem if len(rows) == len(self.done) else _restricted(self.problem, rows)
        part = _Part(problem, rows, self.solver.begin(problem, self._start(problem, index)))
        visited: dict[int, Tensor] = {}
        for k in range(self.solver.evaluations):
            asked = self.solver.ask(part.problem, part.state)
            if k in self.request.captures:
                visited[k] = asked.point
            when = f"at evaluation {k}" + (f" of restart {index + 1}" if index else "")
            seen = look(self.problem, part.problem, part.rows, asked, when, part.memory)
            part.memory = Memory(asked.point, seen)
            if self.request.stop and asked.counts:
                found = self._stopped(part, asked, seen, index)
                if found is None:
                    return
                part, seen = found
            with torch.no_grad():
                part.state = self.solver.tell(part.problem, part.state, seen)
        self._offer(part, index, visited)

    def _start(self, problem: Problem, index: int) -> Tensor:
        if isinstance(self.solver, OwnStart):
            return self.solver.start(problem.set, problem.generator, index)
        return checked_start(problem, differentiable=False)

    def _stopped(self, part: _Part, asked: Asked, seen: Seen, index: int) -> tuple[_Part, Seen] | None:
        """Those who go on after their successes have been noted; None if there are none."""
        assert seen.fooled is not None
        region = part.problem.set
        hit = seen.fooled if asked.inside else seen.fooled & (region.distance(asked.point) <= region.radii)
        if not bool(hit.any()):
            return part, seen
        self._note(part.rows[hit], asked.point[hit], seen.value[hit], index)
        over = torch.zeros_like(self.done)
        over[part.rows] = hit
        over = over.view(-1, self.request.copies).any(1).repeat_interleave(self.request.copies)
        self.done |= over
        leaves = over[part.rows]
        losers = leaves & ~hit
        if bool(losers.any()):
            point, value = self.solver.best(part.problem, part.state)
            self._note(part.rows[losers], point[losers], value[losers], index)
        stay = (~leaves).nonzero()[:, 0]
        if len(stay) == 0:
            return None
        rows = part.rows[stay]
        seen = taken(seen, stay)
        return _Part(_restricted(self.problem, rows), rows, taken(part.state, stay), Memory(asked.point[stay], seen)), seen

    def _note(self, rows: Tensor, point: Tensor, value: Tensor, index: int) -> None:
        self.point = self.point.index_copy(0, rows, point)
        self.value = self.value.index_copy(0, rows, value)
        self.which = self.which.index_fill(0, rows, index)

    def _offer(self, part: _Part, index: int, visited: dict[int, Tensor]) -> None:
        """The end of a run: each example keeps it if its best point is at least as good as what it has."""
        point, value = self.solver.best(part.problem, part.state)
        better = value >= self.value[part.rows]
        self._note(part.rows[better], point[better], value[better], index)
        if not self.iterates:
            self.iterates = visited
        else:
            self.iterates = {k: where_rows(better, visited[k], old) for k, old in self.iterates.items()}


def _restricted(problem: Problem, rows: Tensor) -> Problem:
    assert problem.restrict is not None
    return problem.restrict(rows)
