"""Random recipe texts: grammatical ones from a small grammar, with odd spacing and comments, and garbage."""

from __future__ import annotations

from hypothesis import strategies as st

from lossdsl.syntax import tree as t
from lossdsl.syntax.parse import STATEMENT_WORDS

Words = tuple[str, ...]
"""The tokens of a piece of text."""

NAMES = (
    "x",
    "y",
    "x'",
    "z''",
    "lambda",
    "eps",
    "log",
    "step",
    "steps",
    "start",
    "K",
    "f",
    "title",
    "count",
    "game",
    "player",
    "solve",
    "data",
    "keep",
    "epoch",
    "joint",
    "a_1",
    "by_",
    "inf",
)
NUMBERS = ("0", "1", "20", "0.5", "1.25", "5e-4", "2E+3", "1.5e7")
COMMENTS = ("# plain", "#", "#tight", '# "quoted" ( [ {', "# upper minimize , ;", "# ünïcode λ 漢字", "## twice  ")

names = st.sampled_from(NAMES).map(lambda n: (n,))
numbers = st.sampled_from(NUMBERS).map(lambda n: (n,))
strings = st.sampled_from(('"a title"', '""', '"with # and (, ’ and λ"')).map(lambda s: (s,))


def seq(*parts: st.SearchStrategy[Words] | str) -> st.SearchStrategy[Words]:
    """The parts one after the other; a string stands for its words."""
    made = [st.just(tuple(p.split())) if isinstance(p, str) else p for p in parts]
    return st.tuples(*made).map(lambda found: tuple(w for part in found for w in part))


def maybe(*parts: st.SearchStrategy[Words] | str) -> st.SearchStrategy[Words]:
    return st.one_of(st.just(()), seq(*parts))


def listed(part: st.SearchStrategy[Words], most: int = 3) -> st.SearchStrategy[Words]:
    """One or more parts with commas between them."""
    many = st.lists(part, min_size=1, max_size=most)
    return many.map(lambda parts: tuple(w for i, p in enumerate(parts) for w in ((",", *p) if i else p)))


def _header(expr: st.SearchStrategy[Words], sum_: st.SearchStrategy[Words]) -> st.SearchStrategy[Words]:
    return st.one_of(names, seq(names, "!=", sum_), seq(names, "in", expr), seq(names, "in", sum_, "..", sum_), seq(names, "=", expr))


def _grow(expr: st.SearchStrategy[Words]) -> st.SearchStrategy[Words]:
    """Expressions made of expressions; the place of each part decides whether it comes in parentheses."""
    inside = seq("(", expr, ")")
    atom = st.one_of(names, numbers, inside)
    base = st.one_of(names, seq(names, "[", expr, "]"), seq(names, "(", expr, ")"), inside)
    range_ = seq(atom, "..", atom)
    value = st.one_of(expr, range_, seq("[", listed(st.one_of(expr, range_)), "]"))
    arg = st.one_of(expr, seq(expr, "where", expr), seq(st.one_of(names, st.just(("at",))), "=", value), value)
    operator = st.sampled_from(("+", "-", "*", "/", "^", "and", "or", "==", "!=", "<", "<=", ">", ">=")).map(lambda o: (o,))
    return st.one_of(
        inside,
        seq(atom, operator, atom),
        seq(atom, operator, atom, operator, atom),
        seq(inside, operator, expr),
        seq("-", atom),
        seq("( not", expr, ")"),
        seq(base, "(", listed(arg), ")"),
        seq(base, "( )"),
        seq(base, "(", expr, "||", expr, ")"),
        seq(names, "(", _header(expr, atom), ":", expr, ")"),
        seq(names, "(", listed(arg), ",", _header(expr, atom), ":", expr, ")"),
        seq(base, "[", expr, "]"),
        seq(base, "{", expr, "}"),
        seq(base, "@", atom),
        seq(base, "@", atom, "[", expr, "]"),
    )


