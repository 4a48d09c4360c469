"""A declaration to a typed recipe: statements in order, each adding names or levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lossdsl.check import bregman, draws, levels, states
from lossdsl.check.infer import Context, Inference, X, Y, scalar_help
from lossdsl.check.options import validated
from lossdsl.check.params import Params
from lossdsl.check.scope import BUILT_IN, Function, Later, ModelName, Report, Scope, Value, functions, is_error
from lossdsl.check.structure import complete, introduced
from lossdsl.check.typed import Typed, TypedFind, TypedLevel, TypedRecipe, TypedSample, TypedState
from lossdsl.check.upper import check_upper
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
        self.stages: list[TypedLevel | TypedFind] = []
        self.states: list[TypedState] = []
        self.models: dict[str, bool] = {}
        self.optimizers: dict[str, OptimizerSpec] = {}
        self.upper_at: str | None = None
        self.upper_mode, self.joint = "train", False
        self.sampler: Typed | None = None
        self.logs: list[tuple[str, Typed]] = []
        self.words: dict[str, str] = {}
        self.objective: Typed | None = None
        self.optimizer: OptimizerSpec | None = None
        self.train: TrainOptions | None = None
        self.domain: tuple[Any, Any] | None = (0.0, 1.0)
        self.places: dict[str, Span] = {}
        self.items: tuple[t.Item, ...] = ()

    @property
    def levels(self) -> list[TypedLevel]:
        return [s for s in self.stages if isinstance(s, TypedLevel)]

    @property
    def at(self) -> Context:
        return Context(later=self.later)

    def check(self, shared: tuple[t.Item, ...], node: t.Declaration) -> TypedRecipe:
        """Everything a declaration says; statements after a wrong one are still checked."""
        self.items = node.items
        self.later = frozenset(name for item in node.items for name in introduced(item))
        for item in shared:
            if isinstance(item, t.Def):
                self._define(item)
        states.foretell(self, node)
        for item in node.items:
            self.later -= frozenset(introduced(item))
            getattr(self, "_" + type(item).__name__.lower())(item)
        complete(self, node)
        return TypedRecipe(
            node.kind, node.name, self.words.get("title", ""), self.words.get("source", ""), self.params.values, tuple(self.samples),
            tuple(self.stages), self.objective, tuple(self.logs), self.optimizer, self.train, self.domain, self.words.get("count"),
            self.models, self.optimizers, tuple(self.states), self.upper_at, self.upper_mode, self.joint, self.sampler,
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
            bregman.define(self, node)
            return
        if len(set(node.args)) != len(node.args):
            self.report.error("E011", f"{node.name} has two arguments of one name", node.span, "give each argument its own name")
            self.declare(node.name, Later("a wrong def"), node.span, "def")
            return
        scope = self._try_def(node, self.scope)
        self.declare(node.name, Function(node, scope.declare(node.name, Later("recursion"))), node.span, "def")

    def _try_def(self, node: t.Def, scope: Scope) -> Scope:
        """Names inside a def's body that exist nowhere are found even if the def is never used, and reported once."""
        known = {*scope.names, *node.args, *BUILT_IN, *functions(), "inf", "pi"}
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
        if node.model:
            said = "a model given by a formula belongs to a game"
            self.report.error("E035", said, node.span, f"write def {node.name}({', '.join(node.args)}) = ...")
            return
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
        typed = self.inference.infer(node.value, self.scope, replace(self.at, logged=node.recorded))
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
            levels_used = sorted({stage.var for stage in self.stages} & draw.depends)
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
        level, name = levels.check_level(self, node)
        if level is not None:
            self.stages.append(level)
        unknown = isinstance(name, Later) or (node.index is not None and name.domain is None)
        if node.run is None and unknown:
            self.scope = self.scope.declare(node.var, Later("a level that is wrong"))
        elif node.run is None and not isinstance(self.scope.get(node.var), Later):
            self.declare(node.var, name, node.span, "lower variable")

    def _upper(self, node: t.Upper) -> None:
        if self.words.get("upper"):
            self.report.error("E022", "there are two upper levels", node.span, "a recipe has one")
            return
        self.words["upper"] = "yes"
        check_upper(self, node)

    def _train(self, node: t.Train) -> None:
        if self.words.get("train"):
            self.report.error("E011", "there are two train statements", node.span, "join them")
            return
        self.words["train"] = "yes"
        sampler = [option for option in node.options if option.name == "sampler"]
        rest = tuple(option for option in node.options if option not in sampler)
        self.train = validated(self.inference, TrainOptions, "train", rest, node.span, self.scope, self.at)
        if sampler:
            self.sampler = draws.infer_sampler(self.inference, sampler, self.scope, self.at)
        if sampler and self.train is not None and self.train.data is not None:
            help = "leave out sampler, or data"
            said = "the sampler draws classes, which pseudo-labelled examples do not have"
            self.report.error("E030", said, sampler[0].span, help)

    def _input(self, node: t.Input) -> None:
        if node.name != "x":
            self.report.error("E031", f"the input is called x, not {node.name}", node.span, "write input x in [0, 1]")
        self.domain = levels.input_domain(self, node.domain)

    def _find(self, node: t.Find) -> None:
        found = states.check_find(self, node)
        if found is not None:
            self.stages.append(found)
        self.declare(node.name, states.found_value(self, node, found), node.span, "find")

    def _state(self, node: t.State) -> None:
        states.check_state(self, node)

    def _of_a_game(self, node: t.Item) -> None:
        self.report.error("E035", "players, data, solve and keep belong to a game", node.span, "remove it, or declare game NAME")

    def _player(self, node: t.Player) -> None:
        self._of_a_game(node)

    def _solve(self, node: t.Solve) -> None:
        self._of_a_game(node)

    def _data(self, node: t.Data) -> None:
        self._of_a_game(node)

    def _keep(self, node: t.Keep) -> None:
        self._of_a_game(node)

    def _model(self, node: t.Model) -> None:
        if node.takes is not None:
            said = "in a recipe a model takes an Input and gives Logits"
            self.report.error("E035", said, node.span, f"write model {node.name} or model {node.name} frozen")
        self.declare(node.name, ModelName(node.name, node.frozen, node.span), node.span, "model")
        self.models[node.name] = node.frozen


def _number(value: float | int, span: Span) -> Typed:
    return Typed("number", (), Kind.CONST, span, value=value, low=value, high=value)


__all__ = ["Checker", "X", "Y"]
