"""Laws of lossdsl itself: no solver leaves its set, and what it keeps is the best it has seen."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import torch
from torch import Tensor

import lossdsl
from lossdsl.lang.specs import SOLVERS
from lossdsl.solve import (
    SETS_TORCH,
    Domain,
    ExampleStreams,
    Linear,
    Pgd,
    Problem,
    SearchRequest,
    Solution,
    build_search,
    build_solver,
    search,
    solve,
)

SHAPE = (1, 3, 3)
HEADER = "for kind in label(3), w in vector(9), x in vector(9, 0, 1), x' in vector(9, 0, 1), y in label(3), eps in [0, 1], step in [0, 2]"
OPTIONS: dict[str, dict[str, float]] = {
    "linear": {"steps": 1}, "prox": {"steps": 1, "weight": 0.5}, "power": {"steps": 2, "probe": 0.1}, "apgd": {"steps": 4},
    "fab": {"steps": 3}, "square": {"queries": 4}, "cw": {"steps": 3, "searches": 2, "step": 0.3},
}  # fmt: skip
"""By solver; the others take 3 steps of the size that the law quantifies over."""
ROUNDING = 1e-9


class Attack:
    """Two images attacked on a network of one layer, from points of the set or from outside it."""

    def __init__(self, kind: int, weights: Tensor, images: tuple[Tensor, Tensor], label: int, eps: float) -> None:
        self.norm = list(SETS_TORCH)[kind]
        self.matrix = 3 * torch.tanh(torch.stack([weights.roll(n) for n in range(3)]))
        self.x = torch.stack(images).reshape(2, *SHAPE)
        self.y = torch.tensor([label, (label + 1) % 3])
        self.eps = eps
        self.streams = ExampleStreams.of(0, torch.arange(2))

    def problem(self, rows: Tensor) -> Problem:
        region = SETS_TORCH[self.norm](self.x[rows], self.eps, Domain(0.0, 1.0))
        seen: dict[str, Tensor] = {}

        def margins(v: Tensor) -> Tensor:
            z = v.flatten(1) @ self.matrix.T
            seen["wrong"] = z.argmax(1) != self.y[rows]
            others = torch.arange(3).expand_as(z) != self.y[rows].unsqueeze(1)
            return (z - z.gather(1, self.y[rows].unsqueeze(1)))[others].view(len(z), 2)

        def objective(v: Tensor) -> Tensor:
            return torch.nn.functional.softplus(margins(v)).sum(1)

        return Problem(
            objective, region, lambda: region.sample(self.streams.rows(rows)), self.streams.rows(rows), fooled=lambda: seen["wrong"],
            restrict=lambda at: self.problem(rows[at]), margins=margins,
        )  # fmt: skip

    def run(self, name: str, step: float) -> tuple[Problem, Solution, list[Tensor]]:
        """What a solver finds, with every point where it was."""
        problem, row = self.problem(torch.arange(2)), SOLVERS[name]
        given = OPTIONS.get(name, {"steps": 3, "step": step})
        if row.searches:
            options = row.options(**given)  # type: ignore[arg-type]
            attack = build_search(name, options, problem.set)  # type: ignore[arg-type]
            visits = frozenset(range(attack.evaluations))
            found = search(problem, attack, SearchRequest(captures=visits))
            return problem, found, [found.iterates[k] for k in visits]
        points: list[Tensor] = []
        solver = build_solver(name, row.options(**given), at=self.x + 0.1 if name == "prox" else None)  # type: ignore[arg-type]
        found = solve(problem, solver, int(given["steps"]), restarts=2, keep="best", observe=lambda k, v: points.append(v))
        return problem, found, points


def _solver_law(name: str) -> Callable[..., Any]:
    row = SOLVERS[name]

    def stays(kind: int, w: Tensor, x: Tensor, y: int, eps: float, step: float, **other: Tensor) -> tuple[float, str, float] | None:
        attack = Attack(kind, w, (x, other["x'"]), y, eps)
        if row.sets and attack.norm not in row.sets:
            return None
        problem, found, points = attack.run(name, step)
        worst = 0.0 if bool(problem.set.contains(found.point, ROUNDING).all()) else 1.0
        if not row.own_objective:
            assert found.objective is not None
            inside = [v for v in points if bool(problem.set.contains(v, ROUNDING).all())]
            best = torch.stack([problem.objective(v).detach() for v in inside]).amax(0)
            worst = max(worst, float(len(inside) < len(points)), float((best - found.objective).max()))
            worst = max(worst, float((problem.objective(found.point).detach() - found.objective).abs().max()))
        return worst, "<=", 0.0

    stays.__name__ = f"solvers_{name}"
    stays.__doc__ = f"{name}: no point leaves the set" + ("" if row.own_objective else ", and none seen is better than the one it keeps")
    return stays


for _name in SOLVERS:
    lossdsl.law(HEADER, source="lossdsl")(_solver_law(_name))

# --- what single steps are ---


@lossdsl.law(HEADER, source="Goodfellow et al., ICLR 2015; Madry et al., ICLR 2018")
def solvers_fgsm_is_one_full_step(
    kind: int, w: Tensor, x: Tensor, y: int, eps: float, step: float, **other: Tensor
) -> tuple[float, str, float]:  # fmt: skip
    """on linf a linear step from the clean point is one step of pgd of the radius or more"""
    attack = Attack(0, w, (x, other["x'"]), y, eps)
    problem = attack.problem(torch.arange(2))
    start = Problem(problem.objective, problem.set, lambda: attack.x)
    fgsm, pgd = solve(start, Linear(), 1).point, solve(start, Pgd(eps * (1 + step * kind)), 1).point
    return float((fgsm - pgd).abs().max()), "<=", 0.0


@lossdsl.law("for kind in label(3), g in vector(9), u in vector(9, -1, 1), eps in [0, 1]", source="Hoelder")
def solvers_one_step_is_exact_on_affine_losses(kind: int, g: Tensor, u: Tensor, eps: float) -> tuple[float, str, float]:
    """without a box one linear step gains eps times the dual norm of the gradient, the most there is"""
    norm = list(SETS_TORCH)[kind]
    center = u.unsqueeze(0)
    problem = Problem(lambda v: ((v - center) * g).sum(1), SETS_TORCH[norm](center, eps), lambda: center)
    gained = float(problem.objective(solve(problem, Linear(), 1).point))
    return gained, "==", eps * float(torch.linalg.vector_norm(g, {"linf": 1, "l2": 2, "l1": inf}[norm]))
