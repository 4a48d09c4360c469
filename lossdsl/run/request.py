"""What `lossdsl train` was asked for."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from lossdsl.run.data import DataRequest, DataSet
from lossdsl.run.protocols import CompileAttack, CompileStep, Recipe


@dataclass(frozen=True)
class AttackChoice:
    """A suite by name, file or text. Its radius is the recipe's own, the parameter eps where it has one, unless `overrides` says other."""

    name: str
    overrides: Mapping[str, float | int] | None = None

    def resolved(self, params: Mapping[str, float | int]) -> dict[str, float | int]:
        own = {"eps": params["eps"]} if "eps" in params else {}
        return {**own, **(self.overrides or {})}


@dataclass(frozen=True)
class TrainRequest:
    """A recipe, what it is trained on and with, and where to.

    `binds`: for every other model of the recipe, the directory of a run (frozen; with :last its last checkpoint) or an architecture.
    `unlabelled`: the second stream of a recipe with `data = mix(...)`, as a data set's name or as split:SHARE of the training examples;
    `teacher`: the directory of the run that labels it, or "none" for the label -1. `checkpoint_every` counts updates; both intervals may
    be None (then once per epoch). `keep_epochs`: keep the measured weights of every so many epochs, for `lossdsl diagnose`. `alarm`: a
    suite that is measured beside the validation attack after every epoch, to see catastrophic overfitting (run/overfitting.py).
    `command` is what the user typed, without --resume, and is repeated in every hint how to go on. A console of None is silent.
    """

    recipe: Recipe
    compile_step: CompileStep
    compile_attack: CompileAttack
    out: Path
    data: DataRequest | DataSet = field(default_factory=DataRequest)
    model: str = "smallcnn"
    binds: Mapping[str, str] = field(default_factory=dict)
    unlabelled: str | DataSet | None = None
    teacher: str | None = None
    seed: int = 0
    device: str = "auto"
    resume: bool = False
    deterministic: bool = False
    checkpoint_every: int | None = None
    checkpoint_seconds: float | None = 300.0
    validation_attack: AttackChoice = AttackChoice("pgd10")
    test_attack: AttackChoice = AttackChoice("pgd20")
    eval_batch: int = 512
    keep_epochs: int | None = None
    alarm: AttackChoice | None = None
    command: tuple[str, ...] = ()
    console: Console | None = None

    @property
    def resume_command(self) -> str:
        typed = self.command or ("lossdsl", "train", self.recipe.name, "--out", str(self.out))
        return shlex.join([*(word for word in typed if word != "--resume"), "--resume"])
