"""Findings as text and as JSON."""

from __future__ import annotations

import json
import unicodedata
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossdsl.diagnostics import Diagnostic, Edit, RecipeError, Related
from lossdsl.render import render_json, render_summary, render_text
from lossdsl.source import Source, Span

TEXT = """\
recipe mine
  title "M"

param lambda = 6

lower x' in linf(x, eps)


# ten lines

  maximize KL(f(x) || p(x'))
  by pgd(steps = 10)
"""
SOURCE = Source(TEXT, "my_recipe.loss", (Source("# base\nparam eps = 1\n", "base.loss"),))


def at(piece: str, text: str = TEXT) -> Span:
    start = text.index(piece)
    return Span(start, start + len(piece))


def logits(**more: object) -> Diagnostic:
    return Diagnostic(
        "E012", "KL compares probabilities, and f(x) is logits", at("f(x)"), **{"label": "Logits", "help": "write p(x)", **more}
    )  # type: ignore[arg-type]


def shown(text: str) -> str:
    return dedent(text).strip("\n")


def test_the_layout_of_the_language_page() -> None:
    expected = """
        error[E012]: KL compares probabilities, and f(x) is logits
          --> my_recipe.loss:11:15
           |
        11 |   maximize KL(f(x) || p(x'))
           |               ^^^^ Logits
           = help: write p(x)
    """
    assert render_text(SOURCE, logits()) == shown(expected)


def test_an_edit_is_shown_as_the_corrected_line() -> None:
    expected = """
        warning[E012]: KL compares probabilities, and f(x) is logits
          --> my_recipe.loss:11:15
           |
        11 |   maximize KL(f(x) || p(x'))
           |               ^^^^
           = help: change it to
           |
        11 |   maximize KL(p(x) || p(x'))
           |               ~~~~
    """
    found = logits(label="", help="", edit=Edit(at("f(x)"), "p(x)"), severity="warning")
    assert render_text(SOURCE, found) == shown(expected)


@pytest.mark.parametrize(
    ("edit", "last_rows"),
    [
        (Edit(Span(at(" = 6").start, at(" = 6").start), "_1"), ["4 | param lambda_1 = 6", "  |             ++"]),
        (Edit(at("lambda "), ""), ["4 | param = 6"]),
        (Edit(at(" = 6"), " = 6\nparam b = 2"), ["4 | param lambda = 6", "5 | param b = 2"]),
        (Edit(at('"M"\n\nparam'), '"N" param'), ['2 |   title "N" param lambda = 6', "  |         ~~~~~~~~~"]),
    ],
    ids=["insertion", "deletion", "two lines", "joined lines"],
)  # fmt: skip
def test_edits_of_every_shape(edit: Edit, last_rows: list[str]) -> None:
    rows = render_text(SOURCE, Diagnostic("E001", "m", at("lambda"), edit=edit)).splitlines()
    assert rows[-len(last_rows) - 1 :] == ["  |", *last_rows]


def test_related_places_have_excerpts_of_their_own() -> None:
    expected = """
        error[E012]: KL compares probabilities, and f(x) is logits
          --> my_recipe.loss:11:15
           |
         6 | lower x' in linf(x, eps)
           |       -- x' is introduced here
        ...
        11 |   maximize KL(f(x) || p(x'))
           |               ^^^^ Logits
           |                         -- and used here
        12 |   by pgd(steps = 10)
           |      --- solved here
          ::: base.loss:2:7
           |
         2 | param eps = 1
           |       --- of the base
          ::: gone.loss
           = of a file that is gone
           = help: write p(x)
    """
    end = TEXT.rindex("x'")
    related = (
        Related(at("x'"), "x' is introduced here"), Related(Span(end, end + 2), "and used here"), Related(at("pgd"), "solved here"),
        Related(Span(13, 16, "base.loss"), "of the base"), Related(Span(3, 4, "gone.loss"), "of a file that is gone"),
    )  # fmt: skip
    assert render_text(SOURCE, logits(related=related)) == shown(expected)


