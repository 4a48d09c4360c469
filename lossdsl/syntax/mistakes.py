"""Syntax errors explained: from where the parser stopped to what the writer probably meant."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import SequenceMatcher

from lossdsl.diagnostics import Diagnostic, Edit, Related, suggest
from lossdsl.source import Source, Span

KEYWORDS = (
    "recipe", "attack", "generator", "use", "extends", "param", "let", "def", "sample", "lower", "find", "state", "memory", "upper",
    "train", "input", "model", "remove", "maximize", "minimize", "by", "with", "in", "through", "over", "then", "from", "at", "for",
    "where", "until", "and", "or", "not", "title", "source", "log", "run", "count", "player", "solve", "data", "keep", "claim", "refute",
)  # fmt: skip
RESERVED = KEYWORDS[:34]

CHARACTERS = {
    ";": "statements need no separator: start the next one with its keyword",
    "%": "there is no %: write 0.1 for 10%",
    "&": "write and",
    "!": "write not, or != to compare",
    "$": "this is text, not LaTeX",
    "\\": "this is text, not LaTeX; names are plain, such as lambda or theta",
    "'": "a prime belongs to the name before it, without a space: x'",
    "|": "two bars, KL(p || q), separate the arguments of a divergence; abs(v) is the absolute value",
    "≤": "write <=",
    "≥": "write >=",
    "≠": "write !=",
    "·": "write *",
    "×": "write *",
    "∥": "write ||",
    "‖": "write ||, or norm(v, 2) for a norm",
    "−": "this is a typographic minus; write -",
    "λ": "names are plain letters: lambda",
    "θ": "names are plain letters: theta",
    "ε": "names are plain letters: eps",
    "β": "names are plain letters: beta",
    "’": "this is a typographic quote; a prime is '",
    "′": "this is a typographic prime; write '",
    "“": 'strings stand between straight quotes "',
}

_CLOSING = {"(": ")", "[": "]", "{": "}"}
_OPERATORS = frozenset({"PLUS", "MINUS", "TIMES", "SLASH", "POWER", "LPAR", "LSQB", "LBRACE"})
_DIGITS_AND_MORE = re.compile(r"[0-9]+(?:\.[0-9]+)?(?:[A-Za-z_]|\.[0-9])[A-Za-z0-9_.]*")

_FRIENDLY = {
    "NAME": "a name", "NUMBER": "a number", "STRING": 'a "string"', "LPAR": "(", "RPAR": ")", "LSQB": "[", "RSQB": "]", "LBRACE": "{",
    "RBRACE": "}", "COMMA": ",", "EQUAL": "=", "COLON": ":", "TILDE": "~", "ARGUMENT": "name = value", "$END": "the end of the file",
    "PLUS": "+", "MINUS": "-", "TIMES": "*", "SLASH": "/", "POWER": "^", "KIND": "recipe, attack, game or law",
    "JOINT": "joint", "FROZEN": "frozen",
}  # fmt: skip


@dataclass(frozen=True)
class Trouble:
    """Where a parse stopped: the word found there, the terminals that would have fitted, the innermost open bracket."""

    text: str
    span: Span
    found: str
    expected: frozenset[str]
    unclosed: int | None
    too_deep: bool = False


def explain(source: Source, trouble: Trouble) -> Diagnostic:
    """One diagnostic for one syntax error, the most specific explanation that fits."""
    for rule in RULES:
        found = rule(trouble)
        if found is not None:
            return found
    if not trouble.found:
        end = len(trouble.text.rstrip())
        return Diagnostic("E001", "the text ends in the middle of a statement", Span(max(0, end - 1), end), help=_wanted(trouble))
    return Diagnostic("E001", f"{trouble.found} cannot stand here", trouble.span, help=_wanted(trouble))


def _wanted(trouble: Trouble) -> str:
    """The terminals that would fit, in words; silent when there are too many to help."""
    names = sorted({_FRIENDLY.get(name, name.lower()) for name in trouble.expected if not name.startswith("__ANON") and name != "$END"})
    if not names:
        return ""
    if {"a name", "a number", "("} <= set(names):
        return "a value is expected here"
    if len(names) > 8:
        return "an operator, a clause or the next statement is expected here"
    return "expected " + (names[0] if len(names) == 1 else ", ".join(names[:-1]) + " or " + names[-1])


def _before(trouble: Trouble) -> str:
    """The text before the trouble, without comments and space at its end."""
    return re.sub(r"(?:\s|#[^\n]*(?=\n|$))*$", "", trouble.text[: trouble.span.start])


def _after(trouble: Trouble) -> str:
    return trouble.text[trouble.span.end :].lstrip()


def _too_deep(trouble: Trouble) -> Diagnostic | None:
    """The parser ran out of stack: point at the innermost bracket."""
    if not trouble.too_deep:
        return None
    depth, deepest, place = 0, 0, 0
    for offset, char in enumerate(trouble.text):
        depth += (char in "([{") - (char in ")]}")
        if depth > deepest:
            deepest, place = depth, offset
    message = f"expressions are nested too deeply: {deepest} brackets are open here" if deepest > 20 else "an expression is too long"
    return Diagnostic("E005", message, Span(place, place + 1), help="name the inner parts with let")


def _unclosed(trouble: Trouble) -> Diagnostic | None:
    """A statement keyword or the end of the file inside brackets: the bracket was forgotten."""
    if trouble.unclosed is None or (trouble.found and trouble.found not in KEYWORDS) or _before(trouble).endswith(","):
        return None
    closing = _CLOSING[trouble.text[trouble.unclosed]]
    end = len(_before(trouble))
    where = f"before {trouble.found}" if trouble.found else "before the end of the file"
    return Diagnostic(
        "E002", f"missing {closing} {where}", Span(max(0, end - 1), end), label=f"{closing} is missing after this",
        help=f"write {closing} here, or where it belongs", related=(_opened(trouble, "the bracket opened here is never closed"),),
        edit=Edit(Span(end, end), closing),
    )  # fmt: skip


def _opened(trouble: Trouble, message: str) -> Related:
    assert trouble.unclosed is not None
    return Related(Span(trouble.unclosed, trouble.unclosed + 1), message)


def _wrong_bracket(trouble: Trouble) -> Diagnostic | None:
    """`[75, 90)`"""
    if trouble.found not in _CLOSING.values() or trouble.unclosed is None:
        return None
    opening = trouble.text[trouble.unclosed]
    closing = _CLOSING[opening]
    if closing == trouble.found:
        return None
    related = (_opened(trouble, f"{opening} is opened here"),)
    return Diagnostic(
        "E002",
        f"{trouble.found} does not close {opening}",
        trouble.span,
        help=f"write {closing}",
        related=related,
        edit=Edit(trouble.span, closing),
    )


def _extra_bracket(trouble: Trouble) -> Diagnostic | None:
    if trouble.found in (")", "]", "}") and trouble.unclosed is None:
        return Diagnostic("E002", f"{trouble.found} closes nothing", trouble.span, help="remove it, or open a bracket before")
    return None


def _trailing_comma(trouble: Trouble) -> Diagnostic | None:
    """A comma and then the next statement, a closing bracket or the end."""
    before = _before(trouble)
    if not before.endswith(",") or (trouble.found and trouble.found not in (*KEYWORDS, ")", "]", "}")):
        return None
    span = Span(len(before) - 1, len(before))
    message = f"nothing stands between this comma and {trouble.found or 'the end of the file'}"
    return Diagnostic("E001", message, span, help="remove it, or write what is missing", edit=Edit(span, ""))


def _string(trouble: Trouble) -> Diagnostic | None:
    """A quote that is missing at the end, or at both ends."""
    line = Span(trouble.span.start, (trouble.text + "\n").index("\n", trouble.span.start))
    rest = trouble.text[line.start : line.end].rstrip()
    line = Span(line.start, line.start + len(rest))
    if trouble.found == '"':
        return Diagnostic("E003", "this string is not closed", line, help='a string ends on its own line with a second "')
    if trouble.expected == {"STRING"} and trouble.found:
        return Diagnostic("E001", "a string stands in quotes", line, help=f'write "{rest}"', edit=Edit(line, f'"{rest}"'))
    return None


def _strange_character(trouble: Trouble) -> Diagnostic | None:
    known = trouble.found in CHARACTERS
    if known or (trouble.found and not trouble.found.isascii()):
        help = CHARACTERS.get(trouble.found, "names are made of the letters a-z, digits, _ and primes")
        return Diagnostic("E003", f"the character {trouble.found} has no meaning here", trouble.span, help=help)
    return None


def _double_star(trouble: Trouble) -> Diagnostic | None:
    start = trouble.span.start
    if trouble.found == "*" and trouble.text[start - 1 : start] == "*":
        span = Span(start - 1, start + 1)
        return Diagnostic("E003", "there is no operator **", span, help="powers are written with ^", edit=Edit(span, "^"))
    return None


def _double_slash(trouble: Trouble) -> Diagnostic | None:
    start = trouble.span.start
    if trouble.found == "/" and trouble.text[start : start + 2] == "//" or trouble.text[start - 1 : start + 1] == "//":
        start -= trouble.text[start - 1] == "/"
        return Diagnostic(
            "E003",
            "// does not start a comment",
            Span(start, start + 2),
            help="comments start with #",
            edit=Edit(Span(start, start + 2), "#"),
        )
    return None


def _glued_number(trouble: Trouble) -> Diagnostic | None:
    """Digits that run into letters or into a second point: `2lambda`, `1.0.0`."""
    word = _DIGITS_AND_MORE.match(trouble.text, trouble.span.start)
    if word is None or len(trouble.found) != 1:
        return None
    span = Span(word.start(), word.end())
    help = "write a product with *, as in 2 * lambda; a name starts with a letter"
    return Diagnostic("E003", f"{word[0]} is neither a number nor a name", span, help=help)


def _point(trouble: Trouble) -> Diagnostic | None:
    """`6.` and `.1`; and `f.x`, which no other language's dot means here."""
    if trouble.found != ".":
        return None
    start = trouble.span.start
    before = re.search(r"[0-9]*$", trouble.text[:start])
    after = re.match(r"[0-9]*", trouble.text[start + 1 :])
    assert before is not None and after is not None
    if before[0] and not after[0]:
        return _digits(Span(before.start(), start + 1), f"{before[0]}.0")
    if after[0] and not before[0]:
        return _digits(Span(start, start + 1 + after.end()), f"0.{after[0]}")
    return Diagnostic(
        "E003", "a point cannot stand here", trouble.span, help="a number has digits on both sides of its point: 0.5; a range is 1..9"
    )


