"""One rule for bounds of the 0-1 error: the range of every expression is worked out twice, where an event happens and where it does not.

The ranges of single operations come from the table of operations; everything else is interval arithmetic. A value that is at least l where
the event does not happen and at least u where it does is at least l + (u - l) * 1[event]: with l >= 0 it is an upper bound of u times the
0-1 error. Sums are taken apart, since some of their terms say more together than alone (see `chains`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import inf, log

from lossdsl.check.typed import Typed, show
from lossdsl.lang.ops import OPERATIONS
from lossdsl.lang.types import SCALARS
from lossdsl.theory import ranges
from lossdsl.theory.chains import Chain, find_chain
from lossdsl.theory.events import Conditional, Event, atom
from lossdsl.theory.ranges import Range
from lossdsl.theory.sums import Term, terms

_ARITHMETIC = frozenset(("add", "sub", "mul", "div", "pow", "max", "min"))
_SAME_RANGE = frozenset(("stop", "mode", "batch_mean"))
_BCE_LAWS = ("D32",)


@dataclass(frozen=True)
class Reason:
    """Why a bound holds: a statement, the rule behind it, the ids of its laws, and the statements that it rests on."""

    claim: str
    rule: str = ""
    laws: tuple[str, ...] = ()
    parts: tuple[Reason, ...] = ()

    def lines(self, depth: int = 0) -> Iterator[str]:
        """The tree as indented lines."""
        laws = f" [{', '.join(self.laws)}]" if self.laws else ""
        yield "  " * depth + self.claim + (f"  ({self.rule}{laws})" if self.rule else laws)
        for part in self.parts:
            yield from part.lines(depth + 1)

    def as_json(self) -> dict[str, object]:
        return {"claim": self.claim, "rule": self.rule, "laws": list(self.laws), "parts": [p.as_json() for p in self.parts]}


@dataclass(frozen=True)
class Bound:
    """e >= constant * 1[event] - offset, with the reason. `per`: what the constant is divided by besides ("K - 1")."""

    event: Event
    constant: float
    offset: float
    reason: Reason
    per: str = ""
    entropy: float = 0.0
    """A further offset, in units of log K."""

    @property
    def factor(self) -> str:
        """The constant as text."""
        return ranges.number(self.constant) + (f"/({self.per})" if self.per else "")

    @property
    def missing(self) -> str:
        """What must be added for an offset of 0: "0.3 + 2 * log(K)"; empty for nothing."""
        parts = [ranges.number(self.offset)] if self.offset else []
        if self.entropy:
            parts.append("log(K)" if self.entropy == 1 else f"{ranges.number(self.entropy)} * log(K)")
        return " + ".join(parts)

    @property
    def text(self) -> str:
        away = f"({self.missing})" if " + " in self.missing else self.missing
        return f"{self.factor} * {self.event}" + (f" - {away}" if away else "")


@dataclass
class Analysis:
    """Ranges of expressions under one event (None: whatever happens).

    `states`: ranges of what lives across batches, by name; `classes`: the number of classes, if it is known.
    """

    event: Event | None = None
    classes: int | None = None
    states: Mapping[str, Range] = field(default_factory=dict)
    _done: dict[int, tuple[Typed, Conditional]] = field(default_factory=dict)

    def of(self, e: Typed) -> Conditional:
        """The two ranges of an expression."""
        if id(e) not in self._done:
            self._done[id(e)] = (e, self._find(e))
        return self._done[id(e)][1]

    def _find(self, e: Typed) -> Conditional:
        known = atom(e, self.event, self.classes) if self.event is not None else None
        if known is not None:
            return known
        no, yes = (self._range(e, side) for side in ("no", "yes"))
        return Conditional(no, yes)

    def _range(self, e: Typed, side: str) -> Range:
        """The rule of an operation applied to the ranges of its arguments, and what the checker knows anyway."""
        parts = terms(e) if e.op in ("add", "sub", "neg") and e.kind in SCALARS else []
        if parts and (len(parts) > 1 or parts[0].e.op not in ("add", "sub", "neg")):
            total = Range(0.0, 0.0)
            for term in parts:
                total = total.plus(getattr(self.of(term.e), side).scaled(term.factor))
            return total.within(ranges.of(e))
        args = [getattr(self.of(a), side) for a in e.args if a.kind in SCALARS or e.op in ("at", "nth")]
        return self._composed(e, args, side).within(ranges.of(e))

    def _composed(self, e: Typed, args: list[Range], side: str) -> Range:
        if e.op == "number":
            return Range(float(e.value or 0), float(e.value or 0))
        if e.op == "state":
            return self.states.get(e.attrs[0], ranges.ALL)
        if e.op == "neg" and args:
            return args[0].scaled(-1.0)
        if e.op in _ARITHMETIC and len(args) == 2:
            return ranges.combined(e.op, *args)
        if e.op == "if" and len(args) == 3:
            return args[1].joined(args[2]) if e.args[0].value is None else args[1 if e.args[0].value else 2]
        if e.op in _SAME_RANGE and len(args) == 1:
            return args[0]
        if e.op in ("at", "nth") and e.args[0].op in (*_SAME_RANGE, "reduce"):
            return args[0]
        if e.op == "reduce":
            return self._reduced(e, args)
        applied = ranges.applied(e.op, args[0]) if len(args) == 1 else None
        return applied or ranges.ALL

    def _reduced(self, e: Typed, args: list[Range]) -> Range:
        """Binders over the classes; the number of classes is at least one."""
        body = args[0] if args else ranges.ALL
        kind = e.attrs[0]
        if kind in ("max", "min", "mean", "sort"):
            return Range(body.low, body.high)
        if kind == "sum":
            return Range(body.low if body.low >= 0 else -inf, 0.0 if body.high <= 0 else inf)
        return Range(body.low) if kind == "logsumexp" else ranges.ALL


def bound(e: Typed, event: Event, classes: int | None = None, states: Mapping[str, Range] | None = None) -> Bound:
    """The best bound of an expression by a multiple of an event; constant <= 0 where there is none."""
    own = _Sum(e, Analysis(event, classes, states or {}))
    no, yes = own.low("no"), own.low("yes")
    if no == -inf or yes == -inf:
        lost = next((p for p in own.parts if p not in own.entropies and own.analysis.of(p.e).no.scaled(p.factor).low == -inf), None)
        rule = "" if lost is None else f"nothing bounds {show(lost.e)} from below"
        return Bound(event, 0.0, 0.0, Reason(f"{show(e)} is not bounded by {event}", rule, (), own.reasons()))
    constant, offset = (yes, 0.0) if no >= 0 else (yes - no, -no)
    found = Bound(event, constant, offset, Reason(""), entropy=own.entropy)
    claim = f"{show(e)} >= {found.text}" if constant > 0 else f"{show(e)} is not bounded by {event}"
    parts = own.reasons()
    reason = Reason(claim, "sum of the bounds of its terms", (), parts)
    if len(parts) == 1:
        reason = Reason(claim, parts[0].rule, parts[0].laws, parts[0].parts)
    return replace(found, reason=reason)


class _Sum:
    """A sum of terms, of which a chain and a pair say more together."""

    def __init__(self, e: Typed, analysis: Analysis) -> None:
        self.analysis = analysis
        assert analysis.event is not None
        self.event: Event = analysis.event
        self.parts = terms(e)
        self.chain = find_chain(self.parts, self.event)
        self.pair = _pair(self.parts, self.event)
        self.entropies = [t for t in self.parts if t.e.op == "H" and t.factor < 0]
        self.entropy = -sum(t.factor for t in self.entropies)

    def low(self, side: str) -> float:
        """The least value of the sum, without the entropies that are taken away."""
        total = 0.0
        for term in self.parts:
            if term in self.entropies:
                continue
            total += getattr(self.analysis.of(term.e), side).scaled(term.factor).low
        if side == "yes":
            total += self._more()
        return total

    def _more(self) -> float:
        """What chain and pair are worth beyond their terms alone, where the event happens."""
        more = 0.0
        if self.chain is not None:
            taken = (self.chain.anchor, *self.chain.links)
            more += max(0.0, self.chain.constant - sum(self.analysis.of(t.e).yes.scaled(t.factor).low for t in taken))
        if self.pair is not None:
            more += min(-t.factor for t in self.pair) * log(2)
        return more

    def reasons(self) -> tuple[Reason, ...]:
        """What every part contributes."""
        out = []
        taken = [] if self.chain is None else [self.chain.anchor, *self.chain.links]
        if self.chain is not None:
            out.append(_chain_reason(self.chain, self.event))
        if self.pair is not None:
            both = f"{_text(self.pair[0])} - {_text(replace(self.pair[1], factor=-self.pair[1].factor))}"
            least = min(-t.factor for t in self.pair) * log(4)
            claim = f"{both} >= {ranges.number(least)} * {self.event}"
            out.append(Reason(claim, "the label has at most half, and another class at least as much", _BCE_LAWS))
            taken += self.pair
        out += [self._reason(t) for t in self.parts if not any(t is other for other in taken)]
        return tuple(out)

    def _reason(self, term: Term) -> Reason:
        found = self.analysis.of(term.e)
        text = _text(term)
        if found.tells:
            no, yes = found.no.scaled(term.factor), found.yes.scaled(term.factor)
            words = self.event.words
            claim = f"{text} in {yes} where the point is {words[1]}, in {no} where it is {words[0]}"
            return Reason(claim, found.rule or "interval arithmetic", found.laws, self._inner(term.e))
        if term in self.entropies:
            more = Bound(self.event, 0.0, 0.0, Reason(""), entropy=-term.factor).missing
            return Reason(f"{text} >= -{more}", "an entropy is at most log K", ("D31",))
        least = found.no.scaled(term.factor).low
        if least == -inf:
            return Reason(f"{text} has no lower bound", "interval arithmetic")
        return Reason(f"{text} >= {ranges.number(least)}", self._why_bounded(term), ())

    def _why_bounded(self, term: Term) -> str:
        row = OPERATIONS.get(term.e.op)
        return f"table of operations: {term.e.op} in {ranges.of(term.e)}" if row is not None else "interval arithmetic"

    def _inner(self, e: Typed) -> tuple[Reason, ...]:
        """The parts of a term that say something about the event."""
        if atom(e, self.event, self.analysis.classes) is not None:
            return ()
        out = []
        for part in e.args:
            if part.kind in SCALARS and self.analysis.of(part).tells:
                out.append(self._reason(Term(1.0, part)))
            elif part.kind in SCALARS and part.value is None and self.analysis.of(part).no.low <= 0 and e.op == "mul":
                out.append(Reason(f"{show(part)} in {self.analysis.of(part).no}", "a factor"))
        return tuple(out)


def _pair(parts: list[Term], event: Event) -> tuple[Term, Term] | None:
    """MART's -log(q[y]) - log(1 - max(j != y: q[j])): log 4 together where q is wrong, of which the first gives log 2."""
    if event.kind != "error" or event.toward is not None:
        return None
    first = [t for t in parts if t.factor < 0 and t.e.op == "log" and _is_label_entry(t.e.args[0], event)]
    second = [t for t in parts if t.factor < 0 and t.e.op == "log" and _is_rest(t.e.args[0], event)]
    if not first or not second:
        return None
    return first[0], second[0]


