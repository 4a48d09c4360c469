"""Words on lines: where a line ends, where a blank line stands, and every comment back at its place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

WIDTH = 100
CLAUSE, HANGING, DEEPER = 2, 4, 2
"""Columns by which a clause, the rest of a long line, and the rest of a long part of it are indented."""

_OPERATORS = ("or", "and", "==", "!=", "<=", ">=", "<", ">", "+", "-", "*", "||")
_TOKEN = re.compile(r"""#[^\n]*|"[^"\n]*"|[A-Za-z_][A-Za-z0-9_]*'*|[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|\|\||->|[=!<>]=|\.\.|\S""")


@dataclass
class Remark:
    """A comment; `trailing`: it ends a line that has words; `blank`: an empty line precedes it."""

    text: str
    trailing: bool
    blank: bool


@dataclass
class Word:
    """One token. A line may end before it if it has a rank, and the smallest rank of a line breaks first."""

    text: str
    space: str = " "
    rank: int | None = None
    remarks: list[Remark] = field(default_factory=list)
    blank: bool = False


@dataclass
class Line:
    """A statement's first line, or one clause. Only statements of one `group` stand without an empty line between them."""

    indent: int
    words: list[Word]
    group: str = ""
    first: bool = True


def tokens(text: str) -> Iterator[re.Match[str]]:
    """Every token and comment of a text that parses."""
    return _TOKEN.finditer(text)


def join(words: list[Word]) -> str:
    """The words on one line."""
    return words[0].text + "".join(word.space + word.text for word in words[1:])


def write(lines: list[Line], text: str | None) -> str:
    """Wrapped lines with the comments of `text`, whose tokens the words are, save needless parentheses (None: no comments)."""
    lines = [*lines, Line(0, [Word("")])]
    words = [word for line in lines for word in line.words]
    if text is not None:
        _attach(words, text)
        _shift(words)
    out: list[str] = []
    group = ""
    for line in lines:
        for indent, row in _rows(line):
            starts = line.first and row is not None and row[0] is line.words[0]
            _write_row(out, indent, row, starts=starts, apart=starts and (not group or line.group != group))
        group = line.group
    return "\n".join(out) + "\n" if out else ""


def _attach(words: list[Word], text: str) -> None:
    """Gives every word the comments that stand before it. A comment before a dropped `)` stays inside its statement."""
    pending: list[Remark] = []
    place, end = 0, 0
    for token in tokens(text):
        piece = token[0]
        gap = text[end : token.start()]
        blank, end = gap.count("\n") > 1, token.end()
        if piece.startswith("#"):
            own_line = not text[text.rfind("\n", 0, token.start()) + 1 : token.start()].strip()
            pending.append(Remark(piece.rstrip(), not own_line, blank))
        elif piece == words[place].text:
            words[place].remarks, words[place].blank, pending = pending, blank, []
            place += 1
        elif piece == ")":
            if len(pending) > 1 or (pending and not pending[0].trailing):
                words[place - 1].remarks += pending
                pending = []
        elif piece != "(" and not (piece == "=" and words[place - 1].text == "until"):  # `until = e` is written `until e`
            raise AssertionError(f"the formatter lost its place: {words[place].text!r} was expected, {piece!r} is there")
    words[place].remarks = pending


def _shift(words: list[Word]) -> None:
    """A comment before a comma, or at the end of a line before a closing bracket, goes behind it; one after an operator, before it."""
    for word, following in zip(words, words[1:], strict=False):
        if word.rank is not None and word.text in _OPERATORS:
            word.remarks, following.remarks = word.remarks + following.remarks, []
        alone = len(word.remarks) == 1 and word.remarks[0].trailing
        if word.text == "," or (word.text in (")", "]", "}") and alone):
            word.remarks, following.remarks = [], word.remarks + following.remarks


def _write_row(out: list[str], indent: int, row: list[Word], *, starts: bool, apart: bool) -> None:
    """One row with the comments before its first word; `apart`: an empty line has to precede a statement."""
    head, margin = row[0], " " * indent
    remarks = list(head.remarks)
    if remarks and remarks[0].trailing:
        out[-1] += "  " + remarks.pop(0).text
    if apart and head.text and out and not head.blank and not any(r.blank for r in remarks):
        out.append("")
    for remark in remarks:
        if starts and remark.blank and out:
            out.append("")
        out.append(margin + remark.text)
    if not head.text:
        return
    if starts and head.blank and out:
        out.append("")
    out.append(margin + join(row))


def _rows(line: Line) -> list[tuple[int, list[Word]]]:
    """The line cut where a comment ends a row and where it would pass the right margin."""
    starts: dict[int, int] = {}
    cuts = [i for i, word in enumerate(line.words) if i == 0 or word.remarks]
    for start, stop in zip(cuts, [*cuts[1:], len(line.words)], strict=True):
        indent = line.indent + (HANGING if start else 0)
        starts[start] = indent
        _fill(line.words, start, stop, indent, line.indent + HANGING, starts)
    order = sorted(starts)
    return [(starts[i], line.words[i:j]) for i, j in zip(order, [*order[1:], len(line.words)], strict=True)]


def _fill(words: list[Word], start: int, stop: int, column: int, indent: int, starts: dict[int, int]) -> int:
    """Puts words[start:stop] at `column`, breaking at the loosest rank only where needed; returns the column behind them."""
    wide = _width(words[start:stop])
    ranks = [word.rank for word in words[start + 1 : stop] if word.rank is not None]
    if column + wide <= WIDTH or not ranks:
        return column + wide
    loosest = min(ranks)
    cuts = [start, *(i for i in range(start + 1, stop) if words[i].rank == loosest)]
    broken = False
    for cut, end in zip(cuts, [*cuts[1:], stop], strict=True):
        part = _width(words[cut:end])
        space = len(words[cut].space) if cut > start else 0
        if cut > start and (broken or column + space + part > WIDTH):
            column, space = indent, 0
            starts[cut] = indent
        rows = len(starts)
        column = _fill(words, cut, end, column + space, indent + DEEPER, starts)
        broken = len(starts) > rows
    return column


def _width(words: list[Word]) -> int:
    return sum(len(word.text) for word in words) + sum(len(word.space) for word in words[1:])