def _digits(span: Span, fixed: str) -> Diagnostic:
    return Diagnostic("E003", "a number has digits on both sides of its point", span, help=f"write {fixed}", edit=Edit(span, fixed))


def _range_end(trouble: Trouble) -> Diagnostic | None:
    """`param n = 6 in 10`: after a number where only `..` and operators fit."""
    fits = {name for name in trouble.expected if not name.startswith("__ANON")}
    if fits and fits <= _OPERATORS and len(fits) < len(trouble.expected):
        end = len(_before(trouble))
        return Diagnostic("E001", "a range has two ends", Span(end - 1, end), help="write 1..9 for whole numbers, or [0, 1]")
    return None


def _colon(trouble: Trouble) -> Diagnostic | None:
    """`sgd(lr: 0.1, ...)`: the name of an argument with a colon."""
    if trouble.unclosed is None or trouble.found not in (",", "=") or trouble.expected & {"COMMA", "EQUAL"}:
        return None
    named = re.match(r"\(\s*([A-Za-z_][A-Za-z0-9_]*'*)\s*(:)", trouble.text[trouble.unclosed :])
    if named is None:
        return None
    span = Span(trouble.unclosed + named.start(2), trouble.unclosed + named.end(2))
    return Diagnostic("E001", f"the value of {named[1]} stands behind =", span, help=f"write {named[1]} = ...", edit=Edit(span, " ="))


