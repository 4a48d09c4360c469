"""The params of a recipe: their values, overridden from outside or changing by epoch, inside their ranges."""

from __future__ import annotations

from collections.abc import Mapping

from lossdsl.check.infer import Context, Inference
from lossdsl.check.scope import Scope
from lossdsl.check.typed import number_text
from lossdsl.syntax import tree as t


class Params:
    """Resolves params one after the other; later ones may use earlier ones."""

    def __init__(self, inference: Inference, overrides: Mapping[str, float | int], epoch: int) -> None:
        self.inference, self.overrides, self.epoch = inference, overrides, epoch
        self.values: dict[str, float | int] = {}
        self.changing: set[str] = set()
        self.epochs: set[int] = set()
        """First epochs of later values."""

    def resolve(self, node: t.Param, scope: Scope, at: Context) -> float | int | None:
        """The value now, or None after reporting why there is none."""
        value = self._declared(node, scope, at) if node.name not in self.overrides else self.overrides[node.name]
        if value is None:
            return None
        if node.limits is not None and not self._inside(node, value, scope, at):
            return None
        self.values[node.name] = value
        return value

    def _declared(self, node: t.Param, scope: Scope, at: Context) -> float | int | None:
        value = (
            self._ramp(node.value, scope, at)
            if _is_ramp(node.value)
            else self.inference.number(node.value, scope, at, f"the param {node.name}")
        )
        last = 1
        for stage in node.stages:
            self.changing.add(node.name)
            first = self.inference.number(stage.first, scope, at, "an epoch")
            later = self.inference.number(stage.value, scope, at, f"the param {node.name}")
            if first is None or later is None:
                return None
            if not isinstance(first, int) or first <= last:
                self.inference.report.error(
                    "E016",
                    "the epochs of a param are whole numbers that increase from 2",
                    stage.first.span,
                    "the first value holds from epoch 1",
                )
                return None
            last = first
            self.epochs.add(first)
            if self.epoch >= first:
                value = later
        if _is_ramp(node.value):
            self.changing.add(node.name)
        return value

    def _ramp(self, e: t.Expr, scope: Scope, at: Context) -> float | int | None:
        """`ramp(a, b, epochs = n)`: a in epoch 1, then in equal steps to b in epoch n + 1 and after."""
        assert isinstance(e, t.Call)
        named = {a.name: a.value for a in e.args}
        plain = [a.value for a in e.args if a.name is None]
        if len(plain) != 2 or set(named) - {None, "epochs"} or "epochs" not in named:
            self.inference.report.error("E014", "ramp takes two numbers and epochs", e.span, "write ramp(0, 8/255, epochs = 5)")
            return None
        numbers = [self.inference.number(part, scope, at, "an end of a ramp") for part in (*plain, named["epochs"])]
        if numbers[0] is None or numbers[1] is None or numbers[2] is None:
            return None
        low, high, epochs = numbers[0], numbers[1], numbers[2]
        if not isinstance(epochs, int) or epochs < 1:
            self.inference.report.error(
                "E016", "epochs of ramp is a whole number from 1", named["epochs"].span, "write ramp(0, 8/255, epochs = 5)"
            )
            return None
        self.epochs |= {2, epochs + 1}
        return low + (high - low) * min(1.0, (self.epoch - 1) / epochs)

    def _inside(self, node: t.Param, value: float | int, scope: Scope, at: Context) -> bool:
        limits = node.limits
        whole = isinstance(limits, t.Range)
        ends = (limits.low, limits.high) if isinstance(limits, t.Range) else limits.items if isinstance(limits, t.Sequence) else ()
        if len(ends) != 2:
            assert limits is not None
            help = "write 1..9 for whole numbers, or [0, 1]"
            self.inference.report.error("E034", "the range of a param has two ends", limits.span, help)
            return False
        low, high = (self.inference.number(end, scope, at, "the end of a range") for end in ends)
        if low is None or high is None:
            return False
        text = f"{low}..{high}" if whole else f"[{low}, {high}]"
        if not low <= value <= high or (whole and not isinstance(value, int)):
            kind = "a whole number in " if whole else "in "
            given = ", given from outside," if node.name in self.overrides else ""
            self.inference.report.error(
                "E016", f"{node.name} = {number_text(value)}{given} is outside its range", node.span, f"{node.name} is {kind}{text}"
            )
            return False
        return True


def _is_ramp(e: t.Expr) -> bool:
    return isinstance(e, t.Call) and e.func == t.Name("ramp")
