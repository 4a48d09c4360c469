"""The typed game: players with their sets and objectives, and how the game is played."""

from __future__ import annotations

from dataclasses import dataclass, field

from lossdsl.check.typed import Typed
from lossdsl.lang.games import GameOptions
from lossdsl.lang.specs import OptimizerSpec
from lossdsl.source import NOWHERE, Span


@dataclass(frozen=True)
class Region:
    """Where a player may move: "box" with numbers (low, high), "l2" or "linf" with a radius around a centre, "simplex"."""

    name: str
    center: tuple[float, ...] = ()
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True)
class TypedPlayer:
    """One player: a number (size None), a vector of `size` numbers, or a model (`model`)."""

    name: str
    sense: str
    objective: Typed
    size: int | None = None
    init: tuple[float, ...] = ()
    region: Region | None = None
    optimizer: OptimizerSpec | None = None
    steps: int = 1
    """Updates per turn, where players take turns."""
    model: bool = False
    span: Span = NOWHERE


@dataclass(frozen=True)
class TypedDraw:
    """A sample: one number per example ("example"), per batch ("batch"), or `size` per example ("latent")."""

    name: str
    distribution: str
    numbers: tuple[float, ...]
    over: str
    size: int = 1


@dataclass(frozen=True)
class GameSolver:
    name: str
    options: GameOptions
    span: Span = NOWHERE


@dataclass(frozen=True)
class TypedGame:
    """A game ready to be compiled. In its expressions a number player is a `state` of kind Real, a vector player one of kind Vector."""

    name: str
    title: str
    source: str
    params: dict[str, float | int]
    players: tuple[TypedPlayer, ...]
    samples: tuple[TypedDraw, ...]
    data: tuple[tuple[str, tuple[float, ...]], ...]
    """Columns of the data by name, all of one length; none: one example."""
    logs: tuple[tuple[str, Typed], ...]
    solver: GameSolver
    models: dict[str, tuple[str, str]] = field(default_factory=dict)
    """What every model takes and gives: "Input", "Latent", "Real"."""
    keeps: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Models whose weights are held: ("clip", c) or ("spectral", 1)."""
    kind: str = "game"

    @property
    def neural(self) -> bool:
        """Is some player a model?"""
        return any(p.model for p in self.players)
