"""Checks of the gradients that attacks follow: there at all, and not lost to rounding in the cross-entropy."""

from __future__ import annotations

import torch

from lossdsl.sanity.catalogue import ATHALYE, CROCE, check
from lossdsl.sanity.findings import Verdict, error, finding, not_run, passed
from lossdsl.sanity.probes import CE, RESCALED
from lossdsl.sanity.statistics import Pair, exceeds
from lossdsl.sanity.subject import Subject

ZERO_SHARE = 0.01
"""More examples than this with a gradient of exactly zero are a finding: each of them is counted robust without having been attacked."""
GAP_SHARE = 0.10
"""How many of all examples another loss may break and cross-entropy not, before it is a finding. Cross-entropy is no exact surrogate for
K >= 3 (lint T01), and gaps of up to 7 points are printed for honest models (MART in FAIT, table 4; Bridged AT, sec. 5)."""
USUAL_MARGIN = 5.0
"""The median clean margin to which logits are rescaled: far from where float32 rounds 1 - p_y to zero (16.6)."""


@check(
    "S07", "gradients are not zero", "logits",
    claim="the margin has a gradient by the input: where it is exactly zero, an attack that follows it stands still",
    remedy="attack through the obstacle: replace a quantiser or lookup by the identity in the backward pass (BPDA), or use square",
    reference=f"{ATHALYE} (obfuscated gradients: shattered and vanishing gradients)",
)  # fmt: skip
def zero(subject: Subject) -> Verdict:
    slopes = subject.slopes
    if slopes is None:
        return finding("the outputs cannot be differentiated by the input at all", zero=len(subject.y), examples=len(subject.y))
    count = len(subject.y)
    broken = int((~torch.isfinite(torch.stack(slopes))).any(0).sum())
    if broken:
        return error(f"{broken} of {count} gradients hold NaN or infinity", not_finite=broken, examples=count)
    flat = int((slopes[1] == 0).sum())
    say = finding if exceeds(flat, count, ZERO_SHARE) else passed
    return say(f"{flat} of {count} margins have a gradient of exactly zero", zero=flat, examples=count, allowed_share=ZERO_SHARE)


@check(
    "S08", "loss scale", "attack",
    claim="the logits are not so large that cross-entropy saturates in float32: rescaled logits give the same result",
    remedy="attack with a scale-free loss (DLR) or the margin, or divide the logits by their scale before the cross-entropy",
    reference=f"{CROCE}, sec. 4 (scale invariance); Carlini & Wagner, S&P 2017, sec. IV (defensive distillation)",
)  # fmt: skip
def scale(subject: Subject) -> Verdict:
    assert subject.slopes is not None
    ce, margin = subject.slopes
    count = len(subject.y)
    lost = int(((ce == 0) & (margin != 0)).sum())
    typical = float(subject.margins[subject.correct].median())
    if typical <= 0:
        return not_run("the median margin of the correctly classified examples is zero")
    ours = subject.attacked(lambda t: t.pgd(subject.budget.steps), CE)
    rescaled = subject.attacked(lambda t: t.pgd(subject.budget.steps), RESCALED, scale=typical / USUAL_MARGIN)
    pair = Pair.of(subject.broken(rescaled), subject.broken(ours))
    numbers = {"zero_gradients": lost, "examples": count, "median_margin": typical, "broken": pair.strong, "broken_rescaled": pair.weak}
    detail = (
        f"the gradient of the cross-entropy vanishes on {lost} of {count} examples (median margin {typical:.3g}); "
        f"rescaled logits break {pair.only_weak} of {pair.total} that plain ones do not"
    )
    say = finding if exceeds(lost, count, ZERO_SHARE) or pair.misses(GAP_SHARE) else passed
    return say(detail, **numbers, only_rescaled=pair.only_weak, allowed_share=GAP_SHARE)
