"""From a request to the live parts of its run, all of them checked before the first batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lossdsl.diagnostics import UserError
from lossdsl.run.batches import ClassSampler, Feed, mixed_count
from lossdsl.run.check import check_data, check_model
from lossdsl.run.data import DataSet
from lossdsl.run.examples import Joined, Split, whole
from lossdsl.run.models import ModelInput, build_model
from lossdsl.run.optim import Stepper, build_stepper
from lossdsl.run.others import Other, build_others, resolve_others
from lossdsl.run.protocols import Attack
from lossdsl.run.request import AttackChoice, TrainRequest
from lossdsl.run.rng import Streams
from lossdsl.run.session import MAIN, Session, run_id
from lossdsl.run.unlabelled import PseudoLabels, Unlabelled, label, read_labels, resolve_unlabelled


@dataclass(frozen=True)
class Parts:
    """What a run takes from outside besides its data: other models, and a second stream of examples."""

    others: tuple[Other, ...]
    unlabelled: Unlabelled | None

    def identity(self) -> dict[str, Any]:
        """For a manifest; nothing for a run without them."""
        found: dict[str, Any] = {"models": {other.name: other.identity() for other in self.others}} if self.others else {}
        return {**found, "unlabelled": self.unlabelled.identity()} if self.unlabelled else found


def resolve(request: TrainRequest, data: DataSet) -> Parts:
    """Read what the arguments name. Raises UserError where recipe and arguments do not fit."""
    return Parts(resolve_others(request.recipe.models, request.binds), resolve_unlabelled(request, data))


def build_session(
    request: TrainRequest, data: DataSet, parts: Parts, device: torch.device, identity: Mapping[str, Any], resumed: bool
) -> Session:
    """All parts of the run, checked. The model's initial weights come from the seeded global generators."""
    recipe, options = request.recipe, request.recipe.train
    dtype = torch.float64 if options.precision == "float64" else torch.float32
    check_data(data, recipe.domain)
    train_split, validation = data.validated(options.validation)
    model = build_model(request.model, ModelInput(data.shape, data.num_classes), data.mean, data.std).to(device, dtype)
    check_model(model, train_split, data.num_classes, request.model, device, dtype)
    models = build_others(parts.others, data, request.seed, device, dtype)
    trained = tuple(name for name, frozen in recipe.models.items() if not frozen)
    feed, pseudo = _feed(request, data, parts, train_split, (device, dtype, run_id(identity) if resumed else None))
    averaged = _averaged(model, options.ema)
    step = request.compile_step(model, data.num_classes, device, models)
    measured = model if averaged is None else averaged.module
    attack = compile_choice(request, request.validation_attack, measured, data.num_classes, device)
    steppers = _steppers(request, model, {name: models[name] for name in trained}, feed.per_epoch * options.replays)
    return Session(
        recipe=recipe, out=request.out, seed=request.seed, device=device, model=model, step=step, steppers=steppers,
        streams=Streams.start(request.seed, device), feed=feed, validation=validation, validation_attack=attack, identity=identity,
        eval_batch=request.eval_batch, checkpoint_every=request.checkpoint_every, checkpoint_seconds=request.checkpoint_seconds,
        keep_epochs=request.keep_epochs, alarm=_alarm(request, measured, data.num_classes, device),
        models=models, trained=trained, averaged=averaged, pseudo=pseudo,
        sampler=ClassSampler(train_split.labels, data.num_classes) if recipe.sampled else None,
    )  # fmt: skip


def _feed(
    request: TrainRequest, data: DataSet, parts: Parts, train: Split, setting: tuple[torch.device, torch.dtype, str | None]
) -> tuple[Feed, PseudoLabels | None]:
    """The examples of training. `setting`: device and type for the teacher, and the id of the run whose labels are stored (None: label
    anew)."""
    options = request.recipe.train
    if parts.unlabelled is None or options.data is None:
        return Feed(train, len(train), options.batch), None
    pseudo = mixed_count(options.batch, options.data.fraction)
    first, second, truth = parts.unlabelled.divide(train, data.classes)
    device, dtype, run = setting
    if run is None:
        found = label(parts.unlabelled, second, truth, (device, dtype, request.eval_batch))
    else:
        found = read_labels(request.out, len(second), run)
    return Feed(whole(Joined(first, second, found.labels)), len(first), options.batch, pseudo), found


def _averaged(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """A copy of the model whose parameters are the moving average; its buffers are those of the model itself."""
    if decay is None:
        return None
    try:
        return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    except (RuntimeError, TypeError) as error:
        raise UserError(
            f"the model cannot be copied ({error})", where="train ema", fix="keep nothing in it that copy.deepcopy refuses"
        ) from error


def _steppers(request: TrainRequest, model: nn.Module, trained: Mapping[str, nn.Module], per_epoch: int) -> dict[str, Stepper]:
    """One optimizer for f and every trained model without one, and those that the recipe names."""
    recipe = request.recipe
    joint = [model, *(other for name, other in trained.items() if name not in recipe.optimizers)]
    specs = {MAIN: (recipe.optimizer, joint), **{name: (spec, [trained[name]]) for name, spec in recipe.optimizers.items()}}
    return {
        name: build_stepper(spec, [p for part in parts for p in part.parameters()], recipe.train, per_epoch)
        for name, (spec, parts) in specs.items()
    }


def compile_choice(request: TrainRequest, choice: AttackChoice, model: nn.Module, num_classes: int, device: torch.device) -> Attack:
    """The attack of a choice, which must give one robust accuracy."""
    attack = request.compile_attack(choice.name, choice.resolved(request.recipe.params), model, num_classes, device)
    if attack.count == "each":
        raise UserError(
            "counts each run for itself, and a training run needs one robust accuracy",
            where=f"attack {attack.name}",
            fix="use a suite with count worst",
        )
    return attack


def _alarm(request: TrainRequest, model: nn.Module, num_classes: int, device: torch.device) -> Attack | None:
    return None if request.alarm is None else compile_choice(request, request.alarm, model, num_classes, device)


def about(session: Session) -> Iterator[str]:
    """What a person should know before the first batch, beyond the recipe: a line for each thing out of the ordinary."""
    options, feed = session.recipe.train, session.feed
    if session.alarm is not None:
        beside = f"{session.alarm.name} beside {session.validation_attack.name} on {len(session.validation)} validation examples"
        yield f"alarm of catastrophic overfitting: {beside} after every epoch (--alarm none: without)"
    for name, entry in session.identity.get("models", {}).items():
        source = f"frozen, {entry['run']} ({entry['checkpoint']})" if entry["frozen"] else "trained from fresh weights"
        yield f"model {name}: {entry['model']}, {source}"
    if session.pseudo is not None:
        yield session.pseudo.about
        own = feed.batch - feed.pseudo
        yield f"a batch has {own} labelled and {feed.pseudo} unlabelled examples; an epoch goes through the {feed.labelled} labelled ones"
    if session.sampler is not None:
        yield "batches are drawn class by class with replacement; an epoch has as many of them as without"
    if options.replays > 1:
        yield f"every batch is used {options.replays} times in a row: {feed.per_epoch * options.replays} updates in an epoch"
    if options.ema is not None:
        yield f"the moving average of the weights (decay {options.ema:g}) is validated, kept as best and tested"
