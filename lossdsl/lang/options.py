"""What every table of options is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Steps = Annotated[int, Field(ge=0)]


class Options(BaseModel):
    """Arguments of a solver, schedule or optimizer: unknown names are errors, never dropped."""

    model_config = ConfigDict(extra="forbid", frozen=True)
