"""Text to tree to typed recipe to plan: every stage of the front half, without torch.

Recipe.parse(text) -> recipe;  recipe.typed, recipe.plan, recipe.params, recipe.with_params(eps=0.2)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lossdsl.assets import attack_paths, game_paths, recipe_paths
from lossdsl.check.extend import extend, merged
from lossdsl.check.game import check_game
from lossdsl.check.game_typed import TypedGame
from lossdsl.check.law import check_law
from lossdsl.check.law_typed import TypedLaw
from lossdsl.check.recipe import Checker
from lossdsl.check.scope import BUILT_IN, Report, functions
from lossdsl.check.typed import TypedRecipe
from lossdsl.checked import Checked, CheckedFile
from lossdsl.diagnostics import Diagnostic, RecipeError, UserError, did_you_mean
from lossdsl.lang.specs import OptimizerSpec, TrainOptions
from lossdsl.source import Source, Span
from lossdsl.syntax import tree as t
from lossdsl.syntax.clauses import clause_items
from lossdsl.syntax.mistakes import RESERVED
from lossdsl.syntax.parse import Parsed, parse

if TYPE_CHECKING:
    from lossdsl.plan.ir import Plan


_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*'*")


@dataclass(frozen=True)
class Recipe:
    """One declaration of a file, with the values of its params.

    Raises RecipeError when its text is wrong; an object that exists is well typed.
    """

    source: Source
    declaration: t.Declaration
    shared: tuple[t.Item, ...]
    overrides: Mapping[str, float | int] = field(default_factory=dict)
    epoch: int = 1

    @cached_property
    def checked(self) -> Checked:
        return check_declaration(self.declaration, self.shared, self.overrides, self.epoch)

    @cached_property
    def declared(self) -> TypedRecipe | TypedGame | TypedLaw:
        """The typed recipe, attack suite, game, or law at its first choices."""
        if self.checked.typed is None:
            raise RecipeError(self.source, [d for d in self.checked.diagnostics if d.severity == "error"])
        return self.checked.typed

    @property
    def typed(self) -> TypedRecipe:
        """The typed recipe or attack suite; UserError for a game or law."""
        if isinstance(self.declared, TypedRecipe):
            return self.declared
        command = "play" if self.kind == "game" else "laws"
        raise UserError(f"{self.name} is a {self.kind}, not a recipe", where=self.source.name, fix=f"run: lossdsl {command} {self.name}")

    @property
    def game(self) -> TypedGame:
        """The typed game; UserError for anything else."""
        if not isinstance(self.declared, TypedGame):
            raise UserError(f"{self.name} is no game but a declaration of {self.kind}", where=self.source.name, fix="see: lossdsl list")
        return self.declared

    @cached_property
    def plan(self) -> Plan:
        """Every pass through the model, in order."""
        from lossdsl.plan.pipeline import make_plan

        return make_plan(self.typed)

    @property
    def name(self) -> str:
        return self.declaration.name

    @property
    def kind(self) -> str:
        """ "recipe", "attack", "game" or "law"."""
        return self.declaration.kind

    @property
    def title(self) -> str:
        return self.declared.title or self.name

    @property
    def source_note(self) -> str:
        """The paper this comes from."""
        return self.declared.source

    @property
    def params(self) -> dict[str, float | int]:
        """The value of every param, overrides included, at this epoch."""
        return dict(self.declared.params)

    @property
    def train(self) -> TrainOptions | None:
        """The validated `train` statement; None if there is none."""
        return self.typed.train

    @property
    def optimizer(self) -> OptimizerSpec | None:
        return self.typed.optimizer

    @property
    def models(self) -> dict[str, bool]:
        """Every other model by name, and whether it is frozen."""
        return dict(self.typed.models)

    @property
    def optimizers(self) -> dict[str, OptimizerSpec]:
        """The optimizers of other trained models, by model; one without joins the main optimizer."""
        return dict(self.typed.optimizers)

    @property
    def needs_index(self) -> bool:
        """Does it keep a memory per training example?"""
        return any(state.per_example for state in self.typed.states)

    @property
    def sampled(self) -> bool:
        """Does it draw its batches class by class?"""
        return self.typed.sampler is not None

    @property
    def domain(self) -> tuple[Any, Any] | None:
        """The smallest and largest value of an input (numbers, or one per channel); None: all reals."""
        return self.typed.domain

    @property
    def changes_by_epoch(self) -> bool:
        return bool(self.checked.changing)

    @cached_property
    def text(self) -> str:
        """The method in canonical layout, self-contained: what it extends and uses is written out."""
        from lossdsl.syntax.format import format_tree

        return format_tree(t.File(self.shared, (self.declaration,)))

    def explain(self) -> str:
        """Every value in force, defaults included, as text."""
        from lossdsl.explain import explain

        return explain(self)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the canonical declaration (bases written out) with its params; equal for equal methods."""
        content = repr((self.shared, self.declaration, sorted(self.params.items())))
        return hashlib.sha256(content.encode()).hexdigest()

    def with_params(self, **values: float | int) -> Recipe:
        """The same recipe with other values; unknown names and values outside a param's range are errors."""
        known = [item.name for item in self.declaration.items if isinstance(item, t.Param)]
        for name, value in values.items():
            if name not in known:
                raise UserError(f"{self.name} has no param {name}", where=self.source.name, fix=did_you_mean(name, known))
            if isinstance(value, bool) or not isinstance(value, int | float) or isnan(value):
                raise UserError(f"the param {name} is a number, and this is {value!r}", where=self.source.name)
        changed = replace(self, overrides={**self.overrides, **values})
        for epoch in (1, *sorted(changed.checked.epochs)):
            _ = replace(changed, epoch=epoch).declared
        return changed

    def with_train(self, **values: float | int | str) -> Recipe:
        """The same recipe with other options of `train` (epochs = 30, batch = 64, augment = "none")."""
        options = ", ".join(f"{name} = {value}" for name, value in values.items())
        return self.with_clauses(train=options) if values else self

    def with_clauses(self, *, by: str | None = None, train: str | None = None, solve: str | None = None) -> Recipe:
        """The same recipe with another optimizer ("adam(lr = 1e-3)") or other options of `train` ("epochs = 30, schedule = cosine");
        the same game with another solver ("gda(step = 0.1, iterations = 100)").

        Raises UserError if a clause cannot be read, RecipeError if what it says is wrong.
        """
        given = ((by, "upper minimize CE(f(x), y) by {}"), (train, "train {}"), (solve, "solve {}"))
        parts = tuple(item for clause, frame in given for item in clause_items(clause, frame))
        change = t.Declaration(self.kind, self.name, None, parts)
        items = [merged(old, change) for old in self.declaration.items]
        kinds = {type(i) for i in items}
        missing = [i for i in change.items if type(i) not in kinds]
        if missing:
            raise UserError(f"{self.name} has no {type(missing[0]).__name__.lower()} statement", where=self.source.name)
        changed = replace(self, declaration=replace(self.declaration, items=tuple(items)))
        _ = changed.declared
        return changed

    def at_epoch(self, epoch: int) -> Recipe:
        """The recipe in a later epoch (counted from 1), for params that change."""
        return self if epoch == self.epoch or not self.changes_by_epoch else replace(self, epoch=epoch)


