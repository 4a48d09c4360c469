"""The sanity gate: every check of the catalogue on one model, before its robust accuracy is believed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from lossdsl.diagnostics import UserError, did_you_mean
from lossdsl.run.check import check_inputs
from lossdsl.run.measure import evaluation_mode
from lossdsl.run.passes import counted
from lossdsl.run.rng import derive, seeded
from lossdsl.sanity import gradients, numbers, outputs, strength  # noqa: F401  (their checks enter the table on import)
from lossdsl.sanity.catalogue import ROWS, Row
from lossdsl.sanity.findings import Outcome, Report, Verdict, not_run
from lossdsl.sanity.probes import Threat
from lossdsl.sanity.statistics import LEVEL, enough
from lossdsl.sanity.subject import BUDGETS, Measured, Settings, Stopped, Subject

DEFAULT = Settings()
NORMS = ("linf", "l2", "l1")


def check_model(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    settings: Settings = DEFAULT,
    surrogates: Sequence[nn.Module] = (),
    measured: Measured | None = None,
) -> Report:
    """Run the checks on examples `x` [N, *shape] (any rank) with labels `y` [N] in 0..K-1, on the model's device; `model(x)` must be
    logits [N, K].

    The first 128 examples at most are used by the budget "quick", 1,000 by "full", so let them be a fair sample. `surrogates`: other
    models of the same inputs and classes, for the transfer check. `measured`: the accuracies to be judged. The model's modes, its
    gradients and the global generators are as before afterwards.
    Raises UserError where the arguments make no sense or the model fails; what is wrong with it otherwise is in the report.
    """
    _check_arguments(model, x, y, threat, settings)
    x, y = (values[: BUDGETS[settings.budget].examples].detach() for values in (x, y))
    check_inputs(x, torch.arange(len(x)), threat.domain, "x")
    given, started = model.training, time.monotonic()
    with seeded(derive(settings.seed, "sanity"), x.device), evaluation_modes((model, *surrogates)), counted(model, *surrogates) as calls:
        training = tuple(name or "the model itself" for name, module in model.named_modules() if module.training)
        subject = Subject(
            model, x, y.long(), threat, settings,
            given_training=given, training=training, surrogates=tuple(surrogates), measured=measured,
        )  # fmt: skip
        _probe(subject)
        outcomes = _outcomes(subject)
        passes = calls.take()
    right = int(subject.correct.sum()) if _usable(outcomes) else 0
    return Report(tuple(outcomes), settings.budget, len(x), right, threat.norm, threat.radius, LEVEL, passes, time.monotonic() - started)


@contextmanager
def evaluation_modes(models: Sequence[nn.Module]) -> Iterator[None]:
    """All of them in eval mode inside."""
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluation_mode(model))
        yield


def _probe(subject: Subject) -> None:
    """The first pass. Raises UserError where the model takes no such inputs."""
    try:
        _ = subject.outputs
    except (RuntimeError, ValueError, TypeError, IndexError) as failure:
        shape = list(subject.x.shape)
        raise UserError(
            f"the model fails on inputs of shape {shape}: {failure}", where="check_model", fix="pass inputs that it takes"
        ) from failure


def _outcomes(subject: Subject) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for code in sorted(ROWS):
        row = ROWS[code]
        outcomes.append(Outcome(row.check, _verdict(row, subject, outcomes)))
    return outcomes


def _verdict(row: Row, subject: Subject, before: Sequence[Outcome]) -> Verdict:
    """The check's verdict, or why it could not run."""
    if row.needs != "nothing" and not _usable(before):
        return not_run("the outputs are no logits that could be judged (S02)")
    why = _no_attack(subject, before) if row.needs == "attack" else None
    if why is not None:
        return not_run(why)
    try:
        return row.body(subject)
    except Stopped as stopped:
        return not_run(f"an attack stopped ({stopped}), see S17")


def _usable(outcomes: Sequence[Outcome]) -> bool:
    return not any(outcome.code == "S02" and outcome.bad for outcome in outcomes)


def _no_attack(subject: Subject, before: Sequence[Outcome]) -> str | None:
    """Why no attack can be compared with another; None if it can."""
    if subject.threat.radius == 0:
        return "the radius is 0"
    if subject.slopes is None:
        return "the outputs cannot be differentiated by the input (S07)"
    if any(outcome.code == "S07" and outcome.status == "error" for outcome in before):
        return "gradients are not finite (S07)"
    right = int(subject.correct.sum())
    if not enough(right):
        return f"{right} correctly classified examples are too few to show a difference at level {LEVEL:g}"
    return None


def _check_arguments(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, settings: Settings) -> None:
    where = "check_model"
    if not isinstance(model, nn.Module):
        raise UserError(f"the model is a {type(model).__name__}, not a torch.nn.Module", where=where, fix="wrap it in one")
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
        raise UserError("x is no tensor of floats [N, *shape]", where=where, fix="pass a batch of inputs, for example images / 255")
    if not isinstance(y, Tensor) or y.ndim != 1 or len(y) != len(x) or len(x) == 0:
        raise UserError(f"y must hold one label for each of the {len(x)} inputs", where=where, fix="pass class numbers [N]")
    if not 0 <= threat.radius < float("inf"):
        raise UserError(f"the radius is {threat.radius!r}", where=where, fix="pass a number from 0, for example Threat(8/255)")
    if threat.norm not in NORMS:
        raise UserError(f"there is no norm {threat.norm!r} here", where=where, fix=did_you_mean(threat.norm, NORMS))
    if settings.budget not in BUDGETS:
        raise UserError(f"there is no budget {settings.budget!r}", where=where, fix=did_you_mean(settings.budget, BUDGETS))
