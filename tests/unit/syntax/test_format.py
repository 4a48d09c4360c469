"""The canonical layout: what it looks like, that it changes no meaning and loses no comment."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from lossdsl.assets import attack_paths, recipe_paths
from lossdsl.diagnostics import RecipeError
from lossdsl.source import Source
from lossdsl.syntax import tree as t
from lossdsl.syntax.format import format_expr, format_text, format_tree
from lossdsl.syntax.layout import WIDTH
from lossdsl.syntax.parse import Parsed, parse, tokens
from tests.unit.syntax.strategies import expressions, spaced, trees

CORPUS = sorted((Path(__file__).parents[2] / "golden" / "identity").glob("*.loss"))
SHIPPED = [*recipe_paths().values(), *attack_paths().values()]
quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def clean(text: str) -> Parsed:
    parsed = parse(Source(text))
    assert parsed.diagnostics == (), text
    return parsed


def remarks(text: str) -> list[str]:
    return [comment.text for comment in clean(text).file.comments]


def expression(text: str) -> t.Expr:
    (item,) = clean(f"recipe r let v = {text}").file.declarations[0].items
    assert isinstance(item, t.Let)
    return item.value


def without_empty_lines(text: str) -> str:
    return re.sub(r"\n+", "\n", text)


def home_of_comments(text: str) -> list[tuple[int, str]]:
    """Every comment with the number of statements that begin before it; one at a line's end belongs to what stands before it."""
    file = clean(text).file
    starts = sorted(item.span.start for d in file.declarations for item in d.items)
    return [(sum(start < c.span.start for start in starts), c.text) for c in file.comments]


# --- a corpus ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*CORPUS, *SHIPPED], ids=lambda p: p.stem)
def test_a_canonical_file_stays_as_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert format_text(text, path.name) == text
    assert all(len(line) <= WIDTH for line in text.splitlines() if "#" not in line)


