"""The typed law at fixed whole numbers: what is quantified, what is assumed, and what is claimed."""

from __future__ import annotations

from dataclasses import dataclass, field

from lossdsl.check.typed import Typed
from lossdsl.lang.types import Kind
from lossdsl.source import NOWHERE, Span

Choice = int | float | str
"""The value of something that is enumerated: a whole number, an element of a finite set, an architecture, a dimension."""


@dataclass(frozen=True)
class Network:
    """A small network: `depth` hidden layers of `hidden` units each (0: linear), then one score per class.

    theta holds, layer by layer, the weights row by row and then the biases.
    """

    activation: str
    inputs: int
    hidden: int
    depth: int
    classes: int

    @property
    def layers(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of every layer."""
        widths = (self.inputs, *(self.hidden,) * self.depth, self.classes)
        return tuple(zip(widths, widths[1:], strict=False))

    @property
    def size(self) -> int:
        """How many numbers theta holds."""
        return sum(n * m + m for n, m in self.layers)


@dataclass(frozen=True)
class Quantity:
    """Something a law quantifies over, as `size` numbers that a search may choose freely.

    ==========  ==============================================================================================
    real        one number, cut to [low, high] (args)
    label       one whole number below `classes`
    simplex     `classes` numbers from 0, divided by their sum, or any numbers, through softmax
    logits      `classes` numbers
    vector      `size` numbers, each cut to [low, high] (args)
    ball        `size` numbers, moved into the set (attrs: its name, "boxed") of a centre and a radius (args)
    weights     the parameters of a network
    ==========  ==============================================================================================
    """

    name: str
    form: str
    kind: Kind
    size: int
    args: tuple[Typed, ...] = ()
    attrs: tuple[str, ...] = ()
    span: Span = NOWHERE


@dataclass(frozen=True)
class Relation:
    """`left op right` with op one of <= >= < > == !=, or `and`, `or`, `not` of relations."""

    op: str
    left: Typed | None = None
    right: Typed | None = None
    parts: tuple[Relation, ...] = ()
    span: Span = NOWHERE

    @property
    def sides(self) -> tuple[Typed, ...]:
        """Both sides of every comparison, in order."""
        if self.left is not None and self.right is not None:
            return self.left, self.right
        return tuple(side for part in self.parts for side in part.sides)


@dataclass(frozen=True)
class Statement:
    """`claim` or `refute`: a relation, and the hypotheses written above it."""

    relation: Relation
    refuted: bool
    where: tuple[Relation, ...]
    span: Span = NOWHERE


@dataclass(frozen=True)
class TypedLaw:
    """A law at one choice of everything that is enumerated."""

    name: str
    title: str
    source: str
    classes: int
    """K."""
    quantities: tuple[Quantity, ...]
    statements: tuple[Statement, ...]
    choices: dict[str, Choice]
    options: dict[str, tuple[Choice, ...]]
    """What could have been chosen, given the choices before it."""
    networks: dict[str, Network] = field(default_factory=dict)
    domain: tuple[float, float] = (0.0, 1.0)
    params: dict[str, float | int] = field(default_factory=dict)
    kind: str = "law"
