"""Events about a prediction, and what the pieces of a loss are worth where they happen and where they do not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import inf, log
from typing import Literal

from lossdsl.check.typed import Typed, same, show
from lossdsl.lang.ops import OPERATIONS
from lossdsl.lang.types import Kind
from lossdsl.theory.ranges import Range

EventKind = Literal["error", "half"]


@dataclass(frozen=True, eq=False)
class Event:
    """Something that can be the case at a point: `error` (the label's logit is not above all others, a tie counts), or `half` (the label
    has probability 1/2 or less). `toward`: only the error in favour of this class."""

    point: Typed
    model: tuple[str, ...] = ()
    kind: EventKind = "error"
    toward: Typed | None = None

    def __str__(self) -> str:
        where = show(self.point)
        return f"error({where})" if self.kind == "error" else f"1[p({where})[y] <= 1/2]"

    @cached_property
    def words(self) -> tuple[str, str]:
        """What is said of the point where the event does not happen, and where it does."""
        return ("right", "wrong") if self.kind == "error" else ("p[y] > 1/2", "p[y] <= 1/2")


@dataclass(frozen=True)
class Conditional:
    """The range of a value where the event does not happen (`no`) and where it does (`yes`); the rule that says so."""

    no: Range
    yes: Range
    rule: str = ""
    laws: tuple[str, ...] = ()

    @property
    def tells(self) -> bool:
        """Does the value say anything about the event?"""
        return self.no != self.yes

    @property
    def separates(self) -> bool:
        """Is the value larger wherever the event happens than anywhere else?"""
        return self.no.below(self.yes)


def is_label(e: Typed) -> bool:
    return e.op == "label" or (e.op == "onehot" and e.args[0].op == "label")


def prediction(e: Typed) -> Typed | None:
    """The logits that a prediction is made of; None if it is none."""
    if e.op in ("mode", "stop"):
        return prediction(e.args[0])
    logits = e.args[0] if e.op == "prob" else e
    return logits if logits.op == "logits" else None


def speaks(e: Typed, event: Event) -> bool:
    """Is this the prediction that the event is about?"""
    logits = prediction(e)
    return logits is not None and logits.attrs == event.model and same(logits.args[0], event.point)


def atom(e: Typed, event: Event, classes: int | None) -> Conditional | None:
    """What the table of operations, or the definition of the event, says about an expression; None if nothing does."""
    for rule in (_scored, _targeted, _smoothed, _margin, _soft_margin, _entry, _runner_up, _fooled):
        found = rule(e, event, classes)
        if found is not None:
            return found
    return None


def _scored(e: Typed, event: Event, classes: int | None) -> Conditional | None:
    """A row of the table: an operation of the prediction and the label."""
    row = OPERATIONS.get(e.op)
    if row is None or row.surrogate is None or len(e.args) != 2 or event.toward is not None:
        return None
    which = [n for n in (0, 1) if speaks(e.args[n], event) and is_label(e.args[1 - n])]
    if not which or (e.op == "KL" and which != [1]):
        return None
    known = row.surrogate
    low, high = row.low, row.high
    top = known.wrong if classes == 2 or event.kind == "half" and known.half == known.wrong else known.right
    no = Range(low, top, open_high=e.op != "error")
    yes = Range(known.wrong if event.kind == "error" else known.half, high)
    what = "is misclassified (a tie counts)" if event.kind == "error" else "gives the label at most 1/2"
    return Conditional(no, yes, f"table of operations: {e.op} where the point {what}", known.laws)


def _smoothed(e: Typed, event: Event, classes: int | None) -> Conditional | None:
    """Cross-entropy under a smoothed label: where the label has at most 1/2 it is the cross-entropy of a vector without an entry above
    1/2, of which the entropy is at least log 2; elsewhere it is at least the entropy of the target."""
    if e.op != "CE" or e.args[1].op != "smooth" or e.args[1].args[0].op != "label" or not speaks(e.args[0], event):
        return None
    if event.toward is not None:
        return None
    share = float(e.args[1].args[1].value or 0)
    q = share / 2
    least = 0.0 if q == 0 else -q * log(q) - (1 - q) * log(1 - q)
    return Conditional(Range(least), Range(log(2)), f"cross-entropy of a label smoothed by {share:g}", ("A03",))


def _margin(e: Typed, event: Event, classes: int | None) -> Conditional | None:
    """max(j != y: f(v)[j]) - f(v)[y], or with p, and its opposite; in a family also f(v)[j] - f(v)[y] for the family's own class."""
    if e.op != "sub":
        return None
    first, second = e.args
    for sign, other, own in ((1, first, second), (-1, second, first)):
        if not (_is_entry_of_label(own, event) and event.kind == "error"):
            continue
        toward = event.toward is not None and _is_entry(other, event) and same(other.args[1], event.toward)
        if toward or (event.toward is None and _is_runner_up(other, event)):
            bound = 1.0 if own.args[0].kind is Kind.PROB else inf
            rule = "the sign of the margin is the error" if event.toward is None else "the sign of this class's margin is its error"
            laws = ("A34",) if bound == inf else ("E02",)
            pair = Range(-bound, 0.0, open_high=True), Range(0.0, bound)
            no, yes = pair if sign == 1 else (pair[0].scaled(-1.0), pair[1].scaled(-1.0))
            return Conditional(no, yes, rule, laws)
    return None