def check_declaration(
    node: t.Declaration,
    shared: tuple[t.Item, ...],
    overrides: Mapping[str, float | int],
    epoch: int = 1,
    lost: frozenset[str] = frozenset(),
) -> Checked:
    """Types, names and facts of one declaration; every finding at once."""
    report = Report(lost)
    if node.kind == "game":
        game = check_game(report, overrides, shared, node)
        return Checked(node, None if report.failed else game, report.diagnostics)
    if node.kind == "law":
        law = check_law(report, shared, node, {}, declared)
        return Checked(node, None if report.failed else law, report.diagnostics)
    checker = Checker(report, overrides, epoch)
    typed = checker.check(shared, node)
    return Checked(
        node, None if report.failed else typed, report.diagnostics, frozenset(checker.params.changing), frozenset(checker.params.epochs)
    )


def check_source(source: Source, overrides: Mapping[str, float | int] | None = None, opening: frozenset[Path] = frozenset()) -> CheckedFile:
    """Parse and check a file; never raises on bad text. `opening`: the files whose `use` led here."""
    parsed = parse(source)
    report = Report(parsed.lost_words)
    shared, declarations, others = _link(parsed, report, opening)
    parsed = replace(parsed, source=replace(source, others=tuple(others.values())))
    words = frozenset(_WORD.findall(source.text))  # what an unknown base would have declared is not missed twice
    checks = [check_declaration(d, shared, overrides or {}, lost=words if d.base else parsed.lost_words) for d in declarations]
    if not declarations and not parsed.diagnostics and not parsed.file.shared:
        report.error("E001", "the file declares nothing", Span(0, min(1, len(source.text))), "write: recipe NAME, then its statements")
    found: dict[Any, Diagnostic] = {}
    later = [check_declaration(c.declaration, shared, overrides or {}, epoch) for c in checks if c.typed for epoch in sorted(c.epochs)]
    for d in (*parsed.diagnostics, *report.diagnostics, *(d for c in (*checks, *later) for d in c.diagnostics)):
        found.setdefault((d.code, d.span, d.message), d)
    ordered = sorted(found.values(), key=lambda d: (d.span.file, d.span.start, d.code))
    return CheckedFile(parsed, tuple(checks), shared, tuple(ordered))


