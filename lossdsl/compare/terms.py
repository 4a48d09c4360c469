"""Which term of one objective is which term of another."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lossdsl.compare.written import Key, Term, key, shown
from lossdsl.syntax import tree as t

_NUMBER = re.compile(r"(?<![A-Za-z_0-9'.])[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class Addend:
    """One addend of an objective: its text, what it says, and its factors that are no constants."""

    text: str
    key: Key
    factors: tuple[Key, ...]

    @classmethod
    def of(cls, term: Term, constant: Callable[[t.Expr], bool]) -> Addend:
        over = [key(e) for e in term.over if not constant(e)]
        under = [("/", key(e)) for e in term.under if not constant(e)]
        return cls(shown(term.expression()), key(term.expression()), tuple(sorted([*over, *under], key=repr)))

    @property
    def outline(self) -> str:
        """The text without its numbers."""
        return _NUMBER.sub("0", self.text)


def matched(old: Sequence[Addend], new: Sequence[Addend]) -> Iterator[tuple[Addend | None, Addend | None]]:
    """Pairs of terms that are the same up to a coefficient, share a factor, or differ in numbers alone, in the order of both lists.

    What has no partner stands alone. Old and new have the same part in it: the pairs of (new, old) are those of (old, new).
    """
    partner: dict[int, int] = {}
    for alike in (_same, _same_factors, _shared, _same_outline):
        scored = [(alike(a, b), i, j) for i, a in enumerate(old) for j, b in enumerate(new)]
        for score, i, j in sorted(scored, key=lambda s: (-s[0], s[1], s[2])):
            if score and i not in partner and j not in partner.values():
                partner[i] = j
    waiting = [j for j in range(len(new)) if j not in partner.values()]
    for i, a in enumerate(old):
        if i in partner:
            while waiting and waiting[0] < partner[i]:
                yield None, new[waiting.pop(0)]
        yield a, (new[partner[i]] if i in partner else None)
    for j in waiting:
        yield None, new[j]


def _same(a: Addend, b: Addend) -> int:
    return int(a.key == b.key)


def _same_factors(a: Addend, b: Addend) -> int:
    return int(a.factors == b.factors)


def _shared(a: Addend, b: Addend) -> int:
    """The number of factors in common."""
    return (Counter(a.factors) & Counter(b.factors)).total()


def _same_outline(a: Addend, b: Addend) -> int:
    return int(a.outline == b.outline)
