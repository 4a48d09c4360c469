"""What `lossdsl play` says of the plays of a game: a table, and the same as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from torch import Tensor

from lossdsl.games.critical import CriticalPoint
from lossdsl.games.game import Game
from lossdsl.games.run import Trajectory
from lossdsl.games.verdict import residual
from lossdsl.lang.games import GAME_SOLVERS

COORDINATES_SHOWN = 6


@dataclass(frozen=True)
class Played:
    """One solver's plays of one game, and the critical points of that game."""

    game: Game
    trajectory: Trajectory
    critical: list[CriticalPoint]

    @property
    def random(self) -> bool:
        return bool(self.game.typed.samples)

    def rows(self) -> list[dict[str, Any]]:
        """One row per play."""
        game, final = self.game, self.trajectory.final
        nested = GAME_SOLVERS[game.solver.name].nested  # the field need not vanish where one player answers the other
        away = None if self.random or nested else residual(game._field, final)
        logs = game.logs(final, self._draw(final))
        found = []
        for n, verdict in enumerate(game.verdicts(self.trajectory)):
            point = final[n]
            near = min(((point - torch.tensor(c.z, dtype=point.dtype)).norm() for c in self.critical), default=None)
            found.append({
                "solver": game.solver.name,
                "start": self.trajectory.points[0, n].tolist(),
                "end": point.tolist(),
                "residual": None if away is None else float(away[n]),
                "distance": None if near is None or nested else float(near),
                "verdict": verdict,
                "logs": {name: float(value[n]) for name, value in logs.items()},
            })  # fmt: skip
        return found

    def _draw(self, z: Tensor) -> Any:
        return self.game._field.draw(len(z), 0.0, torch.Generator().manual_seed(0)) if self.random else None


def as_json(plays: list[Played], seed: int) -> dict[str, Any]:
    """Everything that was played; infinities and NaN are written as null."""
    game = plays[0].game
    return {
        "game": game.name,
        "params": game.recipe.params,
        "coordinates": list(game.coordinates),
        "seed": seed,
        "critical_points": [
            {"z": list(c.z), "eigenvalues": [[e.real, e.imag] for e in c.eigenvalues], "character": c.character} for c in plays[0].critical
        ],
        "solvers": [{"name": p.game.solver.name, "options": p.game.solver.options.model_dump()} for p in plays],
        "plays": [row for p in plays for row in p.rows()],
    }


def table(plays: list[Played]) -> RenderableType:
    """A table of the plays, and one of the critical points."""
    game = plays[0].game
    rows = [row for p in plays for row in p.rows()]
    logs = list(rows[0]["logs"])
    length = "|z - P(z - V)|" if any(p.region for p in game.players) else "|V|"
    shown = Table(title=f"{game.name} ({', '.join(game.coordinates[:COORDINATES_SHOWN])})", title_justify="left")
    for name in ("solver", "start", "end", length, "to critical point", "verdict", *logs):
        words = name in ("solver", "verdict")
        shown.add_column(name, justify="left" if words else "right", no_wrap=words)
    for row in rows:
        numbers = ("" if row[key] is None else f"{row[key]:.3g}" for key in ("residual", "distance"))
        shown.add_row(
            row["solver"], _point(row["start"]), _point(row["end"]), *numbers, row["verdict"], *(f"{row['logs'][n]:.4g}" for n in logs)
        )
    return Group(shown, _critical(plays[0]))


def _critical(played: Played) -> RenderableType:
    if played.random:
        return "critical points: none are searched, because the field is random"
    if not played.critical:
        return "critical points: none found inside the sets"
    shown = Table(title="critical points", title_justify="left")
    for name in ("point", "eigenvalues of the Jacobian of V", "the flow -V"):
        shown.add_column(name)
    for point in played.critical:
        shown.add_row(_point(list(point.z)), ", ".join(_complex(e) for e in point.eigenvalues), _CHARACTER[point.character])
    return shown


_CHARACTER = {
    "attracts": "is drawn in",
    "repels": "is pushed away",
    "saddle": "is drawn in and pushed away (saddle)",
    "centre": "goes round it, to first order",
}


def _point(z: list[float]) -> str:
    more = ", ..." if len(z) > COORDINATES_SHOWN else ""
    return ", ".join(f"{v:.4g}" for v in z[:COORDINATES_SHOWN]) + more


def _complex(e: complex) -> str:
    return f"{e.real:.4f}" if abs(e.imag) < 1e-12 else f"{e.real:.4f}{'+' if e.imag >= 0 else '-'}{abs(e.imag):.4f}i"