def _link(parsed: Parsed, report: Report, opening: frozenset[Path]) -> tuple[tuple[t.Item, ...], list[t.Declaration], dict[str, Source]]:
    """Bring in used files and write out `extends`; also the sources of what came from elsewhere."""
    shared: list[t.Item] = []
    known: dict[str, tuple[tuple[t.Item, ...], t.Declaration]] = {}
    others: dict[str, Source] = {}
    for item in parsed.file.shared:
        if isinstance(item, t.Keyword) and item.keyword == "use":
            used = _used(parsed.source, item, report, opening)
            if used is None:
                continue
            for checked in used.checks:
                known[checked.declaration.name] = _foreign(used.parsed.source, used.shared, checked.declaration, others)
            shared.extend(i for i in t.relocated(used.shared, used.parsed.source.name) if i not in shared)
        else:
            shared.append(item)
    declarations: list[t.Declaration] = []
    for node in parsed.file.declarations:
        if node.name in {d.name for d in declarations}:
            report.error("E011", f"{node.name} is declared twice in this file", node.span, "rename one of them")
        linked = _extended(node, known, shared, others, report)
        known[node.name] = (tuple(shared), linked)
        declarations.append(linked)
    return tuple(shared), declarations, others


def _foreign(
    source: Source, shared: tuple[t.Item, ...], node: t.Declaration, others: dict[str, Source]
) -> tuple[tuple[t.Item, ...], t.Declaration]:
    """A declaration of another file: its items, with spans that say where they lie."""
    for origin in (source, *source.others):
        others.setdefault(origin.name, replace(origin, others=()))
    return t.relocated(shared, source.name), t.relocated(node, source.name)


def _extended(node: t.Declaration, known: dict[str, Any], shared: list[t.Item], others: dict[str, Source], report: Report) -> t.Declaration:
    if node.base is None:
        return node
    head = Span(node.span.start, node.span.start + len(node.kind) + len(node.name) + len(node.base) + 10)
    shipped = {**attack_paths(), **recipe_paths(), **game_paths()}
    if node.base in known:
        base_shared, base = known[node.base]
    elif node.base != node.name and node.base in shipped:
        recipe = load(node.base)
        base_shared, base = _foreign(recipe.source, recipe.shared, recipe.declaration, others)
    else:
        help = did_you_mean(node.base, {*known, *shipped} - {node.name})
        report.error("E028", f"there is no recipe {node.base} to extend", head, help)
        return node
    if base.kind != node.kind:
        report.error("E028", f"{base.name} is a {base.kind}, and {node.name} a {node.kind}", head, f"extend a {node.kind}")
        return node
    shared.extend(i for i in base_shared if i not in shared)
    return extend(base, node, report)


