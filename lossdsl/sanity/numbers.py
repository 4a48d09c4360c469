"""Checks of the measured numbers themselves."""

from __future__ import annotations

from lossdsl.sanity.catalogue import CARLINI, TRAMER, check
from lossdsl.sanity.findings import Verdict, error, finding, not_run, passed
from lossdsl.sanity.statistics import exceeds
from lossdsl.sanity.strength import REPAIRED_SHARE, white_box
from lossdsl.sanity.subject import Subject


@check(
    "S15", "robust accuracy is not above clean accuracy", "nothing",
    claim="an example that is wrong when clean is not counted as robust, so the robust accuracy is at most the clean one",
    remedy="count clean errors as broken, and measure both on the same examples",
    reference="Bridged AT, eq. 7 (R_rob = R_nat + R_bdy)",
)  # fmt: skip
def order(subject: Subject) -> Verdict:
    measured = subject.measured
    if measured is None or measured.robust is None:
        return not_run("no robust accuracy was given")
    clean, robust = measured.clean, measured.robust
    numbers = {"clean": clean.value, "robust": robust.value}
    if (clean.total, robust.total) != (clean.total, clean.total):
        return error(f"clean accuracy is of {clean.total} examples, robust accuracy of {robust.total}", **numbers)
    detail = f"clean {clean.value:.1%}, robust {robust.value:.1%}"
    return (error if robust.right > clean.right else passed)(detail, **numbers)


@check(
    "S16", "the suite is not weaker than this gate", "attack",
    claim="a short PGD breaks none of the examples that the suite left unbroken",
    remedy="use a stronger suite (autoattack, more steps and restarts) and report the lower number",
    reference=f"{CARLINI}, sec. 5 (try several attacks); {TRAMER}, sec. 4",
)  # fmt: skip
def suite(subject: Subject) -> Verdict:
    measured = subject.measured
    if measured is None or measured.alive is None:
        return not_run("it is not known which of these examples a suite left unbroken")
    alive = measured.alive[subject.correct]
    more = int((alive & white_box(subject)).sum())
    say = finding if exceeds(more, len(alive), REPAIRED_SHARE) else passed
    detail = f"PGD-{subject.budget.more} breaks {more} of {len(alive)} examples that {measured.suite} left"
    return say(detail, more=more, examples=len(alive), left=int(alive.sum()), allowed_share=REPAIRED_SHARE)