def _assignment(trouble: Trouble) -> Diagnostic | None:
    if trouble.found == "=" and "EQUAL" not in trouble.expected:
        help = (
            "to compare, write ==" if trouble.unclosed is not None else "to name a value, write let NAME = ... above; to compare, write =="
        )
        return Diagnostic("E001", "= gives a name to a value and cannot stand here", trouble.span, help=help)
    return None


def _reserved(trouble: Trouble) -> Diagnostic | None:
    if trouble.found in RESERVED and "NAME" in trouble.expected and "ARGUMENT" not in trouble.expected and "LPAR" not in trouble.expected:
        return Diagnostic(
            "E004",
            f"{trouble.found} is a reserved word and cannot be a name",
            trouble.span,
            help=f"choose another name, such as {trouble.found}_",
        )
    return None


def _fitting(trouble: Trouble) -> list[str]:
    """The keywords that could stand here."""
    fits = [k for k in KEYWORDS if k.upper() in trouble.expected or (k == "over" and "__ANON_0" in trouble.expected)]
    return fits + (["recipe", "attack", "game", "law"] if "KIND" in trouble.expected else [])


_INCOMPLETE = (
    (r"\bfind\s+(\w+'*)\s*$", "IN", "{0} has no interval to be looked for in", "write find {0} in [0, 1] where EXPR == 0"),
    (r"\blower\s+(\w+'*)\s*$", "IN", "{0} has no set to lie in", "write lower {0} in linf(x, eps)"),
    (r"\bstate\s+(\w+'*)\s*$", "EQUAL", "{0} has no first value", "write state {0} = 0 then EXPR"),
    (r"\bmemory\s+(\w+'*)\s*$", "EQUAL", "{0} has no first value", "write memory {0} = 0 then EXPR"),
)
"""Statements that stop before their second part: the words so far, what the grammar waits for, message and help."""


