"""Lark's parse tree to ours: one method per grammar rule, nothing decided beyond shape."""

from __future__ import annotations

from typing import Any

from lark import Token, Transformer, v_args
from lark.tree import Meta

from lossdsl.diagnostics import Diagnostic
from lossdsl.source import NOWHERE, Span
from lossdsl.syntax import tree as t

MODES = ("eval", "train", "untracked")


def _span(meta: Meta) -> Span:
    return NOWHERE if meta.empty else Span(meta.start_pos, meta.end_pos)


def _at(token: Token) -> Span:
    return Span(token.start_pos or 0, token.end_pos or 0)


def _unquote(token: Token) -> str:
    return str(token)[1:-1]


@v_args(meta=True)
class Builder(Transformer):  # type: ignore[type-arg]
    """Builds the tree; statements that declare several names become several items."""

    def __init__(self) -> None:
        super().__init__()
        self.diagnostics: list[Diagnostic] = []

    def _error(self, code: str, message: str, span: Span, help: str = "") -> None:
        self.diagnostics.append(Diagnostic(code, message, span, help=help))

    # files and declarations
    def start(self, meta: Meta, parts: list[Any]) -> t.File:
        flat = _flatten(parts)
        shared = tuple(p for p in flat if not isinstance(p, t.Declaration))
        return t.File(shared, tuple(p for p in flat if isinstance(p, t.Declaration)), span=_span(meta))

    def declaration(self, meta: Meta, parts: list[Any]) -> t.Declaration:
        kind, name, base, *items = parts
        return t.Declaration(str(kind), str(name), str(base) if base else None, tuple(_flatten(items)), span=_span(meta))

    def use(self, meta: Meta, parts: list[Any]) -> t.Keyword:
        return t.Keyword("use", _unquote(parts[0]), span=_span(meta))

    def title(self, meta: Meta, parts: list[Any]) -> t.Keyword:
        return t.Keyword("title", _unquote(parts[0]), span=_span(meta))

    def source_(self, meta: Meta, parts: list[Any]) -> t.Keyword:
        return t.Keyword("source", _unquote(parts[0]), span=_span(meta))

    def remove(self, meta: Meta, parts: list[Any]) -> t.Keyword:
        return t.Keyword("remove", str(parts[0]), span=_span(meta))

    def count(self, meta: Meta, parts: list[Any]) -> t.Keyword:
        return t.Keyword("count", str(parts[0]), span=_span(meta))

    def generator(self, meta: Meta, parts: list[Any]) -> t.Def:
        return t.Def(str(parts[0]), (str(parts[1]),), parts[2], generator=True, span=_span(meta))

    def def_(self, meta: Meta, parts: list[Any]) -> t.Def:
        name, *args, value = parts
        return t.Def(str(name), tuple(str(a) for a in args if a is not None), value, span=_span(meta))

    # params, lets, samples
    def param(self, meta: Meta, parts: list[Any]) -> list[t.Param]:
        return parts

    def one_param(self, meta: Meta, parts: list[Any]) -> t.Param:
        name, value, *stages, limits = parts
        return t.Param(str(name), value, tuple(stages), limits, span=_span(meta))

    def stage(self, meta: Meta, parts: list[Any]) -> t.Stage:
        return t.Stage(parts[0], parts[1], span=_span(meta))

    def mode(self, meta: Meta, parts: list[Any]) -> str:
        model, (mode, span) = parts
        if model != "f":
            self._error("E006", f"a mode is set for the trained model f, not for {model}", _at(model), "write: with f in " + mode)
        if mode not in MODES:
            self._error("E006", f"there is no mode {mode}", span, "the modes are eval, train and untracked")
            return "eval"
        return str(mode)

    def mode_name(self, meta: Meta, parts: list[Any]) -> tuple[str, Span]:
        return str(parts[0]), _at(parts[0])

    def binding(self, meta: Meta, parts: list[Any]) -> tuple[str, t.Expr, Span]:
        return str(parts[0]), parts[1], _span(meta)

    def let(self, meta: Meta, parts: list[Any]) -> list[t.Let]:
        *bindings, mode = parts
        return [t.Let(name, value, mode, span=span) for name, value, span in bindings]

    def log(self, meta: Meta, parts: list[Any]) -> list[t.Let]:
        *bindings, mode = parts
        return [t.Let(name, value, mode, recorded=True, span=span) for name, value, span in bindings]

    def sample(self, meta: Meta, parts: list[Any]) -> t.Sample:
        *names, distribution, over = parts
        return t.Sample(tuple(str(n) for n in names), distribution, over, span=_span(meta))

    # levels
    def lower(self, meta: Meta, parts: list[Any]) -> t.Level:
        return self._level(meta, None, parts)

    def run(self, meta: Meta, parts: list[Any]) -> t.Level:
        return self._level(meta, str(parts[0]), parts[1:])

    def _level(self, meta: Meta, run: str | None, parts: list[Any]) -> t.Level:
        var, index, region, *clauses = parts
        got = self._clauses(str(var), "level", clauses)
        sense, objective = got.get("objective", (None, None))
        return t.Level(str(var), index, region, sense, objective, got.get("by"), got.get("mode"), got.get("through"), run, span=_span(meta))

    def _clauses(self, var: str, what: str, clauses: list[Any]) -> dict[str, Any]:
        """Clauses by kind; a second one of a kind is an error."""
        got: dict[str, Any] = {}
        second_objective = False
        for kind, value, span in clauses:
            if kind not in got:
                got[kind] = value
                continue
            if second_objective:
                continue  # it belongs to that one
            second_objective = kind == "objective"
            name = {"objective": "objectives", "by": "solvers", "mode": "modes", "through": "gradient flows"}[kind]
            help = "keep one of them"
            if kind == "objective":
                next_one = "upper before it if it is the defender's" if what == "level" else "player NAME before it if it is another's"
                help = f"write {next_one}, else keep one of them"
            self._error("E007", f"the {what} of {var} has two {name}" if what == "level" else f"{what} {var} has two {name}", span, help)
        return got

    def objective(self, meta: Meta, parts: list[Any]) -> tuple[str, Any, Span]:
        return "objective", (parts[0], parts[1]), _span(meta)

    def sense(self, meta: Meta, parts: list[Any]) -> str:
        return str(parts[0])

    def by(self, meta: Meta, parts: list[Any]) -> tuple[str, Any, Span]:
        return "by", _as_call(parts[0]), _span(meta)

    def level_mode(self, meta: Meta, parts: list[Any]) -> tuple[str, Any, Span]:
        return "mode", parts[0], _span(meta)

    def through(self, meta: Meta, parts: list[Any]) -> tuple[str, Any, Span]:
        return "through", parts[0], _span(meta)

    def find(self, meta: Meta, parts: list[Any]) -> t.Find:
        name, interval, condition, solver = parts
        return t.Find(str(name), interval, condition, _as_call(solver), span=_span(meta))

    def upper(self, meta: Meta, parts: list[Any]) -> t.Upper:
        at, objective, *clauses = parts
        optimizers = tuple(c for c in clauses if isinstance(c, t.Optimizer))
        modes = [c for c in clauses if not isinstance(c, t.Optimizer)]
        if len(modes) > 1:
            self._error("E007", "the upper level sets its mode twice", modes[1][2], "keep one of them")
        mode, joint = (modes[0][0], modes[0][1]) if modes else (None, False)
        return t.Upper(objective, str(at) if at else None, optimizers, mode, joint, span=_span(meta))

    def optimizer(self, meta: Meta, parts: list[Any]) -> t.Optimizer:
        return t.Optimizer(_as_call(parts[0]), str(parts[1]) if parts[1] else None, span=_span(meta))

    def upper_mode(self, meta: Meta, parts: list[Any]) -> tuple[str, bool, Span]:
        return parts[0], parts[1] is not None, _span(meta)

    def state(self, meta: Meta, parts: list[Any]) -> list[t.State]:
        *states, mode = parts
        return [t.State(name, init, update, False, mode, span=span) for name, init, update, span in states]

    def memory(self, meta: Meta, parts: list[Any]) -> list[t.State]:
        *states, mode = parts
        return [t.State(name, init, update, True, mode, span=span) for name, init, update, span in states]

    def one_state(self, meta: Meta, parts: list[Any]) -> tuple[str, t.Expr, t.Expr, Span]:
        return str(parts[0]), parts[1], parts[2], _span(meta)

    def train(self, meta: Meta, parts: list[Any]) -> t.Train:
        return t.Train(tuple(parts), span=_span(meta))

    def option(self, meta: Meta, parts: list[Any]) -> t.Argument:
        return t.Argument(parts[1], str(parts[0]), span=_span(meta))

    def input(self, meta: Meta, parts: list[Any]) -> t.Input:
        return t.Input(str(parts[0]), parts[1], span=_span(meta))

    def model(self, meta: Meta, parts: list[Any]) -> t.Model:
        return t.Model(str(parts[0]), parts[1] is not None, span=_span(meta))

    def signature(self, meta: Meta, parts: list[Any]) -> t.Model:
        name, takes, gives = map(str, parts)
        return t.Model(name, False, takes, gives, span=_span(meta))

    def formula(self, meta: Meta, parts: list[Any]) -> t.Def:
        name, *args, value = parts
        return t.Def(str(name), tuple(map(str, args)), value, model=True, span=_span(meta))

    # games
    def player(self, meta: Meta, parts: list[Any]) -> t.Player:
        name, init, region, *clauses = parts
        got = self._clauses(str(name), "player", clauses)
        sense, objective = got.get("objective", (None, None))
        return t.Player(str(name), init, region, sense, objective, got.get("by"), span=_span(meta))

    def solve(self, meta: Meta, parts: list[Any]) -> t.Solve:
        return t.Solve(_as_call(parts[0]), span=_span(meta))

    def data(self, meta: Meta, parts: list[Any]) -> t.Data:
        names = tuple(str(p) for p in parts if isinstance(p, Token))
        return t.Data(names, tuple(p for p in parts if not isinstance(p, Token)), span=_span(meta))

    def row(self, meta: Meta, parts: list[Any]) -> t.Sequence:
        return t.Sequence(tuple(parts), span=_span(meta))

    def keep(self, meta: Meta, parts: list[Any]) -> t.Keep:
        return t.Keep(str(parts[0]), _as_call(parts[1]), span=_span(meta))

    # laws
    def law(self, meta: Meta, parts: list[Any]) -> t.Declaration:
        _, name, *items = parts
        return t.Declaration("law", str(name), None, tuple(_flatten(items)), span=_span(meta))

    def for_(self, meta: Meta, parts: list[Any]) -> list[t.Quantifier]:
        return parts

    def quantifier(self, meta: Meta, parts: list[Any]) -> t.Quantifier:
        name, index, domain = parts
        return t.Quantifier(str(name), index, domain, span=_span(meta))

    def finite(self, meta: Meta, parts: list[Any]) -> t.Sequence:
        return t.Sequence(tuple(parts), "{", span=_span(meta))

    def points(self, meta: Meta, parts: list[Any]) -> t.Expr:
        """`x in input`, `x in input(3)`: the word is a statement elsewhere."""
        name = t.Name("input", span=_span(meta))
        return name if parts[0] is None else t.Call(name, (t.Argument(parts[0], span=parts[0].span),), span=_span(meta))

    def hypothesis(self, meta: Meta, parts: list[Any]) -> t.Hypothesis:
        return t.Hypothesis(parts[0], span=_span(meta))

    def claim(self, meta: Meta, parts: list[Any]) -> t.Claim:
        return t.Claim(parts[1], str(parts[0]) == "refute", span=_span(meta))

    # expressions
    def number(self, meta: Meta, parts: list[Any]) -> t.Number:
        return t.Number(str(parts[0]), span=_span(meta))

    def name(self, meta: Meta, parts: list[Any]) -> t.Name:
        return t.Name(str(parts[0]), span=_span(meta))

    def parens(self, meta: Meta, parts: list[Any]) -> t.Expr:
        return parts[0]  # type: ignore[no-any-return]

    def binary(self, meta: Meta, parts: list[Any]) -> t.Binary:
        left, op, right = parts
        return t.Binary(str(op), left, right, span=_span(meta))

    def or_(self, meta: Meta, parts: list[Any]) -> t.Binary:
        return t.Binary("or", parts[0], parts[1], span=_span(meta))

    def and_(self, meta: Meta, parts: list[Any]) -> t.Binary:
        return t.Binary("and", parts[0], parts[1], span=_span(meta))

    def not_(self, meta: Meta, parts: list[Any]) -> t.Unary:
        return t.Unary("not", parts[0], span=_span(meta))

    def negative(self, meta: Meta, parts: list[Any]) -> t.Unary:
        return t.Unary("-", parts[1], span=_span(meta))

    def compare(self, meta: Meta, parts: list[Any]) -> t.Compare:
        return t.Compare(tuple(parts[::2]), tuple(parts[1::2]), span=_span(meta))

    def compare_op(self, meta: Meta, parts: list[Any]) -> str:
        return str(parts[0])

    def index(self, meta: Meta, parts: list[Any]) -> t.Index:
        return t.Index(parts[0], parts[1], "[", span=_span(meta))

    def weighted(self, meta: Meta, parts: list[Any]) -> t.Index:
        return t.Index(parts[0], parts[1], "{", span=_span(meta))

    def iterate(self, meta: Meta, parts: list[Any]) -> t.Iterate:
        return t.Iterate(parts[0], parts[1], span=_span(meta))

    def call(self, meta: Meta, parts: list[Any]) -> t.Call:
        return t.Call(parts[0], tuple(parts[1:]), span=_span(meta))

    def ranking(self, meta: Meta, parts: list[Any]) -> t.Call:
        """`top(9, j != y: e)`: a call whose last argument is a binder without a name of its own."""
        func, *args, header, body = parts
        last = t.Binder("", header, body, span=Span(header.span.start, body.span.end))
        return t.Call(func, (*args, t.Argument(last, span=last.span)), span=_span(meta))

    def divergence(self, meta: Meta, parts: list[Any]) -> t.Call:
        args = tuple(t.Argument(p, span=p.span) for p in parts[1:])
        return t.Call(parts[0], args, double_bar=True, span=_span(meta))

    def binder(self, meta: Meta, parts: list[Any]) -> t.Binder:
        func, header, body = parts
        if not isinstance(func, t.Name):
            self._error("E008", "only an operation's name can bind a variable", func.span, "write for example max(j != y: e)")
            func = t.Name("max", span=func.span)
        return t.Binder(func.id, header, body, span=_span(meta))

    def positional(self, meta: Meta, parts: list[Any]) -> t.Argument:
        return t.Argument(parts[0], span=_span(meta))

    def where(self, meta: Meta, parts: list[Any]) -> t.Argument:
        return t.Argument(parts[0], None, parts[1], span=_span(meta))

    def named(self, meta: Meta, parts: list[Any]) -> t.Argument:
        return t.Argument(parts[1], str(parts[0]), span=_span(meta))

    def until(self, meta: Meta, parts: list[Any]) -> t.Argument:
        return t.Argument(parts[0], "until", span=_span(meta))

    def plain_header(self, meta: Meta, parts: list[Any]) -> t.Header:
        expr = parts[0]
        if isinstance(expr, t.Name):
            return t.Header(expr.id, span=expr.span)
        if isinstance(expr, t.Compare) and expr.ops == ("!=",) and isinstance(expr.operands[0], t.Name):
            return t.Header(expr.operands[0].id, "!=", expr.operands[1], span=expr.span)
        self._error("E008", "this is not a header", _span(meta), "a header is  j,  j != e,  j in S,  or  v = e  (for grad)")
        return t.Header("j", span=_span(meta))

    def in_header(self, meta: Meta, parts: list[Any]) -> t.Header:
        var, domain = parts
        if not isinstance(var, t.Name):
            self._error("E008", "a header names one variable before in", var.span, "write for example  j in S  or  k in 0..m-1")
            return t.Header("j", "in", domain, span=_span(meta))
        return t.Header(var.id, "in", domain, span=_span(meta))

    def let_header(self, meta: Meta, parts: list[Any]) -> t.Header:
        return t.Header(str(parts[0]), "=", parts[1], span=_span(meta))

    def range(self, meta: Meta, parts: list[Any]) -> t.Range:
        return t.Range(parts[0], parts[1], span=_span(meta))

    def sequence(self, meta: Meta, parts: list[Any]) -> t.Sequence:
        return t.Sequence(tuple(parts), span=_span(meta))


def _as_call(expr: t.Expr) -> t.Call:
    """`by linear` is `by linear()`."""
    return expr if isinstance(expr, t.Call) else t.Call(expr, (), span=expr.span)


def _flatten(parts: list[Any]) -> list[Any]:
    out: list[Any] = []
    for part in parts:
        out.extend(part) if isinstance(part, list) else out.append(part)
    return out
