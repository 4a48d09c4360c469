"""Findings for people (text with excerpts) and for editors (JSON)."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lossdsl.diagnostics import Diagnostic, Edit
from lossdsl.source import Source, Span

TAB = 4
_PAINT = {"error": "1;31", "warning": "1;33", "note": "1;36", "bold": "1", "frame": "1;34", "help": "1;36", "edit": "1;32"}


def render_text(source: Source, diagnostic: Diagnostic, color: bool = False) -> str:
    """One finding with its lines, without a line end after the last. Escape codes of a terminal only if `color`.

    Columns are counted in characters; the underline counts in columns of a terminal (wide characters take two).
    """
    d = diagnostic
    marks = [_Mark(d.span, "^", d.label, d.severity), *(_Mark(r.span, "-", r.message, "frame") for r in d.related)]
    frame = _Frame(_gutter(source, [*(m.span for m in marks), *([d.edit.span] if d.edit else [])]), color)
    head = frame.paint(f"{d.severity}[{d.code}]", d.severity) + frame.paint(f": {_line(d.message)}", "bold")
    rows = [head]
    for number, (file, here) in enumerate(_by_file(source, marks)):
        rows += _excerpts(frame, file, here, "-->" if number == 0 else ":::")
    if d.help or d.edit:
        first, *more = (d.help or "change it to").split("\n")
        rows.append(f"{frame.bar('=')} {frame.paint('help', 'help')}: {_visible(first)}")
        rows += [" " * (frame.width + len(" = help: ")) + _visible(line) for line in more]
    if d.edit and _known(source, d.edit.span):
        rows += _corrected(frame, source.holding(d.edit.span), d.edit)
    return "\n".join(row.rstrip() for row in rows)


def render_json(source: Source, diagnostics: Iterable[Diagnostic]) -> str:
    """A JSON list with one object per finding; lines and columns count from 1, offsets from 0, ends are exclusive."""
    return json.dumps([_as_json(source, d) for d in diagnostics], indent=2)


def render_summary(diagnostics: Iterable[Diagnostic]) -> str:
    """For example "2 errors, 1 warning", "no errors, 1 note"."""
    found = [d.severity for d in diagnostics]

    def counted(*words: str) -> list[str]:
        return [f"{n} {word}{'s' if n > 1 else ''}" for word in words if (n := found.count(word))]  # type: ignore[arg-type]

    return ", ".join((counted("error", "warning") or ["no errors"]) + counted("note"))


def render_line(source: Source, diagnostic: Diagnostic, color: bool = False) -> str:
    """One finding on one line, as compilers write it: place, code, message."""
    frame = _Frame(0, color)
    code = frame.paint(f"{diagnostic.severity}[{diagnostic.code}]", diagnostic.severity)
    return f"{_line(source.where(diagnostic.span))}: {code}: {_line(diagnostic.message)}"


# --- text --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Mark:
    """A place to underline."""

    span: Span
    sign: str
    text: str
    paint: str


@dataclass(frozen=True)
class _Part:
    """What is underlined of one line: columns from `first` up to `last`, counted from 1, `last` excluded."""

    first: int
    last: int
    mark: _Mark
    text: str


@dataclass(frozen=True)
class _Frame:
    """The column of line numbers, and colors or none."""

    width: int
    color: bool

    def paint(self, text: str, kind: str) -> str:
        return f"\x1b[{_PAINT[kind]}m{text}\x1b[0m" if self.color and text else text

    def bar(self, sign: str = "|", number: int | str = "") -> str:
        return self.paint(f"{number:>{self.width}} {sign}", "frame")

    def underline(self, before: str, under: str, part: _Mark, text: str) -> str:
        """Signs under the text `under`, which follows `before` on its line."""
        signs = part.sign * max(1, _columns(under))
        label = f" {_line(text)}" if text else ""
        return f"{self.bar()} {' ' * _columns(before)}{self.paint(signs + label, part.paint)}"


def _known(source: Source, span: Span) -> bool:
    """Whether the text that a span lies in is at hand."""
    return span.file in ("", source.name) or source.holding(span) is not source


def _gutter(source: Source, spans: list[Span]) -> int:
    last = [source.holding(s).position(s.end)[0] for s in spans if _known(source, s)]
    return len(str(max(last, default=1)))


def _by_file(source: Source, marks: list[_Mark]) -> list[tuple[Source | str, list[_Mark]]]:
    """Marks by the source they lie in (its name, where the text is not at hand), that of the first mark first."""
    found: dict[str, tuple[Source | str, list[_Mark]]] = {}
    for mark in marks:
        file = source.holding(mark.span) if _known(source, mark.span) else mark.span.file
        name = file if isinstance(file, str) else file.name
        found.setdefault(name, (file, []))[1].append(mark)
    return list(found.values())


def _excerpts(frame: _Frame, file: Source | str, marks: list[_Mark], arrow: str) -> list[str]:
    """Where it is, then every marked line with its underlines; dots stand for lines left out."""
    head = frame.paint(" " * frame.width + arrow, "frame")
    if isinstance(file, str):
        notes = [f"{frame.bar('=')} {_line(mark.text)}" for mark in marks if mark.text]
        return [f"{head} {_line(file)}", *notes]
    rows = [f"{head} {_line(file.where(marks[0].span))}", frame.bar()]
    lines: dict[int, list[_Part]] = {}
    for mark in marks:
        for number, part in _parts(file, mark):
            lines.setdefault(number, []).append(part)
    previous = 0
    for number in sorted(lines):
        if previous and number > previous + 1:
            rows.append("...")
        text, previous = file.line(number), number
        rows.append(f"{frame.bar('|', number)} {_visible(text)}")
        for part in lines[number]:
            rows.append(frame.underline(text[: part.first - 1], text[part.first - 1 : part.last - 1], part.mark, part.text))
    return rows


def _parts(file: Source, mark: _Mark) -> list[tuple[int, _Part]]:
    """The first and the last line of a span, with what to underline there."""
    first, start = file.position(mark.span.start)
    last, end = file.position(max(mark.span.start, mark.span.end - 1))
    end = end + 1 if mark.span.end > mark.span.start else end
    if first == last:
        return [(first, _Part(start, end, mark, mark.text))]
    line = file.line(last)
    margin = len(line) - len(line.lstrip())
    head = _Part(start, len(file.line(first)) + 1, mark, "")
    return [(first, head), (last, _Part(min(margin + 1, end), end, mark, mark.text))]


def _corrected(frame: _Frame, file: Source, edit: Edit) -> list[str]:
    """The lines that an edit changes, as they are after it."""
    first, start = file.position(edit.span.start)
    last, end = file.position(edit.span.end)
    before, after = file.line(first)[: start - 1], file.line(last)[end - 1 :]
    rows = [frame.bar()]
    for number, text in enumerate((before + edit.replacement + after).split("\n"), first):
        rows.append(f"{frame.bar('|', number)} {_visible(text)}")
    if edit.replacement and "\n" not in edit.replacement:
        sign = "+" if edit.span.start == edit.span.end else "~"
        rows.append(frame.underline(before, edit.replacement, _Mark(edit.span, sign, "", "edit"), ""))
    return rows


def _visible(text: str) -> str:
    """Text that cannot move the cursor: tabs as spaces, other control characters as a replacement character."""
    return "".join(" " * TAB if c == "\t" else "\N{REPLACEMENT CHARACTER}" if _hidden(c) else c for c in text)


def _line(text: str) -> str:
    return _visible(text.replace("\n", " "))


def _hidden(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _columns(text: str) -> int:
    """Columns of a terminal that a text takes, shown by `_visible`."""
    return sum(_char_columns(char) for char in text)


def _char_columns(char: str) -> int:
    if char == "\t":
        return TAB
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1


# --- JSON --------------------------------------------------------------------------------------------------------


def _as_json(source: Source, d: Diagnostic) -> dict[str, Any]:
    edit = {**_place(source, d.edit.span), "replacement": d.edit.replacement} if d.edit else None
    return {
        "code": d.code,
        "severity": d.severity,
        "message": d.message,
        **_place(source, d.span),
        "label": d.label,
        "help": d.help,
        "related": [{"message": r.message, **_place(source, r.span)} for r in d.related],
        "edit": edit,
    }


def _place(source: Source, span: Span) -> dict[str, Any]:
    """File, start and end; line and column are null where the file's text is not at hand."""
    known = _known(source, span)
    file = source.holding(span)

    def point(offset: int) -> dict[str, int | None]:
        line, column = file.position(offset) if known else (None, None)
        return {"line": line, "column": column, "offset": offset}

    return {"file": file.name if known else span.file, "start": point(span.start), "end": point(span.end)}