def _soft_margin(e: Typed, event: Event, classes: int | None) -> Conditional | None:
    """logsumexp(j != y: f(v)[j]) - f(v)[y] lies between the margin and the margin plus log(K - 1)."""
    if e.op != "sub" or event.kind != "error" or event.toward is not None or not _is_entry_of_label(e.args[1], event):
        return None
    other = e.args[0]
    body = other.args[0] if other.op == "reduce" and other.attrs == ("logsumexp",) and _all_but_label(other) else None
    if body is None or not _is_entry(body, event) or body.args[1].op != "bound" or body.args[1].axis != other.axis:
        return None
    if body.args[0].kind is Kind.PROB:
        return None
    high = log(classes - 1) if classes else inf
    return Conditional(Range(high=high, open_high=True), Range(0.0), "the soft margin is at least the margin", ("A19",))


def _targeted(e: Typed, event: Event, classes: int | None) -> Conditional | None:
    """DLR with the family's own class as target has the sign of that class's margin."""
    if e.op != "DLR" or len(e.args) != 3 or event.toward is None or not speaks(e.args[0], event):
        return None
    if not is_label(e.args[1]) or not same(e.args[2], event.toward):
        return None
    return Conditional(Range(high=0.0, open_high=True), Range(0.0), "DLR has the sign of this class's margin", ("A34",))


def _is_entry(e: Typed, event: Event) -> bool:
    return e.op == "at" and speaks(e.args[0], event)


def _is_entry_of_label(e: Typed, event: Event) -> bool:
    return _is_entry(e, event) and e.args[1].op == "label"


def _is_runner_up(e: Typed, event: Event) -> bool:
    """max(j != y: v[j])."""
    if e.op != "reduce" or e.attrs != ("max",) or e.axis is None or not _all_but_label(e):
        return False
    body = e.args[0]
    return _is_entry(body, event) and body.args[1].op == "bound" and body.args[1].axis == e.axis


def _all_but_label(e: Typed) -> bool:
    domain = e.axis.domain if e.axis else None
    return domain is not None and domain.kind == "not" and domain.expr is not None and domain.expr.op == "label"


def _entry(e: Typed, event: Event, classes: int | None) -> Conditional | None:
    """p(v)[y]."""
    if not _is_entry_of_label(e, event) or e.args[0].kind is not Kind.PROB or event.toward is not None:
        return None
    above = 0.5 if event.kind == "half" else 1 / classes if classes else 0.0
    return Conditional(Range(above, 1.0, open_low=True), Range(0.0, 0.5), "a label that is not the largest has at most half of the mass")


def _runner_up(e: Typed, event: Event, classes: int | None) -> Conditional | None:
    """max(j != y: p(v)[j])."""
    if not _is_runner_up(e, event) or e.args[0].args[0].kind is not Kind.PROB or event.toward is not None:
        return None
    return Conditional(Range(0.0, 0.5, open_high=True), Range(0.0, 1.0), "a class that is not the largest has less than half of the mass")


def _fooled(e: Typed, event: Event, classes: int | None) -> Conditional | None:
    """fooled(x') is the error at x'."""
    asked = e.op == "fact" and e.attrs[0] == "fooled" and event.point.op == "point" and event.point.attrs == (e.attrs[1],)
    if not asked or event.kind != "error" or event.toward is not None or e.args:
        return None
    return Conditional(Range(0.0, 0.0), Range(1.0, 1.0), "fooled is the error")
