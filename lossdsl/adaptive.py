"""`lossdsl attack-from`: a training recipe's own attack, made stronger, with margin and cross-entropy beside it, as an attack suite.

An evaluation that knows the defence (Athalye et al., ICML 2018; Tramer et al., NeurIPS 2020) attacks what the defence trains against: the
recipe's lower levels, with their objectives and solvers, in eval mode.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from lossdsl.check.typed import TypedLevel
from lossdsl.diagnostics import RecipeError, UserError
from lossdsl.front import Recipe, parse_recipe, taken_names
from lossdsl.syntax import tree as t
from lossdsl.syntax.format import format_text, format_tree

STEPS, RESTARTS = 100, 5
_ONE_STEP = ("linear", "prox")
_LAST = 10**9


@dataclass(frozen=True)
class Adaptive:
    """text: the suite, in canonical layout. left: why levels of the recipe are not in it, a line for each."""

    text: str
    left: tuple[str, ...]


def attack_from(recipe: Recipe, name: str | None = None, steps: int = STEPS, restarts: int = RESTARTS) -> Adaptive:
    """The suite. Every level over inputs becomes a run with `steps` steps (one-step solvers keep theirs) and `restarts` restarts; early
    stops and gradient flow are left out, models are frozen, params that change have their last value.

    Raises UserError for a recipe none of whose levels can be a run, for an attack or a game, and for a name that cannot be one.
    """
    if recipe.kind != "recipe":
        raise UserError(f"{recipe.name} is a declaration of {recipe.kind}, not a recipe", where=recipe.source.name, fix="name a recipe")
    levels = [level for level in recipe.typed.levels if level.set.over == "input"]
    if not levels:
        fix = "evaluate with a suite that needs no recipe, such as autoattack or pgd20"
        raise UserError(f"{recipe.name} has no lower level over inputs: it trains against no attack", where=recipe.source.name, fix=fix)
    written = {item.var: item for item in recipe.declaration.items if isinstance(item, t.Level)}
    names = _Names(recipe)
    reasons = {level.var: _obstacle(names, level, written[level.var]) for level in levels}
    left = tuple(f"{var} is left out: {reason}" for var, reason in reasons.items() if reason)
    carried = [written[level.var] for level in levels if reasons[level.var] is None]
    if not carried:
        reason = "; ".join(f"{var}: {reason}" for var, reason in reasons.items())
        fix = "evaluate with a suite that needs no recipe, such as autoattack or pgd20"
        raise UserError(f"no level of {recipe.name} can be a run of an attack ({reason})", where=recipe.source.name, fix=fix)
    own = [_own_run(level, len(carried) > 1, steps, restarts) for level in carried]
    runs = [*own, *_general_runs(carried, steps, restarts)]
    return Adaptive(_written(recipe, names, runs, name or f"{recipe.name}_adaptive", left), left)


class _Names:
    """What a recipe declares, by name."""

    def __init__(self, recipe: Recipe) -> None:
        self.items: dict[str, t.Item] = {}
        for item in (*recipe.shared, *recipe.declaration.items):
            for name in _declared(item):
                self.items[name] = item

    def needed(self, *nodes: t.Node) -> dict[str, t.Item]:
        """All that these speak of, directly or not; of another level, its solution alone."""
        found: dict[str, t.Item] = {}
        waiting = list(nodes)
        while waiting:
            for node in t.walk(waiting.pop()):
                if isinstance(node, t.Name) and node.id in self.items and node.id not in found:
                    found[node.id] = self.items[node.id]
                    waiting += [] if isinstance(found[node.id], t.Level) else [found[node.id]]
        return found


def _declared(item: t.Item) -> tuple[str, ...]:
    if isinstance(item, t.Sample):
        return item.names
    if isinstance(item, t.Level):
        return (item.var,)
    if isinstance(item, t.Param | t.Let | t.Def | t.Find | t.State | t.Model):
        return (item.name,)
    return ()


_KINDS: dict[type, str] = {
    t.Sample: "a sample shared by the levels", t.Level: "the solution of another level", t.Find: "a root", t.State: "a state of training",
}  # fmt: skip


def _obstacle(names: _Names, level: TypedLevel, item: t.Level) -> str | None:
    """Why a level cannot be a run, which stands alone; None if it can."""
    if level.set.center.op != "input":
        return "its set is not around x: its variable is not the attacked input"
    needed = names.needed(*_content(item))
    for name, other in needed.items():
        if type(other) in _KINDS and name != item.var:
            return f"it needs {name}, {_KINDS[type(other)]}, and a run stands alone"
    return None


def _content(item: t.Level) -> Iterator[t.Node]:
    """The parts of a level that a run keeps."""
    kept = _solver(item, 1, 1)
    yield from (node for node in (item.index, item.set, item.objective, kept) if node is not None)


def _own_run(item: t.Level, numbered: bool, steps: int, restarts: int) -> t.Level:
    name = f"own_{item.var.replace(chr(39), '')}" if numbered else "own"
    return replace(item, run=name, mode=None, through=None, solver=_solver(item, steps, restarts))


def _solver(item: t.Level, steps: int, restarts: int) -> t.Call | None:
    """The level's solver with other counts; a start that no evaluation has becomes a random one."""
    call = item.solver
    if call is None or not isinstance(call.func, t.Name):
        return call
    changed = {"restarts": t.Number(str(restarts))} | ({} if call.func.id in _ONE_STEP else {"steps": t.Number(str(steps))})
    args = []
    for arg in call.args:
        if arg.name == "until":
            continue
        value = changed.pop(arg.name, arg.value) if arg.name else arg.value
        args.append(replace(arg, value=t.Name("uniform") if arg.name == "start" and arg.value == t.Name("previous") else value))
    if restarts == 1 or not _random(item):
        changed.pop("restarts", None)
        args = [arg for arg in args if arg.name != "restarts"]
    return replace(call, args=(*args, *(t.Argument(value, name) for name, value in changed.items())))


