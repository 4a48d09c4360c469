"""What is shipped, a row for each file: `lossdsl list` and docs/methods.md.

The first comment of a file names the methods that it is ("# T6: ...", "# T6, T7: ...", of an attack "# E2: ..."); comments say how
open choices are settled ("A7: lambda = 6 is the released default").
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lossdsl.front import Recipe

_METHODS = re.compile(r"(?:method:\s*)?([TE][0-9]+(?:,\s*[TE][0-9]+)*)\b")
_CHOICE = re.compile(r"\bA([0-9]+)\b")
_MARK = re.compile(r"\s*\(A[0-9]+\)")
_NEXT = re.compile(r"[;,.]?\s+A[0-9]+:")
_LABEL = re.compile(r"^(?:[TEA][0-9]+(?:,\s*)?)+:\s*")
_SENTENCE = re.compile(r"(?<=\.)\s+(?=[A-Z])")


def describe(recipe: Recipe, path: Path) -> dict[str, Any]:
    """One file: name, kind, title, source, its methods (["T6"]; none for what the papers only name), lines of code, the open choices
    that its comments settle (["A7", "A12"]), params, and the file."""
    text = recipe.source.text
    return {
        "name": recipe.name, "kind": recipe.kind, "title": recipe.title, "source": recipe.source_note, "method": methods(text),
        "lines": code_lines(text), "choices": list(choices(text)), "params": recipe.params, "file": str(path),
    }  # fmt: skip


def methods(text: str) -> list[str]:
    """The numbers at the start of the first comment."""
    found = _METHODS.match(comments(text))
    return re.findall(r"[TE][0-9]+", found[1]) if found else []


def code_lines(text: str) -> int:
    """Lines that are neither empty nor comments."""
    lines = [line.strip() for line in text.splitlines()]
    return sum(bool(line) and not line.startswith("#") for line in lines)


def comments(text: str) -> str:
    """The lines of comments as one text."""
    lines = [line.strip() for line in text.splitlines()]
    return " ".join(line.lstrip("#").strip() for line in lines if line.startswith("#"))


def choices(text: str) -> dict[str, str]:
    """What the comments say of every open choice (A1 to A20), by number: what follows "A7:", or else the sentence that names A7."""
    defined: dict[int, str] = {}
    named: dict[int, str] = {}
    for sentence in _SENTENCE.split(comments(text)):
        for match in _CHOICE.finditer(sentence):
            after = sentence[match.end() :]
            if after.startswith(":"):
                defined.setdefault(int(match[1]), _tidy(_NEXT.split(after[1:])[0]))
            else:
                named.setdefault(int(match[1]), _tidy(_LABEL.sub("", sentence)))
    found = named | defined
    return {f"A{number}": found[number] for number in sorted(found)}


def _tidy(said: str) -> str:
    """Without the mark of the choice itself, and without a closing parenthesis whose opening one was left behind."""
    said = _MARK.sub("", said).strip(" .;")
    return said.removesuffix(")") if said.count(")") > said.count("(") else said
