"""The algorithm box: what one run does, in the order in which it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from lossdsl.check.typed import TypedFind, TypedLevel, number_text
from lossdsl.explain.programme import Programme
from lossdsl.lang.games import GAME_SOLVERS
from lossdsl.lang.specs import SOLVERS
from lossdsl.syntax import tree as t

if TYPE_CHECKING:
    from lossdsl.front import Recipe

Step = tuple[int, str]
"""How deep a line is indented, and the line: words with formulas in the notation's own marks."""
_TORCH = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop"}


class Algorithm:
    """The steps of a recipe, suite or game."""

    def __init__(self, recipe: Recipe, programme: Programme) -> None:
        self.recipe, self.p, self.n = recipe, programme, programme.n

    def steps(self) -> Iterator[Step]:
        yield from {"recipe": self._recipe, "attack": self._attack, "game": self._game}[self.recipe.kind]()

    def _assign(self, left: str, right: str) -> str:
        return self.n.math(f"{left} {self.n.sign('from')} {right}")

    def _words(self, text: str) -> str:
        return self.n.text(text)

    # --- recipes ---

    def _recipe(self) -> Iterator[Step]:
        train = self.recipe.train
        depth = 0
        if train is not None:
            yield 0, self._words(f"for epoch 1 to {train.epochs}:")
            yield 1, self._words("for every batch ") + self.n.math("(x, y)") + self._words(f" of {train.batch} examples:")
            depth = 2
        else:
            yield 0, self._words("for every batch ") + self.n.math("(x, y)") + self._words(":")
            depth = 1
        if train is not None and train.replays > 1:
            yield depth, self._words(f"{train.replays} times in a row:")
            depth += 1
        for item in (i for i in self.p.items if isinstance(i, t.Sample)):
            names = ", ".join(self.p.name(name) for name in item.names)
            yield depth, self._words("draw ") + self.n.math(f"{names} {self.n.sign('drawn')} {self.p.of(item.distribution)}")
        for stage in self.recipe.typed.stages:
            yield from self._find(stage, depth) if isinstance(stage, TypedFind) else self._level(stage, depth)
        yield from self._upper(depth)

    def _upper(self, depth: int) -> Iterator[Step]:
        typed = self.recipe.typed
        upper = next(i for i in self.p.items if isinstance(i, t.Upper))
        averaged = typed.objective is not None and typed.objective.kind.value != "Const"
        objective = self.p.of(upper.objective)
        value = self.n.expectation(objective, over=self.n.letter("B")) if averaged else objective
        constants = ", ".join(self.p.name(s.var) for s in typed.stages if getattr(s, "through", None) is None)
        notes = [f"f in {typed.mode} mode" + (", all points in one batch" if typed.joint else "")]
        notes += [f"f and p at the weights {typed.at}"] if typed.at else []
        yield depth, self._assign("L", value) + self._words(f"   ({'; '.join(notes)}") + self._constant(constants) + self._words(")")
        gradient = self.n.gradient(self.p.name("theta"), "L")
        mixed = next((level for level in typed.levels if level.through is not None and level.through.kind == "danskin"), None)
        if mixed is not None:
            how = f" is the min-norm convex combination of the gradients at the solutions {mixed.var}"
            yield depth, self.n.math("d") + self._words(how)
            gradient = "d"
        optimizers = {"theta": self.recipe.optimizer, **self.recipe.optimizers}
        for name, spec in optimizers.items():
            if spec is not None:
                options = ", ".join(f"{key} = {_plain(value)}" for key, value in spec.options if key in spec.options.model_fields_set)
                step = self.n.call(self.n.word(_TORCH.get(spec.name, spec.name)), [self.p.name(name), gradient])
                yield depth, self._assign(self.p.name(name), step) + self._words(f"   ({options})")
        for state in (i for i in self.p.items if isinstance(i, t.State)):
            yield (
                depth,
                self._assign(self.p.name(state.name), self.p.of(state.update)) + self._words("   (all at once, from this batch's values)"),
            )

    def _constant(self, names: str) -> str:
        return self._words("; ") + self.n.math(names) + self._words(" constant") if names else ""

    def _find(self, stage: TypedFind, depth: int) -> Iterator[Step]:
        node = next(i for i in self.p.items if isinstance(i, t.Find) and i.name == stage.var)
        options: Any = stage.options
        inside = f"{self.p.name(node.name)} {self.n.sign('in')} {self.p.of(node.interval)}"
        equation = self._words(" with ") + self.n.math(self.p.of(node.condition))
        yield (
            depth,
            self._words("find ") + self.n.math(inside) + equation + self._words(f" by {options.steps} bisections   (f in eval mode)"),
        )

    # --- lower levels ---

    def _level(self, level: TypedLevel, depth: int) -> Iterator[Step]:
        node, options = self.p.node(level), level.solver.options
        var = self.p.variable(node)
        if node.index is not None:
            yield depth, self._words("for every ") + self.n.math(self.p.formulas.header(node.index)) + self._words(", at once:")
            depth += 1
        runs = int(getattr(level.through.options, "starts", 1)) if level.through is not None else 1
        if runs > 1:
            yield depth, self._words(f"{runs} times, from starts of their own, keeping every solution:")
            depth += 1
        if options.restarts > 1:
            yield depth, self._words(f"{options.restarts} times, keeping for every example the largest objective:")
            depth += 1
        mode = self._words(f"   (f in {level.mode} mode)")
        if level.solver.at is None:
            yield depth, self._assign(var, self._start(level, node)) + mode
        if options.updates != 1 and level.solver.at is None:
            name = next((n for n in ("steps", "queries") if getattr(options, n, None) == options.updates), "")
            yield depth, self._words("repeat ") + self.n.math(self._argument(node, name, options.updates)) + self._words(" times:")
            depth += 1
        yield from ((depth, line) for line in self._update(level, node, var))
        if level.run and SOLVERS[level.solver.name].searches:
            yield depth, self._words("an example is done at its first fooling point in the set")
        if options.keep == "best" and not SOLVERS[level.solver.name].own_objective:
            yield depth, self._words("keep, for every example, the iterate of the largest objective")

    def _start(self, level: TypedLevel, node: t.Level) -> str:
        region, kind = self.p.region(node, level.set), level.solver.start_kind
        given = self._given(node, "start")
        drawn = {"uniform": "a uniform point of ", "corner": "a random corner of ", "sphere": "a random point at the radius, projected on "}
        if kind in drawn:
            return self.n.words(drawn[kind]) + region
        if kind == "own":
            return self.n.words("as published, in ") + region
        if kind == "previous":
            return self.n.projection(region, f"x + {self.n.words('last perturbation')}")
        if given is None:
            return self.p.name("theta")
        if kind == "raw":
            inner = given.args[0].value if isinstance(given, t.Call) and given.func == t.Name("raw") else given
            return self.p.of(inner)
        return self.n.projection(region, self.p.of(given))

    def _given(self, node: t.Level, name: str) -> t.Expr | None:
        args = node.solver.args if node.solver is not None else ()
        return next((a.value for a in args if a.name == name), None)

    def _argument(self, node: t.Level, name: str, value: float) -> str:
        given = self._given(node, name)
        return self.n.number(number_text(value)) if given is None else self.p.of(given)

    def _update(self, level: TypedLevel, node: t.Level, var: str) -> Iterator[str]:
        """The lines of one update."""
        solver = level.solver
        if solver.until is not None:
            tau = self.n.math(self.p.of(_tau(self._given(node, "until"))))
            yield self._words("leave out examples that are misclassified and have had ") + tau + self._words(" further updates")
        writer = _UPDATES.get(solver.name)
        if writer is None:
            yield self._words(f"one update: {SOLVERS[solver.name].update}")
            return
        yield from writer(self, level, node, var)

    def _slope(self, level: TypedLevel, node: t.Level, var: str) -> str:
        return self._assign("g", self.n.gradient(var, self.p.goal(level, node)))

    def _moved(self, level: TypedLevel, node: t.Level, var: str, direction: str, step: str) -> str:
        sign = "+" if level.sense == "maximize" else "-"
        noise = self._given(node, "noise")
        more = f" + {self.p.of(noise)}" if noise is not None else ""
        return self._assign(var, self.n.projection(self.p.region(node, level.set), f"{var} {sign} {self.n.product(step, direction)}{more}"))

    def _direction(self, level: TypedLevel, g: str) -> str:
        """The steepest step of the set's norm."""
        if level.set.name == "linf":
            return self.n.call(self.n.word("sign"), [g])
        if level.set.name == "l1":
            return self.n.call(self.n.words("largest movable coordinate of "), [g])
        return (
            self.n.fraction(g, self.n.norm(g, "2")) if level.set.name in ("l2", "simplex") else self.n.call(self.n.words("steepest "), [g])
        )

    def _pgd(self, level: TypedLevel, node: t.Level, var: str) -> Iterator[str]:
        if level.solver.options.updates > 0:
            yield self._slope(level, node, var)
            yield self._moved(level, node, var, self._direction(level, "g"), self._step(level, node))

    def _ascent(self, level: TypedLevel, node: t.Level, var: str) -> Iterator[str]:
        yield self._slope(level, node, var)
        yield self._moved(level, node, var, "g", self._step(level, node))

    def _step(self, level: TypedLevel, node: t.Level) -> str:
        given = self._given(node, "step")
        return self.n.number(number_text(getattr(level.solver.options, "step", 0))) if given is None else self.p.formulas.of(given, 6)

    def _momentum(self, level: TypedLevel, node: t.Level, var: str) -> Iterator[str]:
        decay = self._argument(node, "decay", getattr(level.solver.options, "decay", 1.0))
        yield self._slope(level, node, var)
        yield self._assign("m", f"{self.n.product(decay, 'm')} + {self.n.fraction('g', self.n.words('mean') + self.n.absolute('g'))}")
        yield self._moved(level, node, var, self._direction(level, "m"), self._step(level, node))

    def _linear(self, level: TypedLevel, node: t.Level, var: str) -> Iterator[str]:
        yield self._slope(level, node, var)
        operation = "argmax" if level.sense == "maximize" else "argmin"
        over = f"v {self.n.sign('in')} {self.p.region(node, level.set)}"
        yield self._assign(var, self.n.big(operation, over, "", self.n.inner("g", "v")))

    def _torch(self, level: TypedLevel, node: t.Level, var: str) -> Iterator[str]:
        yield self._slope(level, node, var)
        name, sign = _TORCH[level.solver.name], "" if level.sense == "minimize" else "-"
        step = self.n.call(self.n.word(name), [var, f"{sign}g"])
        rate = self.n.math(self._step(level, node))
        yield (
            self._assign(var, self.n.projection(self.p.region(node, level.set), step)) + self._words("   (rate ") + rate + self._words(")")
        )

    def _prox(self, level: TypedLevel, node: t.Level, var: str) -> Iterator[str]:
        at, weight = self._given(node, "at"), self._given(node, "weight")
        assert at is not None and weight is not None
        sign = "+" if level.sense == "maximize" else "-"
        yield (
            self._words("g: the gradient of the objective without its square, at ")
            + self.n.math(self.p.of(at))
            + self._words(f"   (f in {level.mode} mode)")
        )
        step = f"{self.p.of(at)} {sign} {self.n.fraction('g', self.p.formulas.of(weight, 7))}"
        yield self._assign(var, self.n.projection(self.p.region(node, level.set), step))

    # --- suites and games ---

    def _attack(self) -> Iterator[Step]:
        count = self.recipe.typed.count
        yield 0, self._words("for every batch ") + self.n.math("(x, y)") + self._words(":   (f in eval mode)")
        for level in self.recipe.typed.levels:
            which = "the examples that no run has broken" if count == "worst" else "all examples"
            yield 1, self._words(f"run {level.run}, on {which}:")
            yield from self._level(level, 2)
        yield (
            1,
            self._words(
                {
                    "worst": "count an example as broken if any run has broken it",
                    "each": "count for every run",
                    "best_loss": "count at the point of the largest objective",
                }[str(count)]
            ),
        )

    def _game(self) -> Iterator[Step]:
        game = self.recipe.game
        row, options = GAME_SOLVERS[game.solver.name], game.solver.options
        for player in game.players:
            if not player.model:
                start = ", ".join(map(number_text, player.init))
                yield 0, self._assign(self.p.name(player.name), f"({start})" if len(player.init) > 1 else start)
        signs = ", ".join(
            f"{'' if p.sense == 'minimize' else '-'}{self.n.gradient(self.p.name(p.name), self.n.model('J', self.p.name(p.name)))}"
            for p in game.players
        )
        yield 0, self._words("V = ") + self.n.math(f"({signs})") + self._words(", with J what each player minimises or maximises")
        yield 0, self._words(f"repeat {options.iterations} times:")
        yield 1, self._words(f"{row.name}: {row.update}")
        for player in (p for p in game.players if p.optimizer is not None):
            assert player.optimizer is not None
            rates = ", ".join(f"{name} = {_plain(value)}" for name, value in player.optimizer.options)
            turns = f"{player.steps} update{'s' if player.steps > 1 else ''} by {player.optimizer.name}({rates})"
            yield 1, self.n.math(self.p.name(player.name)) + self._words(f": {turns}")
        given = ", ".join(f"{name} = {_plain(value)}" for name, value in options if name != "iterations" and value is not None)
        if given:
            yield 1, self._words(f"({given})")


