"""Clauses that a user gives apart from a file: another optimizer, other options of train, another solver."""

from __future__ import annotations

from lossdsl.diagnostics import UserError
from lossdsl.source import Source
from lossdsl.syntax import tree as t
from lossdsl.syntax.parse import parse


def clause_items(clause: str | None, frame: str) -> tuple[t.Item, ...]:
    """The statement that a clause given apart from a file belongs to."""
    if clause is None:
        return ()
    parsed = parse(Source("recipe r " + frame.format(clause), clause))
    if parsed.diagnostics or len(parsed.file.declarations) != 1 or len(parsed.file.declarations[0].items) != 1:
        reason = parsed.diagnostics[0].message if parsed.diagnostics else "it says more than one thing"
        raise UserError(f"{clause!r} cannot be read: {reason}", fix="write for example  adam(lr = 1e-3)  or  epochs = 30, batch = 64")
    return t.relocated(parsed.file.declarations[0].items, clause)  # type: ignore[no-any-return]
