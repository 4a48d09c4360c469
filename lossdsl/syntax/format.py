"""The canonical layout of a file: the same words and comments, new line ends, spaces and no needless parentheses.

Statements, their clauses and comma lists stay in the order and grouping written. One empty line separates groups of
statements; within a group the writer's empty lines stay, at most one at a time.
"""

from __future__ import annotations

from lossdsl.diagnostics import RecipeError
from lossdsl.source import Source, Span
from lossdsl.syntax import tree as t
from lossdsl.syntax.layout import CLAUSE, Line, Word, join, tokens, write
from lossdsl.syntax.parse import Parsed, parse

_OR, _AND, _NOT, _COMPARE, _SUM, _PRODUCT, _MINUS, _POWER, _POSTFIX, _ATOM = range(1, 11)
_BINARY = {
    "or": (_OR, _OR, _AND), "and": (_AND, _AND, _NOT), "+": (_SUM, _SUM, _PRODUCT), "-": (_SUM, _SUM, _PRODUCT),
    "*": (_PRODUCT, _PRODUCT, _MINUS), "/": (_PRODUCT, _PRODUCT, _MINUS), "^": (_POWER, _POSTFIX, _MINUS),
}  # fmt: skip
"""Operator: its own tightness, and the least that its left and right side need to stand without parentheses."""

_CLAUSES = ("maximize", "minimize", "by", "with", "through")


def format_text(text: str, name: str = "<text>") -> str:
    """A file's text in canonical layout. Raises RecipeError with every syntax error if the text does not parse."""
    parsed = parse(Source(text, name))
    if parsed.diagnostics:
        raise RecipeError(parsed.source, parsed.diagnostics)
    return format_file(parsed)


def format_file(parsed: Parsed) -> str:
    """The canonical text of a file that parsed without an error; it parses to an equal tree with the same comments."""
    text = parsed.source.text
    return write(_file(parsed.file, _without_comments(text)), text)


def format_tree(file: t.File) -> str:
    """The canonical text of a tree that no one file gave: headings first, adjacent params together, clauses in the usual order."""
    return write(_file(file, None), None)


def format_expr(expr: t.Expr) -> str:
    """An expression on one line, with no parentheses that the grammar does not need."""
    return join(_expr(expr, 0))


# --- statements --------------------------------------------------------------------------------------------------


def _file(file: t.File, text: str | None) -> list[Line]:
    """The lines of a file. `text` is what it was parsed from, without comments; None where spans say nothing."""
    lines = _items(file.shared, text)
    for declaration in file.declarations:
        extends = _words("extends", declaration.base) if declaration.base else []
        lines.append(Line(0, [*_words(declaration.kind, declaration.name), *extends]))
        items = declaration.items if text is not None else tuple(sorted(declaration.items, key=lambda item: not _is_heading(item)))
        lines += _items(items, text)
    return lines


def _is_heading(item: t.Item) -> bool:
    return isinstance(item, t.Keyword) and item.keyword in ("title", "source")


def _without_comments(text: str) -> str:
    """The text with spaces in place of comments."""
    for token in tokens(text):
        if token[0].startswith("#"):
            text = text[: token.start()] + " " * len(token[0]) + text[token.end() :]
    return text


def _words(*texts: str) -> list[Word]:
    return [Word(text) for text in texts]


def _tight(words: list[Word]) -> list[Word]:
    """No space before the first word."""
    words[0].space = ""
    return words


def _break(words: list[Word], rank: int) -> list[Word]:
    """A line may end before the first word."""
    words[0].rank = rank
    return words


def _listed(parts: list[list[Word]], rank: int) -> list[Word]:
    """Parts with commas between them."""
    words = list(parts[0])
    for part in parts[1:]:
        words += [Word(",", ""), *_break(part, rank)]
    return words


def _mode(mode: str | None) -> list[Word]:
    return _break(_words("with", "f", "in", mode), 0) if mode else []


def _items(items: tuple[t.Item, ...], text: str | None) -> list[Line]:
    """The lines of statements; items that the text gives in one comma list stay in one."""
    statements: list[list[t.Item]] = []
    for item in items:
        if statements and _continues(statements[-1][-1], item, text):
            statements[-1].append(item)
        else:
            statements.append([item])
    return [line for statement in statements for line in _statement(statement, text)]


def _continues(previous: t.Item, item: t.Item, text: str | None) -> bool:
    """Whether an item belongs to the comma list of the one before it."""
    if text is None:
        return isinstance(previous, t.Param) and isinstance(item, t.Param)
    return isinstance(item, t.Param | t.Let | t.State | t.Quantifier) and text[: item.span.start].rstrip().endswith(",")


