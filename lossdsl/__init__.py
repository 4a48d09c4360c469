"""A language for adversarial training: recipes of two levels, compiled to PyTorch.

    recipe = lossdsl.load("trades")
    step = lossdsl.compile(recipe, model, num_classes=10)

Names are imported when first used: `import lossdsl` loads neither torch nor numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lossdsl.diagnostics import LossdslError, RecipeError, UserError
    from lossdsl.engine.api import compile
    from lossdsl.engine.register import input_set, operation, solver
    from lossdsl.front import Recipe, load
    from lossdsl.front import parse_recipe as parse
    from lossdsl.laws.python_laws import law
    from lossdsl.run.evaluate_model import evaluate
    from lossdsl.run.results import Evaluation

_PLACES = {
    "load": ("lossdsl.front", "load"),
    "parse": ("lossdsl.front", "parse_recipe"),
    "Recipe": ("lossdsl.front", "Recipe"),
    "LossdslError": ("lossdsl.diagnostics", "LossdslError"),
    "UserError": ("lossdsl.diagnostics", "UserError"),
    "RecipeError": ("lossdsl.diagnostics", "RecipeError"),
    "compile": ("lossdsl.engine.api", "compile"),
    "evaluate": ("lossdsl.run.evaluate_model", "evaluate"),
    "Evaluation": ("lossdsl.run.results", "Evaluation"),
    "operation": ("lossdsl.engine.register", "operation"),
    "solver": ("lossdsl.engine.register", "solver"),
    "law": ("lossdsl.laws.python_laws", "law"),
    "input_set": ("lossdsl.engine.register", "input_set"),
}

__all__ = [
    "Evaluation", "LossdslError", "Recipe", "RecipeError", "UserError", "__version__", "compile", "evaluate", "input_set", "law", "load",
    "operation", "parse", "solver",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'lossdsl' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
