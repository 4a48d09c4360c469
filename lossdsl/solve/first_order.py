"""Solvers that follow the gradient: one frozen record each, and the table that builds them from the options of a recipe.

`size` is the length of the step: a number, or a tensor broadcastable to [N] for a step per example.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from lossdsl.diagnostics import UserError, did_you_mean
from lossdsl.lang.specs import (
    SOLVERS,
    AdamOptions,
    LinearOptions,
    MomentumOptions,
    PowerOptions,
    ProxOptions,
    RmspropOptions,
    SgdOptions,
    SolverOptions,
    SolverRow,
    StepOptions,
)
from lossdsl.solve import draws
from lossdsl.solve.base import Solver
from lossdsl.solve.problem import Problem
from lossdsl.solve.rows import largest, mean_normalised, per_example, unit


def _at_rows(size: float | Tensor, rows: Tensor) -> float | Tensor:
    """Steps for some rows: one per example is [N], anything else is the same for all."""
    return size.index_select(0, rows) if isinstance(size, Tensor) and size.dim() == 1 and size.shape[0] != 1 else size


@dataclass(frozen=True)
class Pgd:
    """v <- project(v + size * steepest(gradient)). On linf the direction is sign(gradient): Madry et al., ICLR 2018, section 2.1."""

    unrolls: ClassVar[bool] = True

    size: float | Tensor

    def init(self, problem: Problem, point: Tensor) -> None:
        """No state."""

    def step(self, problem: Problem, point: Tensor, gradient: Tensor, state: None) -> tuple[Tensor, None]:
        """One update."""
        direction = problem.set.steepest(gradient, point)
        return problem.land((direction * per_example(self.size, point)).add_(point)), None

    def restricted(self, rows: Tensor) -> Pgd:
        """For these rows."""
        return Pgd(_at_rows(self.size, rows))


@dataclass(frozen=True)
class Ascent:
    """v <- project(v + size * gradient), the gradient of each example's own objective (no batch size in it)."""

    unrolls: ClassVar[bool] = True

    size: float | Tensor

    def init(self, problem: Problem, point: Tensor) -> None:
        """No state."""

    def step(self, problem: Problem, point: Tensor, gradient: Tensor, state: None) -> tuple[Tensor, None]:
        """One update."""
        return problem.land((gradient * per_example(self.size, point)).add_(point)), None

    def restricted(self, rows: Tensor) -> Ascent:
        """For these rows."""
        return Ascent(_at_rows(self.size, rows))


@dataclass(frozen=True)
class Linear:
    """v <- the maximiser over the set of the objective linearised at v: FGSM on linf (Goodfellow et al., ICLR 2015, section 4)."""

    unrolls: ClassVar[bool] = True

    def init(self, problem: Problem, point: Tensor) -> None:
        """No state. Raises UserError if the loop has noise, since there is no step to add it to."""
        if problem.noise is not None:
            fix = "use pgd, or put the noise into the start"
            raise UserError("linear takes no noise: it jumps to the maximiser", where=problem.name, fix=fix)

    def step(self, problem: Problem, point: Tensor, gradient: Tensor, state: None) -> tuple[Tensor, None]:
        """One update."""
        return problem.set.linear_maximiser(gradient, problem.set.project(point)), None

    def restricted(self, rows: Tensor) -> Linear:
        """The same."""
        return self