def _used(source: Source, item: t.Keyword, report: Report, opening: frozenset[Path]) -> CheckedFile | None:
    """The file of `use "other.loss"`, found beside the using file; None after reporting what is wrong with it."""
    path = Path(source.name).parent / item.value
    opening = opening | {Path(source.name).resolve()}
    if not path.is_file():
        report.error("E028", f"there is no file {item.value}", item.span, f"looked for {path}")
        return None
    if path.resolve() in opening:
        report.error("E028", f"{item.value} uses this file in turn", item.span, "put what both need into a third file")
        return None
    try:
        checked = check_source(read_source(path), opening=opening)
    except UserError as error:
        report.error("E028", f"{item.value}: {error.problem}", item.span, error.fix)
        return None
    errors = [d for d in checked.diagnostics if d.severity == "error"]
    if errors:
        report.error("E028", f"{item.value} has errors: {errors[0].message}", item.span, f"run: lossdsl check {path}")
        return None
    return checked


def taken_names() -> frozenset[str]:
    """Names that mean something everywhere: built-ins, operations, sets, draws and reserved words."""
    return functions() | frozenset((*BUILT_IN, *RESERVED, "inf", "top", "raw", "previous"))


def read_source(path: Path) -> Source:
    """The text of a file; UserError when it cannot be read."""
    try:
        return Source(path.read_text(encoding="utf-8-sig"), str(path))
    except FileNotFoundError:
        raise UserError("there is no such file", where=str(path)) from None
    except UnicodeDecodeError as error:
        raise UserError(f"the file is not UTF-8 (byte {error.start})", where=str(path), fix="save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"the file cannot be read: {error.strerror}", where=str(path)) from None


def parse_recipes(source: Source, overrides: Mapping[str, float | int] | None = None) -> list[Recipe]:
    """Every declaration of a source; RecipeError with all errors if there are any."""
    checked = check_source(source, overrides)
    errors = [d for d in checked.diagnostics if d.severity == "error"]
    if errors:
        raise RecipeError(checked.parsed.source, errors)
    recipes = [Recipe(checked.parsed.source, c.declaration, checked.shared, dict(overrides or {})) for c in checked.checks]
    for recipe, check in zip(recipes, checked.checks, strict=True):
        recipe.__dict__["checked"] = check  # the cached property, so that nothing is checked twice
    return recipes


def parse_recipe(text: str, name: str = "<text>") -> Recipe:
    """The one declaration of a text (the last, if it has several)."""
    recipes = parse_recipes(Source(text, name))
    if not recipes:
        raise UserError("the text declares no recipe", where=name, fix="write: recipe NAME, then its statements")
    return recipes[-1]


def declared(name: str, params: Mapping[str, float | int]) -> TypedRecipe | TypedGame:
    """A shipped recipe or game that a law speaks of. Raises UserError or RecipeError for an unknown name or param."""
    found = load(name).with_params(**params).declared
    assert not isinstance(found, TypedLaw)  # no law is shipped under a name of its own
    return found


_SHIPPED: dict[Path, Recipe] = {}


def _shipped(path: Path) -> Recipe:
    """The recipe of a shipped file, checked once for as long as that file and those it is made from stay the same."""
    text, known = read_source(path).text, _SHIPPED.get(path)
    if known is None or known.source.text != text or any(read_source(Path(o.name)).text != o.text for o in known.source.others):
        known = _SHIPPED[path] = parse_recipe(text, str(path))
    return known


def load(name_or_path: str | Path) -> Recipe:
    """A shipped recipe, attack or game by name ("trades", "pgd20", "forsaken"), or a .loss file by path."""
    text = str(name_or_path)
    shipped = {**attack_paths(), **game_paths(), **recipe_paths()}
    if text in shipped:
        return _shipped(shipped[text])
    if text.endswith(".loss") or "/" in text:
        return parse_recipe(read_source(Path(text)).text, text)
    raise UserError(f"there is no recipe {text}", fix=did_you_mean(text, shipped) + "; a file ends in .loss")
