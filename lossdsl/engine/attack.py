"""An attack suite on a model."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lossdsl.engine.compiled import Compiled
from lossdsl.engine.level import LevelRunner
from lossdsl.engine.modes import frozen, kept_modes
from lossdsl.solve import Randomness


class Attack(Compiled):
    """An attack suite on a model, always in eval mode."""

    @property
    def name(self) -> str:
        return self.recipe.name

    @property
    def count(self) -> str:
        """ "worst", "best_loss" or "each"."""
        return self.recipe.typed.count or "worst"

    @property
    def hash(self) -> str:
        """Equal for equal suites with equal params."""
        return self.recipe.hash

    @property
    def domain(self) -> tuple[Any, Any] | None:
        """The smallest and largest value of an input (numbers, or one per channel); None: all reals."""
        return self.recipe.domain

    @property
    def settings(self) -> list[dict[str, Any]]:
        """Per run: its name, solver, options, start, set and radius."""
        from lossdsl.check.typed import show

        rows = []
        for level in self.recipe.typed.levels:
            solver = level.solver
            start = solver.start_kind if solver.start_kind in ("uniform", "corner", "sphere", "own") else show(solver.start)
            rows.append(
                {
                    "name": level.run, "solver": solver.name, **solver.options.model_dump(), "start": start, "norm": level.set.name,
                    "radius": level.set.radius.value, "objective": f"{level.sense} {show(level.objective)}",
                }
            )  # fmt: skip
        return rows

    def run(
        self, x: Tensor, y: Tensor, *, generator: Randomness = None, only: str | None = None
    ) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Each run's points [B, *input] and their objective [B] (larger is stronger; None if nothing is to be compared).

        `only` names the one run wanted. A family has shape [B, n, *input]. With a stream of random numbers for each example
        (`ExampleStreams`), what happens to one does not depend on the others.
        """
        x, y = self._batch(x, y)
        found = {}
        with frozen(*self.helpers), kept_modes(self.model) as modes:
            for level in self._levels:
                assert isinstance(level, LevelRunner)
                if only is not None and level.plan.level.run != only:
                    continue
                frame = self._frame(x, y, modes, generator)
                solution = level.run(frame, self._values(), rated=self.count == "best_loss" and len(self._levels) > 1)
                found[str(level.plan.level.run)] = (solution.point, solution.objective)
        return found
