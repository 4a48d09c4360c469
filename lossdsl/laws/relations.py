"""Relations without `not`, and their opposites."""

from __future__ import annotations

from dataclasses import replace

from lossdsl.check.law_typed import Relation

_OPPOSITE = {"<=": ">", ">=": "<", "<": ">=", ">": "<=", "==": "!=", "!=": "==", "and": "or", "or": "and"}


def plain(r: Relation) -> Relation:
    """The same relation without `not`."""
    if r.op == "not":
        return negated(r.parts[0])
    return replace(r, parts=tuple(plain(p) for p in r.parts))


def negated(r: Relation) -> Relation:
    """The relation that holds exactly where this one does not (where all sides are numbers)."""
    if r.op == "not":
        return plain(r.parts[0])
    return replace(r, op=_OPPOSITE[r.op], parts=tuple(negated(p) for p in r.parts))