@pytest.mark.parametrize("path", CORPUS, ids=lambda p: p.stem)
def test_spaces_and_line_ends_have_no_meaning(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if "#" not in text:
        loose = " ".join(str(token) for token in tokens(text))
        assert without_empty_lines(format_text(loose)) == without_empty_lines(text)
    windows = text.replace("\n", "\r\n")
    assert format_text(windows) == text
    assert format_text(re.sub(r"(?m)^ +", "\t", text)) == text


def test_the_corpus_is_there() -> None:
    assert len(CORPUS) >= 12


# --- what it looks like ------------------------------------------------------------------------------------------

LAYOUTS = {
    "header": ('recipe a extends b title "T" source "S"', 'recipe a extends b\n  title  "T"\n  source "S"\n'),
    "levels": (
        "recipe a lower x' in linf(x, eps) maximize CE(f(x'), y) by linear() through nothing with f in train "
        "upper at w minimize 1 with f in eval joint by sgd()",
        "recipe a\n\nlower x' in linf(x, eps)\n  maximize CE(f(x'), y)\n  by linear\n  through nothing\n  with f in train\n\n"
        "upper at w\n  minimize 1\n  with f in eval joint\n  by sgd\n",
    ),
    "lists stay together": (
        "recipe a param a=1,b=2 param c=3 let d=1,e=2 with f in eval",
        "recipe a\n\nparam a = 1, b = 2\nparam c = 3\nlet d = 1, e = 2 with f in eval\n",
    ),
    "list after a comma in a comment": (
        "recipe a\nparam a = 1 # not, one list,\nparam c = 3",
        "recipe a\n\nparam a = 1  # not, one list,\nparam c = 3\n",
    ),
    "empty lines": (
        "recipe a\n\n\nparam a = 1\n\n\n\nparam b = 2\nparam c = 3\nlet d = 4",
        "recipe a\n\nparam a = 1\n\nparam b = 2\nparam c = 3\nlet d = 4\n",
    ),
    "stages": (
        "recipe a param t = 0 then 1 from epoch 51 then 2 from epoch 91 in 0 .. 9, u = 1 in [0,1]",
        "recipe a\n\nparam t = 0 then 1 from epoch 51 then 2 from epoch 91 in 0..9, u = 1 in [0, 1]\n",
    ),
    "statements": (
        'def g()=1 use "b.loss" generator psi(q)=q attack a input x in reals model g frozen remove b sample a,b~normal(1)over x '
        "state n=0 then n+1,m=0 then m with f in eval memory r=0 then 1 log e=1 find t in [0,1] where t==0 by bisection() "
        "train a=1,b=[2,3] count worst",
        'def g() = 1\n\nuse "b.loss"\n\ngenerator psi(q) = q\n\nattack a\n\ninput x in reals\nmodel g frozen\nremove b\n'
        "sample a, b ~ normal(1) over x\n\nstate n = 0 then n + 1, m = 0 then m with f in eval\nmemory r = 0 then 1\n\nlog e = 1\n\n"
        "find t in [0, 1]\n  where t == 0\n  by bisection\n\n"
        "train a = 1, b = [2, 3]\n\ncount worst\n",
    ),
    "two optimizers": (
        "recipe a upper minimize 1 by sgd(lr=1) by adam(lr=2) for h",
        "recipe a\n\nupper\n  minimize 1\n  by sgd(lr = 1)\n  by adam(lr = 2) for h\n",
    ),
    "run": ("attack a run b:x'[j!=y] in s by fab(steps=1)", "attack a\n\nrun b : x'[j != y] in s\n  by fab(steps = 1)\n"),
    "loose expressions in tight places": (
        "recipe a sample b~(c+d) over (-e) lower w in (s+r) by (g()()) through (h and k) with f in eval lower w in [0,1] by (a*b)()",
        "recipe a\n\nsample b ~ (c + d) over (-e)\n\nlower w in (s + r)\n  by g()()\n  through (h and k)\n  with f in eval\n\n"
        "lower w in [0, 1]\n  by (a * b)\n",
    ),
    "clause words as names of arguments": (
        "recipe a lower w in s by pgd(by=1,with=[2],maximize=3) maximize f(through=x)",
        "recipe a\n\nlower w in s\n  by pgd(by = 1, with = [2], maximize = 3)\n  maximize f(through = x)\n",
    ),
    "nothing": ("", ""),
    "only comments": ("\n\n # a\n\n\n# b", "# a\n\n# b\n"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name: str) -> None:
    written, canonical = LAYOUTS[name]
    assert format_text(written) == canonical
    assert format_text(canonical) == canonical


COMMENTS = {
    "before and behind": ("recipe a # r\n# p\nparam b = 1 # q\n# end", "recipe a  # r\n\n# p\nparam b = 1  # q\n# end\n"),
    "in a list": (
        "recipe a\nparam b = 1 # b\n , # c\n c = 2, # d\n d = 3",
        "recipe a\n\nparam b = 1,  # b\n    # c\n    c = 2,  # d\n    d = 3\n",
    ),
    "behind an operator": ("recipe a upper minimize b + # clean\n c * d", "recipe a\n\nupper\n  minimize b  # clean\n      + c * d\n"),
    "between clauses": (
        "recipe a lower z in s # set\n # why\n maximize b # o\n by pgd",
        "recipe a\n\nlower z in s  # set\n  # why\n  maximize b  # o\n  by pgd\n",
    ),
    "before a dropped bracket": ("recipe a\nlet b = (c\n# in\n)\nlet d = 1", "recipe a\n\nlet b =\n    # in\n    c\nlet d = 1\n"),
    "behind a dropped bracket": ("recipe a\nlet b = (c # in\n)\nlet d = 1", "recipe a\n\nlet b = c  # in\nlet d = 1\n"),
    "before a closing bracket": ("recipe a\nlet b = g(c # in\n)\nlet d = 1", "recipe a\n\nlet b = g(c)  # in\nlet d = 1\n"),
    "alone before a closing bracket": ("recipe a\nlet b = g(c\n# in\n)", "recipe a\n\nlet b = g(c\n    # in\n    )\n"),
    "apart": (
        "recipe a\n# one\n\n# two\n\nlet b = 1\n# three\n\nupper minimize 1",
        "recipe a\n# one\n\n# two\n\nlet b = 1\n# three\n\nupper\n  minimize 1\n",
    ),
    "in the header": ('recipe a\n\n# t\n\ntitle "T"', 'recipe a\n  # t\n  title  "T"\n'),
    "quotes and hashes": ('recipe a title "# no comment" # "yes', 'recipe a\n  title  "# no comment"  # "yes\n'),
}


@pytest.mark.parametrize("name", COMMENTS)
def test_comments(name: str) -> None:
    written, canonical = COMMENTS[name]
    assert format_text(written) == canonical
    assert format_text(canonical) == canonical


WRAPPED = {
    "at the loosest operator": (
        "upper minimize " + " + ".join(["alpha * KL(p(x) || p(x'))"] * 4) + " - beta",
        "upper\n  minimize alpha * KL(p(x) || p(x')) + alpha * KL(p(x) || p(x')) + alpha * KL(p(x) || p(x'))\n"
        "      + alpha * KL(p(x) || p(x')) - beta\n",
    ),
    "at or before and": (
        "let c = " + " or ".join(["first_long_name > second_long_name and third_long_name"] * 3),
        "let c = first_long_name > second_long_name and third_long_name\n"
        + "\n".join(["    or first_long_name > second_long_name and third_long_name"] * 2) + "\n",
    ),
    "behind commas": (
        "train " + ", ".join(f"option_number_{i} = {i}" for i in range(6)),
        "train option_number_0 = 0, option_number_1 = 1, option_number_2 = 2, option_number_3 = 3,\n"
        "    option_number_4 = 4, option_number_5 = 5\n",
    ),
    "deeper in the long part only": (
        "let v = short + function(" + ", ".join(f"a_rather_long_argument_{i}" for i in range(5)) + ") + short",
        "let v = short\n    + function(a_rather_long_argument_0, a_rather_long_argument_1, a_rather_long_argument_2,\n"
        "      a_rather_long_argument_3, a_rather_long_argument_4)\n    + short\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPED)
def test_long_lines_wrap(name: str) -> None:
    written, canonical = WRAPPED[name]
    assert format_text("recipe a " + written) == "recipe a\n\n" + canonical
    assert format_text("recipe a\n\n" + canonical) == "recipe a\n\n" + canonical


def test_a_line_of_exactly_the_width_is_not_wrapped() -> None:
    sum_ = "let v = " + "a" * (WIDTH - 14) + " + bbb"
    assert len(sum_) == WIDTH
    assert format_text("recipe r " + sum_) == f"recipe r\n\n{sum_}\n"
    assert format_text("recipe r " + sum_ + "b").count("\n") == 4


# --- expressions -------------------------------------------------------------------------------------------------

EXPRESSIONS = {
    "-(x^2)": "-x^2",
    "(-x)^2": "(-x)^2",
    "a^(b^c)": "a^b^c",
    "(a^b)^c": "(a^b)^c",
    "2^(-x)": "2^-x",
    "-(-x)": "--x",
    "-(a*b)": "-(a * b)",
    "(-a)*b": "-a * b",
    "a-(b-c)": "a - (b - c)",
    "(a-b)-c": "a - b - c",
    "a/(b/c)": "a/(b/c)",
    "a*(b/c)": "a * (b/c)",
    "(a*b)/c": "a * b/c",
    "a+(b*c)": "a + b * c",
    "(a+b)*c": "(a + b) * c",
    "not (a<b)": "not a < b",
    "(not a)<b": "(not a) < b",
    "not (a and b)": "not (a and b)",
    "(not a) and b": "not a and b",
    "a and (b or c)": "a and (b or c)",
    "(a and b) or c": "a and b or c",
    "a or (b or c)": "a or (b or c)",
    "a<b<=c": "a < b <= c",
    "(a<b)<c": "(a < b) < c",
    "a<(b<c)": "a < (b < c)",
    "1[a>=b]": "1[a >= b]",
    "(f)(x)": "f(x)",
    "(a+b)[j]": "(a + b)[j]",
    "f{w}(x)": "f{w}(x)",
    "p[g](v)": "p[g](v)",
    "x'[j]@k": "x'[j]@k",
    "x'@k[j]": "x'@k[j]",
    "x'@(n-1)": "x'@(n-1)",
    "x'@(3)": "x'@3",
    "-(x')[j]": "-x'[j]",
    "max(j != (a<b): z)": "max(j != (a < b): z)",
    "max(j in (a<b): z)": "max(j in a < b: z)",
    "KL((p) || (q))": "KL(p || q)",
    "D[psi](p||q)": "D[psi](p || q)",
    "sum(k in 0..m-1: k)": "sum(k in 0..m-1: k)",
    "sum(k in 0..(m-1)*2: k)": "sum(k in 0..(m-1)*2: k)",
    "max( j!=y :z[j] )": "max(j != y: z[j])",
    "grad(v=x+eta:CE(f(v),y))": "grad(v = x + eta: CE(f(v), y))",
    "top(9,i!=y:f(x)[i])": "top(9, i != y: f(x)[i])",
    "g(a where b,c=[1,2],d=1..9)": "g(a where b, c = [1, 2], d = 1..9)",
    "g((a, b))": None,
    "g()": "g()",
    "(a)": "a",
    "1.50": "1.50",
    "5E-04": "5E-04",
    "lambda/2 * norm(x' - z, 2)^2": "lambda/2 * norm(x' - z, 2)^2",
    "s1/n+2*sqrt(s2/n-(s1/n)^2)": "s1/n + 2 * sqrt(s2/n - (s1/n)^2)",
}


@pytest.mark.parametrize("text", [text for text, canonical in EXPRESSIONS.items() if canonical])
def test_expressions_keep_only_needed_parentheses(text: str) -> None:
    assert format_expr(expression(text)) == EXPRESSIONS[text]
    assert expression(EXPRESSIONS[text] or "") == expression(text)


@quick
@given(trees)
def test_every_tree_survives_its_text(tree: t.Expr) -> None:
    assert expression(format_expr(tree)) == tree


@quick
@given(trees)
def test_no_pair_of_parentheses_can_go(tree: t.Expr) -> None:
    text = format_expr(tree)
    pairs = [m.start() for m in re.finditer(r"\(", text) if m.start() == 0 or not re.match(r"[\w'\])}]", text[m.start() - 1])]
    for start in pairs:
        end = _closing(text, start)
        parsed = parse(Source(f"recipe r let v = {text[:start]} {text[start + 1 : end]} {text[end + 1 :]}"))
        assert parsed.diagnostics or parsed.file.declarations[0].items != (t.Let("v", tree),)


def _closing(text: str, start: int) -> int:
    depth = 0
    for offset in range(start, len(text)):
        depth += (text[offset] == "(") - (text[offset] == ")")
        if depth == 0:
            return offset
    raise AssertionError(text)


# --- any text ----------------------------------------------------------------------------------------------------


def check_layout(text: str) -> str:
    out = format_text(text)
    before, after = clean(text), clean(out)
    assert after.file == before.file
    assert [c.text for c in after.file.comments] == [c.text for c in before.file.comments]
    assert format_text(out) == out
    assert not re.search(r"[ \t]$|\n\n\n|\A\n", out, re.MULTILINE)
    return out


@quick
@given(spaced())
def test_any_file_keeps_its_tree_and_its_comments(text: str) -> None:
    out = check_layout(text)
    assert home_of_comments(out) == home_of_comments(text)


def headings_first(items: tuple[t.Item, ...]) -> tuple[t.Item, ...]:
    headings = tuple(i for i in items if isinstance(i, t.Keyword) and i.keyword in ("title", "source"))
    return headings + tuple(i for i in items if not any(i is h for h in headings))


@quick
@given(spaced(comments=False))
def test_any_tree_has_a_text(text: str) -> None:
    file = t.relocated(clean(text).file, "elsewhere")
    out = format_tree(file)
    assert clean(out).file == replace(file, declarations=tuple(replace(d, items=headings_first(d.items)) for d in file.declarations))
    assert format_tree(clean(out).file) == out == format_text(out)


def test_a_tree_without_a_text_gets_the_usual_order() -> None:
    file = clean(
        "recipe a param b = 1 param c = 2 let d = 1, e = 2 lower w in s through nothing with f in train by pgd maximize x "
        'upper minimize 1 with f in eval by sgd by adam for h title "T"'
    ).file
    assert format_tree(file) == (
        'recipe a\n  title  "T"\n\nparam b = 1, c = 2\nlet d = 1\nlet e = 2\n\nlower w in s\n  maximize x\n  by pgd\n'
        "  with f in train\n  through nothing\n\n"
        "upper\n  minimize 1\n  by sgd\n  by adam for h\n  with f in eval\n"
    )


@quick
@given(spaced(comments=False))
def test_the_layout_does_not_depend_on_line_ends(text: str) -> None:
    loose = " ".join(str(token) for token in tokens(text))
    assert without_empty_lines(format_text(text)) == without_empty_lines(format_text(loose))


@quick
@given(spaced(expressions, comments=False))
def test_lines_are_short_where_they_can_break(text: str) -> None:
    lines = format_text("recipe r\nupper minimize " + text).splitlines()
    assert all(len(line) <= WIDTH or not re.search(r", | (and|or|[-+*<>]|[=!<>]=|\|\||where) ", line.strip()) for line in lines)


def test_a_file_with_syntax_errors_is_refused_with_all_of_them() -> None:
    with pytest.raises(RecipeError) as caught:
        format_text("recipe a\nlet 1 = 1\nlet b = )\nlet c = 1", "a.loss")
    assert len(caught.value.diagnostics) == 2
    assert caught.value.source.name == "a.loss"


def test_long_chains_and_lists_do_not_exhaust_the_stack() -> None:
    check_layout("recipe r let v = " + " + ".join(["a"] * 100) + f" let w = g({', '.join(['a'] * 400)})")