def _is_label_entry(e: Typed, event: Event) -> bool:
    found = atom(e, event, None)
    return found is not None and e.op == "at" and found.yes.high == 0.5


def _is_rest(e: Typed, event: Event) -> bool:
    """1 - max(j != y: q[j])."""
    if e.op != "sub" or e.args[0].value != 1 or e.args[1].op != "reduce":
        return False
    return atom(e.args[1], event, None) is not None


def _chain_reason(chain: Chain, event: Event) -> Reason:
    names = [_text(t) for t in (chain.anchor, *chain.links)]
    shown = names if len(names) <= 5 else [*names[:2], f"... ({len(names) - 3} more)", names[-1]]
    rule = (
        "triangle inequality from onehot(y) through the points between"
        if chain.quadratic
        else "data processing to two classes, Pinsker, the least over p(y) at the first point"
    )
    laws = () if chain.quadratic else ("E21",)
    return Reason(f"{' + '.join(shown)} >= {ranges.number(chain.constant)} * {event}", rule, laws)


def _text(term: Term) -> str:
    if term.factor == 1:
        return show(term.e)
    if term.factor == -1:
        return f"-{_bracketed(term.e)}"
    return f"{ranges.number(term.factor)} * {_bracketed(term.e)}"


def _bracketed(e: Typed) -> str:
    return f"({show(e)})" if e.op in ("add", "sub", "neg", "mul", "div", "if") else show(e)


__all__ = ["Analysis", "Bound", "Reason", "bound"]
