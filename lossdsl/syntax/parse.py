"""Text to tree. The only module that knows lark.

A statement that does not parse is reported, blanked out, and the rest is parsed again, so that one run reports every
syntax error of a file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from lark import Lark, Token
from lark.exceptions import UnexpectedEOF, UnexpectedInput, UnexpectedToken, VisitError
from lark.lexer import ContextualLexer, PatternRE, PatternStr, TerminalDef

from lossdsl.assets import grammar_path
from lossdsl.diagnostics import Diagnostic
from lossdsl.source import Source, Span
from lossdsl.syntax import tree as t
from lossdsl.syntax.build import Builder
from lossdsl.syntax.mistakes import Trouble, explain

MAX_SYNTAX_ERRORS = 20

STATEMENT_WORDS = (
    "recipe", "attack", "law", "game", "generator", "use", "title", "source", "param", "let", "def", "log", "sample", "lower", "run",
    "find", "state", "memory", "upper", "train", "input", "model", "remove", "count",
    "player", "solve", "data", "keep", "for", "claim", "refute",
)  # fmt: skip
_STATEMENT_START = re.compile(r"^[ \t]*(?:" + "|".join(STATEMENT_WORDS) + r")\b(?!['(])(?![ \t]*=)", re.MULTILINE)
_COMMENT_OR_STRING = re.compile(r'"[^"\n]*"|(#[^\n]*)')
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*'*")


@dataclass(frozen=True)
class Parsed:
    """The tree of a file, what was wrong with its syntax, and the words lost with the statements that did not parse."""

    source: Source
    file: t.File
    diagnostics: tuple[Diagnostic, ...] = ()
    lost_words: frozenset[str] = frozenset()


class _QuickLexer(ContextualLexer):
    """Skips the comparison of terminals, half a second where interegular is installed; a test makes it once with strict=True."""

    def __init__(self, conf: Any, *args: Any, **kwargs: Any) -> None:
        conf.skip_validation = True
        super().__init__(conf, *args, **kwargs)


def whole_word(terminal: TerminalDef) -> None:
    """A keyword ends where a name would: `params` and `maximizeCE` are names, not a keyword and the rest."""
    if isinstance(terminal.pattern, PatternStr) and terminal.pattern.value.isalpha():
        terminal.pattern = PatternRE(terminal.pattern.value + "(?![A-Za-z0-9_'])")
        terminal.priority = 1


@cache
def parser() -> Lark:
    return Lark.open(
        str(grammar_path()),
        parser="lalr",
        lexer="contextual",
        propagate_positions=True,
        maybe_placeholders=True,
        edit_terminals=whole_word,
        _plugins={"ContextualLexer": _QuickLexer},
    )


def parse(source: Source) -> Parsed:
    """Parse a whole file; never raises on bad text."""
    text, found, lost = source.text, [], set()
    while True:
        trouble = _trouble(text)
        if not isinstance(trouble, Trouble):
            break
        found.append(explain(source, trouble))
        region = _statement_around(text, trouble)
        if region is None or len(found) >= MAX_SYNTAX_ERRORS:
            return Parsed(source, t.File((), (), comments(source)), tuple(found), frozenset(_WORD.findall(text)))
        lost.update(_WORD.findall(text[region.start : region.end]))
        text = text[: region.start] + re.sub(r"[^\n]", " ", text[region.start : region.end]) + text[region.end :]
    builder, file = trouble
    file = t.File(file.shared, file.declarations, comments(source), span=Span(0, len(source.text)))
    return Parsed(source, file, (*found, *builder.diagnostics), frozenset(lost))


@lru_cache(maxsize=256)
def _trouble(text: str) -> Trouble | tuple[Builder, t.File]:
    """Parse once: the tree, or what stood in the way. Trees do not change, and a text that comes again has the same one."""
    builder = Builder()
    try:
        return builder, builder.transform(parser().parse(text))
    except UnexpectedEOF:
        return _trouble_at(text, len(text), "", frozenset())
    except UnexpectedToken as error:
        end = len(text) if error.token.type == "$END" else error.token.start_pos
        return _trouble_at(text, end, "" if error.token.type == "$END" else str(error.token), frozenset(error.accepts or error.expected))
    except UnexpectedInput as error:
        position = error.pos_in_stream or 0
        return _trouble_at(text, position, text[position : position + 1], frozenset(getattr(error, "allowed", None) or ()))
    except RecursionError:
        return Trouble(text, Span(0, 0), "", frozenset(), None, too_deep=True)
    except VisitError as error:
        if isinstance(error.orig_exc, RecursionError):
            return Trouble(text, Span(0, 0), "", frozenset(), None, too_deep=True)
        raise error.orig_exc from error


def _trouble_at(text: str, position: int, found: str, expected: frozenset[str]) -> Trouble:
    return Trouble(text, Span(position, position + len(found)), found, expected, _unclosed(text, position))


def _unclosed(text: str, position: int) -> int | None:
    """Offset of the innermost bracket that is still open at `position`, or None."""
    masked = _COMMENT_OR_STRING.sub(lambda m: " " * len(m[0]), text)
    stack: list[int] = []
    for offset, char in enumerate(masked[:position]):
        if char in "([{":
            stack.append(offset)
        elif char in ")]}" and stack:
            stack.pop()
    return stack[-1] if stack else None


def _statement_around(text: str, trouble: Trouble) -> Span | None:
    """The lines of the statement to give up, or None when the file's frame itself is broken."""
    masked = _COMMENT_OR_STRING.sub(lambda m: " " * len(m[0]), text)
    starts = [m.start() for m in _STATEMENT_START.finditer(masked)]
    anchor = trouble.span.start if trouble.unclosed is None else trouble.unclosed
    if trouble.unclosed is None and trouble.found and any(s <= anchor and not masked[s:anchor].strip() for s in starts):
        anchor = max((s for s in starts if masked[s:anchor].strip()), default=anchor)
    before = [s for s in starts if s <= anchor]
    if not before or trouble.too_deep:
        return None
    start = before[-1]
    end = next((s for s in starts if s > anchor), len(text))
    word = _WORD.search(text, start)
    if word is None or word[0] in ("recipe", "attack", "game", "law") or not masked[start:end].strip():
        return None
    return Span(start, end)


def comments(source: Source) -> tuple[t.Comment, ...]:
    """All comments of a text, in order."""
    found = (m for m in _COMMENT_OR_STRING.finditer(source.text) if m[1])
    return tuple(t.Comment(m[1].rstrip(), span=Span(m.start(), m.start() + len(m[1].rstrip()))) for m in found)


def tokens(text: str) -> list[Token]:
    """The tokens of a text that parses; for tools and tests."""
    return list(parser().lex(text))
