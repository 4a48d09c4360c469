"""The table of kernels and the way into it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Kernel = Callable[..., Any]
KERNELS: dict[str, Kernel] = {}
REGISTERED: set[str] = set()
"""Operations registered by the user: their arguments arrive with all leading dimensions equal."""


def kernel(name: str) -> Callable[[Kernel], Kernel]:
    """Register a kernel under the name of its operation."""

    def add(function: Kernel) -> Kernel:
        KERNELS[name] = function
        return function

    return add