def test_a_finding_in_another_file() -> None:
    expected = """
        error[E030]: m
         --> base.loss:2:7
          |
        2 | param eps = 1
          |       ^^^
    """
    assert render_text(SOURCE, Diagnostic("E030", "m", Span(13, 16, "base.loss"))) == shown(expected)
    assert render_text(SOURCE, Diagnostic("E030", "m", Span(13, 16, "adam(lr = 1)"))) == "error[E030]: m\n --> adam(lr = 1)"


def test_a_span_over_many_lines_shows_its_first_and_last() -> None:
    expected = """
        error[E001]: m
          --> my_recipe.loss:6:7
           |
         6 | lower x' in linf(x, eps)
           |       ^^^^^^^^^^^^^^^^^^
        ...
        12 |   by pgd(steps = 10)
           |   ^^^^^^ label
    """
    span = Span(at("x'").start, at("pgd").end)
    assert render_text(SOURCE, Diagnostic("E001", "m", span, "label")) == shown(expected)


@pytest.mark.parametrize(
    ("text", "span", "rows"),
    [
        ("", Span(0, 0), ["1 |", "  | ^ here"]),
        ("a = 1", Span(5, 5), ["1 | a = 1", "  |      ^ here"]),
        ("a = 1\n", Span(6, 6), ["2 |", "  | ^ here"]),
        ("a = 1\n", Span(4, 6), ["1 | a = 1", "  |     ^ here"]),
        ("a = 1\n", Span(99, 120), ["2 |", "  | ^ here"]),
        ("a = 1\r\nb = 2\r\n", Span(7, 8), ["2 | b = 2", "  | ^ here"]),
        ("a = 1\r\nb = 2\r\n", Span(4, 8), ["1 | a = 1", "  |     ^", "2 | b = 2", "  | ^ here"]),
        ("\ta\t= 1", Span(3, 4), ["1 |     a    = 1", "  |          ^ here"]),
        ("\ta", Span(0, 2), ["1 |     a", "  | ^^^^^ here"]),
        ("漢字 = x", Span(3, 4), ["1 | 漢字 = x", "  |      ^ here"]),
        ("a = 漢字 + b", Span(4, 6), ["1 | a = 漢字 + b", "  |     ^^^^ here"]),
        ("e\u0301\u0301 = b", Span(6, 7), ["1 | e\u0301\u0301 = b", "  |     ^ here"]),
        ("a \x1b[2J b", Span(7, 8), ["1 | a \ufffd[2J b", "  |        ^ here"]),
        ("a\u202eb c", Span(4, 5), ["1 | a\ufffdb c", "  |     ^ here"]),
        ("Ａ = b", Span(4, 5), ["1 | Ａ = b", "  |      ^ here"]),
        ("λ = ½", Span(4, 5), ["1 | λ = ½", "  |     ^ here"]),
    ],
    ids=str,
)
def test_the_underline_stays_under_its_text(text: str, span: Span, rows: list[str]) -> None:
    found = render_text(Source(text, "f"), Diagnostic("E003", "m", span, "here")).splitlines()
    assert found[3:] == rows


def test_control_characters_of_a_text_reach_no_terminal() -> None:
    found = Diagnostic("E003", "the character \x1b has no meaning", Span(0, 1), "\x07", "one\ntwo\x1b", (Related(Span(0, 1), "a\nb"),))
    text = render_text(Source("\x1b", "f\x1b"), found)
    assert all(unicodedata.category(c) != "Cc" for line in text.split("\n") for c in line)
    assert text.split("\n")[-2:] == ["  = help: one", "          two\ufffd"]


