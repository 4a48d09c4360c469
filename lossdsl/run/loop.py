"""The training loop: batches, epochs, validation and the choice of the best checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from lossdsl.diagnostics import UserError
from lossdsl.run import metrics
from lossdsl.run.augment import augment
from lossdsl.run.examples import Batch, chunks
from lossdsl.run.measure import Interrupted, Measurement, Setting, measure
from lossdsl.run.progress import Reporter
from lossdsl.run.protocols import Loss
from lossdsl.run.rng import derive, generator, seeded
from lossdsl.run.session import LAST, Place, Session

METRICS = "metrics.jsonl"


def run_epochs(session: Session, reporter: Reporter, stop: Callable[[], bool]) -> None:
    """Train to the end of the last epoch, or to `patience`. Raises Interrupted between batches when `stop` says so; `session` then
    stands where a checkpoint may be taken."""
    place, epochs = session.place, session.recipe.train.epochs
    with reporter.bar(f"epoch {place.epoch}/{epochs}", epochs * session.per_epoch, place.updates):
        while not place.done:
            session.step.set_epoch(place.epoch)
            _train_epoch(session, reporter, stop)
            record = _close_epoch(session, validate(session, stop))
            reporter.epoch(record, epochs)


def epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    """The order of an epoch's examples: a function of seed and epoch alone, so that nothing of it needs saving."""
    return torch.randperm(count, generator=generator("cpu", derive(seed, "order", epoch)))


def _train_epoch(session: Session, reporter: Reporter, stop: Callable[[], bool]) -> None:
    place, options = session.place, session.recipe.train
    order = chunks(epoch_order(session.seed, place.epoch, len(session.train)), options.batch)
    for batch in session.train.batches(order[place.batch :]):
        if stop():
            raise Interrupted
        place.add(update(session, batch), len(batch.y))
        place.batch += 1
        place.updates += 1
        reporter.update(f"epoch {place.epoch}/{options.epochs}", _shown(place))
        session.save_if_due()


def update(session: Session, batch: Batch) -> dict[str, float]:
    """One step of the optimizer; the batch's loss, terms and logs. Raises UserError before the weights change if a number is not finite."""
    options = session.recipe.train
    x = augment(batch.x, options.augment, session.streams.augment).to(session.device, session.dtype)
    y, index = batch.y.to(session.device), batch.index.to(session.device)
    session.optimizer.zero_grad(set_to_none=True)
    with _autocast(session):
        loss = session.step(x, y, index=index, generator=session.streams.attack)
    values = _values(loss)
    bad = [name for name, value in values.items() if not math.isfinite(value) and not name.startswith("logs.")]
    if bad:
        raise _diverged(session, [name.removeprefix("terms.") for name in bad if name != "loss"] or bad)
    loss.backward()
    parameters = [p for group in session.optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = float(torch.nn.utils.get_total_norm([p.grad for p in parameters]))
    if not math.isfinite(norm):
        raise _diverged(session, ["the gradient (the loss itself is finite)"])
    if options.clip is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, options.clip, torch.tensor(norm, device=session.device))
    session.place.rate = session.optimizer.param_groups[0]["lr"]
    session.optimizer.step()
    session.schedule.step()
    session.step.after_update()
    return {**values, "gradient_norm": norm}


def _autocast(session: Session) -> AbstractContextManager[Any]:
    if session.recipe.train.precision != "bfloat16":
        return nullcontext()
    return torch.autocast(session.device.type, torch.bfloat16)


def _values(loss: Loss) -> dict[str, float]:
    """Loss, terms and logs as numbers, fetched from the device at once."""
    named = {"loss": loss.detach(), **{f"terms.{k}": v for k, v in loss.terms.items()}, **{f"logs.{k}": v for k, v in loss.logs.items()}}
    flat = [value.detach().as_subclass(torch.Tensor).double().mean().to(loss.detach().device) for value in named.values()]
    return dict(zip(named, torch.stack(flat).tolist(), strict=True))


def _diverged(session: Session, names: list[str]) -> UserError:
    place, last = session.place, session.out / LAST
    return UserError(
        f"not a finite number: {', '.join(names)}",
        where=f"epoch {place.epoch}, batch {place.batch + 1} of {session.per_epoch}",
        fix=f"lower the learning rate, clip the gradient or look at the data; the last good checkpoint is {last}",
    )


def validate(session: Session, stop: Callable[[], bool]) -> Measurement:
    """Clean and robust accuracy on the validation split; the same random starts in every epoch, and no effect on the run's randomness."""
    seed = derive(session.seed, "validation")
    with seeded(seed, session.device):
        setting = Setting(session.device, session.dtype, seed, session.eval_batch)
        return measure(session.model, session.validation_attack, session.validation, setting, stop=stop)


def _close_epoch(session: Session, found: Measurement) -> dict[str, Any]:
    """Choose the best, write best, metrics and last in this order (a kill between them repeats the validation), move to the next epoch."""
    place, options = session.place, session.recipe.train
    assert found.robust is not None
    clean, robust = found.clean.value, found.robust.value
    better = place.best is None or (robust, clean) > (place.best["robust"], place.best["clean"])
    place.stale = 0 if place.best is None or robust > place.best["robust"] else place.stale + 1
    if better:
        place.best = {"epoch": place.epoch, "clean": clean, "robust": robust}
        session.save_best()
    means = place.means()
    record = {
        "epoch": place.epoch,
        "updates": place.updates,
        "lr": place.rate,
        "loss": means.get("loss"),
        "gradient_norm": means.get("gradient_norm"),
        "terms": _below(means, "terms."),
        "logs": _below(means, "logs."),
        "validation": {"clean": clean, "robust": robust, "examples": found.clean.total},
        "best": better,
        "seconds": round(time.monotonic() - session.started, 3),
    }
    metrics.append(session.out / METRICS, record)
    place.done = place.epoch >= options.epochs or (options.patience is not None and place.stale >= options.patience)
    place.epoch, place.batch, place.sums = place.epoch + 1, 0, {}
    session.save_last()
    return record


def _shown(place: Place) -> dict[str, float]:
    """Running means of the loss and its terms."""
    return {n.removeprefix("terms."): v for n, v in place.means().items() if v is not None and (n == "loss" or n.startswith("terms."))}


def _below(values: dict[str, float | None], prefix: str) -> dict[str, float | None]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