def _tau(until: t.Expr | None) -> t.Expr:
    assert isinstance(until, t.Call)
    return until.args[0].value


def _plain(value: object) -> str:
    return (
        {True: "true", False: "false"}[value]
        if isinstance(value, bool)
        else number_text(value)
        if isinstance(value, int | float)
        else str(value)
    )


_UPDATES: dict[str, Callable[[Algorithm, TypedLevel, t.Level, str], Iterator[str]]] = {
    "pgd": Algorithm._pgd,
    "ascent": Algorithm._ascent,
    "momentum": Algorithm._momentum,
    "linear": Algorithm._linear,
    "prox": Algorithm._prox,
    **dict.fromkeys(_TORCH, Algorithm._torch),
}


def plain(steps: list[Step]) -> list[str]:
    """The algorithm as text in a box of lines."""
    lines = ["  " * depth + text for depth, text in steps]
    return ["  ┌─", *(f"  │ {line}" for line in lines), "  └─"]


def latex(steps: list[Step], title: str) -> str:
    """The algorithm in a frame, without packages of its own."""
    rows = [f"\\hspace*{{{depth * 1.5:g}em}}{text.replace('   ', chr(92) + 'quad ')}\\\\" for depth, text in steps]
    body = "\n".join(rows)
    return f"\\noindent\\fbox{{\\begin{{minipage}}{{0.97\\linewidth}}\n\\textbf{{Algorithm}} {title}\\\\[2pt]\n{body}\n\\end{{minipage}}}}"
