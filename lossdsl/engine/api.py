"""`compile`: a recipe and a model to a training step; an attack suite and a model to an attack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from lossdsl.assets import attack_paths
from lossdsl.diagnostics import UserError, did_you_mean
from lossdsl.engine.attack import Attack
from lossdsl.engine.compiled import Compiled
from lossdsl.engine.step import Loss, Step
from lossdsl.front import Recipe, load, parse_recipe

CHUNK = 4096
"""Largest number of points solved at once where a level may be solved in parts."""


def step_compiler(recipe: Recipe) -> Callable[..., Step]:
    """A function (model, number of classes, device, other models) that compiles one recipe, for the trainer."""

    def build(model: nn.Module, num_classes: int, device: torch.device, models: Mapping[str, nn.Module] | None = None) -> Step:
        step = compile(recipe, model, num_classes=num_classes, device=device, models=models)
        assert isinstance(step, Step)
        return step

    return build


def attack_suite(name: str) -> Recipe:
    """An attack suite by name, path or text. Raises UserError if there is no such suite or if the name is that of something else."""
    suite = parse_recipe(name, "<attack>") if "\n" in name else load(name)
    if suite.kind != "attack":
        what = "game" if suite.kind == "game" else "training recipe"
        raise UserError(f"{suite.name} is a {what}, not an attack suite", fix=did_you_mean(suite.name, attack_paths()))
    return suite


def attack_compiler(
    name: str,
    overrides: Mapping[str, float | int],
    model: nn.Module,
    num_classes: int,
    device: torch.device,
    models: Mapping[str, nn.Module] | None = None,
) -> Attack:
    """An attack suite by name, path or text, with other params, on a model, and on the other models that it names.

    Raises UserError if there is no such suite or if the name is that of a training recipe.
    """
    suite = attack_suite(name)
    known = {n: v for n, v in overrides.items() if n in suite.params or n != "eps"}  # a suite with radii of its own needs no eps
    attack = compile(suite.with_params(**known), model, num_classes=num_classes, device=device, models=models)
    assert isinstance(attack, Attack)
    return attack


def compile(
    recipe: Recipe | str,
    model: nn.Module,
    *,
    num_classes: int,
    device: torch.device | str | None = None,
    chunk: int = CHUNK,
    check: bool = True,
    models: Mapping[str, nn.Module] | None = None,
) -> Any:
    """A recipe on a model: a Step; an attack suite on a model: an Attack.

    recipe: a Recipe, or the name or path that `load` takes. num_classes: K >= 2, the width of the model's logits.
    device: where batches are moved (the model is the caller's to move); None leaves them. chunk: the largest number of points
    that a level in eval mode is solved for at once; results do not depend on it. check: look at every batch for labels out of
    range, NaN, and inputs outside the domain. models: the other models that the recipe names, `model g frozen` as {"g": module}.
    Raises UserError, or RecipeError for a recipe with errors.
    """
    recipe = load(recipe) if isinstance(recipe, str) else recipe
    if not isinstance(model, nn.Module):
        raise UserError(f"the model is a {type(model).__name__}, not a torch.nn.Module", where="compile")
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 2:
        raise UserError(f"num_classes is {num_classes!r}", where="compile", fix="pass the number of classes, a whole number from 2")
    if chunk < 1:
        raise UserError(f"chunk is {chunk}", where="compile", fix="pass a number of points from 1")
    place = _device(device)
    kind = Step if recipe.kind == "recipe" else Attack
    _check_models(recipe, model, models or {})
    compiled = kind(recipe, model, num_classes, place, chunk, check, models)
    _check_classes(compiled)
    return compiled


def _check_models(recipe: Recipe, trained: nn.Module, models: Mapping[str, nn.Module]) -> None:
    """Every model that the recipe names, and no other; none shares parameters with f."""
    own = {id(p) for p in trained.parameters()}
    wanted = recipe.typed.models
    missing = [name for name in wanted if name not in models]
    if missing:
        what = "frozen model" if wanted[missing[0]] else "model"
        raise UserError(
            f"{recipe.name} needs the {what} {missing[0]}", where="compile", fix=f'pass models={{"{missing[0]}": ...}}, a torch.nn.Module'
        )
    for name, model in models.items():
        if name not in wanted:
            raise UserError(f"{recipe.name} has no model {name}", where="compile", fix=did_you_mean(name, wanted))
        if isinstance(model, nn.Module) and any(id(p) in own for p in model.parameters()):
            raise UserError(f"the model {name} shares parameters with f", where="compile", fix="pass a copy: copy.deepcopy(model)")
        if not isinstance(model, nn.Module):
            raise UserError(f"the model {name} is a {type(model).__name__}, not a torch.nn.Module", where="compile")


def _device(device: torch.device | str | None) -> torch.device | None:
    try:
        return None if device is None else torch.device(device)
    except RuntimeError:
        raise UserError(f"there is no device {device!r}", where="compile", fix="cpu, cuda or cuda:N") from None


def _check_classes(compiled: Compiled) -> None:
    """Operations that need more classes than there are."""
    for i in compiled._kinds.values():
        needed = {"DLR": 4 if len(i.args) == 3 else 3}.get(i.op, 2)
        if i.op in ("at", "log_at", "log_not_at") and i.attrs:
            needed = i.attrs[0] + 1
        if i.op == "nth":
            ordered = compiled._kinds[i.args[0]]
            while not ordered.op.startswith("reduce_"):  # stopped, or one branch of an if
                ordered = compiled._kinds[ordered.args[ordered.op == "if"]]
            classes = compiled._kinds[ordered.args[1]]
            needed = i.attrs[0] + (classes.attrs[:1] == ("not",))
        if needed > compiled.num_classes:
            fix = "use a suite without DLR, such as autoattack_few" if i.op == "DLR" else "leave it out, or use more classes"
            raise UserError(f"{i.text} needs {needed} classes, and there are {compiled.num_classes}", where=compiled._place(i), fix=fix)


__all__ = ["Attack", "Loss", "Step", "attack_compiler", "attack_suite", "compile", "step_compiler"]
