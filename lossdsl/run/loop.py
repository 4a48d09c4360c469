"""The training loop: batches, epochs, validation and the choice of the best checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from lossdsl.diagnostics import NotFiniteError
from lossdsl.run import metrics, overfitting
from lossdsl.run.augment import augment
from lossdsl.run.examples import Batch
from lossdsl.run.measure import Interrupted, Measurement, Setting, measure
from lossdsl.run.progress import Reporter
from lossdsl.run.protocols import Attack, Loss
from lossdsl.run.rng import derive, seeded
from lossdsl.run.session import LAST, MAIN, Place, Session

METRICS = "metrics.jsonl"


def run_epochs(session: Session, reporter: Reporter, stop: Callable[[], bool]) -> None:
    """Train to the end of the last epoch, or to `patience`. Raises Interrupted between batches when `stop` says so; `session` then
    stands where a checkpoint may be taken."""
    place, epochs = session.place, session.recipe.train.epochs
    updates = epochs * session.per_epoch * session.recipe.train.replays
    with reporter.bar(f"epoch {place.epoch}/{epochs}", updates, place.updates):
        while not place.done:
            session.step.set_epoch(place.epoch)
            for _ in updates_of_epoch(session, stop):
                reporter.update(f"epoch {place.epoch}/{epochs}", _shown(place))
                session.save_if_due()
            record = _close_epoch(session, validate(session, stop), _one_step(session, stop))
            reporter.epoch(record, epochs)
            if record.get("alarm", {}).get("message"):
                reporter.note(record["alarm"]["message"])


def _batches(session: Session) -> Iterator[Batch]:
    """What is left of the epoch. A sampler draws each batch when it is asked for, by the law that holds then."""
    place, feed = session.place, session.feed
    if session.sampler is None:
        yield from feed.split.batches(feed.order(session.seed, place.epoch)[place.batch :])
        return
    while place.batch < session.per_epoch:
        if session.drawn is None:
            law = session.step.class_probabilities()
            assert law is not None
            session.drawn = session.sampler.draw(law, feed.size(place.batch), session.streams.sampler)
        yield from feed.split.batches([session.drawn])


def updates_of_epoch(session: Session, stop: Callable[[], bool]) -> Iterator[dict[str, float]]:
    """Make what is left of the epoch's updates, one at a time; the loss, terms and logs of each. Raises Interrupted when `stop` says so."""
    place, options, batches = session.place, session.recipe.train, _batches(session)
    while place.batch < session.per_epoch:
        _go_on(stop)
        batch = next(batches)
        session.before = session.streams.augment.get_state()
        x = augment(batch.x, options.augment, session.streams.augment).to(session.device, session.dtype)
        for replay in range(place.replay, options.replays):
            if replay:
                _go_on(stop)
            values = update(session, x, batch)
            place.add(values, len(batch.y))
            _advance(session)
            yield values


def _go_on(stop: Callable[[], bool]) -> None:
    if stop():
        raise Interrupted


def _advance(session: Session) -> None:
    """Count an update; after the last one of a batch, go to the next batch."""
    place = session.place
    place.updates += 1
    place.replay += 1
    if place.replay == session.recipe.train.replays:
        place.batch, place.replay, session.drawn = place.batch + 1, 0, None


def update(session: Session, x: Tensor, batch: Batch) -> dict[str, float]:
    """One step of the optimizers at inputs `x` (those of the batch, augmented); the batch's loss, terms and logs. Raises UserError before
    the weights change if a number is not finite."""
    y, index = batch.y.to(session.device), batch.index.to(session.device)
    for stepper in session.steppers.values():
        stepper.optimizer.zero_grad(set_to_none=True)
    with _autocast(session):
        loss = session.step(x, y, index=index, generator=session.streams.attack)
    values = _values(loss)
    bad = [name for name, value in values.items() if not math.isfinite(value) and not name.startswith("logs.")]
    if bad:
        raise _diverged(session, [name.removeprefix("terms.") for name in bad if name != "loss"] or bad)
    loss.backward()
    norms = {name: stepper.norm() for name, stepper in session.steppers.items()}
    if not all(map(math.isfinite, norms.values())):
        raise _diverged(session, ["the gradient (the loss itself is finite)"])
    session.place.rate = session.steppers[MAIN].rate
    for name, stepper in session.steppers.items():
        stepper.step(norms[name])
    session.step.after_update()
    if session.averaged is not None:
        session.averaged.update_parameters(session.model)
    return {**values, "gradient_norm": math.hypot(*norms.values())}


def _autocast(session: Session) -> AbstractContextManager[Any]:
    if session.recipe.train.precision != "bfloat16":
        return nullcontext()
    return torch.autocast(session.device.type, torch.bfloat16)


def _values(loss: Loss) -> dict[str, float]:
    """Loss, terms and logs as numbers, fetched from the device at once."""
    named = {"loss": loss.detach(), **{f"terms.{k}": v for k, v in loss.terms.items()}, **{f"logs.{k}": v for k, v in loss.logs.items()}}
    flat = [value.detach().as_subclass(torch.Tensor).double().mean().to(loss.detach().device) for value in named.values()]
    return dict(zip(named, torch.stack(flat).tolist(), strict=True))


def _diverged(session: Session, names: list[str]) -> NotFiniteError:
    place, last, replays = session.place, session.out / LAST, session.recipe.train.replays
    replay = f", replay {place.replay + 1} of {replays}" if replays > 1 else ""
    return NotFiniteError(
        f"not a finite number: {', '.join(names)}",
        where=f"epoch {place.epoch}, batch {place.batch + 1} of {session.per_epoch}{replay}",
        fix=f"lower the learning rate, clip the gradient or look at the data; the last good checkpoint is {last}",
    )


def validate(session: Session, stop: Callable[[], bool]) -> Measurement:
    """Clean and robust accuracy on the validation split; the same random starts in every epoch, and no effect on the run's randomness."""
    return _validate(session, session.validation_attack, stop)


def _one_step(session: Session, stop: Callable[[], bool]) -> dict[str, Any] | None:
    """The accuracy under the suite of the alarm, and what it cost; None where there is no alarm."""
    if session.alarm is None:
        return None
    started = time.monotonic()
    found = _validate(session, session.alarm, stop)
    assert found.robust is not None
    return {"attack": session.alarm.name, "accuracy": found.robust.value, "seconds": round(time.monotonic() - started, 4)}


def _validate(session: Session, attack: Attack, stop: Callable[[], bool]) -> Measurement:
    seed = derive(session.seed, "validation")
    with seeded(seed, session.device):
        setting = Setting(session.device, session.dtype, seed, session.eval_batch)
        return measure(session.measured, attack, session.validation, setting, stop=stop)


def _alarmed(session: Session, one_step: dict[str, Any], robust: float) -> dict[str, Any]:
    """The alarm's record of this epoch, with a message where the alarm begins."""
    earlier = [record for record in metrics.read(session.out / METRICS) if "alarm" in record]
    fgsm = [*(record["alarm"]["accuracy"] for record in earlier), one_step["accuracy"]]
    pgd = [*(record["validation"]["robust"] for record in earlier), robust]
    *before, now = overfitting.alarms(fgsm, pgd)
    begins = now and not (before and before[-1])
    said = {"message": overfitting.message(session.place.epoch, fgsm, pgd)} if begins else {}
    return {**one_step, "on": now, **said}


def _close_epoch(session: Session, found: Measurement, one_step: dict[str, Any] | None) -> dict[str, Any]:
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
    if one_step is not None:
        record["alarm"] = _alarmed(session, one_step, robust)
    session.keep_epoch()
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