_expressions = st.recursive(st.one_of(names, numbers), _grow, max_leaves=12)
expressions: st.SearchStrategy[Words] = st.deferred(lambda: _expressions)
_posts = st.one_of(names, seq(names, "(", listed(expressions), ")"), seq("(", expressions, ")"))
_intervals = seq("[", expressions, ",", expressions, "]")
_solvers = st.one_of(names, seq(names, "( )"), seq(names, "(", listed(seq(names, "=", expressions)), ")"))
_modes = seq("with f in", st.sampled_from(("eval", "train", "untracked")).map(lambda m: (m,)))
_index = maybe("[", _header(expressions, numbers).filter(lambda h: "=" not in h), "]")
_sense = st.sampled_from(("maximize", "minimize")).map(lambda s: (s,))


@st.composite
def _some_of(draw: st.DrawFn, *clauses: st.SearchStrategy[Words]) -> Words:
    """Some of the clauses, in any order."""
    order = draw(st.permutations(range(len(clauses))))[: draw(st.integers(0, len(clauses)))]
    return tuple(word for place in order for word in draw(clauses[place]))


_clauses = _some_of(seq(_sense, expressions), seq("by", _solvers), _modes, seq("through", _posts))
_player_clauses = _some_of(seq(_sense, expressions), seq("by", _solvers))
_upper_clauses = _some_of(seq("by", _solvers, maybe("for", names)), seq("by", _solvers), seq(_modes, maybe("joint")))
_stages = maybe("then", expressions, "from epoch", expressions)
_limits = maybe("in", st.one_of(_intervals, seq(numbers, "..", numbers)))
_bindings = listed(seq(names, "=", expressions))
_states = listed(seq(names, "=", expressions, "then", expressions))

definitions = st.one_of(
    seq("def", names, "(", maybe(listed(names)), ") =", expressions),
    seq("generator", names, "(", names, ") =", expressions),
    seq("use", strings),
)
_items = st.one_of(
    seq("title", strings),
    seq("source", strings),
    seq("param", listed(seq(names, "=", expressions, _stages, _limits))),
    seq("let", _bindings, maybe(_modes)),
    seq("log", _bindings, maybe(_modes)),
    seq("def", names, "(", maybe(listed(names)), ") =", expressions),
    seq("sample", listed(names), "~", _posts, maybe("over", _posts)),
    seq("lower", names, _index, "in", st.one_of(_posts, _intervals), _clauses),
    seq("run", names, ":", names, _index, "in", _posts, _clauses),
    seq("find", names, "in", _intervals, "where", expressions, "by", _solvers),
    seq("upper", maybe("at", names), "minimize", expressions, _upper_clauses),
    seq("state", _states, maybe(_modes)),
    seq("memory", _states, maybe(_modes)),
    seq("train", listed(seq(names, "=", expressions))),
    seq("input", names, "in", st.one_of(names, _intervals)),
    seq("model", names, maybe("frozen")),
    seq("model", names, ":", names, "->", names),
    seq("model", names, "(", listed(names), ") =", expressions),
    seq("player", names, maybe("=", st.one_of(expressions, _intervals)), maybe("in", st.one_of(_posts, _intervals)), _player_clauses),
    seq("solve", _posts),
    seq("data (", listed(names), ") =", listed(seq("(", listed(expressions), ")"))),
    seq("keep", names, "in", _posts),
    seq("remove", names),
    seq("count", names),
)


@st.composite
def items(draw: st.DrawFn) -> Words:
    """One statement; a function of its own, for a short repr."""
    return draw(_items)


_declarations = seq(
    st.sampled_from((("recipe",), ("attack",), ("game",))),
    names,
    maybe("extends", names),
    st.lists(items(), max_size=4).map(lambda i: sum(i, ())),
)
_files = seq(st.lists(definitions, max_size=2).map(lambda d: sum(d, ())), st.lists(_declarations, max_size=2).map(lambda d: sum(d, ())))
files: st.SearchStrategy[Words] = st.deferred(lambda: _files)
"""The tokens of whole files (deferred, for a short repr)."""