def _statement(items: list[t.Item], text: str | None) -> list[Line]:
    item = items[0]
    if isinstance(item, t.Level | t.Upper):
        return _level(item, _usual_order(item) if text is None else _written_order(text, item.span))
    if isinstance(item, t.Find):
        head = [*_words("find", item.name, "in"), *_expr(item.interval, 1)]
        clauses = [[Word("where"), *_expr(item.condition, 1)], [Word("by"), *_solver(item.solver)]]
        return [Line(0, head), *(Line(CLAUSE, words, first=False) for words in clauses)]
    if isinstance(item, t.Keyword) and _is_heading(item):
        return [Line(CLAUSE, [Word(item.keyword), Word(f'"{item.value}"', " " * (7 - len(item.keyword)))], first=False)]
    if isinstance(item, t.Param | t.Let | t.State | t.Quantifier):
        keyword, mode = _list_keyword(item)
        return [Line(0, [Word(keyword), *_listed([_binding(i) for i in items], 0), *mode], _group(item))]
    if isinstance(item, t.Player):
        return [Line(0, _player(item, _usual_order(item) if text is None else _written_order(text, item.span)), "players")]
    return [Line(0, _one_line(item), _group(item))]


def _group(item: t.Item) -> str:
    """Statements of one group follow each other without an empty line."""
    if isinstance(item, t.Let) and item.recorded:
        return "log"
    if isinstance(item, t.Param | t.Input | t.Model | t.Let | t.Def | t.Sample | t.Data):
        return "values"
    if isinstance(item, t.Player | t.Keep):
        return "players"
    if isinstance(item, t.Quantifier | t.Hypothesis | t.Claim):
        return "claims" if isinstance(item, t.Claim) else "values"
    if isinstance(item, t.Keyword) and item.keyword == "remove":
        return "values"
    return item.keyword if isinstance(item, t.Keyword) else type(item).__name__


def _list_keyword(item: t.Param | t.Let | t.State | t.Quantifier) -> tuple[str, list[Word]]:
    """The keyword before a comma list and the mode behind it."""
    if isinstance(item, t.Param | t.Quantifier):
        return "param" if isinstance(item, t.Param) else "for", []
    if isinstance(item, t.Let):
        return "log" if item.recorded else "let", _mode(item.mode)
    return "memory" if item.per_example else "state", _mode(item.mode)


def _binding(item: t.Item) -> list[Word]:
    """One `name = value` of a comma list."""
    if isinstance(item, t.State):
        return [*_words(item.name, "="), *_expr(item.init, 2), Word("then", rank=1), *_expr(item.update, 2)]
    if isinstance(item, t.Quantifier):
        index = [Word("[", ""), *_tight(_expr(item.index, 1)), Word("]", "")] if item.index is not None else []
        return [Word(item.name), *index, Word("in"), *_expr(item.domain, 2)]
    assert isinstance(item, t.Param | t.Let)
    words = [*_words(item.name, "="), *_expr(item.value, 2)]
    if isinstance(item, t.Param):
        for stage in item.stages:
            words += [Word("then", rank=1), *_expr(stage.value, 2), *_words("from", "epoch"), *_expr(stage.first, 2)]
        if item.limits is not None:
            words += [Word("in", rank=1), *_expr(item.limits, 2)]
    return words


def _one_line(item: t.Item) -> list[Word]:
    """Statements without clauses and comma lists of bindings."""
    if isinstance(item, t.Keyword):
        return _words(item.keyword, f'"{item.value}"' if item.keyword == "use" else item.value)
    if isinstance(item, t.Def):
        args = _listed([_words(arg) for arg in item.args], 0) if item.args else []
        keyword = "generator" if item.generator else "model" if item.model else "def"
        head = [*_words(keyword, item.name), Word("(", ""), *(_tight(args) if args else [])]
        return [*head, Word(")", ""), Word("="), *_expr(item.value, 1)]
    if isinstance(item, t.Sample):
        over = [Word("over", rank=0), *_operand(item.over, _POSTFIX, 1)] if item.over is not None else []
        names = _listed([_words(name) for name in item.names], 0)
        return [Word("sample"), *names, Word("~"), *_operand(item.distribution, _POSTFIX, 1), *over]
    if isinstance(item, t.Train):
        return [Word("train"), *_listed([_argument(option, 1) for option in item.options], 0)]
    if isinstance(item, t.Input):
        return [*_words("input", item.name, "in"), *_expr(item.domain, 1)]
    return _other_line(item)


