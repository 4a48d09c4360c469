"""Where text comes from: a named source, spans in it, and the lines a reader needs to see."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open range of character offsets; `file` names the source when it is not the main one (an extended recipe's)."""

    start: int
    end: int
    file: str = ""


NOWHERE = Span(0, 0)


@dataclass(frozen=True)
class Source:
    """A recipe's text and the name under which messages speak of it; `others` are the texts of recipes it extends."""

    text: str
    name: str = field(default="<text>")
    others: tuple[Source, ...] = ()

    def holding(self, span: Span) -> Source:
        """The source that a span lies in."""
        return next((s for s in self.others if s.name == span.file), self)

    @cached_property
    def _line_starts(self) -> list[int]:
        return [0] + [i + 1 for i, char in enumerate(self.text) if char == "\n"]

    def position(self, offset: int) -> tuple[int, int]:
        """Line and column, both counted from 1, of a character offset."""
        offset = max(0, min(offset, len(self.text)))
        line = bisect_right(self._line_starts, offset)
        return line, offset - self._line_starts[line - 1] + 1

    def line(self, number: int) -> str:
        start = self._line_starts[number - 1]
        end = self.text.find("\n", start)
        return self.text[start : end if end >= 0 else len(self.text)].rstrip("\r")

    def excerpt(self, span: Span) -> str:
        return self.text[span.start : span.end]

    def where(self, span: Span) -> str:
        source = self.holding(span)
        line, column = source.position(span.start)
        return f"{source.name}:{line}:{column}"
