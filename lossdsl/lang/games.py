"""The table of solvers of games, and the pydantic models of their arguments.

z is the joint vector of all players, V(z) the field: the gradient of what a player minimises, minus the gradient of what it
maximises, by its own variable. The update functions lie under the same names in lossdsl.games.solvers; a test compares the tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from lossdsl.lang.options import Count, NonNegative, Options, Positive

Relaxation = Annotated[float, Field(gt=0, le=1)]


class GameOptions(Options):
    """What every solver of a game takes."""

    iterations: Count
    batch: Count | None = None
    """Examples per evaluation of the field, where players are models; fresh ones for each."""


class StepGameOptions(GameOptions):
    step: Positive


class NoisyOptions(StepGameOptions):
    """Solvers that see the field through an oracle: every evaluation has its own draw of normal noise."""

    noise: NonNegative = 0.0
    """Standard deviation of the noise in every coordinate; written noise = normal(s)."""


class EgPlusOptions(NoisyOptions):
    alpha: Relaxation = 0.5
    """The default is that of Diakonikolas et al., AISTATS 2021."""
    projection: Literal["first", "both"] = "first"


class DecreasingOptions(NoisyOptions):
    alpha: Relaxation
    """a_0 of a_k = a_0 / (k / every + 1), with sqrt: a_0 / sqrt(k / every + 1); k counts from 0."""
    schedule: Literal["harmonic", "sqrt"] = "harmonic"
    every: Positive = 100.0


class SegPlusOptions(DecreasingOptions):
    projection: Literal["first", "both"] = "first"


class BestResponseOptions(StepGameOptions):
    inner: Count
    inner_step: Positive


class DanskinGameOptions(BestResponseOptions):
    starts: Count


@dataclass(frozen=True)
class GameSolverRow:
    """One solver: its options, its update, where it comes from, and what it does with the sets of players."""

    name: str
    options: type[GameOptions]
    update: str
    source: str
    sets: str
    nested: bool = False
    """One player answers the other in every iteration; the others move all players at once."""
    models: bool = False
    """Can players be models?"""


_NESTED_SETS = "every point is projected; the maximiser needs a bounded set"

GAME_SOLVERS: dict[str, GameSolverRow] = {
    row.name: row
    for row in (
        GameSolverRow("gda", NoisyOptions, "z+ = z - step V(z)", "gradient descent ascent", "z+ is projected", models=True),
        GameSolverRow(
            "ppm",
            StepGameOptions,
            "z+ = z - step V(z+), solved by Newton's method to rounding",
            "Rockafellar, 1976",
            "none: players are unconstrained",
        ),
        GameSolverRow(
            "extragradient",
            NoisyOptions,
            "z' = z - step V(z), z+ = z - step V(z')",
            "Korpelevich, 1976",
            "z' and z+ are projected",
            models=True,
        ),
        GameSolverRow(
            "ogda",
            NoisyOptions,
            "z+ = z - step (2 V(z) - V(z-)); the first step is that of gda",
            "Popov, 1980; Daskalakis et al., ICLR 2018",
            "z+ is projected (forward-reflected-backward)",
        ),
        GameSolverRow(
            "rfbs",
            NoisyOptions,
            "z+ = z - step V(2 z - z-); the first step is that of gda",
            "Cevher and Vu, 2021 (reflected forward-backward splitting)",
            "z+ is projected; 2 z - z- may lie outside",
        ),
        GameSolverRow(
            "eg_plus",
            EgPlusOptions,
            "z' = z - step V(z), z+ = z - alpha step V(z')",
            "Diakonikolas et al., AISTATS 2021",
            "z' is projected; first: z+ = z - alpha (h - z' + step V(z')) with h = z - step V(z); both: z+ is projected too",
        ),
        GameSolverRow(
            "seg",
            DecreasingOptions,
            "z' = z - a_k step V(z), z+ = z - a_k step V(z'): both steps decrease",
            "stochastic extragradient (Juditsky et al., 2011)",
            "z' and z+ are projected",
        ),
        GameSolverRow(
            "seg_plus",
            SegPlusOptions,
            "z' = z - step V(z), z+ = z - a_k step V(z'): the first step is fixed, a_k decreases",
            "Pethick et al., ICLR 2023",
            "as eg_plus",
            models=True,
        ),
        GameSolverRow(
            "bcseg_plus",
            SegPlusOptions,
            "z' = z - step V(z, s) + (1 - a_k) (z'- - z- + step V(z-, s)) with one draw s for both, z+ = z - a_k step V(z')",
            "Pethick et al., ICLR 2023 (BC-SEG+)",
            "as eg_plus",
        ),
        GameSolverRow(
            "alternating",
            GameOptions,
            "the players take turns in the order written; a turn is `steps` updates by the player's own optimizer",
            "Goodfellow et al., NeurIPS 2014, alg. 1",
            "projected after every update",
            models=True,
        ),
        GameSolverRow(
            "best_response",
            BestResponseOptions,
            "the maximiser takes `inner` ascent steps (inner_step times the gradient) from a uniform start; "
            "the minimiser then moves by step along minus the unit gradient there",
            "Madry et al., ICLR 2018 (one maximiser)",
            _NESTED_SETS,
            nested=True,
        ),
        GameSolverRow(
            "danskin",
            DanskinGameOptions,
            "as best_response from `starts` uniform starts; the minimiser moves by step along minus the unit vector of "
            "the min-norm convex combination of their gradients",
            "Latorre et al., ICLR 2023 (DDi)",
            _NESTED_SETS,
            nested=True,
        ),
    )
}