def _other_line(item: t.Item) -> list[Word]:
    """Statements of games and laws, and models."""
    if isinstance(item, t.Data):
        names = [Word("("), *_tight(_listed([_words(name) for name in item.names], 1)), Word(")", "")]
        return [Word("data"), *names, Word("="), *_listed([_row(row) for row in item.rows], 0)]
    if isinstance(item, t.Solve):
        return [Word("solve"), *_solver(item.call)]
    if isinstance(item, t.Keep):
        return [*_words("keep", item.name, "in"), *_solver(item.region)]
    if isinstance(item, t.Hypothesis):
        return [Word("where"), *_expr(item.condition, 0)]
    if isinstance(item, t.Claim):
        return [Word("refute" if item.refuted else "claim"), *_expr(item.relation, 0)]
    assert isinstance(item, t.Model)
    if item.takes is not None and item.gives is not None:
        return _words("model", item.name, ":", item.takes, "->", item.gives)
    return _words("model", item.name, *(["frozen"] if item.frozen else []))


def _row(row: t.Sequence) -> list[Word]:
    """One row of `data`: `(1, 2)`."""
    return [Word("("), *_tight(_listed([_expr(item, 2) for item in row.items], 1)), Word(")", "")]


def _player(item: t.Player, order: list[str]) -> list[Word]:
    """A player on one line where it fits; a longer one breaks before its clauses."""
    words = _words("player", item.name)
    if item.init is not None:
        words += [Word("="), *_expr(item.init, 2)]
    if item.set is not None:
        words += [Word("in", rank=1), *_operand(item.set, _POSTFIX, 2)]
    for word in order:
        value = _solver(item.optimizer) if word == "by" and item.optimizer else _expr(item.objective, 1) if item.objective else []
        words += [Word(word, rank=0), *value]
    return words


def _usual_order(item: t.Level | t.Upper | t.Player) -> list[str]:
    """The first word of every clause of a level or player: objective, solver, mode, gradient flow."""
    if isinstance(item, t.Upper):
        return ["minimize", *("by" for _ in item.optimizers), *(["with"] if item.mode else [])]
    if isinstance(item, t.Player):
        return [word for word, clause in ((str(item.sense), item.objective), ("by", item.optimizer)) if clause is not None]
    clauses = {str(item.sense): item.objective, "by": item.solver, "with": item.mode, "through": item.through}
    return [word for word, clause in clauses.items() if clause is not None]


def _written_order(text: str, span: Span) -> list[str]:
    """The first word of every clause of a level, in the order written."""
    depth, order = 0, []
    for token in tokens(text[span.start : span.end]):
        depth += (token[0] in ("(", "[", "{")) - (token[0] in (")", "]", "}"))
        if depth == 0 and token[0] in _CLAUSES:
            order.append(token[0])
    return order


def _level(item: t.Level | t.Upper, order: list[str]) -> list[Line]:
    """A level's head, then every clause on a line of its own."""
    lines = [Line(0, _level_head(item))]
    solvers = iter(item.optimizers if isinstance(item, t.Upper) else ())
    for word in order:
        words = [Word(word)]
        if word in ("maximize", "minimize") and item.objective is not None:
            words += _expr(item.objective, 0)
        elif word == "by" and isinstance(item, t.Upper):
            optimizer = next(solvers)
            words += [*_solver(optimizer.call), *(_words("for", optimizer.model) if optimizer.model else [])]
        elif word == "by" and isinstance(item, t.Level) and item.solver is not None:
            words += _solver(item.solver)
        elif word == "with":
            words = [*_words("with", "f", "in", str(item.mode)), *(_words("joint") if isinstance(item, t.Upper) and item.joint else [])]
        elif isinstance(item, t.Level) and item.through is not None:
            words += _operand(item.through, _POSTFIX, 0)
        lines.append(Line(CLAUSE, words, first=False))
    return lines


def _level_head(item: t.Level | t.Upper) -> list[Word]:
    if isinstance(item, t.Upper):
        return _words("upper", *(("at", item.at) if item.at else ()))
    words = _words("run", item.run, ":") if item.run else _words("lower")
    words.append(Word(item.var))
    if item.index is not None:
        words += [Word("[", ""), *_tight(_header(item.index, 1)), Word("]", "")]
    return [*words, Word("in"), *_operand(item.set, _POSTFIX, 1)]


def _solver(call: t.Call) -> list[Word]:
    """`by linear()` is written `by linear`."""
    bare = not call.args and not isinstance(call.func, t.Call)
    return _operand(call.func, _POSTFIX, 0) if bare else _expr(call, 0)


# --- expressions -------------------------------------------------------------------------------------------------


def _tightness(expr: t.Expr) -> int:
    if isinstance(expr, t.Binary):
        return _BINARY[expr.op][0]
    if isinstance(expr, t.Unary):
        return _NOT if expr.op == "not" else _MINUS
    if isinstance(expr, t.Compare):
        return _COMPARE
    return _ATOM if isinstance(expr, t.Number | t.Name | t.Range | t.Sequence) else _POSTFIX


