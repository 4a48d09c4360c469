"""Syntax errors explained: from where the parser stopped to what the writer probably meant."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lossdsl.diagnostics import Diagnostic, Edit, Related, suggest
from lossdsl.source import Source, Span

KEYWORDS = (
    "recipe", "attack", "generator", "use", "extends", "param", "let", "def", "sample", "lower", "find", "state", "memory", "upper", "train",
    "input", "model", "remove", "maximize", "minimize", "by", "with", "in", "through", "over", "then", "from", "at", "for", "where",
    "and", "or", "not", "title", "source", "log", "run", "count",
)  # fmt: skip
RESERVED = KEYWORDS[:33]

CHARACTERS = {
    ";": "statements need no separator: start the next one with its keyword",
    "%": "there is no % operator; write a fraction",
    "&": "write and",
    "!": "write not, or != to compare",
    "$": "this is text, not LaTeX",
    "\\": "this is text, not LaTeX; names are plain, such as lambda or theta",
    "'": "a prime belongs to the name before it, without a space: x'",
    '"': "a string ends on its own line with a second quote",
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

_DIGITS_AND_MORE = re.compile(r"[0-9]+(?:\.[0-9]+)?(?:[A-Za-z_]|\.[0-9])[A-Za-z0-9_.]*")

_FRIENDLY = {
    "NAME": "a name", "NUMBER": "a number", "STRING": 'a "string"', "LPAR": "(", "RPAR": ")", "LSQB": "[", "RSQB": "]", "LBRACE": "{",
    "RBRACE": "}", "COMMA": ",", "EQUAL": "=", "COLON": ":", "TILDE": "~", "ARGUMENT": "name = value", "__ANON_0": "||", "$END": "the end of the file",
    "PLUS": "+", "MINUS": "-", "TIMES": "*", "OVER": "/", "POWER": "^", "AT": "@", "KIND": "recipe or attack", "JOINT": "joint", "FROZEN": "frozen",
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
    for rule in (_too_deep, _not_yet, _unclosed, _strange_character, _double_star, _glued_number, _leading_dot, _assignment, _reserved, _misspelt, _extra_bracket):
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
    if len(names) > 8:
        values = {"a name", "a number", "("} <= set(names)
        return "a value is expected here" if values else "an operator, a clause or the next statement is expected here"
    return "expected " + (names[0] if len(names) == 1 else ", ".join(names[:-1]) + " or " + names[-1])


def _too_deep(trouble: Trouble) -> Diagnostic | None:
    if trouble.too_deep:
        return Diagnostic("E005", "expressions are nested too deeply", trouble.span, help="name the inner parts with let")
    return None


def _not_yet(trouble: Trouble) -> Diagnostic | None:
    if trouble.found in ("law", "game") and trouble.unclosed is None:
        return Diagnostic("E900", f"{trouble.found} declarations are not supported yet", trouble.span, help="recipe and attack are; see docs/language.md")
    return None


def _unclosed(trouble: Trouble) -> Diagnostic | None:
    """A statement keyword or the end of the file inside brackets: the bracket was forgotten."""
    if trouble.unclosed is None or (trouble.found and trouble.found not in KEYWORDS):
        return None
    bracket = trouble.text[trouble.unclosed]
    closing = {"(": ")", "[": "]", "{": "}"}[bracket]
    end = len(trouble.text[: trouble.span.start].rstrip())
    where = f"before {trouble.found}" if trouble.found else "before the end of the file"
    return Diagnostic(
        "E002", f"missing {closing} {where}", Span(max(0, end - 1), end), label=f"{closing} is missing after this",
        help=f"write {closing} here, or where it belongs", related=(Related(Span(trouble.unclosed, trouble.unclosed + 1), "the bracket opened here is never closed"),),
        edit=Edit(Span(end, end), closing),
    )  # fmt: skip


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


def _glued_number(trouble: Trouble) -> Diagnostic | None:
    """Digits that run into letters or into a second point: `2lambda`, `1.0.0`."""
    word = _DIGITS_AND_MORE.match(trouble.text, trouble.span.start)
    if word is None or len(trouble.found) != 1:
        return None
    span = Span(word.start(), word.end())
    help = "write a product with *, as in 2 * lambda; a name starts with a letter"
    return Diagnostic("E003", f"{word[0]} is neither a number nor a name", span, help=help)


def _leading_dot(trouble: Trouble) -> Diagnostic | None:
    if trouble.found != ".":
        return None
    help = "a number has digits on both sides of its point: 0.5, 1.0; a range is 1..9"
    return Diagnostic("E003", "a point cannot stand here", trouble.span, help=help)


def _assignment(trouble: Trouble) -> Diagnostic | None:
    if trouble.found == "=" and "EQUAL" not in trouble.expected:
        return Diagnostic("E001", "= gives a name to a value and cannot stand here", trouble.span, help="to compare, write ==")
    return None


def _reserved(trouble: Trouble) -> Diagnostic | None:
    if trouble.found in RESERVED and "NAME" in trouble.expected and "ARGUMENT" not in trouble.expected and "LPAR" not in trouble.expected:
        return Diagnostic("E004", f"{trouble.found} is a reserved word and cannot be a name", trouble.span, help="choose another name")
    return None


def _misspelt(trouble: Trouble) -> Diagnostic | None:
    """A word where only a keyword can stand."""
    if not trouble.found[:1].isalpha() or trouble.found in KEYWORDS or "NAME" in trouble.expected:
        return None
    fits = [k for k in KEYWORDS if k.upper() in trouble.expected]
    if {"recipe", "attack"} & set(KEYWORDS) and "KIND" in trouble.expected:
        fits += ["recipe", "attack"]
    best = suggest(trouble.found, [*fits, *(["maximize", "minimize"] if "MAXIMIZE" in trouble.expected else [])])
    if best is None:
        return None
    return Diagnostic("E001", f"{trouble.found} cannot stand here", trouble.span, help=f"did you mean {best}?", edit=Edit(trouble.span, best))


def _extra_bracket(trouble: Trouble) -> Diagnostic | None:
    if trouble.found in (")", "]", "}") and trouble.unclosed is None:
        return Diagnostic("E002", f"{trouble.found} closes nothing", trouble.span, help="remove it, or open a bracket before")
    return None
