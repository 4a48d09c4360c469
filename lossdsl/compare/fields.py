"""Every statement of a declaration as fields: what it says as text, and as a key that layout does not change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from lossdsl.compare.terms import Addend
from lossdsl.compare.written import NOTHING, Key, Term, Writer, expanded, key, shown
from lossdsl.lang.games import GAME_SOLVERS
from lossdsl.lang.specs import FINDERS, OPTIMIZERS, SCHEDULES, SETS, SOLVERS, THROUGH, TrainOptions
from lossdsl.syntax import tree as t

if TYPE_CHECKING:
    from lossdsl.front import Recipe


@dataclass(frozen=True)
class Field:
    """One thing of a declaration: its text, and what it says whatever the layout."""

    text: str
    key: Key
    head: str = ""
    """The name of a set or solver: where both have one name, their `parts` are compared one by one."""
    parts: Mapping[str, Field] = field(default_factory=dict)
    addends: tuple[Addend, ...] = ()
    quiet: bool = False
    """A default: nothing to report where the other declaration has no such thing at all."""


Place = tuple[str, str]
"""A section and a name in it."""
Fields = Iterable[tuple[Place, Field]]


def fields_of(recipe: Recipe) -> dict[Place, Field]:
    """Every field of a declaration in the order written."""
    return _Reader(recipe).fields()


class _Reader:
    """Every item of a declaration as fields."""

    def __init__(self, recipe: Recipe) -> None:
        self.kind = recipe.kind
        self.items = (*recipe.shared, *recipe.declaration.items)
        self.writer = Writer(self.items, recipe.source.name)
        self.fixed = {i.name for i in self.items if isinstance(i, t.Param) or (isinstance(i, t.State) and not i.per_example)} | {"K"}

    def fields(self) -> dict[Place, Field]:
        found: dict[Place, Field] = {}
        for item in self.items:
            found.update(HANDLERS[type(item)](self, item))
        if self.kind != "game" and not any(isinstance(i, t.Input) for i in self.items):
            found["input", "x in"] = self.field(t.Sequence((t.Number("0"), t.Number("1"))))
        return found

    def field(self, e: t.Expr, env: Mapping[str, t.Expr] = NOTHING, before: str = "", after: str = "") -> Field:
        """An expression with words around it that belong to it."""
        written = self.writer.write(e, env)
        text = f"{before} {shown(written, _names(env))} {after}".strip()
        return Field(text, (before, key(written, _bound(env)), after))

    def choice(self, e: t.Expr, defaults: Mapping[str, t.Expr], prefix: str = "", env: Mapping[str, t.Expr] = NOTHING) -> Field:
        """A set, solver or optimizer with its arguments by name, those that are not written from `defaults`.

        Arguments without a name are called by their `defaults` in turn.
        """
        call = e if isinstance(e, t.Call) else t.Call(e, ())
        if not isinstance(call.func, t.Name):
            return self.field(e, env)
        names = iter(defaults)
        given = {a.name or next(names, f"argument {n}"): a.value for n, a in enumerate(call.args, 1)}
        values = {**given, **{n: v for n, v in defaults.items() if v is not _MISSING and n not in given}}
        parts = {prefix + name: self.option(value, env) for name, value in values.items()}
        ordered = tuple(sorted((name, part.key) for name, part in parts.items()))
        text = self.field(e, env).text if call.args else call.func.id
        return Field(text, (call.func.id, *ordered), call.func.id, parts)

    def option(self, value: t.Expr, env: Mapping[str, t.Expr] = NOTHING) -> Field:
        """The value of an option: a schedule with its own defaults filled in, or an expression."""
        name = value.func if isinstance(value, t.Call) else value
        if isinstance(name, t.Name) and name.id in SCHEDULES and name.id not in self.fixed:
            return replace(self.choice(value, _defaults(SCHEDULES[name.id])), head="")
        return self.field(value, env)

    def objective(self, e: t.Expr, sense: str, averaged: bool) -> Field:
        """An objective by its addends; `averaged`: `batch_mean(e)` is e, as in an upper level."""
        written = self.writer.write(e)
        terms = self._terms(written, averaged)
        whole: t.Expr = terms[0].expression()
        for term in terms[1:]:
            whole = t.Binary("+", whole, term.expression())
        addends = tuple(Addend.of(term, self.constant) for term in terms)
        return Field(shown(written), (sense, key(whole)), sense, addends=addends)

    def _terms(self, e: t.Expr, averaged: bool) -> list[Term]:
        terms: list[Term] = []
        for term in expanded(e, self.constant):
            means = [p for p in term.over if _is_mean(p)]
            rest = [p for p in term.over if not _is_mean(p)]
            if averaged and len(means) == 1 and all(map(self.constant, (*rest, *term.under))):
                assert isinstance(means[0], t.Call)
                inner = self._terms(means[0].args[0].value, averaged)
                terms += [replace(term, over=tuple(rest)).times(part) for part in inner]
            else:
                terms.append(term)
        return terms

    def constant(self, e: t.Expr) -> bool:
        """Is it made of numbers, params and states alone?"""
        parts = t.walk(e)
        return all(isinstance(p, t.Number | t.Unary | t.Binary) or (isinstance(p, t.Name) and p.id in self.fixed) for p in parts)


def _is_mean(e: t.Expr) -> bool:
    return isinstance(e, t.Call) and e.func == t.Name("batch_mean") and len(e.args) == 1 and e.args[0].where is None


def _names(env: Mapping[str, t.Expr]) -> dict[str, str]:
    return {v.id: n for n, v in env.items() if isinstance(v, t.Name)}


def _bound(env: Mapping[str, t.Expr]) -> dict[str, int]:
    return {v.id: n for n, v in enumerate(env.values()) if isinstance(v, t.Name)}


_MISSING: t.Expr = t.Name("")
"""In place of the default of an argument that must be given."""


def _defaults(model: type[BaseModel] | None) -> dict[str, t.Expr]:
    """The options of a model with their defaults as expressions."""
    found: dict[str, t.Expr] = {}
    for name, info in (model.model_fields if model else {}).items():
        if name != "kind":
            found[name] = _MISSING if info.is_required() else _as_expr(info.get_default(call_default_factory=True))
    return found


def _as_expr(value: Any) -> t.Expr:
    if isinstance(value, BaseModel):
        return t.Name(str(value.kind))  # type: ignore[attr-defined]
    if isinstance(value, bool):
        return t.Name("true" if value else "false")
    if isinstance(value, int | float):
        return t.Number(f"{value:.15g}".replace("e-0", "e-"))
    return t.Name("none" if value is None else str(value))


def _named_defaults(e: t.Expr, table: Mapping[str, Any], *also: str) -> dict[str, t.Expr]:
    """The defaults of the row that a call names."""
    name = e.func if isinstance(e, t.Call) else e
    row = table.get(name.id) if isinstance(name, t.Name) else None
    return {**dict.fromkeys(also, _MISSING), **_defaults(getattr(row, "options", row))}


# --- items ----------------------------------------------------------------------------------------------------------


def _param(r: _Reader, item: t.Param) -> Fields:
    parts = [r.field(item.value)]
    for stage in item.stages:
        value, first = r.field(stage.value), r.field(stage.first)
        parts.append(Field(f"then {value.text} from epoch {first.text}", (value.key, first.key)))
    if item.limits is not None:
        limits = r.field(item.limits)
        parts.append(Field(f"in {limits.text}", ("in", limits.key)))
    yield ("params", item.name), Field(" ".join(p.text for p in parts), tuple(p.key for p in parts))


def _let(r: _Reader, item: t.Let) -> Fields:
    if item.recorded:
        yield ("logs", item.name), r.field(item.value, after=f"with f in {item.mode}" if item.mode else "")


def _def(r: _Reader, item: t.Def) -> Fields:
    if item.model or item.generator:
        env = {name: r.writer.bind(name) for name in item.args}
        value = r.field(item.value, env)
        text = f"{item.name}({', '.join(item.args)}) = {value.text}"
        yield ("models" if item.model else "generators", item.name), Field(text, (str(len(env)), value.key))


def _sample(r: _Reader, item: t.Sample) -> Fields:
    draw, over = item.distribution, item.over
    if over is None and r.kind != "game":
        number = isinstance(draw, t.Call) and draw.func == t.Name("uniform") and len(draw.args) == 2
        over = t.Name("example" if number else "x")
    for name in item.names:
        drawn = r.field(draw)
        law = drawn if over is None else r.field(over, before="over")
        text = drawn.text if item.over is None else f"{drawn.text} {law.text}"
        yield ("samples", name), Field(text, (drawn.key, law.key))


def _level(r: _Reader, item: t.Level) -> Fields:
    section = f"run {item.run}" if item.run else f"lower {item.var}"
    env: dict[str, t.Expr] = {}
    if item.run:
        yield (section, "point"), Field(item.var, (item.var,))
    if item.index is not None:
        domain = None if item.index.domain is None else r.field(item.index.domain)
        text = item.index.var if domain is None else f"{item.index.var} {item.index.relation} {domain.text}"
        yield (section, "for each"), Field(text, (item.index.relation, domain and domain.key))
        env[item.index.var] = r.writer.bind(item.index.var)
    yield (section, "in"), _set(r, item.set, env)
    if item.objective is not None:
        yield (section, "objective"), r.field(item.objective, env, before=item.sense or "maximize")
    if item.solver is not None:
        start = {"start": t.Name("theta")} if _of_weights(item.set) else {}
        yield (section, "by"), r.choice(item.solver, {**_named_defaults(item.solver, SOLVERS), **start}, env=env)
    yield (section, "with f in"), _word(item.mode, "eval")
    if item.through is None:
        yield (section, "through"), _word(None, "nothing")
    else:
        yield (section, "through"), r.choice(item.through, _named_defaults(item.through, THROUGH), "through ", env)


def _set(r: _Reader, e: t.Expr, env: Mapping[str, t.Expr] = NOTHING) -> Field:
    row = SETS.get(e.func.id) if isinstance(e, t.Call) and isinstance(e.func, t.Name) else None
    if row is None:
        return r.field(e, env)
    moved = {"only": t.Name("all")} if _of_weights(e) else {}
    return r.choice(e, {**dict.fromkeys(row.args, _MISSING), **moved}, "in ", env)


def _of_weights(e: t.Expr) -> bool:
    return isinstance(e, t.Call) and any(a.value == t.Name("theta") for a in e.args)


def _word(word: str | None, default: str) -> Field:
    return Field(word or default, (word or default,), quiet=word is None)


def _find(r: _Reader, item: t.Find) -> Fields:
    section = f"find {item.name}"
    yield (section, "in"), r.field(item.interval)
    yield (section, "where"), r.field(item.condition)
    yield (section, "by"), r.choice(item.solver, _named_defaults(item.solver, FINDERS))


def _upper(r: _Reader, item: t.Upper) -> Fields:
    if item.at is not None:
        yield ("upper", "at"), _word(item.at, "")
    yield ("upper", "minimize"), r.objective(item.objective, "minimize", averaged=True)
    mode = (item.mode or "train") + (" joint" if item.joint else "")
    yield ("upper", "with f in"), Field(mode, (mode,), quiet=mode == "train")
    for optimizer in item.optimizers:
        section = "optimizer" + (f" of {optimizer.model}" if optimizer.model not in (None, "f") else "")
        yield (section, "by"), r.choice(optimizer.call, _named_defaults(optimizer.call, OPTIMIZERS))


def _state(r: _Reader, item: t.State) -> Fields:
    mode = f" with f in {item.mode}" if item.mode else ""
    first, update = r.field(item.init), r.field(item.update)
    what = "memory, one number per example: " if item.per_example else ""
    text = f"{what}{first.text} then {update.text}{mode}"
    yield ("states", item.name), Field(text, (what, first.key, update.key, mode))


def _train(r: _Reader, item: t.Train) -> Fields:
    written = {str(a.name): a.value for a in item.options}
    for name, value in written.items():
        yield ("train", name), r.option(value)
    for name, default in _defaults(TrainOptions).items():
        if default is not _MISSING and name not in written:
            yield ("train", name), replace(r.option(default), quiet=True)


def _input(r: _Reader, item: t.Input) -> Fields:
    yield ("input", f"{item.name} in"), r.field(item.domain)


def _model(r: _Reader, item: t.Model) -> Fields:
    text = f"{item.takes} -> {item.gives}" if item.takes else "frozen" if item.frozen else "trained"
    yield ("models", item.name), Field(text, (text,))


def _keyword(r: _Reader, item: t.Keyword) -> Fields:
    if item.keyword == "count":
        yield ("count", "count"), _word(item.value, "")


def _player(r: _Reader, item: t.Player) -> Fields:
    section = f"player {item.name}"
    if item.init is not None:
        yield (section, "start"), r.field(item.init)
    if item.set is not None:
        yield (section, "in"), _set(r, item.set)
    if item.objective is not None:
        sense = str(item.sense)
        yield (section, "sense"), _word(sense, "")
        yield (section, "objective"), r.objective(item.objective, "objective", averaged=True)
    if item.optimizer is not None:
        yield (section, "by"), r.choice(item.optimizer, _named_defaults(item.optimizer, OPTIMIZERS))


def _solve(r: _Reader, item: t.Solve) -> Fields:
    yield ("solve", "by"), r.choice(item.call, _named_defaults(item.call, GAME_SOLVERS))


def _data(r: _Reader, item: t.Data) -> Fields:
    columns = [r.field(t.Sequence(tuple(row.items[n] for row in item.rows))) for n in range(len(item.names))]
    for name, column in zip(item.names, columns, strict=True):
        yield ("data", name), column


def _keep(r: _Reader, item: t.Keep) -> Fields:
    yield ("keep", item.name), r.field(item.region)


def _quantifier(r: _Reader, item: t.Quantifier) -> Fields:
    domain = r.field(item.domain)
    members = None if item.index is None else r.field(item.index)
    text = domain.text if members is None else f"[{members.text}] in {domain.text}"
    yield ("for", item.name), Field(text, (members and members.key, domain.key))


def _hypothesis(r: _Reader, item: t.Hypothesis) -> Fields:
    found = r.field(item.condition)
    yield ("where", found.text), found


def _claim(r: _Reader, item: t.Claim) -> Fields:
    found = r.field(item.relation)
    yield ("refute" if item.refuted else "claim", found.text), found


HANDLERS: dict[type[t.Node], Callable[[_Reader, Any], Fields]] = {
    t.Param: _param, t.Let: _let, t.Def: _def, t.Sample: _sample, t.Level: _level, t.Find: _find, t.Upper: _upper,
    t.State: _state, t.Train: _train, t.Input: _input, t.Model: _model, t.Keyword: _keyword,
    t.Player: _player, t.Solve: _solve, t.Data: _data, t.Keep: _keep,
    t.Quantifier: _quantifier, t.Hypothesis: _hypothesis, t.Claim: _claim,
}  # fmt: skip
"""What each kind of item says, one row for every type of `tree.Item`."""
