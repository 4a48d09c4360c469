"""What laws say about recipes and games: `objective(R, ...)`, `solution(R, ...)`, `final(G, ...)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from lossdsl.check import build
from lossdsl.check.game_typed import TypedGame
from lossdsl.check.scope import ModelName, Scope, Value, is_error
from lossdsl.check.typed import Typed, TypedRecipe, show
from lossdsl.diagnostics import RecipeError, UserError
from lossdsl.lang.types import Kind
from lossdsl.syntax import tree as t

if TYPE_CHECKING:
    from lossdsl.check.infer import Context
    from lossdsl.check.law_infer import LawInference

Number = float | int
Load = Callable[[str, Mapping[str, Number]], TypedRecipe | TypedGame]
"""A shipped recipe or game by name, with the values of some of its params."""
WORDS = ("objective", "solution", "final")
_GAME_OPTIONS = ("step", "iterations", "alpha")


class _CannotError(Exception):
    """Why a part of a recipe has no meaning in a law, and what to do."""

    def __init__(self, problem: str, fix: str) -> None:
        self.problem, self.fix = problem, fix
        super().__init__(problem)


def infer_of_recipe(self: LawInference, name: str, e: t.Call, scope: Scope, at: Context) -> Typed:
    """One of the three words; findings where the recipe, a param or a name of the law is missing."""
    head = e.args[0].value if e.args and e.args[0].name is None else None
    if not isinstance(head, t.Name) or any(a.name is None for a in e.args[1:]):
        example = {"final": "final(bilinear, step = 0.1)"}.get(name, f"{name}(trades, lambda = 6)")
        return self.report.error("E014", f"{name} takes a recipe or a game and named values", e.span, f"write for example {example}")
    if name == "final":
        return _final(self, head.id, e, scope, at)
    numbers = {str(a.name): self.number(a.value, scope, at, str(a.name)) for a in e.args[1:] if a.name != "of"}
    if None in numbers.values():
        return Typed("?", (), Kind.CONST, e.span)
    recipe = _loaded(self, head, {k: v for k, v in numbers.items() if v is not None}, e)
    if recipe is None:
        return Typed("?", (), Kind.CONST, e.span)
    if not isinstance(recipe, TypedRecipe):
        return self.report.error("E036", f"{head.id} is a game", head.span, "write final(GAME, step = 0.1)")
    of = next((a.value.id for a in e.args[1:] if a.name == "of" and isinstance(a.value, t.Name)), None)
    try:
        if name == "solution":
            return _solution(self, recipe, numbers, of, e, scope)
        return _Rewriting(self, recipe, e, scope).expression(_objective(recipe, of))
    except _CannotError as error:
        return self.report.error("E036", f"{head.id}: {error.problem}", e.span, error.fix)


def _loaded(self: LawInference, head: t.Name, numbers: dict[str, Number], e: t.Call) -> TypedRecipe | TypedGame | None:
    try:
        return self.load(head.id, numbers)
    except RecipeError as error:
        self.report.error("E028", f"{head.id}: {error.diagnostics[0].message}", e.span, error.diagnostics[0].help)
    except UserError as error:
        self.report.error("E028", error.problem, e.span, error.fix)
    return None


def _objective(recipe: TypedRecipe, of: str | None) -> Typed:
    """That of the upper level, or of the lower level of a variable."""
    if of is None:
        if recipe.objective is None:
            raise _CannotError("an attack suite has no upper level", "name a run's variable: of = x'")
        return recipe.objective
    levels = [level for level in recipe.levels if level.var == of]
    if not levels:
        raise _CannotError(f"no level of {of}", "its levels are of " + (", ".join(level.var for level in recipe.levels) or "nothing"))
    return levels[0].objective


class _Rewriting:
    """An expression of a recipe in the names of a law: x, y, f and lower variables are those that the law quantifies over."""

    def __init__(self, inference: LawInference, recipe: TypedRecipe, e: t.Call, scope: Scope) -> None:
        self.inference, self.recipe, self.e, self.scope = inference, recipe, e, scope
        self.done: dict[int, Typed] = {}
        self.leaves: dict[object, Typed] = {}

    def expression(self, node: Typed) -> Typed:
        if id(node) not in self.done:
            rule = _RULES.get(node.op)
            if node.axis is not None and node.axis.domain.kind == "top":
                raise _CannotError("top(...) has no meaning in a law", "state the law for the classes themselves")
            self.done[id(node)] = rule(self, node) if rule else self.same(node)
        return self.done[id(node)]

    def same(self, node: Typed) -> Typed:
        """The same operation of rewritten parts; of constants, where a law puts a number in the place of a draw, a constant."""
        args = tuple(self.expression(a) for a in node.args)
        constant = node.kind is Kind.REAL and args and all(a.kind is Kind.CONST for a in args)
        return replace(node, args=args, span=self.e.span, kind=Kind.CONST if constant else node.kind)

    def quantified(self, name: str, what: str) -> Typed:
        binding = self.scope.get(name)
        if not isinstance(binding, Value) or is_error(binding.typed):
            raise _CannotError(f"it speaks of {what} {name}, and the law does not", f"quantify over it: for {name} in ...")
        self.inference.report.used.add(name)
        return binding.typed


def _input(r: _Rewriting, node: Typed) -> Typed:
    return r.quantified("x", "the input")


def _label(r: _Rewriting, node: Typed) -> Typed:
    return r.quantified("y", "the label")


def _point(r: _Rewriting, node: Typed) -> Typed:
    """x' is the quantity of that name; x'@k the k-th member of a family of that name, and x' then its last."""
    name = str(node.attrs[0])
    family = r.inference.families.get(name)
    if family is None and len(node.attrs) == 1:
        return r.quantified(name, "the solution")
    if family is None:
        fix = f"quantify over the iterates: for {name}[0..{node.attrs[1]}] in linf(x, 0.1)"
        raise _CannotError(f"it speaks of the iterate {name}@{node.attrs[1]}", fix)
    r.inference.report.used.add(name)
    wanted = node.attrs[1] if len(node.attrs) > 1 else max(family.members)
    if wanted not in family.members:
        raise _CannotError(f"it speaks of the iterate {name}@{wanted}", f"the family is {name}[0..{wanted}] at least")
    return family.members[wanted]


