"""A declaration to a typed recipe: statements in order, each adding names or levels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lossdsl.check import draws, levels
from lossdsl.check.infer import Context, Inference, X, Y, scalar_help
from lossdsl.check.options import validated
from lossdsl.check.params import Params
from lossdsl.check.scope import BUILT_IN, Function, Later, LevelName, Report, Scope, Value, functions, is_error
from lossdsl.check.structure import complete, introduced
from lossdsl.check.typed import Typed, TypedLevel, TypedRecipe, TypedSample
from lossdsl.diagnostics import Related
from lossdsl.lang.specs import OptimizerSpec, TrainOptions
from lossdsl.lang.types import DESCRIPTION, SCALARS, Kind
from lossdsl.source import Span
from lossdsl.syntax import tree as t


class Checker:
    """Checks one declaration. `report` collects every finding; `result` is only meaningful without errors."""

    def __init__(self, report: Report, overrides: Mapping[str, float | int], epoch: int = 1) -> None:
        self.report = report
        self.inference = Inference(report)
        self.params = Params(self.inference, overrides, epoch)
        self.scope = Scope()
        self.later: frozenset[str] = frozenset()
        self.samples: list[TypedSample] = []
        self.levels: list[TypedLevel] = []
        self.logs: list[tuple[str, Typed]] = []
        self.words: dict[str, str] = {}
        self.objective: Typed | None = None
        self.optimizer: OptimizerSpec | None = None
        self.train: TrainOptions | None = None
        self.domain: tuple[Any, Any] | None = (0.0, 1.0)
        self.places: dict[str, Span] = {}

    @property
    def at(self) -> Context:
        return Context(later=self.later)

    def check(self, shared: tuple[t.Item, ...], node: t.Declaration) -> TypedRecipe:
        """Everything a declaration says; statements after a wrong one are still checked."""
        self.later = frozenset(name for item in node.items for name in introduced(item))
        for item in shared:
            if isinstance(item, t.Def):
                self._define(item)
        for item in node.items:
            self.later -= frozenset(introduced(item))
            getattr(self, "_" + type(item).__name__.lower())(item)
        complete(self, node)
        return TypedRecipe(
            node.kind, node.name, self.words.get("title", ""), self.words.get("source", ""), self.params.values, tuple(self.samples),
            tuple(self.levels), self.objective, tuple(self.logs), self.optimizer, self.train, self.domain, self.words.get("count"),
        )  # fmt: skip

    def declare(self, name: str, binding: Any, span: Span, what: str) -> None:
        """Add a name; built-ins and names in use are refused."""
        if name in BUILT_IN or (name in functions() and not isinstance(binding, Value)) or name == "f":
            self.report.error("E032", f"{name} is built in and cannot be declared", span, "choose another name")
            if self.scope.get(name) is None and name in (*BUILT_IN, *functions()):
                return
        elif self.scope.get(name) is not None:
            related = (Related(self.places[name], f"{name} is introduced here"),) if name in self.places else ()
            self.report.error("E011", f"{name} is declared twice", span, "choose another name, or remove one of them", related=related)
        else:
            self.places[name] = span
            self.scope = self.scope.declare(name, binding)
            return
        self.scope = self.scope.declare(name, self.scope.get(name) or binding)

    def _define(self, node: t.Def) -> None:
        if node.generator:
            self.report.not_yet("generators", node.span)
            return
        if len(set(node.args)) != len(node.args):
            self.report.error("E011", f"{node.name} has two arguments of one name", node.span, "give each argument its own name")
            self.declare(node.name, Later("a wrong def"), node.span, "def")
            return
        scope = self._try_def(node, self.scope)
        self.declare(node.name, Function(node, scope.declare(node.name, Later("recursion"))), node.span, "def")

    def _try_def(self, node: t.Def, scope: Scope) -> Scope:
        """Names inside a def's body that exist nowhere are found even if the def is never used, and reported once."""
        known = {*scope.names, *node.args, *BUILT_IN, *functions(), "inf"}
        bound = {b.header.var for b in t.walk(node.value) if isinstance(b, t.Binder)}
        for part in t.walk(node.value):
            if isinstance(part, t.Name) and part.id == node.name:
                self.report.error("E026", f"{node.name} calls itself", part.span, "defs are not recursive")
                scope = scope.declare(part.id, Later("recursion"))
            elif isinstance(part, t.Name) and part.id not in known | bound and part.id not in ("D", "top"):
                inside = Scope({**scope.names, **dict.fromkeys(node.args, Later("an argument"))})
                self.report.unknown(part.id, inside, part.span, self.later)
                scope = scope.declare(part.id, Later("an unknown name"))
        return scope

    # --- one method per statement ---

    def _def(self, node: t.Def) -> None:
        self._define(node)

    def _keyword(self, node: t.Keyword) -> None:
        if node.keyword == "remove":
            self.report.error(
                "E028",
                "remove belongs to a recipe that extends another",
                node.span,
                "write recipe NAME extends BASE, or delete the statement itself",
            )
        elif node.keyword in self.words:
            self.report.error("E011", f"{node.keyword} is given twice", node.span, "keep one of them")
        else:
            if node.keyword == "count" and node.value not in ("worst", "best_loss", "each"):
                self.report.error("E033", f"there is no count rule {node.value}", node.span, "the rules are worst, best_loss and each")
            self.words[node.keyword] = node.value

    def _param(self, node: t.Param) -> None:
        value = self.params.resolve(node, self.scope, self.at)
        typed = Typed("?", (), Kind.CONST, node.span) if value is None else _number(value, node.span)
        self.declare(node.name, Value(typed, node.span, "param"), node.span, "param")

    def _let(self, node: t.Let) -> None:
        typed = self.inference.infer(node.value, self.scope, self.at)
        if node.mode is not None and not is_error(typed) and typed.op != "number":
            typed = Typed(
                "mode",
                (typed,),
                typed.kind,
                node.span,
                (node.mode,),
                depends=typed.depends,
                low=typed.low,
                high=typed.high,
                family=typed.family,
            )
        if not node.recorded:
            self.declare(node.name, Value(typed, node.span, "let"), node.span, "let")
            return
        if not is_error(typed) and typed.kind not in SCALARS:
            self.report.error(
                "E013",
                f"log records numbers, and {node.name} is {DESCRIPTION[typed.kind]}",
                node.value.span,
                scalar_help(typed),
                label=str(typed.kind),
            )
        self.logs.append((node.name, typed))

    def _sample(self, node: t.Sample) -> None:
        draw_expr = node.distribution
        if draw_expr == t.Name("rademacher"):
            draw_expr = t.Call(draw_expr, (), span=draw_expr.span)
        for name in node.names:
            draw = self.inference.infer(draw_expr, self.scope, Context(draws=True, later=self.later))
            if not is_error(draw) and draw.op != "draw":
                draw = self.report.error(
                    "E027",
                    "a sample is drawn from a distribution",
                    draw_expr.span,
                    "write uniform(...), normal(s), corner(SET) or rademacher",
                )
            levels_used = sorted({level.var for level in self.levels} & draw.depends)
            if levels_used:
                help = "draw a perturbation, for example uniform(linf(0, eps)), and add it where it is used"
                draw = self.report.error("E027", f"{name} is drawn before the level of {levels_used[0]} runs", draw_expr.span, help)
            over = None if is_error(draw) else draws.sample_kind(self.inference, draw, node.over, self.scope)
            if over is None:
                self.declare(name, Value(Typed("?", (), Kind.CONST, node.span), node.span, "sample"), node.span, "sample")
                continue
            self.samples.append(TypedSample(name, draw, over[0], node.span))
            value = Typed("sample", (), over[1], node.span, (name,), depends=draw.depends, low=draw.low, high=draw.high)
            self.declare(name, Value(value, node.span, "sample"), node.span, "sample")

    def _level(self, node: t.Level) -> None:
        level, steps, domain = levels.check_level(self, node)
        if level is not None:
            self.levels.append(level)
        if node.run is None and node.index is not None and domain is None:
            self.scope = self.scope.declare(node.var, Later("a family"))
        elif node.run is None and not isinstance(self.scope.get(node.var), Later):
            self.declare(node.var, LevelName(node.var, steps, domain, node.span), node.span, "lower variable")

    def _upper(self, node: t.Upper) -> None:
        if self.words.get("upper"):
            self.report.error("E022", "there are two upper levels", node.span, "a recipe has one")
            return
        self.words["upper"] = "yes"
        levels.check_upper(self, node)

    def _train(self, node: t.Train) -> None:
        if self.words.get("train"):
            self.report.error("E011", "there are two train statements", node.span, "join them")
            return
        self.words["train"] = "yes"
        later = {"ema": "weight averaging", "sampler": "class sampling", "data": "mixed data streams"}
        options = []
        for option in node.options:
            if option.name in later:
                self.report.not_yet(later[option.name], option.span)
            else:
                options.append(option)
        self.train = validated(self.inference, TrainOptions, "train", tuple(options), node.span, self.scope, self.at)

    def _input(self, node: t.Input) -> None:
        if node.name != "x":
            self.report.error("E031", f"the input is called x, not {node.name}", node.span, "write input x in [0, 1]")
        self.domain = levels.input_domain(self, node.domain)

    def _find(self, node: t.Find) -> None:
        self.report.not_yet("find", node.span)
        self.declare(node.name, Later("find"), node.span, "find")

    def _state(self, node: t.State) -> None:
        self.report.not_yet("memory" if node.per_example else "state", node.span)
        self.declare(node.name, Later("state"), node.span, "state")

    def _model(self, node: t.Model) -> None:
        self.report.not_yet("other models", node.span)
        self.declare(node.name, Later("other models"), node.span, "model")


def _number(value: float | int, span: Span) -> Typed:
    return Typed("number", (), Kind.CONST, span, value=value, low=value, high=value)


__all__ = ["Checker", "X", "Y"]
