"""Options of the attacks that say themselves which point is evaluated next."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lossdsl.lang.options import Count, NonNegative, Options, Positive, Steps


class SearchOptions(Options):
    """What attacks take that say themselves which point is evaluated next. Of the points seen, an example keeps the best."""

    restarts: Count = 1

    @property
    def updates(self) -> int:
        """Of one restart, each with a forward pass."""
        raise NotImplementedError

    @property
    def looks(self) -> int:
        """Forward passes of one restart besides those of the updates: at the last point, which no update follows."""
        return 1

    @property
    def keep(self) -> Literal["best"]:
        return "best"


class ApgdOptions(SearchOptions):
    steps: Steps
    rho: Annotated[float, Field(gt=0, lt=1)] = 0.75
    """Where no more than this share of the updates since the last checkpoint raised the objective, the step is halved (linf and l2)."""

    @property
    def updates(self) -> int:
        return self.steps


class FabOptions(SearchOptions):
    steps: Count
    alpha_max: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Largest share of the projection of the clean point in the next iterate."""
    eta: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.05
    """Overshooting: how far beyond the linearised boundary a step goes."""
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """From a fooling point the run goes back to this share of the way from the clean one."""

    @property
    def updates(self) -> int:
        return self.steps

    @property
    def looks(self) -> int:
        """Each step tries a point besides the one where it linearises."""
        return self.steps


class SquareOptions(SearchOptions):
    queries: Count
    p_init: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of the pixels in the first squares."""

    @property
    def updates(self) -> int:
        return self.queries


class CwOptions(SearchOptions):
    restarts: Literal[1] = 1
    steps: Count
    step: Positive = 0.01
    """Adam's."""
    searches: Count = 9
    """Rounds of `steps` steps, each with another constant."""
    constant: Positive = 1e-3
    """The first constant."""
    confidence: NonNegative = 0.0
    """The margin that is wanted."""

    @property
    def updates(self) -> int:
        return self.steps * self.searches

    @property
    def looks(self) -> int:
        """None: the last step is not made."""
        return 0
