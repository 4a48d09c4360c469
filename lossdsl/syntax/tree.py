"""The syntax tree: what a file says, word by word, with the place of every word.

Nodes are frozen and compare by content; spans do not take part in comparison, so a formatted file parses to an equal
tree. The tree knows no operation, solver or set by name: those live in the tables of `lossdsl.lang`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from lossdsl.source import NOWHERE, Span


@dataclass(frozen=True, kw_only=True)
class Node:
    span: Span = field(default=NOWHERE, compare=False, repr=False)


# --- expressions -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number(Node):
    text: str

    @property
    def value(self) -> float | int:
        return int(self.text) if self.text.isdigit() else float(self.text)


@dataclass(frozen=True)
class Name(Node):
    id: str


@dataclass(frozen=True)
class Unary(Node):
    """`-e` or `not e`."""

    op: str
    operand: Expr


@dataclass(frozen=True)
class Binary(Node):
    """`+ - * / ^`, `and`, `or`."""

    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True)
class Compare(Node):
    """A chain `a < b <= c`: a conjunction of its links."""

    operands: tuple[Expr, ...]
    ops: tuple[str, ...]


@dataclass(frozen=True)
class Index(Node):
    """`v[j]`, `p[g]`, `x'[worst]` (bracket "[") or `f{w}` (bracket "{")."""

    base: Expr
    index: Expr
    bracket: str = "["


@dataclass(frozen=True)
class Iterate(Node):
    """`x'@k`: the lower solution after update k."""

    base: Expr
    step: Expr


@dataclass(frozen=True)
class Argument(Node):
    """One argument of a call: positional (name None) or `name = value`, with an optional `where` condition."""

    value: Expr
    name: str | None = None
    where: Expr | None = None


@dataclass(frozen=True)
class Call(Node):
    """`func(args)`; `double_bar` is true for `KL(a || b)`."""

    func: Expr
    args: tuple[Argument, ...]
    double_bar: bool = False


@dataclass(frozen=True)
class Header(Node):
    """What a binder binds: `j`, `j != e`, `j in S`, or `v = e` (for grad)."""

    var: str
    relation: Literal["", "!=", "in", "="] = ""
    domain: Expr | None = None


@dataclass(frozen=True)
class Binder(Node):
    """`max(j != y: e)`, `grad(x: e)`."""

    func: str
    header: Header
    body: Expr


@dataclass(frozen=True)
class Range(Node):
    """Whole numbers `low..high`, both included."""

    low: Expr
    high: Expr


@dataclass(frozen=True)
class Sequence(Node):
    """`[a, b]`: an interval or a list of epochs, by context; `{a, b}` (bracket "{"): a finite set."""

    items: tuple[Expr, ...]
    bracket: str = "["


Expr = Number | Name | Unary | Binary | Compare | Index | Iterate | Call | Binder | Range | Sequence


# --- statements --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage(Node):
    """`then VALUE from epoch FIRST`: a later value of a param."""

    value: Expr
    first: Expr


@dataclass(frozen=True)
class Param(Node):
    name: str
    value: Expr
    stages: tuple[Stage, ...] = ()
    limits: Expr | None = None


@dataclass(frozen=True)
class Let(Node):
    """`let NAME = value` or, with `recorded`, `log NAME = value`; `mode` is of `with f in MODE`."""

    name: str
    value: Expr
    mode: str | None = None
    recorded: bool = False


@dataclass(frozen=True)
class Def(Node):
    """`def NAME(args) = value`, `generator psi(p) = value`, or (with `model`) `model f(x) = value`."""

    name: str
    args: tuple[str, ...]
    value: Expr
    generator: bool = False
    model: bool = False


@dataclass(frozen=True)
class Sample(Node):
    names: tuple[str, ...]
    distribution: Expr
    over: Expr | None = None


@dataclass(frozen=True)
class Level(Node):
    """A lower level, or (with `run`) one run of an attack suite."""

    var: str
    index: Header | None
    set: Expr
    sense: Literal["maximize", "minimize"] | None
    objective: Expr | None
    solver: Call | None
    mode: str | None = None
    through: Expr | None = None
    run: str | None = None


@dataclass(frozen=True)
class Find(Node):
    name: str
    interval: Expr
    condition: Expr
    solver: Call


@dataclass(frozen=True)
class Upper(Node):
    objective: Expr
    at: str | None = None
    optimizers: tuple[Optimizer, ...] = ()
    mode: str | None = None
    joint: bool = False


@dataclass(frozen=True)
class Optimizer(Node):
    """`by sgd(...)`, optionally `for h`."""

    call: Call
    model: str | None = None


@dataclass(frozen=True)
class State(Node):
    """`state NAME = init then update`, or `memory` (one value per training example)."""

    name: str
    init: Expr
    update: Expr
    per_example: bool = False
    mode: str | None = None


@dataclass(frozen=True)
class Train(Node):
    options: tuple[Argument, ...]


@dataclass(frozen=True)
class Input(Node):
    name: str
    domain: Expr


@dataclass(frozen=True)
class Model(Node):
    """`model NAME [frozen]`, or in a game `model NAME : TAKES -> GIVES`."""

    name: str
    frozen: bool = False
    takes: str | None = None
    gives: str | None = None


@dataclass(frozen=True)
class Player(Node):
    """`player NAME = init in SET minimize EXPR by OPTIMIZER`: one side of a game; every part but the name may be missing."""

    name: str
    init: Expr | None
    set: Expr | None
    sense: Literal["maximize", "minimize"] | None
    objective: Expr | None
    optimizer: Call | None = None


@dataclass(frozen=True)
class Solve(Node):
    """`solve SOLVER(...)`: how a game is played."""

    call: Call


@dataclass(frozen=True)
class Data(Node):
    """`data (a, b) = (1, 2), (3, 4)`: numbers per example, one row for each."""

    names: tuple[str, ...]
    rows: tuple[Sequence, ...]


@dataclass(frozen=True)
class Keep(Node):
    """`keep NAME in REGION`: what the weights of a model are held in (`clip(0.01)`, `spectral`)."""

    name: str
    region: Call


@dataclass(frozen=True)
class Quantifier(Node):
    """`for NAME in DOMAIN`, or a family `NAME[1..n] in DOMAIN`."""

    name: str
    index: Range | None
    domain: Expr


@dataclass(frozen=True)
class Hypothesis(Node):
    """`where CONDITION`: what the claims below it may assume."""

    condition: Expr


@dataclass(frozen=True)
class Claim(Node):
    """`claim RELATION`, or with `refuted` `refute RELATION`."""

    relation: Expr
    refuted: bool = False


@dataclass(frozen=True)
class Keyword(Node):
    """Statements of one word and one value: title, source, remove, count, use."""

    keyword: str
    value: str


Item = (
    Param | Let | Def | Sample | Level | Find | Upper | State | Train | Input | Model | Keyword | Player | Solve | Data | Keep
    | Quantifier | Hypothesis | Claim
)  # fmt: skip


@dataclass(frozen=True)
class Declaration(Node):
    """`recipe NAME extends BASE`, `attack NAME`, `game NAME` or `law NAME`, with its items in the order written."""

    kind: str
    name: str
    base: str | None
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Comment(Node):
    text: str


@dataclass(frozen=True)
class File(Node):
    """A whole file: shared items first (`use`, `def`, `generator`), then declarations. Comments take no part in equality."""

    shared: tuple[Item, ...]
    declarations: tuple[Declaration, ...]
    comments: tuple[Comment, ...] = field(default=(), compare=False)


def children(node: Node) -> list[Node]:
    """The nodes directly inside, in order of their fields."""
    found: list[Node] = []
    for f in fields(node):
        value: Any = getattr(node, f.name)
        if isinstance(value, Node):
            found.append(value)
        elif isinstance(value, tuple):
            found.extend(v for v in value if isinstance(v, Node))
    return found


def relocated(node: Any, file: str) -> Any:
    """The same tree with spans that name the file they lie in."""
    if isinstance(node, tuple):
        return tuple(relocated(part, file) for part in node)
    if not isinstance(node, Node):
        return node
    changes = {f.name: relocated(getattr(node, f.name), file) for f in fields(node) if f.name != "span"}
    span = node.span if node.span.file else Span(node.span.start, node.span.end, file)
    return replace(node, **changes, span=span)


def walk(node: Node) -> list[Node]:
    """The node and everything inside it, outermost first."""
    out, stack = [], [node]
    while stack:
        current = stack.pop()
        out.append(current)
        stack.extend(reversed(children(current)))
    return out