def _logits(r: _Rewriting, node: Typed) -> Typed:
    model = str(node.attrs[0]) if node.attrs else "f"
    network = r.inference.networks.get(model)
    if network is None or not isinstance(r.scope.get(model), ModelName):
        raise _CannotError(f"it runs the model {model}, and the law has none", f"quantify over it: for {model} in network")
    from lossdsl.check.law_infer import theta_of

    own = theta_of(model)
    weights = str(node.attrs[1]) if len(node.attrs) > 1 else r.recipe.at or own
    theta = r.quantified(own if weights == "theta" else weights, "the weights")
    point = r.expression(node.args[0])
    r.inference.report.used.add(model)
    return Typed("network", (theta, point), Kind.LOGITS, r.e.span, (network,), depends=build.depends(theta, point))


def _sample(r: _Rewriting, node: Typed) -> Typed:
    return r.quantified(str(node.attrs[0]), "the draw")


def _batch(r: _Rewriting, node: Typed) -> Typed:
    """One example is the whole batch."""
    value = replace(r.expression(node.args[0]), kind=Kind.REAL)
    if len(node.args) == 1:
        return value
    nothing = build.number(0.0)
    return Typed("if", (r.expression(node.args[1]), value, nothing), Kind.REAL, r.e.span, depends=value.depends)


def _gradient(r: _Rewriting, node: Typed) -> Typed:
    point = r.expression(node.args[0])
    leaf = r.inference.leaf(str(node.attrs[0]), point)
    r.leaves[node.attrs] = leaf
    body = r.expression(node.args[1])
    return Typed("grad", (point, body), node.kind, r.e.span, leaf.attrs, depends=build.depends(point, body))


