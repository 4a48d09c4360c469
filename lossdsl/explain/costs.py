"""What a training step costs against one of standard training."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lossdsl.plan.cost import Cost, cost

if TYPE_CHECKING:
    from lossdsl.front import Recipe

FORWARD, INPUT_BACKWARD, FULL_BACKWARD = 1, 1, 2
"""Work in units of one forward pass: a backward pass to the inputs costs about as much, one to inputs and parameters twice as much."""
STANDARD = FORWARD + FULL_BACKWARD
CLASSES = 10
"""The number of classes for which families are counted."""


def costs(recipe: Recipe) -> list[str]:
    """Passes of a step, and their work against one forward and one full backward pass (a suite: against one forward pass)."""
    own = cost(recipe.plan)
    lines = [str(own).partition(": ")[2]]
    if recipe.kind == "attack":
        return [*lines, f"{work(own):g} times the work of one forward pass over the batch{_for_classes(own)}, if no run breaks an example"]
    share = work(own) / STANDARD
    about = f"{share:.3g} times the work of standard training (1 forward pass, 1 full backward pass){_for_classes(own)}"
    return [*lines, about, "counting a backward pass to the inputs as one forward pass, a full one as two"]


def work(own: Cost, classes: int = CLASSES) -> float:
    """All passes in units of a forward pass."""
    forward, backward = own.forward, own.input_backward
    for number, forwards, backwards in own.copies:
        copies = _number(number, classes)
        forward, backward = forward + copies * forwards, backward + copies * backwards
    return forward * FORWARD + backward * INPUT_BACKWARD + own.full_backward * FULL_BACKWARD


def _number(text: str, classes: int) -> int:
    """The value of "K - 1", "9" or "(K - 1) * 9"."""
    product = 1
    for factor in text.split(" * "):
        match = re.fullmatch(r"\(?(?:(K)(?: - (\d+))?|(\d+))\)?", factor)
        assert match is not None, text
        product *= int(match[3]) if match[3] else classes - int(match[2] or 0)
    return product


def _for_classes(own: Cost) -> str:
    return f" for K = {CLASSES}" if any("K" in name for name, _, _ in own.copies) else ""
