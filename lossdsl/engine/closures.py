"""Plan to closures: each instruction becomes one Python function over a list of values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lossdsl.check.typed import Axis
from lossdsl.diagnostics import LossdslError, UserError
from lossdsl.engine.kernels import COMPARISONS, KERNELS, REGISTERED
from lossdsl.engine.modes import Modes
from lossdsl.engine.passes import forward, gradient, gradient_by_weights, leaf, part, stack
from lossdsl.lang.types import OVER_CLASSES, Kind
from lossdsl.plan.ir import Code, Instr, writes_statistics
from lossdsl.solve import SETS_TORCH, Domain, Randomness, draws

Values = list[Any]
Function = Callable[..., Any]

_PLAIN = frozenset(("add", "sub", "mul", "div", "pow", "neg", "stop"))
"""Kernels that take Python numbers as they are."""
_ELEMENTWISE = frozenset(("add", "sub", "mul", "div", "pow", "if", "clip", "max", "min", "gate"))
_OWN_RANK = frozenset(("norm", "dot", "cos", "unit"))


@dataclass
class Frame:
    """What a running step knows: the batch, the model and its mode, the draws, the solutions so far."""

    x: Tensor
    y: Tensor
    model: nn.Module
    modes: Modes
    num_classes: int
    domain: Domain | None = None
    generator: Randomness = None
    points: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)
    """Solutions and iterates by (name,) and (name, k); samples by ("sample", name)."""
    own_class: Tensor | None = None
    constants: dict[Any, Tensor] = field(default_factory=dict)
    models: dict[str, nn.Module] = field(default_factory=dict)
    """The other models, by name."""
    frozen: frozenset[str] = frozenset()
    """Those that are never trained: in eval mode throughout."""
    moved: frozenset[str] = frozenset()
    """The parameters of f that are trained."""
    weights: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Parameters of f at the variables of levels over weights."""
    shared: dict[str, Tensor] = field(default_factory=dict)
    """What all examples share: states and distributions over the classes [K]."""

    @property
    def trained(self) -> tuple[nn.Module, ...]:
        """The models whose parameters the upper level moves."""
        return (self.model, *(m for name, m in self.models.items() if name not in self.frozen))

    @property
    def rank(self) -> int:
        """Dimensions of one input."""
        return self.x.dim() - 1

    def tensor(self, value: Any) -> Tensor:
        """A number as a tensor beside x; made once per step."""
        if isinstance(value, Tensor):
            return value
        if value not in self.constants:
            self.constants[value] = torch.tensor(value, dtype=self.x.dtype, device=self.x.device)
        return self.constants[value]


Step = tuple[Callable[[Frame, Values], Any], int, Instr]


