"""Players of a game: what they are, where they start, where they may move, what they want, and how models among them learn."""

from __future__ import annotations

from dataclasses import replace
from math import isinf
from typing import TYPE_CHECKING

from lossdsl.check.flow import gradient_reaches
from lossdsl.check.game_typed import Region, TypedPlayer
from lossdsl.check.scope import Value, is_error
from lossdsl.check.typed import Typed, number_text
from lossdsl.check.upper import optimizer
from lossdsl.diagnostics import suggest
from lossdsl.lang.specs import OptimizerSpec
from lossdsl.lang.types import Kind
from lossdsl.syntax import tree as t

if TYPE_CHECKING:
    from lossdsl.check.game import GameChecker

SETS = ("l2", "linf", "simplex")
_SET_HELP = "sets of players are [lo, hi], l2(center, radius), linf(center, radius) and simplex(n)"


def foretell(self: GameChecker, node: t.Player) -> None:
    """Players are known throughout a game, wherever they are declared: their start and set, and the name for expressions."""
    if node.name in self.inference.models:
        if node.init is not None or node.set is not None:
            place = node.init or node.set
            assert place is not None
            help = f"write keep {node.name} in clip(0.01), or remove it: its weights start as torch draws them"
            self.report.error("E020", f"{node.name} is a model, which has neither a start nor a set of its own", place.span, help)
        return
    region = _region(self, node)
    init = _init(self, node, region)
    size = None if not _is_vector(node) else len(init) if init else 1
    self.starts[node.name] = (init, region, size)
    kind = Kind.REAL if size is None else Kind.VECTOR
    if size is not None:
        self.inference.sizes[node.name] = size
    low, high = region.numbers if region and region.name == "box" else (float("-inf"), float("inf"))
    value = Typed("state", (), kind, node.span, (node.name,), depends=frozenset({node.name}), low=low, high=high)
    self.declare(node.name, Value(value, node.span, "player"), node.span, "player")


def _is_vector(node: t.Player) -> bool:
    simplex = isinstance(node.set, t.Call) and node.set.func == t.Name("simplex")
    return isinstance(node.init, t.Sequence) or (simplex and node.init is None)


def _numbers(self: GameChecker, e: t.Expr, what: str) -> tuple[float, ...] | None:
    """A number or a list of numbers."""
    parts = e.items if isinstance(e, t.Sequence) else (e,)
    found = [self.inference.number(part, self.scope, self.at, what) for part in parts]
    return None if None in found else tuple(float(v) for v in found if v is not None)


def _init(self: GameChecker, node: t.Player, region: Region | None) -> tuple[float, ...]:
    """The start; 0 if the text gives none, or the middle of a simplex."""
    if node.init is not None:
        init = _numbers(self, node.init, f"the start of {node.name}")
    elif region is not None and region.name == "simplex":
        init = (1 / region.numbers[0],) * int(region.numbers[0])
    else:
        init = (0.0,)
    if init is None or region is None:
        return init or ()
    if len(region.center) > 1 and len(region.center) != len(init):
        assert node.set is not None
        said = f"the centre of this set has {len(region.center)} numbers, and {node.name} has {len(init)}"
        self.report.error("E020", said, node.set.span, "write one number for all entries, or as many as the player has")
    elif region.name == "simplex" and len(init) != int(region.numbers[0]):
        assert node.set is not None
        what = f"{len(init)} numbers" if len(init) > 1 else "a number"
        help = f"write simplex({len(init)})" if len(init) > 1 else "write [0, 1] for a number"
        self.report.error("E020", f"simplex({int(region.numbers[0])}) does not fit {node.name}, which is {what}", node.set.span, help)
    elif not inside(region, init):
        place = node.init.span if node.init is not None else node.span
        shown = ", ".join(map(number_text, init))
        self.report.error("E016", f"{node.name} starts at {shown}, outside its set", place, "start inside the set")
    return init


