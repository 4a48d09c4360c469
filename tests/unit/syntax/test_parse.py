"""The parser: every construct of the language, the words that are reserved, and text that is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from lark import Lark

from lossdsl.assets import grammar_path
from lossdsl.source import Source
from lossdsl.syntax import tree as t
from lossdsl.syntax.mistakes import CHARACTERS, KEYWORDS, RESERVED
from lossdsl.syntax.parse import MAX_SYNTAX_ERRORS, Parsed, parse, parser, whole_word
from tests.unit.syntax.strategies import garbage, spaced

CORPUS = sorted((Path(__file__).parents[2] / "golden" / "identity").glob("*.loss"))
any_text = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def clean(text: str) -> t.File:
    parsed = parse(Source(text))
    assert parsed.diagnostics == (), text
    return parsed.file


def items(text: str) -> tuple[t.Item, ...]:
    return clean("recipe r " + text).declarations[0].items


def expr(text: str) -> t.Expr:
    (let,) = items("let v = " + text)
    assert isinstance(let, t.Let)
    return let.value


def n(name: str) -> t.Name:
    return t.Name(name)


def num(text: str) -> t.Number:
    return t.Number(text)


def call(func: str, *args: t.Expr) -> t.Call:
    return t.Call(n(func), tuple(t.Argument(a) for a in args))


# --- grammar and words -------------------------------------------------------------------------------------------


def test_the_grammar_has_no_conflict_and_no_two_terminals_that_fit_the_same_text() -> None:
    options = {"parser": "lalr", "lexer": "contextual", "maybe_placeholders": True, "edit_terminals": whole_word}
    Lark.open(str(grammar_path()), strict=True, **options)


def test_strict_finds_a_conflict_if_there_is_one() -> None:
    text = grammar_path().read_text(encoding="utf-8").replace("?atom: NUMBER -> number", "?atom: NUMBER -> number | postfix -> loop")
    with pytest.raises(Exception, match="conflict"):
        Lark(text, parser="lalr", lexer="contextual", strict=True, import_paths=[str(grammar_path().parent)])


def test_the_two_lists_of_reserved_words_agree() -> None:
    terminals = (grammar_path().parent / "terminals.lark").read_text(encoding="utf-8")
    found = re.search(r"^NAME: /\(\?!\(\?:([a-z|]+)\)", terminals, re.MULTILINE)
    assert found is not None
    assert set(found[1].split("|")) == set(RESERVED)


def test_every_keyword_of_the_grammar_is_known_to_the_messages() -> None:
    words = {terminal.pattern.value.split("(")[0] for terminal in parser().terminals if terminal.priority == 1}
    assert words - set(KEYWORDS) == {"eval", "untracked", "epoch", "frozen", "joint"}
    assert set(KEYWORDS) - words == {"recipe", "attack", "claim", "refute"}  # of one terminal: KIND, CLAIM


@pytest.mark.parametrize("word", RESERVED)
def test_a_reserved_word_is_no_name_but_may_name_an_argument(word: str) -> None:
    assert parse(Source(f"recipe r let {word} = 1")).diagnostics
    assert parse(Source(f"recipe r let v = 1 + {word}")).diagnostics
    assert expr(f"g({word} = 1)") == t.Call(n("g"), (t.Argument(num("1"), word),))
    assert expr(f"{word}' + {word}s + {word}_1") == t.Binary("+", t.Binary("+", n(word + "'"), n(word + "s")), n(word + "_1"))


@pytest.mark.parametrize(
    "word",
    [
        "log",
        "lambda",
        "step",
        "steps",
        "start",
        "K",
        "title",
        "source",
        "run",
        "count",
        "epoch",
        "frozen",
        "joint",
        "eval",
        "untracked",
        "worst",
        "x''",
        "_",
        "inf",
    ],
)
def test_an_ordinary_name(word: str) -> None:
    assert items(f"let {word} = {word}({word})[{word}]@{word}") == (t.Let(word, t.Iterate(t.Index(call(word, n(word)), n(word)), n(word))),)
    assert items(f"remove {word} param {word} = {word} log {word} = {word}")[1:] == (
        t.Param(word, n(word)),
        t.Let(word, n(word), recorded=True),
    )


@pytest.mark.parametrize(
    "text",
    ["recipe r upper minimizeCE(x)", "recipetrades", "recipe r params eps = 1", "recipe r let a = b andc", "recipe r let a = notb c"],
)
def test_a_keyword_is_a_whole_word(text: str) -> None:
    assert parse(Source(text)).diagnostics


# --- expressions -------------------------------------------------------------------------------------------------

x, y, z = n("x"), n("y"), n("z")
TREES: dict[str, t.Expr] = {
    "-x^2": t.Unary("-", t.Binary("^", x, num("2"))),
    "x^y^z": t.Binary("^", x, t.Binary("^", y, z)),
    "x^-y^z": t.Binary("^", x, t.Unary("-", t.Binary("^", y, z))),
    "-x*y": t.Binary("*", t.Unary("-", x), y),
    "x - y - z": t.Binary("-", t.Binary("-", x, y), z),
    "x / y * z": t.Binary("*", t.Binary("/", x, y), z),
    "x + y * z": t.Binary("+", x, t.Binary("*", y, z)),
    "x < y <= z": t.Compare((x, y, z), ("<", "<=")),
    "not x < y": t.Unary("not", t.Compare((x, y), ("<",))),
    "not x and y": t.Binary("and", t.Unary("not", x), y),
    "x or y and z": t.Binary("or", x, t.Binary("and", y, z)),
    "x + 1 > y": t.Compare((t.Binary("+", x, num("1")), y), (">",)),
    "x'@k[j]": t.Index(t.Iterate(n("x'"), n("k")), n("j")),
    "x'[j]@k": t.Iterate(t.Index(n("x'"), n("j")), n("k")),
    "x'@(n-1)": t.Iterate(n("x'"), t.Binary("-", n("n"), num("1"))),
    "f{w}(x)[y]^2": t.Binary("^", t.Index(t.Call(t.Index(n("f"), n("w"), "{"), (t.Argument(x),)), y), num("2")),
    "p[g](x)": t.Call(t.Index(n("p"), n("g")), (t.Argument(x),)),
    "D[psi](x || y)": t.Call(t.Index(n("D"), n("psi")), (t.Argument(x), t.Argument(y)), True),
    "1[x >= y]": t.Index(num("1"), t.Compare((x, y), (">=",))),
    "max(j: z[j])": t.Binder("max", t.Header("j"), t.Index(z, n("j"))),
    "max(j != y: z)": t.Binder("max", t.Header("j", "!=", y), z),
    "sum(k in 2..20: z)": t.Binder("sum", t.Header("k", "in", t.Range(num("2"), num("20"))), z),
    "sum(k in 0..m-1: z)": t.Binder("sum", t.Header("k", "in", t.Range(num("0"), t.Binary("-", n("m"), num("1")))), z),
    "max(j in S: z)": t.Binder("max", t.Header("j", "in", n("S")), z),
    "grad(x: z)": t.Binder("grad", t.Header("x"), z),
    "grad(v = x + y: z)": t.Binder("grad", t.Header("v", "=", t.Binary("+", x, y)), z),
    "max(x, y)": call("max", x, y),
    "top(9, j != y: z)": t.Call(n("top"), (t.Argument(num("9")), t.Argument(t.Binder("", t.Header("j", "!=", y), z)))),
    "batch_mean(x where y > 0)": t.Call(n("batch_mean"), (t.Argument(x, None, t.Compare((y, num("0")), (">",))),)),
    "drop(at = [75, 90], to = 1..9)": t.Call(
        n("drop"), (t.Argument(t.Sequence((num("75"), num("90"))), "at"), t.Argument(t.Range(num("1"), num("9")), "to"))
    ),
    "g([1, x], 2..3)": call("g", t.Sequence((num("1"), x)), t.Range(num("2"), num("3"))),
    "g(x == y)": call("g", t.Compare((x, y), ("==",))),
    "((x))": x,
    "g()": call("g"),
}  # fmt: skip


@pytest.mark.parametrize("text", TREES)
def test_an_expression(text: str) -> None:
    assert expr(text) == TREES[text]


@pytest.mark.parametrize(("text", "value"), [("12", 12), ("1.50", 1.5), ("5e-4", 5e-4), ("2E+3", 2000.0)])
def test_a_number(text: str, value: float) -> None:
    read = expr(text)
    assert isinstance(read, t.Number)
    assert (read.text, read.value, type(read.value)) == (text, value, type(value))


def test_an_argument_has_a_name_also_when_a_comment_precedes_its_equals_sign() -> None:
    assert expr("g(at # here = 1\n # and\n = 2)") == t.Call(n("g"), (t.Argument(num("2"), "at"),))
    assert expr("g(at # here\n == 2)".replace("at", "x")) == call("g", t.Compare((x, num("2")), ("==",)))


# --- statements --------------------------------------------------------------------------------------------------


def test_a_level_takes_its_clauses_in_any_order() -> None:
    one = items("lower w[j != y] in l2(x, 1) maximize y by linear with f in train through nothing")
    two = items("lower w[j != y] in l2(x, 1) through nothing by linear() with f in train maximize y")
    assert one == two == (
        t.Level("w", t.Header("j", "!=", y), call("l2", x, num("1")), "maximize", y, call("linear"), "train", n("nothing")),
    )  # fmt: skip


def test_lists_become_items_that_know_their_place() -> None:
    text = "param a = 1 then 2 from epoch 3 in [0, 9], b = 2 let c = 1, d = 2 with f in eval state e = 0 then 1, g = 2 then 3"
    read = items(text)
    assert read == (
        t.Param("a", num("1"), (t.Stage(num("2"), num("3")),), t.Sequence((num("0"), num("9")))),
        t.Param("b", num("2")),
        t.Let("c", num("1"), "eval"), t.Let("d", num("2"), "eval"),
        t.State("e", num("0"), num("1")), t.State("g", num("2"), num("3")),
    )  # fmt: skip
    places = [Source("recipe r " + text).excerpt(item.span) for item in read]
    assert places == ["a = 1 then 2 from epoch 3 in [0, 9]", "b = 2", "c = 1", "d = 2", "e = 0 then 1", "g = 2 then 3"]


def test_the_upper_level() -> None:
    (upper,) = items("upper at w minimize x by sgd(lr = 1) with f in train joint by adam for h")
    sgd = t.Call(n("sgd"), (t.Argument(num("1"), "lr"),))
    assert upper == t.Upper(x, "w", (t.Optimizer(sgd), t.Optimizer(call("adam"), "h")), "train", True)


def test_a_file_has_shared_items_then_declarations() -> None:
    file = clean(
        'use "o.loss" def g(v) = v generator psi(q) = q recipe a extends b title "T" attack c run d : x\' in s by fab() count worst'
    )
    assert file.shared == (t.Keyword("use", "o.loss"), t.Def("g", ("v",), n("v")), t.Def("psi", ("q",), n("q"), generator=True))
    run = t.Level("x'", None, n("s"), None, None, call("fab"), run="d")
    assert file.declarations == (
        t.Declaration("recipe", "a", "b", (t.Keyword("title", "T"),)),
        t.Declaration("attack", "c", None, (run, t.Keyword("count", "worst"))),
    )


CONSTRUCTS = [
    # sections 2 and 3
    "lower z in linf(x, eps) maximize CE(f(z), y) by pgd(steps = 1)",
    "remove eps",
    "input x in [0, 1]",
    "input x in reals",
    "input x in [[0, 1], [0, 1], [-1, 1]]",
    "lower d in linf(0, eps) maximize CE(f(x + d), y)",
    "model g frozen let a = g(x), b = p[g](x)",
    "model h upper minimize 1 by adam(lr = 1) for h",
    # section 4
    "param lambda = 6, I = 2 in 1..9",
    "param tau = 0 then 1 from epoch 51 then 2 from epoch 91",
    "param eps = ramp(0, 8/255, epochs = 5)",
    "let worst = argmax(j != y: M(x'[j])[j]) with f in eval",
    "def M(v) = f(v) - f(v)[y]",
    "sample a, b ~ uniform(linf(x, eps)) over x",
    "sample t ~ uniform(0, 1) over example",
    "sample e ~ normal(1) over latent(n)",
    "sample r ~ rademacher",
    "sample c ~ corner(linf(0, eps)) over batch",
    "lower x'[j in top(9, i != y: f(x)[i])] in linf(x, eps)",
    "lower w in layerwise(theta, gamma, only = matrices) maximize CE(f{w}(x), y) by linear(start = theta) with f in untracked",
    "upper at w minimize CE(f(x), y) - f{theta}(x)[y]",
    "lower q in simplex(K) maximize dot(q, class_mean(CE(f(x), y))) by ascent(steps = 1, step = 0.1, start = previous)",
    "find t in [lo, hi] where f(x)[y] == 0 by bisection(steps = 10)",
    "upper minimize 1 by sgd(lr = 0.1, normalize = true) with f in train joint",
    "state n = 0 then n + 1, s = zeros(K) then s + class_sum(1)",
    "memory r = 0.1 then min(r, 1) with f in eval",
    "log angle = norm(grad(theta: CE(f(x), y)), 2)",
    "train epochs = 1, sampler = classes(q), data = mix(labelled, pseudo, fraction = 0.5), schedule = cyclic(peak = 0.5)",
    "lower z in s maximize 1 by pgd(steps = 9, start = x + uniform(linf(0, eps)), noise = normal(0.1), until = fooled(tau), restarts = 10)",
    "lower z in s maximize 1 by pgd(start = raw(x + normal(1)))",
    "lower z in s maximize 1 by pgd(steps = 3) through unrolling",
    "lower z in s maximize 1 through implicit(scale = 0.1 * lambda)",
    "lower z in s maximize 1 through danskin(starts = k)",
    # section 5
    "let a = CE(p(x) || y), b = SE(p(x), onehot(y)), c = H(p(x)), d = JS(p(x) || p(x')), e = TV(p(x), smooth(y, 0.1))",
    "let third = sort(j: f(x)[j])[3], s = softmax(j != y: f(x)[j])",
    "let a = if(n > 2 and m > s1/n + 2*sqrt(s2/n - (s1/n)^2), top, 0.99*lam)",
    "let a = x'@3, b = x'@0, c = first_fooled(x'), d = survived(x'), e = fooled(x')",
    "let a = project(x, linf(0, eps)), b = interior(x, l2(x, 1)), c = norm(x, inf), d = clip(x, -1, 1)",
    "let e = 1[max(j != y: z[j]) >= z[y]]",
    "upper minimize batch_mean(CE(f(x'), y)) + lambda * batch_mean(1 - cos(g, h) where norm(g, 2) > 0 and norm(h, 2) > 0)",
    "let m = max(class_mean(CE(f(x), y)), 0)",
]


@pytest.mark.parametrize("text", CONSTRUCTS)
def test_a_construct_of_the_language_page(text: str) -> None:
    assert items(text)


@pytest.mark.parametrize("path", CORPUS, ids=lambda p: p.stem)
def test_spans_cover_their_words(path: Path) -> None:
    source = Source(path.read_text(encoding="utf-8"), path.name)
    parsed = parse(source)
    assert not parsed.diagnostics
    for node in t.walk(parsed.file):
        if isinstance(node, t.Name | t.Number):
            assert source.excerpt(node.span) == (node.id if isinstance(node, t.Name) else node.text)
        elif isinstance(node, t.Declaration):
            assert source.excerpt(node.span).startswith(f"{node.kind} {node.name}")
        for child in t.children(node):
            assert node.span.start <= child.span.start < child.span.end <= node.span.end
    assert [source.excerpt(c.span) for c in parsed.file.comments] == [c.text for c in parsed.file.comments]


# --- text that is wrong ------------------------------------------------------------------------------------------


def well_formed(parsed: Parsed, text: str) -> None:
    for found in parsed.diagnostics:
        assert found.message
        assert 0 <= found.span.start <= found.span.end <= len(text)
        for other in (*(r.span for r in found.related), *([found.edit.span] if found.edit else [])):
            assert 0 <= other.start <= other.end <= len(text)


@any_text
@given(garbage)
def test_no_text_breaks_the_parser(text: str) -> None:
    parsed = parse(Source(text))
    well_formed(parsed, text)
    assert len(parsed.diagnostics) <= 2 * MAX_SYNTAX_ERRORS


@any_text
@given(spaced())
def test_grammatical_text_has_no_finding(text: str) -> None:
    clean(text)


MISTAKES = {
    "recipe r let a = (1 + 2 upper minimize 1": "E002",
    "recipe r let a = g(1": "E002",
    "recipe r let a = 1)": "E002",
    "recipe r let a = 2lambda": "E003",
    "recipe r let a = 1.2.3": "E003",
    "recipe r let a = .5": "E003",
    "recipe r let a = 2 ** 3": "E003",
    "recipe r let a = b = c": "E001",
    "recipe r let in = 1": "E004",
    "recipe r params a = 1": "E001",
    "recipe r let a =": "E001",
    "law l claim": "E001",
    "recipe r let a = b with f in traim": "E006",
    "recipe r let a = b with g in train": "E006",
    "recipe r lower z in s by pgd by pgd": "E007",
    "recipe r lower z in s maximize 1 minimize 2": "E007",
    "recipe r upper minimize 1 with f in eval with f in train": "E007",
    "recipe r let a = max(j + 1: z)": "E008",
    "recipe r let a = max(j != y != z: z)": "E008",
    "recipe r let a = max(j + 1 in S: z)": "E008",
    "recipe r let a = p[g](j: z)": "E008",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_has_one_finding(text: str) -> None:
    """What the messages say is tested with the golden errors."""
    (found,) = parse(Source(text)).diagnostics
    assert found.code == MISTAKES[text]
    assert found.help


@pytest.mark.parametrize("word", ["12lambda", "2x", "1.25.5", "1e", "3e5x", "1_000"])
def test_digits_that_run_into_letters_are_one_wrong_word(word: str) -> None:
    source = Source(f"recipe r let a = {word}")
    (found,) = parse(source).diagnostics
    assert source.excerpt(found.span) == word


@pytest.mark.parametrize("char", CHARACTERS)
def test_a_foreign_character_is_explained(char: str) -> None:
    (found, *_) = parse(Source(f"recipe r\nlet a = b {char} c\n")).diagnostics
    assert found.help


def test_all_errors_are_reported_and_the_rest_is_read() -> None:
    text = "recipe r\nparam a = )\nparam b = 1\nlet c = 1 +\nupper\n  minimize $\nlog d = 2\n"
    parsed = parse(Source(text))
    assert len(parsed.diagnostics) == 3
    assert parsed.file.declarations[0].items == (t.Param("b", num("1")), t.Let("d", num("2"), recorded=True))
    assert {"a", "c"} <= parsed.lost_words


@pytest.mark.parametrize("text", ["(" * 5000 + "1" + ")" * 5000, "1" + " + 1" * 20000, "-" * 5000 + "1"])
def test_deep_text_is_refused_not_a_crash(text: str) -> None:
    (found,) = parse(Source("recipe r let a = " + text)).diagnostics
    assert found.code == "E005"


# --- games ---------------------------------------------------------------------------------------------------------


def of_game(text: str) -> t.Item:
    (item,) = clean("game g " + text).declarations[0].items
    return item


def test_players() -> None:
    full = of_game("player u = 0.5 in [-1, 1] minimize u^2 by adam(lr = 0.1, steps = 5)")
    assert isinstance(full, t.Player)
    assert (full.name, full.init, full.sense) == ("u", num("0.5"), "minimize")
    assert full.set == t.Sequence((t.Unary("-", num("1")), num("1"))) and full.objective == expr("u^2")
    assert full.optimizer == t.Call(n("adam"), (t.Argument(num("0.1"), "lr"), t.Argument(num("5"), "steps")))
    assert of_game("player u by sgd maximize e") == t.Player("u", None, None, "maximize", n("e"), call("sgd"))
    assert of_game("player u = [1, 0] in l2(0, 1)") == t.Player(
        "u", t.Sequence((num("1"), num("0"))), call("l2", num("0"), num("1")), None, None
    )


def test_solve_data_and_keep() -> None:
    assert of_game("solve ppm") == t.Solve(call("ppm"))
    assert of_game("keep critic in spectral") == t.Keep("critic", call("spectral"))
    assert of_game("keep critic in clip(0.01)") == t.Keep("critic", call("clip", num("0.01")))
    rows = (t.Sequence((num("1"), t.Binary("+", num("2"), num("3")))), t.Sequence((n("pi"), num("0"))))
    assert of_game("data (a, b) = (1, 2 + 3), (pi, 0)") == t.Data(("a", "b"), rows)
    assert of_game("data (a) = (1), (2)") == t.Data(("a",), (t.Sequence((num("1"),)), t.Sequence((num("2"),))))


def test_models_of_a_game() -> None:
    assert of_game("model h : Latent -> Input") == t.Model("h", False, "Latent", "Input")
    assert of_game("model f(x, t) = sin(x * t)") == t.Def("f", ("x", "t"), expr("sin(x * t)"), model=True)


@pytest.mark.parametrize("word", ["game", "player", "solve", "data", "keep"])
def test_words_of_games_are_names_elsewhere(word: str) -> None:
    assert items(f"let {word} = {word} + 1") == (t.Let(word, t.Binary("+", n(word), num("1"))),)
    (train,) = items("train epochs = 1, data = mix(labelled, pseudo, fraction = 0.5)")
    assert isinstance(train, t.Train) and train.options[1].name == "data"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("game g player u = 1 minimize a minimize b", "player u has two objectives"),
        ("game g player u by a by b", "player u has two solvers"),
        ("player u = 1 minimize u", "the file has statements and no recipe"),
        ("gme g", "gme cannot stand here"),
        ("game g data a = 1", "a cannot stand here"),
        ("game g keep critic clip(0.01)", "in is missing before clip"),
    ],
)
def test_mistakes_in_games(text: str, message: str) -> None:
    assert [d.message for d in parse(Source(text)).diagnostics] == [message]