class Closure:
    """A compiled piece of code: `run(frame, values)` fills in the values of its instructions."""

    def __init__(self, code: Code, kinds: dict[int, Instr], place: Callable[[Instr], str]) -> None:
        self.results = code.results
        written = writes_statistics(code)
        self.steps: list[Step] = [(_tracked(i, _compile(i, kinds, written)), i.id, i) for i in code]
        inside = {i.id for i in code}
        self.needs = sorted({a for i in code for a in i.args} - inside)
        self._place = place

    def run(self, frame: Frame, values: Values) -> None:
        current = None
        try:
            for step in self.steps:
                function, target, current = step
                values[target] = function(frame, values)
        except (LossdslError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise _explained(error, current, values, self._place) from error


def _tracked(i: Instr, function: Callable[[Frame, Values], Any]) -> Callable[[Frame, Values], Any]:
    """Between the point of a gradient and its body, gradients are tracked even where the level around it needs none."""
    if i.gradient not in ("input", "graph", "value") or (i.op == "forward" and i.gradient != "input"):
        return function

    def tracked(frame: Frame, values: Values) -> Any:
        if torch.is_grad_enabled():
            return function(frame, values)
        with torch.enable_grad():
            return function(frame, values)

    return tracked


def _explained(error: Exception, i: Instr | None, values: Values, place: Callable[[Instr], str]) -> UserError:
    """A failure inside a kernel or the model, as the line of the recipe, the operation and the shapes."""
    assert i is not None
    shapes = ", ".join(str(list(values[a].shape)) if isinstance(values[a], Tensor) else str(values[a]) for a in i.args)
    what = f"the model failed on {i.text}" if i.op == "forward" else f"{i.op} failed on {i.text}"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(
        f"{what}, shapes {shapes}: {reason}", where=place(i), fix="check the shape of the batch and the number of classes of the model"
    )


# --- one instruction ---


def _compile(i: Instr, kinds: dict[int, Instr], written: bool) -> Callable[[Frame, Values], Any]:
    if i.op == "forward":
        return forward(i, kinds, written)
    simple = _LEAVES.get(i.op)
    if simple:
        return simple(i)
    special = {"draw": _draw, "grad": gradient, "grad_theta": gradient_by_weights, "stack": stack, "part": part}.get(i.op)
    if special:
        return special(i, kinds)
    fetch = [_argument(i, kinds[a], kinds) for a in i.args]
    function = _function(i, kinds)
    if len(fetch) == 1:
        (one,) = fetch
        return lambda frame, values: function(frame, one(frame, values))
    if len(fetch) == 2:
        first, second = fetch
        return lambda frame, values: function(frame, first(frame, values), second(frame, values))
    return lambda frame, values: function(frame, *(f(frame, values) for f in fetch))


def _function(i: Instr, kinds: dict[int, Instr]) -> Function:
    """The kernel with what it needs besides its arguments."""
    if i.op in COMPARISONS:
        compare = COMPARISONS[i.op]
        return lambda frame, *args: compare(*args, frame.x)
    kernel = KERNELS[i.op]
    if i.op in REGISTERED:
        return _expanding(i, kinds, kernel)
    if i.op in _OWN_RANK:
        return _with_rank(i, kinds, kernel)
    if i.op in ("at", "log_at", "log_not_at") and i.attrs:
        index = i.attrs[0]
        return lambda frame, v: kernel(v, torch.full(v.shape[:-1], index, dtype=torch.long, device=v.device))
    special = _SPECIAL.get(i.op)
    return special(i, kernel) if special else lambda frame, *args: kernel(*args)


def _labels(i: Instr, kernel: Function) -> Function:
    return lambda frame, y, *rest: kernel(y, *(float(r) for r in rest), frame.x, frame.num_classes)


def _weights(i: Instr, kernel: Function) -> Function:
    return lambda frame, body, classes, there=None: kernel(body, classes, frame.num_classes, there)


def _over_batch(i: Instr, kernel: Function) -> Function:
    return lambda frame, *args: kernel(*args, batch=len(frame.y))


def _projection(i: Instr, kernel: Function) -> Function:
    name, boxed = i.attrs[0], "boxed" in i.attrs
    return lambda frame, *args: kernel(*args, name=name, rank=frame.rank, domain=frame.domain if boxed else None)


_SPECIAL: dict[str, Callable[[Instr, Function], Function]] = {
    **dict.fromkeys(("project", "interior"), _projection),
    **dict.fromkeys(("zeros", "ones"), lambda i, kernel: lambda frame, count: kernel(frame.y, frame.x, frame.num_classes)),
    **dict.fromkeys(("class_mean", "class_sum"), lambda i, kernel: lambda frame, *args: kernel(*args, classes=frame.num_classes)),
    "present": lambda i, kernel: lambda frame, *args: kernel(*args, classes=frame.num_classes, real=frame.x),
    "bregman": lambda i, kernel: lambda frame, *args: kernel(*args, real=frame.x),
    "known": lambda i, kernel: lambda frame, y: kernel(y, frame.x),
    **dict.fromkeys(("onehot", "smooth"), _labels),
    **dict.fromkeys(("reduce_softmax", "reduce_log_softmax"), _weights),
    **dict.fromkeys(("batch_mean", "batch_sum"), _over_batch),
    "class_range": lambda i, kernel: lambda frame, out=None: kernel(i.attrs[0], out, frame.y, frame.num_classes),
    "class_top": lambda i, kernel: lambda frame, scores, classes: kernel(scores, classes, i.attrs[0]),
    **dict.fromkeys(("network", "solution", "final"), lambda i, kernel: lambda frame, *args: kernel(*args, *i.attrs)),
    "nth": lambda i, kernel: lambda frame, v: kernel(v, i.attrs[0]),
}


def _with_rank(i: Instr, kinds: dict[int, Instr], kernel: Function) -> Function:
    """Norms and their like look at the trailing dimensions of one Input, or at the classes of a vector."""
    input_like = kinds[i.args[0]].kind is Kind.INPUT
    if i.op == "norm":
        return lambda frame, v, order: kernel(v, float(order), frame.rank if input_like else 1)
    return lambda frame, *args: kernel(*args, frame.rank if input_like else 1)


def _expanding(i: Instr, kinds: dict[int, Instr], kernel: Function) -> Function:
    """A registered operation sees the batch and the axes of its arguments at full length, one value for each."""
    leading = [None if kinds[a].kind is Kind.CONST else 1 + len(_all_axes(i, kinds)) for a in i.args]

    def call(frame: Frame, *args: Tensor) -> Any:
        shape = torch.broadcast_shapes(*(v.shape[:n] for v, n in zip(args, leading, strict=True) if n is not None))
        return kernel(*(v if n is None else v.expand(*shape, *v.shape[n:]) for v, n in zip(args, leading, strict=True)))

    return call


def _argument(i: Instr, arg: Instr, kinds: dict[int, Instr]) -> Function:
    """How an instruction fetches one argument: as a tensor if it needs one, with the axes of all arguments, ready to broadcast."""
    place = arg.id
    if arg.kind is Kind.CONST and not arg.axes:
        if i.op in _PLAIN:
            return lambda frame, values: values[place]
        return lambda frame, values: frame.tensor(values[place])
    if i.op in ("select", "class_range", "stop", "as_vector") or (len(i.args) == 1 and i.op not in _ELEMENTWISE):
        return lambda frame, values: values[place]
    missing = _missing(arg.axes, _all_axes(i, kinds))
    widen = i.kind if i.op in _ELEMENTWISE and arg.kind is Kind.REAL else None
    tail = 1 if widen in OVER_CLASSES else 0
    if not missing and tail == 0 and widen is not Kind.INPUT:
        return lambda frame, values: values[place]

    def fetch(frame: Frame, values: Values) -> Tensor:
        value: Tensor = values[place]
        for dim in missing:
            value = value.unsqueeze(dim)
        extra = frame.rank if widen is Kind.INPUT else tail
        return value.reshape(value.shape + (1,) * extra) if extra else value

    return fetch


def _all_axes(i: Instr, kinds: dict[int, Instr]) -> tuple[Axis, ...]:
    axes = {a for arg in i.args for a in kinds[arg].axes}
    return tuple(sorted(axes, key=lambda a: (a.depth, a.domain.text)))


def _missing(have: tuple[Axis, ...], want: tuple[Axis, ...]) -> list[int]:
    """Where to insert dimensions of length 1, in order."""
    return [1 + n for n, axis in enumerate(want) if axis not in have]


# --- leaves, the model, draws ---


def _leaf_point(i: Instr) -> Function:
    key = i.attrs
    if i.kind is Kind.VECTOR:
        return lambda frame, values: frame.shared[key[0]].expand(len(frame.y), -1)
    return lambda frame, values: frame.points[key]


def _leaf_state(i: Instr) -> Function:
    """A memory holds one number per example; a state is shared, a class vector row by row."""
    name = i.attrs[0]
    if i.kind is Kind.REAL:
        return lambda frame, values: frame.points["state", name]
    if i.kind is Kind.VECTOR:
        return lambda frame, values: frame.shared[name].expand(len(frame.y), -1)
    return lambda frame, values: frame.shared[name]


def _leaf_weights(i: Instr) -> Function:
    """The trained parameters, flattened, in the order of the model."""
    name = i.attrs[0]

    def weights(frame: Frame, values: Values) -> Tensor:
        at = {n: p for n, p in frame.model.named_parameters() if n in frame.moved} if name == "theta" else frame.weights[name]
        return torch.cat([p.reshape(-1) for p in at.values()])

    return weights


def _leaf_sample(i: Instr) -> Function:
    key = ("sample", i.attrs[0])
    return lambda frame, values: frame.points[key]


_LEAVES: dict[str, Callable[[Instr], Function]] = {
    "input": lambda i: lambda frame, values: frame.x,
    "label": lambda i: (lambda frame, values: frame.y.clamp_min(0)) if i.attrs else lambda frame, values: frame.y,
    "classes": lambda i: lambda frame, values: frame.num_classes,
    "number": lambda i: lambda frame, values: i.attrs[0],
    "own_class": lambda i: lambda frame, values: frame.own_class,
    "point": _leaf_point,
    "family": _leaf_point,
    "sample": _leaf_sample,
    "state": _leaf_state,
    "found": _leaf_point,
    "leaf": leaf,
    "weights": _leaf_weights,
}


def _draw(i: Instr, kinds: dict[int, Instr]) -> Function:
    """A random draw with the step's generator, shaped as its kind says."""
    name, attrs, kind = i.attrs[0], i.attrs, i.kind

    def draw(frame: Frame, values: Values) -> Tensor:
        args = [values[a] for a in i.args]
        if name in ("uniform", "corner") and len(attrs) > 1 and attrs[1] != "as":
            center = args[0] if isinstance(args[0], Tensor) else torch.zeros_like(frame.x)
            region = SETS_TORCH[attrs[1]](center.expand_as(frame.x), args[1], frame.domain if "boxed" in attrs else None)
            return region.sample(frame.generator) if name == "uniform" else region.corner(frame.generator)
        shape = {Kind.INPUT: frame.x.shape, Kind.REAL: frame.x.shape[:1], Kind.CONST: frame.x.shape[:0]}.get(
            kind, (*frame.x.shape[:1], frame.num_classes)
        )
        like = frame.x.new_empty(shape)
        numbers = [_trailing(a, shape) for a in args]
        if name == "normal":
            return draws.normal(like, frame.generator) * numbers[0]
        uniform = draws.uniform(like, frame.generator)
        if name == "rademacher":
            return torch.where(uniform < 0.5, -1.0, 1.0)
        return numbers[0] + (numbers[1] - numbers[0]) * uniform

    return draw


def _trailing(value: Any, shape: Iterable[int]) -> Any:
    """A per-example number ready to scale a draw."""
    extra = len(tuple(shape)) - 1
    return value.reshape(value.shape + (1,) * extra) if isinstance(value, Tensor) and value.dim() == 1 and extra > 0 else value