def inside(region: Region, point: tuple[float, ...]) -> bool:
    """Does a point lie in the set, up to rounding?"""
    slack = 1e-12
    if region.name == "box":
        return all(region.numbers[0] - slack <= v <= region.numbers[1] + slack for v in point)
    if region.name == "simplex":
        return all(v >= -slack for v in point) and abs(sum(point) - 1) <= 1e-9
    center = region.center * len(point) if len(region.center) == 1 else region.center
    away = [abs(v - c) for v, c in zip(point, center, strict=True)]
    length = sum(d * d for d in away) ** 0.5 if region.name == "l2" else max(away)
    return length <= region.numbers[0] + slack


def _region(self: GameChecker, node: t.Player) -> Region | None:
    e = node.set
    if e is None:
        return None
    if isinstance(e, t.Sequence):
        return _interval(self, e)
    name = e.func.id if isinstance(e, t.Call) and isinstance(e.func, t.Name) else ""
    if name not in SETS or not isinstance(e, t.Call):
        what = f"{name} is no set of a player" if name else "a set is expected here"
        self.report.misnamed(
            "E020", what, e.func.span if isinstance(e, t.Call) else e.span, suggest(name, SETS) if name else None, _SET_HELP
        )
        return None
    wanted = 1 if name == "simplex" else 2
    if len(e.args) != wanted or any(a.name for a in e.args):
        self.report.error("E014", f"{name} takes other arguments", e.span, _SET_HELP)
        return None
    parts = [_numbers(self, a.value, f"an argument of {name}") for a in e.args]
    if parts[0] is None or parts[-1] is None:
        return None
    last = parts[-1][0]
    if name == "simplex" and (last < 2 or last != int(last)):
        self.report.error("E016", f"a simplex of {number_text(last)} numbers", e.args[0].span, "write a whole number from 2: simplex(3)")
        return None
    if len(parts[-1]) != 1 or last < 0:
        self.report.error("E016", "a radius is one number from 0", e.args[-1].span, f"write {name}(0, 1)")
        return None
    return Region(name, () if name == "simplex" else parts[0], (last,))


def _interval(self: GameChecker, e: t.Sequence) -> Region | None:
    ends = _numbers(self, e, "an end of an interval")
    if ends is None:
        return None
    if len(ends) != 2 or ends[0] >= ends[1] or any(map(isinf, ends)):
        self.report.error("E020", "an interval has two ends, the smaller one first", e.span, "write for example [-1, 1]")
        return None
    return Region("box", (), (ends[0], ends[1]))


def check_player(self: GameChecker, node: t.Player) -> TypedPlayer | None:
    """What a player wants; None after reporting."""
    model = node.name in self.inference.models
    if any(p.name == node.name for p in self.players):
        self.report.error("E011", f"there are two players {node.name}", node.span, "rename one of them")
        return None
    self.report.used.add(node.name)
    if node.objective is None or node.sense is None:
        if not self.report.lost_words:
            help = "add what it wants: minimize EXPR or maximize EXPR"
            self.report.error("E035", f"the player {node.name} has no objective", node.span, help)
        return None
    objective = self.inference.scalar(node.objective, self.scope, self.at, f"the objective of {node.name}")
    if is_error(objective) or not self.inference.one_size(objective):
        return None
    op = "apply" if model else "state"
    if not gradient_reaches(objective, lambda e: e.op == op and e.attrs == (node.name,)):
        help = f"use {node.name} in it, or remove the player"
        said = f"the objective of {node.name} does not depend on {node.name}"
        self.report.error("E021", said, node.objective.span, help)
        return None
    spec, steps = _optimizer(self, node)
    init, region, size = self.starts.get(node.name, ((), None, None))
    return TypedPlayer(node.name, node.sense, objective, size, init, region, spec, steps, model, node.span)


def _optimizer(self: GameChecker, node: t.Player) -> tuple[OptimizerSpec | None, int]:
    """The player's own optimizer, and its number of updates per turn."""
    call = node.optimizer
    if call is None:
        return None, 1
    given = [a for a in call.args if a.name == "steps"]
    steps = self.inference.number(given[0].value, self.scope, self.at, "steps") if given else 1
    if steps is not None and (not isinstance(steps, int) or steps < 1):
        said = f"steps of {node.name} cannot be {number_text(steps)}"
        self.report.error("E016", said, given[0].span, "steps is a whole number from 1: updates per turn")
    spec = optimizer(self, replace(call, args=tuple(a for a in call.args if a.name != "steps")))
    return spec, int(steps or 1)
