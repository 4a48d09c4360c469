"""A declaration of a law to a typed law, at one choice of everything that is enumerated (whole numbers, finite sets, dimensions)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lossdsl.check import build, law_domains
from lossdsl.check.law_infer import LawInference
from lossdsl.check.law_recipes import Load
from lossdsl.check.law_typed import Choice, Quantity, Relation, Statement, TypedLaw
from lossdsl.check.params import Params
from lossdsl.check.recipe import Checker
from lossdsl.check.scope import BUILT_IN, Later, Report, functions, is_error
from lossdsl.check.structure import introduced
from lossdsl.check.typed import Typed
from lossdsl.diagnostics import Related
from lossdsl.lang.types import CLASSES, DESCRIPTION, SCALARS, Kind
from lossdsl.source import Span
from lossdsl.syntax import tree as t

LARGEST = 400
"""Numbers that a law may quantify over, together."""
_OF_RECIPES = (
    t.Param, t.Sample, t.Level, t.Find, t.Upper, t.State, t.Train, t.Input, t.Model, t.Player, t.Solve, t.Data, t.Keep,
)  # fmt: skip


class LawChecker(Checker):
    """Checks one law at `choices`; where a choice is missing, the first option is taken."""

    inference: LawInference

    def __init__(self, report: Report, choices: Mapping[str, Choice], load: Load) -> None:
        super().__init__(report, {})
        self.inference = LawInference(report, load)
        self.params = Params(self.inference, {}, 1)
        self.wanted = dict(choices)
        self.choices: dict[str, Choice] = {}
        self.options: dict[str, tuple[Choice, ...]] = {}
        self.quantities: list[Quantity] = []
        self.where: list[Relation] = []
        self.statements: list[Statement] = []

    def check_law(self, shared: tuple[t.Item, ...], node: t.Declaration) -> TypedLaw:
        """Everything a law says; only meaningful where nothing was reported."""
        self.later = frozenset(name for item in node.items for name in introduced(item))
        for item in shared:
            if isinstance(item, t.Def):
                self._define(item)
        for item in node.items:
            self.later -= frozenset(introduced(item))
            if isinstance(item, _OF_RECIPES):
                help = "a law quantifies with for, names values with let and def, and says where, claim and refute"
                self.report.error("E036", "this statement belongs to a recipe or a game", item.span, help)
                for name in introduced(item):
                    self.scope = self.scope.declare(name, Later("a statement of a recipe"))
            else:
                getattr(self, "_" + type(item).__name__.lower())(item)
        self._complete(node)
        return TypedLaw(
            node.name, self.words.get("title", ""), self.words.get("source", ""), self.inference.classes, tuple(self.quantities),
            tuple(self.statements), self.choices, self.options, self.inference.networks,
        )  # fmt: skip

    def declare(self, name: str, binding: object, span: Span, what: str) -> None:
        """Add a name. Built-in names may be rebound by quantifiers only, operations by nothing."""
        quantified = what == "quantifier"
        own = frozenset(BUILT_IN)
        if name in ("pi", "inf") or name in (functions() - own if quantified else functions() | own):
            self.report.error("E032", f"{name} has a meaning of its own in a law", span, "choose another name")
        elif self.scope.get(name) is not None:
            related = (Related(self.places[name], f"{name} is introduced here"),) if name in self.places else ()
            self.report.error("E011", f"{name} is declared twice", span, "choose another name, or remove one of them", related=related)
        else:
            self.places[name] = span
            self.scope = self.scope.declare(name, binding)  # type: ignore[arg-type]

    def choose(self, name: str, options: tuple[Choice, ...]) -> Choice:
        """One of the options: the wanted one where it is among them, else the first."""
        wanted = self.wanted.get(name, options[0])
        self.choices[name] = wanted if wanted in options else options[0]
        self.options[name] = options
        return self.choices[name]

    # --- statements ---

    def _quantifier(self, node: t.Quantifier) -> None:
        law_domains.check_quantifier(self, node)
        total = sum(q.size for q in self.quantities)
        if total > LARGEST and not self.report.failed:
            help = f"at most {LARGEST} may be chosen together: take fewer classes, members, units or dimensions"
            self.report.error("E036", f"with {node.name} the law quantifies over {total} numbers", node.span, help)

    def _let(self, node: t.Let) -> None:
        if node.mode is not None or node.recorded:
            self.report.error("E036", "a law has no modes and records nothing", node.span, f"write let {node.name} = ...")
        super()._let(replace(node, mode=None, recorded=False))

    def _hypothesis(self, node: t.Hypothesis) -> None:
        found = self.relation(node.condition)
        if found is not None:
            self.where.append(found)

    def _claim(self, node: t.Claim) -> None:
        found = self.relation(node.relation)
        if found is not None:
            self.statements.append(Statement(found, node.refuted, tuple(self.where), node.span))

    # --- relations ---

    def relation(self, e: t.Expr) -> Relation | None:
        """A comparison, a chain of them, or `and`, `or`, `not` of such; None after reporting."""
        if isinstance(e, t.Binary) and e.op in ("and", "or"):
            return self._joined(e.op, [e.left, e.right], e.span)
        if isinstance(e, t.Unary) and e.op == "not":
            return self._joined("not", [e.operand], e.span)
        if isinstance(e, t.Compare):
            return self._chain(e)
        self.report.error("E036", "a claim or hypothesis is a relation", e.span, "write for example a <= b, a == b, or a > 0 and b > 0")
        return None

    def _joined(self, op: str, parts: list[t.Expr], span: Span) -> Relation | None:
        found = [self.relation(part) for part in parts]
        return None if None in found else Relation(op, parts=tuple(r for r in found if r is not None), span=span)

    def _chain(self, e: t.Compare) -> Relation | None:
        sides = [self._side(o) for o in e.operands]
        if is_error(*sides) or not self.inference.one_size(*sides):
            return None
        links = tuple(
            self._link(op, a, b, Span(x.span.start, y.span.end, x.span.file))
            for op, a, b, x, y in zip(e.ops, sides, sides[1:], e.operands, e.operands[1:], strict=False)
        )
        sound = tuple(link for link in links if link is not None)
        return None if len(sound) < len(links) else sound[0] if len(sound) == 1 else Relation("and", parts=sound, span=e.span)

    def _link(self, op: str, a: Typed, b: Typed, span: Span) -> Relation | None:
        """One comparison. Of classes: the condition that they are equal is 1."""
        if not {a.kind, b.kind} & CLASSES:
            return Relation(op, a, b, span=span)
        if not {a.kind, b.kind} <= CLASSES | {Kind.CONST} or op not in ("==", "!="):
            said = f"{op} does not compare {DESCRIPTION[a.kind]} and {DESCRIPTION[b.kind]}"
            self.report.error("E013", said, span, "classes are compared with == and !=")
            return None
        return Relation("==", replace(build.compare(build.COMPARISON[op], a, b, span), kind=Kind.REAL), build.number(1), span=span)

    def _side(self, e: t.Expr) -> Typed:
        """A number (a condition is 1 or 0), or a class."""
        value = self.inference.infer(e, self.scope, self.at)
        if is_error(value) or value.kind in SCALARS | CLASSES:
            return value
        help = "compare entries or norms: all of them at once is max(i in 0..n-1: abs(a[i] - b[i])) == 0"
        return self.report.error("E013", f"a relation compares numbers, and this is {DESCRIPTION[value.kind]}", e.span, help)

    # --- the law as a whole ---

    def _complete(self, node: t.Declaration) -> None:
        if self.report.lost_words:
            return
        header = Span(node.span.start, node.span.start + len(node.kind) + 1 + len(node.name), node.span.file)
        if not any(isinstance(i, t.Claim) for i in node.items):
            self.report.error("E036", f"law {node.name} claims nothing", header, "add: claim KL(p || q) >= 0")
        if self.report.failed:
            return
        for item in node.items:
            if isinstance(item, t.Let | t.Def | t.Quantifier) and item.name not in self.report.used:
                what = "quantity" if isinstance(item, t.Quantifier) else type(item).__name__.lower()
                self.report.warn("T09", f"the {what} {item.name} is never used", item.span, "remove it, or use it")


def check_law(
    report: Report, shared: tuple[t.Item, ...], node: t.Declaration, choices: Mapping[str, Choice], load: Load
) -> TypedLaw:
    """The law at `choices`; `load` finds the recipes and games that it names."""
    return LawChecker(report, choices, load).check_law(shared, node)