@dataclass(frozen=True)
class Momentum:
    """g <- decay * g + gradient / mean(|gradient|), then v <- project(v + size * steepest(g)); g = 0 at first.

    Source: Dong et al., CVPR 2018, algorithm 1 (MI-FGSM). The paper divides by the l1 norm; the mean differs from it by the number of
    coordinates, which no steepest direction sees. A zero gradient adds nothing.
    """

    unrolls: ClassVar[bool] = True

    size: float | Tensor
    decay: float = 1.0

    def init(self, problem: Problem, point: Tensor) -> Tensor:
        """The sum of normalised gradients, [N, *shape]."""
        return torch.zeros_like(point)

    def step(self, problem: Problem, point: Tensor, gradient: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One update."""
        state = (state * self.decay).add_(mean_normalised(gradient))
        direction = problem.set.steepest(state, point)
        return problem.land((direction * per_example(self.size, point)).add_(point)), state


@dataclass(frozen=True)
class TorchOptimizer:
    """A step of a torch optimizer that ascends (maximize=True), then the projection. The optimizer sees the projected point next time.

    factory: makes the optimizer from its parameter list; its arithmetic must be coordinate by coordinate, or examples would mix.
    """

    factory: Callable[[list[Tensor]], torch.optim.Optimizer]

    def init(self, problem: Problem, point: Tensor) -> tuple[Tensor, torch.optim.Optimizer]:
        """The optimizer's own copy of the point, and the optimizer with empty moments."""
        parameter = point.clone().requires_grad_()
        return parameter, self.factory([parameter])

    def step(
        self, problem: Problem, point: Tensor, gradient: Tensor, state: tuple[Tensor, torch.optim.Optimizer]
    ) -> tuple[Tensor, tuple[Tensor, torch.optim.Optimizer]]:
        """One update. The point that is handed out shares no memory with the parameter."""
        parameter, optimizer = state
        parameter.grad = gradient
        optimizer.step()
        landed = problem.land(parameter.detach().clone())
        parameter.copy_(landed)
        return landed, state


@dataclass(frozen=True)
class Prox:
    """v <- project(at + gradient at `at` / weight): the maximiser over the set of <gradient, v> - weight / 2 * |v - at|^2.

    Source: Zhang et al., ICML 2022 (Fast-BAT), eq. 8, there as the minimiser of the negative objective. It does not matter where the
    run starts. at: [N, *shape], in the set or not; None until `build_solver` fills it in.
    """

    unrolls: ClassVar[bool] = True

    at: Tensor | None
    weight: float

    def init(self, problem: Problem, point: Tensor) -> None:
        """No state. Raises UserError for an `at` that is missing or has another shape than the point."""
        if self.at is None or self.at.shape != point.shape:
            found = "nothing" if self.at is None else f"shape {tuple(self.at.shape)}"
            wrong = f"the point that prox steps from is {found}, the iterates have shape {tuple(point.shape)}"
            raise UserError(wrong, where=problem.name, fix="give `at` a point for every example")

    def query(self, problem: Problem, point: Tensor, state: None) -> Tensor:
        """The gradient is taken at `at`."""
        return self._from()

    def step(self, problem: Problem, point: Tensor, gradient: Tensor, state: None) -> tuple[Tensor, None]:
        """One update."""
        return problem.land((gradient / self.weight).add_(self._from())), None

    def restricted(self, rows: Tensor) -> Prox:
        """For these rows."""
        return replace(self, at=self._from().index_select(0, rows))

    def _from(self) -> Tensor:
        assert self.at is not None  # init has looked
        return self.at


@dataclass(frozen=True)
class Power:
    """d <- unit(gradient of the objective at center + probe * d); the point is center + radius * d, projected on the set.

    Power iteration for the leading eigenvector of the Hessian at the center by finite differences, for an objective whose gradient
    vanishes there: Miyato et al., TPAMI 2019, alg. 1 (VAT; probe is their xi). d starts as the direction from the center to x'@0, or as
    a random unit vector where x'@0 is the center; unit is the Euclidean one on every set. The probes are not projected. A zero gradient
    leaves d as it is. In float32 a probe far below 1e-4 times the inputs loses most of its digits when it is added to the center.
    """

    probe: float

    def init(self, problem: Problem, point: Tensor) -> Tensor:
        """The unit direction of every example, [N, *shape]. Raises UserError if the loop has noise, since there is no step to add it to."""
        if problem.noise is not None:
            raise UserError("power takes no noise: it has no step to add it to", where=problem.name, fix="put the noise into the start")
        drawn = unit(draws.normal(point, problem.generator))
        return _unit_or(point - problem.set.center, drawn)

    def query(self, problem: Problem, point: Tensor, state: Tensor) -> Tensor:
        """The gradient is taken at center + probe * d."""
        return problem.set.center + self.probe * state

    def step(self, problem: Problem, point: Tensor, gradient: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One update."""
        direction = _unit_or(gradient, state)
        region = problem.set
        return problem.land((direction * per_example(region.radii, direction)).add_(region.center)), direction


def _unit_or(vector: Tensor, otherwise: Tensor) -> Tensor:
    """unit(vector) per example, or the other one where the vector is 0."""
    moves = (largest(vector) > 0).view(-1, *(1,) * (vector.dim() - 1))
    return torch.where(moves, unit(vector), otherwise)


Builder = Callable[[Any], Solver[Any]]
B = TypeVar("B", bound=Builder)

SOLVERS_TORCH: dict[str, Builder] = {}


def register_solver(row: str | SolverRow) -> Callable[[B], B]:
    """Decorates a function from validated options to a Solver, and makes it the torch side of a solver of the language.

    row: the name of a row of lang.specs.SOLVERS, or a new row, which is added there.
    Raises UserError if the solver exists or the name is unknown.
    """
    name = row if isinstance(row, str) else row.name
    if name in SOLVERS_TORCH or (isinstance(row, SolverRow) and name in SOLVERS):
        raise UserError(f"the solver {name} exists already", where="register_solver", fix="choose another name")
    if isinstance(row, str) and name not in SOLVERS:
        fix = "pass a SolverRow instead of a name; " + did_you_mean(name, SOLVERS)
        raise UserError(f"the language has no solver {name}", where="register_solver", fix=fix)

    def register(builder: B) -> B:
        if isinstance(row, SolverRow):
            SOLVERS[name] = row
        SOLVERS_TORCH[name] = builder
        return builder

    return register


def build_solver(name: str, options: SolverOptions, *, step: Tensor | None = None, at: Tensor | None = None) -> Solver[Any]:
    """The solver of a row with these options; `step` gives one step per example, [N], in place of that of the options.

    at: the point that prox steps from, [N, *shape].
    Raises UserError for an unknown name, for a `step` where the solver can only take a number, and for an `at` that is missing for prox
    or given to another solver.
    """
    if name not in SOLVERS_TORCH:
        raise UserError(f"there is no solver {name}", where="lower level", fix=did_you_mean(name, SOLVERS_TORCH))
    solver = SOLVERS_TORCH[name](options)
    if isinstance(solver, Prox) != (at is not None):
        wrong = f"{name} needs the point it steps from" if at is None else f"{name} does not step from a point of its own"
        raise UserError(wrong, where="lower level", fix="`at` belongs to prox, which needs it")
    if isinstance(solver, Prox):
        solver = replace(solver, at=at)
    if step is None:
        return solver
    if not isinstance(solver, Pgd | Ascent | Momentum):
        fix = "use pgd, ascent or momentum for a step per example"
        raise UserError(f"{name} takes one step for all examples", where="lower level", fix=fix)
    return replace(solver, size=step)


@register_solver("pgd")
def _pgd(options: StepOptions) -> Pgd:
    return Pgd(options.step)


@register_solver("ascent")
def _ascent(options: StepOptions) -> Ascent:
    return Ascent(options.step)


@register_solver("linear")
def _linear(options: LinearOptions) -> Linear:
    return Linear()


@register_solver("momentum")
def _momentum(options: MomentumOptions) -> Momentum:
    return Momentum(options.step, options.decay)


@register_solver("sgd")
def _sgd(options: SgdOptions) -> TorchOptimizer:
    return TorchOptimizer(partial(torch.optim.SGD, lr=options.step, momentum=options.momentum, nesterov=options.nesterov, maximize=True))


@register_solver("adam")
def _adam(options: AdamOptions) -> TorchOptimizer:
    betas = (options.beta1, options.beta2)
    return TorchOptimizer(partial(torch.optim.Adam, lr=options.step, betas=betas, eps=options.eps, maximize=True))


@register_solver("rmsprop")
def _rmsprop(options: RmspropOptions) -> TorchOptimizer:
    make = partial(torch.optim.RMSprop, lr=options.step, alpha=options.alpha, eps=options.eps, momentum=options.momentum)
    return TorchOptimizer(partial(make, centered=options.centered, maximize=True))


@register_solver("prox")
def _prox(options: ProxOptions) -> Prox:
    return Prox(None, options.weight)


@register_solver("power")
def _power(options: PowerOptions) -> Power:
    return Power(options.probe)
