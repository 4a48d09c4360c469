"""How one value depends on another: never falling, never rising, not at all, or unknown."""

from __future__ import annotations

from collections.abc import Callable

from lossdsl.check.flow import is_flat
from lossdsl.check.typed import Typed
from lossdsl.lang.ops import OPERATIONS
from lossdsl.theory.bounds import Analysis
from lossdsl.theory.sums import Term, alike, terms

_RISING_BINDERS = frozenset(("max", "min", "sum", "mean", "logsumexp"))


def core(objective: Typed, var: str) -> tuple[Typed, float] | None:
    """What an objective comes down to as a function of its variable: (e, 1.0) or (e, -1.0) where it is a positive or negative multiple of e
    plus something that does not depend on the variable; None where several terms depend on it."""
    own = [t for t in terms(objective) if var in t.e.depends and t.factor]
    return (own[0].e, 1.0 if own[0].factor > 0 else -1.0) if len(own) == 1 else None


class Dependence:
    """How values depend on a variable, if they do so only through `through`. Constants of the gradient count as independent."""

    def __init__(self, var: str, through: Typed, analysis: Analysis) -> None:
        self.var, self.through, self.analysis = var, through, analysis

    def of(self, e: Typed) -> int | None:
        """1: never falls as `through` grows, -1: never rises, 0: does not depend on the variable; None: unknown."""
        return _joined([self.term(t) for t in terms(e)])

    def term(self, term: Term) -> int | None:
        """The same of one addend."""
        return _scaled(self._term(term.e), term.factor)

    def _term(self, e: Typed) -> int | None:
        if self.var not in e.depends or is_flat(e):
            return 0
        if alike(e, self.through):
            return 1
        rule = _RULES.get(e.op)
        if rule is not None:
            return rule(self, e)
        row = OPERATIONS.get(e.op)
        if row is not None and row.rising:
            found = [self.of(a) for a in e.args]
            return _joined([f if n in row.rising or f == 0 else None for n, f in enumerate(found)])
        return None

    def product(self, e: Typed) -> int | None:
        a, b = e.args
        for one, other in ((a, b), (b, a)):
            if self.of(one) == 0:
                sign = self._sign(one)
                return None if sign is None else _scaled(self.of(other), sign)
        rising = all(self.of(v) == 1 and self._sign(v) in (0, 1) for v in (a, b))
        return 1 if rising else None

    def quotient(self, e: Typed) -> int | None:
        a, b = e.args
        sign = self._sign(b)
        return _scaled(self.of(a), sign) if self.of(b) == 0 and sign else None

    def choice(self, e: Typed) -> int | None:
        return _joined([self.of(a) for a in e.args[1:]]) if self.of(e.args[0]) == 0 else None

    def binder(self, e: Typed) -> int | None:
        outside = e.axis is not None and self.var not in e.axis.domain.depends
        return self.of(e.args[0]) if e.attrs[0] in _RISING_BINDERS and outside else None

    def entry(self, e: Typed) -> int | None:
        return self._term(e.args[0]) if self.var not in e.args[1].depends else None

    def mode(self, e: Typed) -> int | None:
        return self._term(e.args[0])

    def _sign(self, e: Typed) -> int | None:
        known = self.analysis.of(e).no
        return 1 if known.low >= 0 else -1 if known.high <= 0 else None


_RULES: dict[str, Callable[[Dependence, Typed], int | None]] = {
    "mul": Dependence.product, "div": Dependence.quotient, "if": Dependence.choice, "reduce": Dependence.binder,
    "at": Dependence.entry, "mode": Dependence.mode,
}  # fmt: skip


def _scaled(found: int | None, factor: float) -> int | None:
    return 0 if factor == 0 else None if found is None else found if factor > 0 else -found


def _joined(found: list[int | None]) -> int | None:
    """Of a sum: unknown as soon as two parts disagree."""
    if None in found:
        return None
    signs = {f for f in found if f}
    return None if len(signs) == 2 else next(iter(signs), 0)