def _operand(expr: t.Expr, least: int, rank: int, dense: bool = False) -> list[Word]:
    """An expression, in parentheses if it is looser than its place allows."""
    if _tightness(expr) >= least:
        return _expr(expr, rank, dense)
    return [Word("("), *_tight(_expr(expr, rank, dense)), Word(")", "")]


def _expr(expr: t.Expr, rank: int, dense: bool = False) -> list[Word]:
    """The words of an expression; lines may end at its own operators with `rank`, in its parts with higher ranks.

    `dense`: no spaces around operators, as in `0..m-1`.
    """
    if isinstance(expr, t.Number):
        return [Word(expr.text)]
    if isinstance(expr, t.Name):
        return [Word(expr.id)]
    if isinstance(expr, t.Unary):
        operand = _operand(expr.operand, _tightness(expr), rank + 1, dense)
        return [Word(expr.op), *(operand if expr.op == "not" else _tight(operand))]
    if isinstance(expr, t.Binary):
        return _binary(expr, rank, dense)
    if isinstance(expr, t.Compare):
        words = _operand(expr.operands[0], _SUM, rank + 1)
        for op, operand_ in zip(expr.ops, expr.operands[1:], strict=True):
            words += [Word(op, rank=rank), *_operand(operand_, _SUM, rank + 1)]
        return words
    if isinstance(expr, t.Range):
        low, high = (_operand(end, _SUM, rank + 1, dense=True) for end in (expr.low, expr.high))
        return [*low, Word("..", ""), *_tight(high)]
    if isinstance(expr, t.Sequence):
        closing = {"[": "]", "{": "}"}[expr.bracket]
        return [Word(expr.bracket), *_tight(_listed([_expr(item, rank + 1) for item in expr.items], rank)), Word(closing, "")]
    return _postfix(expr, rank)


def _binary(expr: t.Binary, rank: int, dense: bool) -> list[Word]:
    own, least_left, least_right = _BINARY[expr.op]
    chained = isinstance(expr.left, t.Binary) and _BINARY[expr.left.op][0] == own
    fraction = expr.op == "/"
    left = _operand(expr.left, least_left, rank if chained else rank + 1, dense or (fraction and _plain_sum(expr.left)))
    right = _operand(expr.right, least_right, rank + 1, dense or (fraction and _plain_sum(expr.right)))
    if expr.op in ("/", "^"):
        return [*left, Word(expr.op, ""), *_tight(right)]
    if dense and expr.op not in ("and", "or"):
        return [*left, Word(expr.op, "", rank), *_tight(right)]
    return [*left, Word(expr.op, rank=rank), *right]


def _plain_sum(expr: t.Expr) -> bool:
    """`k + 1`: in a fraction it is written `(k+1)/m`."""
    if not isinstance(expr, t.Binary) or expr.op not in ("+", "-"):
        return False
    return isinstance(expr.left, t.Name | t.Number) and isinstance(expr.right, t.Name | t.Number)


def _postfix(expr: t.Index | t.Iterate | t.Call | t.Binder, rank: int) -> list[Word]:
    if isinstance(expr, t.Binder):
        header, body = _header(expr.header, rank + 1), _break(_expr(expr.body, rank + 1), rank)
        bound = [*header, Word(":", ""), *body]
        return [Word(expr.func), Word("(", ""), *_tight(bound), Word(")", "")] if expr.func else bound
    if isinstance(expr, t.Iterate):
        return [*_operand(expr.base, _POSTFIX, rank), Word("@", ""), *_tight(_operand(expr.step, _ATOM, rank + 1, dense=True))]
    if isinstance(expr, t.Index):
        base, closing = _operand(expr.base, _POSTFIX, rank), "]" if expr.bracket == "[" else "}"
        return [*base, Word(expr.bracket, ""), *_tight(_expr(expr.index, rank + 1)), Word(closing, "")]
    words = [*_operand(expr.func, _POSTFIX, rank), Word("(", "")]
    if expr.double_bar:
        left, right = (_expr(arg.value, rank + 1) for arg in expr.args)
        words += [*_tight(left), Word("||", rank=rank), *right]
    elif expr.args:
        words += _tight(_listed([_argument(arg, rank) for arg in expr.args], rank))
    return [*words, Word(")", "")]


def _argument(arg: t.Argument, rank: int) -> list[Word]:
    name = [Word("until")] if arg.name == "until" else _words(arg.name, "=") if arg.name else []
    words = [*name, *_expr(arg.value, rank + 1)]
    return words if arg.where is None else [*words, Word("where", rank=rank), *_expr(arg.where, rank + 1)]


def _header(header: t.Header, rank: int) -> list[Word]:
    words = [Word(header.var)]
    if header.domain is None:
        return words
    least = _SUM if header.relation == "!=" else _OR
    return [*words, Word(header.relation), *_operand(header.domain, least, rank)]