def _random(item: t.Level) -> bool:
    """Whether its start is drawn: restarts from one point are one."""
    start = next((arg.value for arg in item.solver.args if arg.name == "start"), None) if item.solver else None
    draws = ("uniform", "corner", "normal", "rademacher", "previous")
    return start is not None and any(isinstance(node, t.Name) and node.id in draws for node in t.walk(start))


def _general_runs(levels: list[t.Level], steps: int, restarts: int) -> Iterator[t.Level]:
    """Margin and cross-entropy on every set of the carried levels."""
    sets = list(dict.fromkeys(level.set for level in levels))
    point, y = t.Name("x'"), t.Name("y")
    logits = t.Call(t.Name("f"), (t.Argument(point),))
    largest = t.Binder("max", t.Header("j", "!=", y), t.Index(logits, t.Name("j")))
    losses: dict[str, t.Expr] = {
        "margin": t.Binary("-", largest, t.Index(logits, y)),
        "ce": t.Call(t.Name("CE"), (t.Argument(logits), t.Argument(y))),
    }
    for number, region in enumerate(sets):
        assert isinstance(region, t.Call)
        step = t.Binary("/", region.args[1].value, t.Number("4"))
        for name, loss in losses.items():
            counts = {"steps": t.Number(str(steps)), "restarts": t.Number(str(restarts))}
            options: dict[str, t.Expr] = {**counts, "step": step, "start": t.Name("uniform")}
            call = t.Call(t.Name("pgd"), tuple(t.Argument(value, key) for key, value in options.items()))
            yield t.Level("x'", None, region, "maximize", loss, call, run=f"{name}{number + 1 if len(sets) > 1 else ''}")


def _written(recipe: Recipe, names: _Names, runs: list[t.Level], name: str, left: tuple[str, ...]) -> str:
    """The text, parsed and checked again."""
    if name in taken_names():
        raise UserError(f"{name} is a word of the language", where="--name", fix="choose another name")
    needed = names.needed(*(node for run in runs for node in (run.index, run.set, run.objective, run.solver) if node is not None))
    kept = {id(item) for item in needed.values() if not isinstance(item, t.Level)}
    values = recipe.at_epoch(_LAST).params
    shared = tuple(item for item in recipe.shared if id(item) in kept)
    own = tuple(_plain(item, values, recipe) for item in recipe.declaration.items if id(item) in kept or isinstance(item, t.Input))
    head = (t.Keyword("title", f"Adaptive attack on {recipe.title}"), t.Keyword("source", recipe.source_note))
    declaration = t.Declaration("attack", name, None, (*head, *own, *runs, t.Keyword("count", "worst")))
    about = [f"# Its own lower level in eval mode, then margin and cross-entropy; from: lossdsl attack-from {recipe.name}"]
    about += [f"# {line}" for line in left]
    text = "\n".join([*about, format_tree(t.File(shared, (declaration,)))])
    try:
        parse_recipe(text, name)
        return format_text(text, name)
    except RecipeError as error:
        found = error.diagnostics[0]
        said = f"the levels of {recipe.name} cannot be runs of an attack: {found.message}"
        raise UserError(said, where=recipe.source.name, fix=found.help or "write the suite by hand") from error


def _plain(item: t.Item, values: Mapping[str, float | int], recipe: Recipe) -> t.Item:
    """As an attack may hold it."""
    if isinstance(item, t.Model):
        return replace(item, frozen=True)
    if isinstance(item, t.Let):
        return replace(item, mode=None)
    if isinstance(item, t.Param) and (item.stages or item.name in recipe.overrides or _calls(item.value)):
        return replace(item, value=_number(values[item.name]), stages=())
    return item


def _calls(value: t.Expr) -> bool:
    """ramp(...)"""
    return any(isinstance(node, t.Call) for node in t.walk(value))


def _number(value: float | int) -> t.Expr:
    number = t.Number(repr(abs(value)))
    return t.Unary("-", number) if value < 0 else number