def _state(r: _Rewriting, node: Typed) -> Typed:
    """The first value."""
    declared = next(s for s in r.recipe.states if s.name == node.attrs[0])
    return r.expression(declared.init)


def _refused(r: _Rewriting, node: Typed) -> Typed:
    raise _CannotError(f"{show(node)} has no meaning in a law", "write the objective out, or choose another recipe")


_RULES: dict[str, Callable[[_Rewriting, Typed], Typed]] = {
    "input": _input,
    "label": _label,
    "point": _point,
    "logits": _logits,
    "sample": _sample,
    "found": _sample,
    "state": _state,
    "grad": _gradient,
    "leaf": lambda r, node: r.leaves[node.attrs],
    "mode": lambda r, node: r.expression(node.args[0]),
    "batch_mean": _batch,
    "batch_sum": _batch,
    **dict.fromkeys(("pick", "fact", "weights", "grad_theta", "class_mean", "class_sum", "draw"), _refused),
}


def _solution(
    self: LawInference, recipe: TypedRecipe, numbers: Mapping[str, Number | None], of: str | None, e: t.Call, scope: Scope
) -> Typed:  # fmt: skip
    """What the recipe's own solver finds for the law's f, x and y: the engine runs it, in float64."""
    inputs = [level for level in recipe.levels if level.set.over == "input" and level.axis is None]
    wanted = [level for level in inputs if of in (None, level.var)]
    if not wanted:
        raise _CannotError("it has no such level over inputs", "name one: of = x'")
    if any(level.solver.until is not None for level in inputs):
        raise _CannotError("its examples leave early, and those of a law have weights of their own", "choose a recipe without until")
    if any(level.solver.start_kind == "previous" for level in inputs):
        raise _CannotError("it starts where the last batch ended, and a law has none", "choose a recipe with another start")
    r = _Rewriting(self, recipe, e, scope)
    if "f" not in self.networks or recipe.models:
        raise _CannotError("its solver runs on one small network f", "quantify over it: for f in network")
    args = (r.quantified("theta", "the weights"), r.quantified("x", "the input"), r.quantified("y", "the label"))
    self.report.used.add("f")
    attrs = (recipe.name, tuple(sorted(numbers.items())), wanted[-1].var, self.networks["f"])
    found = Typed("solution", args, Kind.INPUT, e.span, attrs, depends=build.depends(*args))
    return found


def _final(self: LawInference, name: str, e: t.Call, scope: Scope, at: Context) -> Typed:
    """The last point of a game, from `start` where one is given: all players' numbers side by side."""
    given = {str(a.name): a for a in e.args[1:]}
    options = {k: self.number(a.value, scope, at, k) for k, a in given.items() if k in _GAME_OPTIONS}
    params = {k: self.number(a.value, scope, at, k) for k, a in given.items() if k not in (*_GAME_OPTIONS, "start", "solver")}
    solver = next((a.value.id for k, a in given.items() if k == "solver" and isinstance(a.value, t.Name)), "")
    if None in options.values() or None in params.values():
        return Typed("?", (), Kind.CONST, e.span)
    head = e.args[0].value
    assert isinstance(head, t.Name)
    game = _loaded(self, head, {k: v for k, v in params.items() if v is not None}, e)
    if game is None:
        return Typed("?", (), Kind.CONST, e.span)
    if not isinstance(game, TypedGame) or game.neural or game.samples:
        return self.report.error("E036", f"{name} is no game of numbers without draws", head.span, "final speaks of such a game")
    size = sum(p.size or 1 for p in game.players)
    start = self.infer(given["start"].value, scope, at) if "start" in given else None
    if start is not None and (start.kind is not Kind.INPUT or self.size(start) != size):
        said = f"a start of {name} is a vector of {size} numbers"
        return self.report.error("E013", said, given["start"].span, f"write: for z in vector({size})")
    args = () if start is None else (start,)
    attrs = (name, tuple(sorted(params.items())), solver, tuple(sorted(options.items())), size)
    return Typed("final", args, Kind.INPUT, e.span, attrs, depends=build.depends(*args) if args else frozenset())
