"""Checks that look at outputs alone: mode, logits, randomness, dependence on the batch, constancy."""

from __future__ import annotations

import torch
from torch import Tensor

from lossdsl.sanity.catalogue import CARLINI, CROCE, TRAMER, check
from lossdsl.sanity.findings import Verdict, error, finding, not_run, passed
from lossdsl.sanity.subject import Subject

SUM_TOLERANCE = 1e-3
"""How far a row of probabilities in half precision may be from summing to one."""
BATCH_TOLERANCE = 1e-2
"""Other batch sizes take other kernels: TF32 rounds each product to 2^-11, and a few layers add up."""
PIECE = 7
"""An odd batch size, to compare with the whole."""


@check(
    "S01", "eval mode", "nothing",
    claim="the model is in eval mode: no dropout, and batch norm with its running statistics",
    remedy="call model.eval(); where a module keeps itself in train mode, mend its train() method",
    reference=f"{CARLINI}, sec. 4; shared faults of published code (batch statistics of test batches in robust accuracy)",
)  # fmt: skip
def eval_mode(subject: Subject) -> Verdict:
    if subject.training:
        names = ", ".join(subject.training[:3]) + (", ..." if len(subject.training) > 3 else "")
        return finding(f"{len(subject.training)} modules stay in train mode after model.eval(): {names}", modules=len(subject.training))
    if subject.given_training:
        return finding("the model was handed over in train mode; everything below was done in eval mode", modules=1)
    return passed("every module is in eval mode", modules=0)


@check(
    "S02", "finite logits, one per class", "nothing",
    claim="the outputs are finite numbers [N, K], K >= 2, and every label is one of 0..K-1",
    remedy="return the logits alone; look for overflow, 0/0 or log(0) in the model, and for labels that start at 1",
    reference=f"{CARLINI}, sec. 4; {TRAMER}, sec. 4",
)  # fmt: skip
def finite(subject: Subject) -> Verdict:
    z, count = subject.outputs, len(subject.y)
    if not isinstance(z, Tensor):
        return error(f"the model returned {type(z).__name__}, not a tensor")
    if z.ndim != 2 or z.shape[0] != count or z.shape[1] < 2:
        return error(f"the outputs have shape {list(z.shape)}, [{count}, K] with K >= 2 was expected")
    broken = int((~torch.isfinite(z)).any(1).sum())
    if broken:
        return error(f"{broken} of {count} outputs hold NaN or infinity; they count as wrong", examples=count, not_finite=broken)
    strange = int(((subject.y < 0) | (subject.y >= z.shape[1])).sum())
    if strange:
        return error(f"{strange} of {count} labels are outside 0..{z.shape[1] - 1}", examples=count, strange_labels=strange)
    return passed(f"all {count} outputs are finite, K = {z.shape[1]}", examples=count, classes=z.shape[1])


@check(
    "S03", "outputs are logits", "logits",
    claim="the outputs are logits, not probabilities: cross-entropy applies its own softmax, and a second one flattens its gradient",
    remedy="remove the softmax and return what went into it",
    reference=f"{CROCE}, sec. 4; Carlini & Wagner, S&P 2017",
)  # fmt: skip
def logits(subject: Subject) -> Verdict:
    z = subject.outputs
    low, off = float(z.min()), float((z.sum(1) - 1).abs().max())
    if low >= 0 and off < SUM_TOLERANCE:
        return finding(f"all rows are non-negative and sum to one (within {off:.1g}): probabilities", smallest=low, off_one=off)
    return passed(f"outputs from {low:.3g} to {float(z.max()):.3g}", smallest=low, largest=float(z.max()))


@check(
    "S04", "no randomness", "logits",
    claim="two passes over the same inputs agree",
    remedy="switch the randomness off, or attack its mean (expectation over transformation) and measure several draws per point",
    reference=f"{TRAMER}, sec. 5 (EOT); Athalye, Carlini & Wagner, ICML 2018, sec. 3 (stochastic gradients)",
)  # fmt: skip
def randomness(subject: Subject) -> Verdict:
    worst, changed = subject.repeated
    say = finding if subject.random else passed
    detail = f"two passes differ by {worst:.2g} of the largest output, {changed} predictions change"
    return say(detail, difference=worst, tolerance=subject.rounding, changed=changed)


@check(
    "S05", "examples do not influence each other", "logits",
    claim="the output for an example does not depend on the others in its batch",
    remedy="give batch norm running statistics (track_running_stats), or measure one example at a time and say so",
    reference=f"{CARLINI}, sec. 4 (the attack must meet the model that is deployed)",
)  # fmt: skip
def batch(subject: Subject) -> Verdict:
    if len(subject.y) < 2:
        return not_run("there is one example")
    worst, changed = subject.difference(subject.logits_at(subject.x, PIECE if len(subject.y) > PIECE else 1))
    if worst > BATCH_TOLERANCE and subject.random:
        return not_run("the model is random (S04), which hides any other dependence")
    say = finding if worst > BATCH_TOLERANCE else passed
    detail = f"in batches of {PIECE} outputs differ by {worst:.2g} of the largest, {changed} predictions change"
    return say(detail, difference=worst, tolerance=BATCH_TOLERANCE, changed=changed)


@check(
    "S06", "no constant predictor", "logits",
    claim="the model predicts more than one class",
    remedy="train anew (too large a radius or rate drives adversarial training there); its robust accuracy is the share of one class",
    reference="Bridged AT, table 1 (AT at eps = .45 predicts one class: 11.35 % on MNIST, under every attack)",
)  # fmt: skip
def constant(subject: Subject) -> Verdict:
    kinds, labels = len(subject.outputs.argmax(1).unique()), len(subject.y.unique())
    if labels < 2:
        return not_run(f"all {len(subject.y)} examples have one label")
    if kinds == 1:
        only = int(subject.outputs[0].argmax())
        return finding(f"class {only} is predicted for all {len(subject.y)} examples", predicted=1, labels=labels)
    return passed(f"{kinds} classes are predicted", predicted=kinds, labels=labels)