def test_colors_only_when_asked_and_only_colors() -> None:
    found = logits(related=(Related(at("x'"), "here"),), edit=Edit(at("f(x)"), "p(x)"))
    plain, colored = render_text(SOURCE, found), render_text(SOURCE, found, color=True)
    assert "\x1b" not in plain
    assert colored.startswith("\x1b[1;31merror[E012]\x1b[0m")
    parts = colored.split("\x1b[")
    assert len(parts) > 10
    assert "\n".join(line.rstrip() for line in (parts[0] + "".join(p.partition("m")[2] for p in parts[1:])).split("\n")) == plain
    assert render_text(SOURCE, logits(severity="warning"), color=True).startswith("\x1b[1;33mwarning")


def test_json_holds_everything_an_editor_needs() -> None:
    places = Related(at("x'"), "x' is introduced here"), Related(Span(13, 16, "base.loss"), "b"), Related(Span(1, 2, "gone"), "g")
    found = logits(related=places, edit=Edit(at("f(x)"), "p(x)"))
    start, end = at("f(x)").start, at("f(x)").end
    place = {
        "file": "my_recipe.loss",
        "start": {"line": 11, "column": 15, "offset": start},
        "end": {"line": 11, "column": 19, "offset": end},
    }
    (one, two) = json.loads(render_json(SOURCE, [found, Diagnostic("T01", "w", Span(0, 0), severity="warning")]))
    related = one.pop("related")
    assert one == {
        "code": "E012", "severity": "error", "message": "KL compares probabilities, and f(x) is logits", **place,
        "label": "Logits", "help": "write p(x)", "edit": {**place, "replacement": "p(x)"},
    }  # fmt: skip
    assert [r["message"] for r in related] == ["x' is introduced here", "b", "g"]
    assert related[0]["start"] == {"line": 6, "column": 7, "offset": at("x'").start}
    assert (related[1]["file"], related[1]["start"]) == ("base.loss", {"line": 2, "column": 7, "offset": 13})
    assert (related[2]["file"], related[2]["end"]) == ("gone", {"line": None, "column": None, "offset": 2})
    assert (two["severity"], two["edit"], two["related"]) == ("warning", None, [])
    assert json.loads(render_json(SOURCE, [])) == []


def test_the_edit_of_the_json_mends_the_text() -> None:
    (found,) = json.loads(render_json(SOURCE, [logits(edit=Edit(at("f(x)"), "p(x)"))]))
    edit = found["edit"]
    mended = TEXT[: edit["start"]["offset"]] + edit["replacement"] + TEXT[edit["end"]["offset"] :]
    assert mended == TEXT.replace("f(x)", "p(x)")


@pytest.mark.parametrize(
    ("errors", "warnings", "summary"),
    [(0, 0, "no errors"), (1, 0, "1 error"), (0, 1, "1 warning"), (2, 1, "2 errors, 1 warning"), (1, 3, "1 error, 3 warnings")],
)
def test_the_summary(errors: int, warnings: int, summary: str) -> None:
    found = [Diagnostic("E001", "m", Span(0, 0))] * errors + [Diagnostic("T01", "m", Span(0, 0), severity="warning")] * warnings
    assert render_summary(iter(found)) == summary


def test_an_exception_shows_its_findings() -> None:
    text = str(RecipeError(SOURCE, [logits(), logits(help="")]))
    assert text.count("error[E012]") == 2
    assert "--> my_recipe.loss:11:15" in text


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30), st.integers(0, 32), st.integers(0, 32), st.text(max_size=5), st.booleans())
def test_no_text_and_no_span_breaks_the_rendering(text: str, one: int, two: int, replacement: str, color: bool) -> None:
    source, span = Source(text, "f"), Span(min(one, two), max(one, two))
    found = Diagnostic("E001", text, span, text, text, (Related(span, text),), Edit(span, replacement))
    out = render_text(source, found, color)
    out.encode("utf-8")
    assert any(sign in line for line in out.split("\n") for sign in "^")
    json.loads(render_json(source, [found]))
