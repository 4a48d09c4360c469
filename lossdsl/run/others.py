"""The models of a recipe besides the one that is trained: frozen ones from the directories of runs, trained ones from fresh weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lossdsl.diagnostics import UserError, did_you_mean
from lossdsl.run.check import check_model
from lossdsl.run.data import DataSet
from lossdsl.run.models import MODELS, ModelInput, build_model
from lossdsl.run.rng import derive, seeded
from lossdsl.run.stored import StoredModel, open_run, split_name


@dataclass(frozen=True)
class Other:
    """One other model: a frozen one with its weights (`stored`), or a trained one of some architecture."""

    name: str
    architecture: str
    stored: StoredModel | None = None

    @property
    def where(self) -> str:
        return f"--bind {self.name}"

    def identity(self) -> dict[str, Any]:
        """For a manifest; the weights of a frozen one by their hash."""
        return {"frozen": True, **self.stored.identity()} if self.stored else {"frozen": False, "model": self.architecture}

    def build(self, data: DataSet, seed: int, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """The model. Fresh weights depend on seed and name alone; the global generators stay as they are."""
        if self.stored:
            self.stored.require(data.shape, data.num_classes, self.where)
            return self.stored.build(device, dtype)
        with seeded(derive(seed, "model", self.name), device):
            model = build_model(self.architecture, ModelInput(data.shape, data.num_classes), data.mean, data.std)
        return model.to(device, dtype)


def resolve_others(models: Mapping[str, bool], binds: Mapping[str, str]) -> tuple[Other, ...]:
    """What each of the recipe's `models` (name, frozen?) is bound to.

    Raises UserError: one without a bind, a bind for no model, a frozen model without weights, a trained one with weights.
    """
    for name in binds:
        if name not in models:
            fix = did_you_mean(name, models) if models else "leave out --bind"
            raise UserError(f"the recipe has no model {name}", where=f"--bind {name}", fix=fix)
    missing = [name for name in models if name not in binds]
    if missing:
        frozen = models[missing[0]]
        what = "DIR, the directory of a run that has trained it" if frozen else "ARCHITECTURE, for example smallcnn"
        kind = "frozen" if frozen else "trained"
        raise UserError(f"the recipe's {kind} model {missing[0]} is not bound", where="--bind", fix=f"add --bind {missing[0]}={what}")
    return tuple(_frozen(name, binds[name]) if frozen else _trained(name, binds[name]) for name, frozen in models.items())


def _frozen(name: str, text: str) -> Other:
    directory = split_name(text)[0].is_dir()
    if not directory and (text in MODELS or ":" in text):
        raise UserError(
            f"{name} is frozen and needs trained weights; {text} is an architecture",
            where=f"--bind {name}",
            fix=f"name the directory of a run: --bind {name}=DIR",
        )
    stored = open_run(text)
    return Other(name, stored.model, stored)


def _trained(name: str, text: str) -> Other:
    if split_name(text)[0].is_dir():
        raise UserError(
            f"{name} is trained from fresh weights; {text} is a directory",
            where=f"--bind {name}",
            fix=f"name an architecture: --bind {name}=smallcnn, or declare the model frozen in the recipe",
        )
    if ":" not in text and text not in MODELS:
        fix = did_you_mean(text, MODELS) + "; or module:factory for a model of your own"
        raise UserError(f"there is no model {text!r}", where=f"--bind {name}", fix=fix)
    return Other(name, text)


def build_others(others: Sequence[Other], data: DataSet, seed: int, device: torch.device, dtype: torch.dtype) -> dict[str, nn.Module]:
    """All of them by name, each tried on a batch of the data."""
    built = {}
    for other in others:
        model = other.build(data, seed, device, dtype)
        check_model(model, data.train, data.num_classes, other.where, device, dtype)
        built[other.name] = model
    return built