@st.composite
def spaced(draw: st.DrawFn, tokens: st.SearchStrategy[Words] = files, comments: bool = True) -> str:
    """The tokens as text: any white space between them and comments anywhere."""
    gaps = st.sampled_from((" ", " ", " ", " ", "\n", "  ", "\t", "\n\n", "\n\n\n", " \r\n  "))
    notes = st.sampled_from(COMMENTS) if comments else st.just("")
    text = draw(st.sampled_from(("", "\n", "# first\n", "#!\n\n"))) if comments else ""
    for word in draw(tokens):
        text += word + draw(gaps)
        if comments and draw(st.integers(0, 9)) == 0:
            text += draw(notes) + draw(st.sampled_from(("\n", "\n\n", "\r\n", "\n# more\n")))
    return text


def _garbage() -> st.SearchStrategy[str]:
    pieces = st.one_of(
        st.sampled_from((*STATEMENT_WORDS, *NAMES, *NUMBERS, *"()[]{}=,:@~\"#\n';", "||", "..", "**")),
        st.text(max_size=3),
    )
    return st.lists(pieces, max_size=30).flatmap(lambda found: st.sampled_from((" ", "", "\n")).map(lambda gap: gap.join(found)))


@st.composite
def _damaged(draw: st.DrawFn) -> str:
    """A grammatical text with a piece cut out, doubled or replaced."""
    text = draw(spaced())
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, min(len(text), start + 12)))
    return text[:start] + draw(st.one_of(st.just(""), st.just(text[start:end] * 2), st.text(max_size=4))) + text[end:]


garbage = st.one_of(st.text(max_size=60), _garbage(), _damaged())
"""Texts that are rarely right."""


# --- trees -------------------------------------------------------------------------------------------------------


def _tree_grow(expr: st.SearchStrategy[t.Expr]) -> st.SearchStrategy[t.Expr]:
    name = st.sampled_from(NAMES)
    headers = st.one_of(
        st.builds(t.Header, name),
        st.builds(t.Header, name, st.just("!="), expr),
        st.builds(t.Header, name, st.just("in"), expr),
        st.builds(t.Header, name, st.just("in"), st.builds(t.Range, expr, expr)),
        st.builds(t.Header, name, st.just("="), expr),
    )
    sequences = st.builds(t.Sequence, st.lists(expr, min_size=1, max_size=3).map(tuple))
    args = st.one_of(
        st.builds(t.Argument, st.one_of(expr, sequences)),
        st.builds(t.Argument, st.one_of(expr, sequences, st.builds(t.Range, expr, expr)), name),
        st.builds(t.Argument, expr, st.none(), expr),
    )
    compares = st.integers(1, 2).flatmap(
        lambda n: st.builds(t.Compare, st.tuples(*[expr] * (n + 1)), st.tuples(*[st.sampled_from(("==", "!=", "<", "<=", ">", ">="))] * n))
    )
    return st.one_of(
        st.builds(t.Unary, st.sampled_from(("-", "not")), expr),
        st.builds(t.Binary, st.sampled_from(("+", "-", "*", "/", "^", "and", "or")), expr, expr),
        compares,
        st.builds(t.Index, expr, expr, st.sampled_from(("[", "{"))),
        st.builds(t.Iterate, expr, expr),
        st.builds(t.Call, expr, st.lists(args, max_size=3).map(tuple)),
        st.builds(t.Call, expr, st.tuples(st.builds(t.Argument, expr), st.builds(t.Argument, expr)), st.just(True)),
        st.builds(t.Binder, name, headers, expr),
        st.builds(lambda f, a, h, b: t.Call(f, (a, t.Argument(t.Binder("", h, b)))), expr, args, headers, expr),
    )


trees = st.recursive(st.one_of(st.sampled_from(NAMES).map(t.Name), st.sampled_from(NUMBERS).map(t.Number)), _tree_grow, max_leaves=10)
"""Expression trees of every shape the grammar has."""
