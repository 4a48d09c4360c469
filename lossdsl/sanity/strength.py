"""Checks that compare attacks: what should be stronger must not be weaker, and without a bound every attack succeeds."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from lossdsl.sanity.catalogue import ATHALYE, CARLINI, CROCE, check
from lossdsl.sanity.findings import Verdict, error, finding, not_run, passed
from lossdsl.sanity.gradients import GAP_SHARE
from lossdsl.sanity.probes import CE, DLR, MARGIN, Threat
from lossdsl.sanity.statistics import Pair, exceeds
from lossdsl.sanity.subject import Stopped, Subject

REPAIRED_SHARE = 0.02
"""How many of all examples a stronger attack may fail to break that a weaker one breaks: random starts and last iterates cost that much."""
MISSED_SHARE = 0.05
"""The same for an attack of another kind (black-box, transfer), which may be luckier on single examples."""
SURVIVOR_SHARE = 0.02
"""How many examples may survive an attack without a bound."""
WIDER = 2.0
FAR = 1e9
"""A factor that reaches the unbounded radius from any other."""


def _compared(pair: Pair, weak: str, strong: str, share: float) -> Verdict:
    detail = f"{strong} breaks {pair.strong}, {weak} {pair.weak} of {pair.total}; {pair.only_weak} are broken by {weak} alone"
    say = finding if pair.reversed() or pair.misses(share) else passed
    return say(detail, **pair.numbers(), allowed_share=share)


def white_box(subject: Subject) -> Tensor:
    """What gradients break at the radius [M]: cross-entropy with the larger number of steps."""
    return subject.broken(subject.attacked(lambda t: t.pgd(subject.budget.more)))


@check(
    "S09", "more steps are not weaker", "attack",
    claim="an attack with more steps breaks what one with fewer breaks",
    remedy="look at the loss along the steps; a step that is too large, or gradients that point nowhere, make the last iterate random",
    reference=f"{ATHALYE} (one-step attacks perform better than iterative ones); {CARLINI}, sec. 5",
)  # fmt: skip
def more_steps(subject: Subject) -> Verdict:
    budget = subject.budget
    few = subject.broken(subject.attacked(lambda t: t.pgd(budget.steps)))
    return _compared(Pair.of(few, white_box(subject)), f"PGD-{budget.steps}", f"PGD-{budget.more}", REPAIRED_SHARE)


@check(
    "S10", "accuracy falls as the radius grows", "attack",
    claim="an attack with a larger radius breaks what one with a smaller breaks",
    remedy="the larger ball contains the smaller one: the attack fails in it, so use more steps and restarts, or a loss that is not masked",
    reference=f"{ATHALYE} (increasing the distortion bound must increase success); Fast-BAT, sec. 5.2 (RA against eps)",
)  # fmt: skip
def wider(subject: Subject) -> Verdict:
    if subject.threat.radius >= subject.unbounded:
        return not_run(f"the radius {subject.threat.radius:g} is already without a bound")
    small = subject.broken(subject.attacked(lambda t: t.pgd(subject.budget.steps)))
    large = subject.broken(subject.attacked(lambda t: t.pgd(subject.budget.steps), factor=WIDER))
    return _compared(Pair.of(small, large), "the radius", "twice the radius", REPAIRED_SHARE)


@check(
    "S11", "an attack without a bound succeeds", "attack",
    claim="accuracy reaches zero at a radius that holds the whole domain, where an input of another class is always within reach",
    remedy="the gradients lead nowhere (masking): attack a copy without the obstacle, use a transfer attack or square",
    reference=f"{ATHALYE} (unbounded attacks reach 100 % success); {CARLINI}, sec. 5",
)  # fmt: skip
def unbounded(subject: Subject) -> Verdict:
    if len(subject.outputs.argmax(1).unique()) < 2:
        return not_run("one class is predicted everywhere (S06): there may be no adversarial example at any distance")
    alive = ~subject.broken(subject.attacked(lambda t: t.pgd(subject.budget.far), factor=FAR))
    count, left = len(alive), int(alive.sum())
    say = finding if exceeds(left, count, SURVIVOR_SHARE) else passed
    detail = f"{left} of {count} examples survive PGD-{subject.budget.far} at radius {subject.unbounded:.3g}"
    return say(detail, survivors=left, examples=count, radius=subject.unbounded, allowed_share=SURVIVOR_SHARE)


@check(
    "S12", "cross-entropy against DLR", "attack",
    claim="a loss that ignores the scale of the logits breaks about as much as cross-entropy",
    remedy="report the worst case over both losses (autoattack): the softmax masks the gradient of the cross-entropy",
    reference=f"{CROCE}, sec. 4 and table 2",
)  # fmt: skip
def losses(subject: Subject) -> Verdict:
    name, objective = ("DLR", DLR) if subject.classes >= 3 else ("the logit margin (DLR needs K >= 3)", MARGIN)
    ce = subject.broken(subject.attacked(lambda t: t.pgd(subject.budget.steps), CE))
    other = subject.broken(subject.attacked(lambda t: t.pgd(subject.budget.steps), objective))
    pair = Pair.of(other, ce)
    say = finding if pair.misses(GAP_SHARE) else passed
    detail = f"cross-entropy breaks {pair.strong}, {name} {pair.weak} of {pair.total}; {pair.only_weak} only the latter"
    return say(detail, ce=pair.strong, other=pair.weak, only_other=pair.only_weak, examples=pair.total, allowed_share=GAP_SHARE)


@check(
    "S13", "black-box is not stronger than white-box", "attack",
    claim="an attack that sees outputs alone breaks no more than one that sees gradients",
    remedy="the gradients are masked: find what hides them; until then report the black-box number",
    reference=f"{ATHALYE} (black-box attacks are better than white-box attacks; random sampling finds adversarial examples)",
)  # fmt: skip
def black_box(subject: Subject) -> Verdict:
    solvers = subject.threat.black_boxes(subject.budget.corners, subject.budget.queries)
    broken = [subject.broken(subject.attacked(partial(_given, solver), MARGIN)) for solver in solvers.values()]
    blind = torch.stack(broken).any(0)
    return _compared(Pair.of(blind, white_box(subject)), " or ".join(solvers), f"PGD-{subject.budget.more}", MISSED_SHARE)


def _given(solver: str, threat: Threat) -> str:
    return solver


@check(
    "S14", "transfer is not stronger than white-box", "attack",
    claim="points made on another model break no more than points made on this one",
    remedy="the gradients of this model are masked; report the transfer number, and find what hides them",
    reference="Fast-BAT, table 5 and sec. 5.2 (sanity check for obfuscated gradients); " + ATHALYE,
)  # fmt: skip
def transfer(subject: Subject) -> Verdict:
    if not subject.surrogates:
        return not_run("no surrogate model was given")
    text = subject.threat.text(CE, subject.threat.pgd(subject.budget.more))
    moved = [subject.transferred(surrogate, text) for surrogate in subject.surrogates]
    pairs = [Pair.of(broken, white_box(subject)) for broken in moved]
    worst = max(pairs, key=lambda pair: pair.only_weak)
    return _compared(worst, "transfer", f"PGD-{subject.budget.more}", MISSED_SHARE)


@check(
    "S17", "outputs stay finite under attack", "attack",
    claim="at no attacked point are the outputs NaN or infinite",
    remedy="look for overflow, 0/0 or log(0) that these inputs reach; such points are no adversarial examples and no robust ones",
    reference=f"{CARLINI}, sec. 5",
)  # fmt: skip
def finite_under_attack(subject: Subject) -> Verdict:
    try:
        white_box(subject)
    except Stopped as stopped:
        return error(f"PGD-{subject.budget.more} stopped: {stopped}")
    count = subject.not_finite
    return (error if count else passed)(f"{count} attacked points have outputs that are not finite", not_finite=count)
