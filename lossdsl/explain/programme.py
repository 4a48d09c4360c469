"""The bilevel programme of a recipe, the attacks of a suite, or the problem of a game: one statement a line, as a paper writes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lossdsl.check.margins import margin
from lossdsl.check.typed import TypedLevel, TypedSet, number_text
from lossdsl.explain.formulas import Formulas, Notation
from lossdsl.syntax import tree as t

if TYPE_CHECKING:
    from lossdsl.front import Recipe


@dataclass(frozen=True)
class Line:
    """One line: what stands before the formula ("min over theta"), the formula, and words behind it."""

    head: str
    formula: str
    words: str = ""


class Programme:
    """Formulas of one declaration, with its names: `step` is alpha where nothing else is."""

    def __init__(self, recipe: Recipe, notation: Notation) -> None:
        self.recipe, self.n = recipe, notation
        items = (*recipe.shared, *recipe.declaration.items)
        self.items = recipe.declaration.items
        names = {getattr(i, "name", "") for i in items} | {n for i in items if isinstance(i, t.Sample) for n in i.names}
        self.renamed = {"step": "alpha"} if "alpha" not in names else {}
        self.defs = [i for i in items if isinstance(i, t.Def)]
        functions = frozenset(d.name for d in self.defs) | frozenset(i.name for i in items if isinstance(i, t.Model))
        self.formulas = Formulas(notation, functions, self.renamed)
        self.domain = None if recipe.kind == "game" else recipe.domain

    def lines(self) -> Iterator[Line]:
        """The programme, outermost level first."""
        yield from {"recipe": self._recipe, "attack": self._attack, "game": self._game}[self.recipe.kind]()
        yield from self._names()

    # --- parts shared with the algorithm ---

    def of(self, e: t.Expr) -> str:
        return self.formulas.of(e)

    def name(self, name: str) -> str:
        return self.formulas.name(name)

    def variable(self, level: t.Level) -> str:
        """x', or of a family x'_j."""
        return self.n.below(self.name(level.var), self.name(level.index.var)) if level.index else self.name(level.var)

    def region(self, node: t.Level, region: TypedSet) -> str:
        """The set, met with the input domain where it is."""
        own = self.formulas.region(node.set)
        if not region.boxed or self.domain is None:
            return own
        return f"{own} {self.n.sign('cap')} {self.box()}"

    def box(self) -> str:
        assert self.domain is not None
        low, high = (self._end(end) for end in self.domain)
        return self.n.box(low, high)

    def _end(self, value: Any) -> str:
        return "[" + ", ".join(map(number_text, value)) + "]" if isinstance(value, tuple) else number_text(value)

    def node(self, level: TypedLevel) -> t.Level:
        """As written, with the objective that the solver brings along where none is."""
        node = next(i for i in self.items if isinstance(i, t.Level) and (i.run or i.var) == (level.run or level.var))
        return node if node.objective is not None else replace(node, objective=margin(node))

    # --- recipes ---

    def _recipe(self) -> Iterator[Line]:
        upper = next(i for i in self.items if isinstance(i, t.Upper))
        typed = self.recipe.typed
        objective = self.of(upper.objective)
        averaged = typed.objective is not None and typed.objective.kind.value != "Const"
        own = self.n.expectation(objective, over="(x, y)") if averaged else objective
        models = [self.name(name) for name, frozen in self.recipe.models.items() if not frozen]
        where = f"f and p taken at the weights {upper.at}" if upper.at else ""
        yield Line(self._over("min", ", ".join([self.name("theta"), *models])), own, where)
        for stage in typed.stages:
            if isinstance(stage, TypedLevel):
                yield self._level(stage)
            else:
                yield self._find(next(i for i in self.items if isinstance(i, t.Find) and i.name == stage.var))

    def _over(self, what: str, variables: str) -> str:
        return f"\\{what}_{{{variables}}}" if self.n.latex else f"{what} over {variables}"

    def _level(self, level: TypedLevel) -> Line:
        node = self.node(level)
        var = self.variable(node)
        operation = "argmax" if level.sense == "maximize" else "argmin"
        over = f"{var} {self.n.sign('in')} {self.region(node, level.set)}"
        body = self.n.big(operation, over, "", self.goal(level, node))
        each = f"for every {node.index.var}: {self.formulas.header(node.index)}" if node.index and not self.n.latex else ""
        if node.index and self.n.latex:
            each = f"for every ${self.formulas.header(node.index)}$"
        return Line("", f"{var} {self.n.sign('in')} {body}", each)

    def goal(self, level: TypedLevel, node: t.Level) -> str:
        """A level's objective: of one example, or averaged where the level is one problem for the batch."""
        assert node.objective is not None
        if level.set.over == "input" or level.objective.kind.value == "Const":
            return self.formulas.of(node.objective, 7)
        return self.n.expectation(self.of(node.objective), over=self.n.letter("B"))

    def _find(self, node: t.Find) -> Line:
        var = self.name(node.name)
        return Line("", f"{var} {self.n.sign('in')} {self.of(node.interval)}", f"with {self.n.math(self.of(node.condition))}")

    # --- attack suites ---

    def _attack(self) -> Iterator[Line]:
        for level in self.recipe.typed.levels:
            line = self._level(level)
            yield Line(self.n.text(f"{level.run}:"), line.formula, line.words)
        counted = {
            "worst": "any run breaks it",
            "best_loss": "the point of the largest objective is misclassified",
            "each": "that run breaks it",
        }
        rule = counted[self.recipe.typed.count or "worst"]
        yield Line(
            "",
            self.n.words("an example is broken where"),
            rule + ("; one number for each run" if self.recipe.typed.count == "each" else ""),
        )

    # --- games ---

    def _game(self) -> Iterator[Line]:
        for node in (i for i in self.items if isinstance(i, t.Player)):
            what = "min" if node.sense == "minimize" else "max"
            assert node.objective is not None
            region = f" {self.n.sign('in')} {self.of(node.set)}" if node.set is not None else ""
            body = self.of(node.objective)
            yield Line(self._over(what, self.name(node.name) + region), self.n.expectation(body) if self.recipe.game.samples else body)
        for model in (i for i in self.items if isinstance(i, t.Def) and i.model):
            yield Line(
                "", f"{self.n.call(self.formulas.function(model.name), [self.name(a) for a in model.args])} = {self.of(model.value)}"
            )
        for data in (i for i in self.items if isinstance(i, t.Data)):
            names = ", ".join(self.name(n) for n in data.names)
            yield Line("", f"({names}) {self.n.sign('in')} {self.n.elements(', '.join(f'({self._row(r)})' for r in data.rows))}")

    def _row(self, row: t.Sequence) -> str:
        return ", ".join(self.of(i) for i in row.items)

    # --- what names stand for ---

    def _names(self) -> Iterator[Line]:
        used = self._used()
        for node in (d for d in self.defs if not d.model and d.name in used):
            left = self.n.call(self.formulas.function(node.name), [self.name(a) for a in node.args])
            yield Line("", f"{left} = {self.of(node.value)}")
        for let in (i for i in self.items if isinstance(i, t.Let) and not i.recorded):
            yield Line("", f"{self.name(let.name)} = {self.of(let.value)}", f"in {let.mode} mode" if let.mode else "")
        for sample in (i for i in self.items if isinstance(i, t.Sample)):
            names = ", ".join(self.name(n) for n in sample.names)
            yield Line("", f"{names} {self.n.sign('drawn')} {self.of(sample.distribution)}")
        for state in (i for i in self.items if isinstance(i, t.State)):
            kept = "one per training example" if state.per_example else "kept across batches"
            yield Line(
                "",
                f"{self.name(state.name)} {self.n.sign('from')} {self.of(state.update)}",
                f"after every batch; at first {self.n.math(self.of(state.init))}; {kept}",
            )
        params = [f"{self.name(i.name)} = {self._value(i)}" for i in self.items if isinstance(i, t.Param)]
        if params:
            yield Line("", (", \\; " if self.n.latex else ", ").join(params))

    def _value(self, node: t.Param) -> str:
        """As written, with its later values; the number in force where it is set from outside."""
        if node.name in self.recipe.overrides:
            return self.n.number(number_text(self.recipe.params[node.name]))
        later = [self.n.words(" then ") + self.of(s.value) + self.n.words(" from epoch ") + self.of(s.first) for s in node.stages]
        return self.of(node.value) + "".join(later)

    def _used(self) -> set[str]:
        return {n.id for i in (*self.items, *self.defs) for n in t.walk(i) if isinstance(n, t.Name)}


def plain(lines: list[Line]) -> list[str]:
    """The programme as text: heads in one column."""
    width = max((len(line.head) for line in lines), default=0)
    return [f"  {line.head:>{width}}  {line.formula}{'   ' + line.words if line.words else ''}".rstrip() for line in lines]


def latex(lines: list[Line]) -> str:
    """The programme as an align* environment."""
    rows = []
    for line in lines:
        words = f" \\quad \\text{{{line.words}}}" if line.words else ""
        rows.append(f"  {line.head} \\quad & {line.formula}{words}")
    return "\\begin{align*}\n" + " \\\\\n".join(rows) + "\n\\end{align*}"
