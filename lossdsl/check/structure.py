"""What a declaration must be as a whole: its parts there, in order, once each, and used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lossdsl.check.typed import Typed, same, walk
from lossdsl.lang.specs import SOLVERS
from lossdsl.source import Span
from lossdsl.syntax import tree as t

if TYPE_CHECKING:
    from lossdsl.check.recipe import Checker


def complete(self: Checker, node: t.Declaration) -> None:
    """Every rule about a whole declaration; silent where statements were lost to syntax errors."""
    if self.report.lost_words:
        return
    header = Span(node.span.start, node.span.start + len(node.kind) + 1 + len(node.name), node.span.file)
    if node.kind == "recipe":
        _recipe(self, node, header)
    else:
        _attack(self, node, header)
    _twice(self, node)
    _several(self)
    _unused(self, node)


def _recipe(self: Checker, node: t.Declaration, header: Span) -> None:
    uppers = [i for i in node.items if isinstance(i, t.Upper)]
    if not uppers:
        help = "add: upper minimize CE(f(x), y) by sgd(lr = 0.1)"
        self.report.error("E022", f"recipe {node.name} has no upper level", header, help)
    for level in node.items[node.items.index(uppers[0]) :] if uppers else ():
        if (isinstance(level, t.Level) and not level.run) or isinstance(level, t.Find):
            help = "write it before upper: levels run in the order written"
            name = f"the level of {level.var}" if isinstance(level, t.Level) else f"find {level.name}"
            self.report.error("E022", f"{name} stands after the upper level", level.span, help)
    for_attacks = [i for i in node.items if (isinstance(i, t.Level) and i.run) or (isinstance(i, t.Keyword) and i.keyword == "count")]
    if for_attacks:
        help = f"write lower here, or attack {node.name} in place of recipe {node.name}"
        self.report.error("E033", "run and count belong to an attack", for_attacks[0].span, help)


def _attack(self: Checker, node: t.Declaration, header: Span) -> None:
    runs = [i for i in node.items if isinstance(i, t.Level) and i.run]
    if not runs:
        help = "add: run pgd : x' in linf(x, eps) maximize CE(f(x'), y) by pgd(...)"
        self.report.error("E033", f"attack {node.name} has no run", header, help)
    for item in node.items:
        if isinstance(item, t.Upper | t.Train):
            self.report.error("E033", "an attack has no upper level and no training", item.span, "remove it, or declare a recipe")
        elif isinstance(item, t.Sample | t.State | t.Find) or (isinstance(item, t.Level) and not item.run):
            self.report.error(
                "E033", "an attack consists of runs, with params, lets and defs", item.span, "remove it, or draw in a run's start"
            )
        elif isinstance(item, t.Model) and not item.frozen:
            self.report.error("E033", "an attack trains no model", item.span, f"write: model {item.name} frozen")
        elif isinstance(item, t.Level) and item.mode not in (None, "eval"):
            self.report.error("E029", f"a run attacks in eval mode, not in {item.mode}", item.span, "remove with f in " + str(item.mode))
    _around_x(self)
    if "count" not in self.words:
        self.report.error("E033", f"attack {node.name} does not say how to count", header, "add: count worst")
    objectives = [(level.sense, level.objective) for level in self.levels]
    if self.words.get("count") == "best_loss" and any(s != objectives[0][0] or not same(o, objectives[0][1]) for s, o in objectives):
        self.report.error("E033", "count best_loss compares runs by one objective, and these have several", header, "write count worst")
    own = next((level for level in self.levels if SOLVERS[level.solver.name].own_objective), None)
    if self.words.get("count") == "best_loss" and own is not None:
        said = f"count best_loss compares objectives, and {own.solver.name} makes a norm small"
        self.report.error("E033", said, own.solver.span, "write count worst")


def _around_x(self: Checker) -> None:
    """The point that a run returns is judged as an input: a perturbation would be a silent mistake."""
    for level in self.levels:
        if level.set.over == "input" and level.set.center.op != "input":
            help = f"write {level.set.name}(x, ...): the point that a run returns is judged as an input"
            self.report.error("E033", f"{level.var} is the attacked input, and its set is not around x", level.set.span, help)


def _twice(self: Checker, node: t.Declaration) -> None:
    """Names that are no names in the scope: runs and recorded values."""
    seen: set[tuple[str, str]] = set()
    for item in node.items:
        key = (
            ("run", item.run)
            if isinstance(item, t.Level) and item.run
            else ("log", item.name)
            if isinstance(item, t.Let) and item.recorded
            else None
        )
        if key is None:
            continue
        if key in seen:
            self.report.error("E011", f"there are two {key[0]}s named {key[1]}", item.span, "choose another name")
        seen.add(key)


def _several(self: Checker) -> None:
    """Of a level through danskin several solutions are kept, and none of them is the solution until the upper level."""
    through = [level for level in self.levels if level.through is not None and level.through.kind == "danskin"]
    for level in through[1:]:
        help = f"remove one of them: the runs of {through[0].var} and of {level.var} would have to be paired"
        self.report.error("E021", "two levels cannot go through danskin", level.through.span if level.through else level.span, help)
    for level in through[:1]:
        for later in self.stages[self.stages.index(level) + 1 :]:
            if any(level.var in e.depends for e in later.expressions):
                said = f"{later.var} depends on {level.var}, of which danskin keeps several solutions"
                self.report.error("E021", said, later.span, f"remove through danskin, or solve {later.var} before {level.var}")
        for e in (part for root in _spoken(self) for part in walk(root)):
            iterate = e.op == "point" and len(e.attrs) > 1 and e.attrs[0] == level.var
            if iterate or (e.op == "fact" and e.attrs[1] == level.var and e.attrs[0] != "fooled"):
                said = f"danskin keeps several solutions {level.var}, and only the points themselves"
                self.report.error("E017", said, e.span, f"use {level.var} alone, or remove through danskin")
        if level.solver.start_kind == "previous":
            help = "start at a random point, or remove through danskin"
            self.report.error("E027", f"danskin keeps several solutions {level.var}, and no last one", level.solver.start.span, help)


def introduced(item: t.Item) -> tuple[str, ...]:
    """The names a statement declares."""
    if isinstance(item, t.Sample):
        return item.names
    if isinstance(item, t.Level):
        return () if item.run else (item.var,)
    if isinstance(item, t.Let) and item.recorded:
        return ()
    if isinstance(item, t.Data):
        return item.names
    if isinstance(item, t.Param | t.Let | t.Def | t.Find | t.State | t.Model | t.Player | t.Quantifier):
        return (item.name,)
    return ()


def _unused(self: Checker, node: t.Declaration) -> None:
    """Names nobody uses; silent beside errors, which often stand where the use was meant."""
    if self.report.failed:
        return
    kinds = {t.Param: "param", t.Let: "let", t.Sample: "sample", t.Def: "def", t.Model: "model"}
    for item in node.items:
        kind = "generator" if isinstance(item, t.Def) and item.generator else kinds.get(type(item))
        for name in introduced(item) if kind else ():
            if name not in self.report.used:
                self.report.warn("T09", f"the {kind} {name} is never used", item.span, "remove it, or use it")
    for n, stage in enumerate(self.stages):
        users = [*_spoken(self), *(e for other in self.stages[n + 1 :] for e in other.expressions)]
        if stage.run is None and stage.var != self.upper_at and not any(stage.var in e.depends for e in users):
            self.report.warn("T09", f"the solution {stage.var} is never used", stage.span, "use it in the upper level, or remove the level")


def _spoken(self: Checker) -> Iterator[Typed]:
    if self.objective is not None:
        yield self.objective
    yield from (e for _, e in self.logs)
    yield from (s.update for s in self.states)
