"""`recipe b extends a`: the items of b in the frame of a."""

from __future__ import annotations

from dataclasses import replace

from lossdsl.check.scope import Report
from lossdsl.check.structure import introduced
from lossdsl.diagnostics import did_you_mean
from lossdsl.syntax import tree as t


def identity(item: t.Item) -> tuple[str, str]:
    """Items are the same thing when kind and name agree; lower, sample and find all introduce a variable."""
    match item:
        case t.Sample(names=names):
            return "variable", " ".join(names)
        case t.Level(run=run, var=var):
            return ("run", run) if run else ("variable", var)
        case t.Find(name=name):
            return "variable", name
        case t.Keep(name=name):
            return "keep", name
        case t.Let(name=name, recorded=True):
            return "log", name
        case t.Param(name=name) | t.Let(name=name) | t.Def(name=name) | t.State(name=name) | t.Model(name=name) | t.Player(name=name):
            return type(item).__name__.lower(), name
        case t.Keyword(keyword=keyword, value=value):
            return keyword, value if keyword == "remove" else ""
    return type(item).__name__.lower(), ""


def split_samples(items: tuple[t.Item, ...]) -> list[t.Item]:
    """One item per sampled name, so that each can be replaced or removed alone."""
    out: list[t.Item] = []
    for item in items:
        if isinstance(item, t.Sample):
            out.extend(replace(item, names=(name,)) for name in item.names)
        else:
            out.append(item)
    return out


def extend(base: t.Declaration, own: t.Declaration, report: Report) -> t.Declaration:
    """Merge: a redeclared item takes the old one's place, a new one goes before the first statement that speaks of it, or before
    `upper` or `solve`; `remove` drops an item."""
    items = [i for i in split_samples(base.items) if not (isinstance(i, t.Keyword) and i.keyword in ("title", "source"))]
    new: list[t.Item] = []
    for item in split_samples(own.items):
        if isinstance(item, t.Keyword) and item.keyword == "remove":
            items = _remove(items, item, report)
            continue
        place = next((n for n, old in enumerate(items) if identity(old) == identity(item)), None)
        if place is not None:
            items[place] = _inherit(items[place], item)
        else:
            new.append(item)
    return t.Declaration(own.kind, own.name, None, tuple(_with_new(items, new)), span=own.span)


def _with_new(items: list[t.Item], new: list[t.Item]) -> list[t.Item]:
    """New items in their places, the last one first, so that each can be found by those that were written after it."""
    anchor: t.Item | None = next((i for i in items if isinstance(i, t.Upper | t.Solve)), None)
    for item in reversed(new):
        if isinstance(item, t.Train | t.Keyword):
            items.append(item)
            continue
        end = next((n for n, i in enumerate(items) if i is anchor), len(items))
        names = set(introduced(item))
        user = next((n for n, i in enumerate(items[:end]) if names & _spoken_of(i)), None)
        items.insert(end if user is None else user, item)
        anchor = item if user is None else anchor
    return items


def _spoken_of(item: t.Item) -> set[str]:
    return {node.id for node in t.walk(item) if isinstance(node, t.Name)}


def _remove(items: list[t.Item], item: t.Keyword, report: Report) -> list[t.Item]:
    kept = [i for i in items if identity(i)[1] != item.value]
    if len(kept) == len(items):
        names = [name for _, name in map(identity, items) if name]
        report.error("E028", f"there is no {item.value} to remove", item.span, did_you_mean(item.value, names))
    return kept


def _inherit(old: t.Item, new: t.Item) -> t.Item:
    """What a redeclared item leaves out and keeps from the old one."""
    match old, new:
        case t.Level(), t.Level():
            return replace(
                new,
                solver=new.solver or old.solver,
                mode=new.mode or old.mode,
                sense=new.sense or old.sense,
                objective=new.objective or old.objective,
                through=new.through or old.through,
            )
        case t.Upper(), t.Upper():
            optimizers, mode = new.optimizers or old.optimizers, new.mode or old.mode
            return replace(new, at=new.at or old.at, optimizers=optimizers, mode=mode, joint=new.joint or old.joint)
        case t.Player(), t.Player():
            wants = (new.sense, new.objective) if new.objective is not None else (old.sense, old.objective)
            init, region = new.init or old.init, new.set or old.set
            return replace(new, init=init, set=region, sense=wants[0], objective=wants[1], optimizer=new.optimizer or old.optimizer)
        case t.Train(), t.Train():
            merged = {a.name: a for a in (*old.options, *new.options)}
            return replace(new, options=tuple(merged.values()))
    return new


def merged(old: t.Item, change: t.Declaration) -> t.Item:
    """A statement with the clauses of the change."""
    for new in change.items:
        if isinstance(old, t.Upper) and isinstance(new, t.Upper):
            return replace(old, optimizers=new.optimizers)
        if isinstance(old, t.Train) and isinstance(new, t.Train):
            options = {a.name: a for a in (*old.options, *new.options)}
            return replace(old, options=tuple(options.values()))
        if isinstance(old, t.Solve) and isinstance(new, t.Solve):
            return new
    return old