def _incomplete(trouble: Trouble) -> Diagnostic | None:
    """A keyword follows where a statement has yet to say its set, its interval or its first value."""
    if trouble.found not in KEYWORDS:
        return None
    for words, wanted, message, help in _INCOMPLETE:
        named = re.search(words, _before(trouble))
        if named and wanted in trouble.expected:
            return Diagnostic("E001", message.format(named[1]), trouble.span, help=help.format(named[1]))
    return None


def _missing_word(trouble: Trouble) -> Diagnostic | None:
    """Where one keyword alone can go on: it is missing, unless the word there looks like it."""
    fits = _fitting(trouble)
    if len(fits) != 1 or not trouble.found or trouble.expected & (_OPERATORS - {"LSQB"} | {"NAME", "COMMA"}):
        return None
    if SequenceMatcher(None, trouble.found.lower(), fits[0]).ratio() >= 0.75 or fits[0].startswith(trouble.found):
        return None
    at = Span(trouble.span.start, trouble.span.start)
    help = f"write {fits[0]} {trouble.found}"
    return Diagnostic("E001", f"{fits[0]} is missing before {trouble.found}", trouble.span, help=help, edit=Edit(at, fits[0] + " "))


def _misspelt(trouble: Trouble) -> Diagnostic | None:
    """A word where only a keyword can stand."""
    if not trouble.found[:1].isalpha() or trouble.found in KEYWORDS or "NAME" in trouble.expected:
        return None
    fits = _fitting(trouble)
    longer = [k for k in fits if len(trouble.found) >= 3 and k.startswith(trouble.found.lower())]
    best = longer[0] if len(longer) == 1 else suggest(trouble.found, fits)
    if best is None:
        return None
    return Diagnostic(
        "E001", f"{trouble.found} cannot stand here", trouble.span, help=f"did you mean {best}?", edit=Edit(trouble.span, best)
    )


def _no_header(trouble: Trouble) -> Diagnostic | None:
    """Statements before any `recipe`, `attack` or `game`; the same finding for each of them, so that it is shown once."""
    if "KIND" in trouble.expected and "PARAM" not in trouble.expected and trouble.found in KEYWORDS:
        return Diagnostic("E001", "the file has statements and no recipe", Span(0, 1), help="begin it with: recipe NAME")
    return None


def _side_by_side(trouble: Trouble) -> Diagnostic | None:
    """Two values with nothing between them, or a line that starts with no keyword."""
    if not re.match(r"[A-Za-z_0-9(]", trouble.found) or trouble.found in KEYWORDS or not trouble.expected & {"TIMES", "LOWER", "BY"}:
        return None
    before, after = _before(trouble), _after(trouble)
    at = Span(len(before), len(before))
    if trouble.unclosed is None and "\n" in trouble.text[len(before) : trouble.span.start]:
        help = "statements start with param, let, def, sample, lower, upper, train, ...; clauses with maximize, minimize, by, with, through"
        return Diagnostic("E001", f"{trouble.found} starts no statement and no clause", trouble.span, help=help)
    if after.startswith("=") and not after.startswith("==") and "COMMA" in trouble.expected:
        return Diagnostic(
            "E001", f"a comma is missing before {trouble.found}", trouble.span, help=f"write , {trouble.found} = ...", edit=Edit(at, ",")
        )
    if "TIMES" not in trouble.expected:
        return None
    left = re.search(r"[A-Za-z_0-9.]+'*$|[)\]}]$", before)
    shown = f"{left[0] if left else ''} * {trouble.found}".strip()
    return Diagnostic("E001", f"an operator is missing before {trouble.found}", trouble.span, help=f"for a product write {shown}")


RULES: tuple[Callable[[Trouble], Diagnostic | None], ...] = (
    _too_deep, _trailing_comma, _unclosed, _wrong_bracket, _string, _strange_character, _double_star, _double_slash, _glued_number,
    _point, _range_end, _colon, _assignment, _no_header, _incomplete, _missing_word, _reserved, _misspelt, _extra_bracket, _side_by_side,
)  # fmt: skip
