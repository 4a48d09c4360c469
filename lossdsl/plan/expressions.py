"""Expressions to instructions, word for word: nothing shared, nothing moved. A Prob is a value of log-probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lossdsl.check.typed import Axis, Typed, TypedLevel, show
from lossdsl.lang.ops import OPERATIONS
from lossdsl.lang.types import Kind
from lossdsl.plan import presence, top
from lossdsl.plan.bregman import bregman
from lossdsl.plan.ir import Instr
from lossdsl.plan.logspace import LOGS, in_log_space


@dataclass
class Emitter:
    """Appends instructions to one piece of code; ids are unique in the plan."""

    counter: list[int]
    own: TypedLevel | None = None
    """The level whose body is being lowered: its variable and its class are single values there, not families."""
    instrs: list[Instr] = field(default_factory=list)
    done: dict[tuple[object, ...], int] = field(default_factory=dict)
    gates: tuple[int, ...] = ()
    """Conditions under which the value being lowered is used: no gradient leaves a branch not taken."""
    kept: list[Typed] = field(default_factory=list)
    found: dict[int, Instr] = field(default_factory=dict)
    frozen: frozenset[str] = frozenset()
    """Models that are never trained: always in eval mode."""
    still: frozenset[str] = frozenset()
    """Variables over weights whose set has radius 0: theta itself."""
    weights: str | None = None
    """Where f and p are taken unless the text says otherwise; None: at theta."""

    def emit(
        self,
        op: str,
        args: tuple[int, ...],
        kind: Kind,
        e: Typed,
        attrs: tuple[Any, ...] = (),
        axes: tuple[Axis, ...] | None = None,
        text: str | None = None,
    ) -> int:
        self.counter[0] += 1
        if axes is None:
            axes = union(*(self.axes(a) for a in args))
        instr = Instr(self.counter[0], op, args, kind, axes, attrs, show(e) if text is None else text, e.span)
        self.instrs.append(instr)
        self.found[instr.id] = instr
        return instr.id

    def axes(self, id: int) -> tuple[Axis, ...]:
        return self.found[id].axes

    # --- expressions ---

    def lower(self, e: Typed, mode: str) -> int:
        """The value of an expression; a Prob as log-probabilities."""
        key = (id(e), mode, self.gates)
        if key not in self.done:
            self.kept.append(e)
            rule = _RULES.get(e.op)
            self.done[key] = rule(self, e, mode) if rule else self._operation(e, mode)
        return self.done[key]

    def under(self, condition: int, e: Typed, value: Callable[[Typed], int]) -> int:
        """The value of an expression that counts only where a condition holds."""
        outer = self.gates
        self.gates = (*outer, condition)
        found = value(e)
        self.gates = outer
        return found

    def branches(self, e: Typed, mode: str, value: Callable[[Typed], int]) -> tuple[int, ...]:
        """The condition of an `if` and its branches, each behind its own gate."""
        condition = self.linear(e.args[0], mode)
        otherwise = self.emit("not", (condition,), e.args[0].kind, e, text=f"not({show(e.args[0])})")
        return condition, self.under(condition, e.args[1], value), self.under(otherwise, e.args[2], value)

    def gated(self, value: int, e: Typed) -> int:
        """A value that gradients leave by, behind the conditions it is used under."""
        for condition in self.gates:
            value = self.emit("gate", (value, condition), e.kind, e)
        return value

    def linear(self, e: Typed, mode: str) -> int:
        """The value as plain numbers: a Prob leaves log space."""
        value = self.lower(e, mode)
        return self.emit("exp", (value,), Kind.VECTOR, e) if e.kind is Kind.PROB else value

    def _operation(self, e: Typed, mode: str) -> int:
        """An operation of the table: Probs arrive as log-probabilities only where the row asks for a Prob."""
        row = OPERATIONS[e.op]
        wants_prob = [Kind.PROB in p and Kind.REAL not in p for p in row.params]  # an elementwise operation takes plain numbers
        wants_prob += [False] * (len(e.args) - len(wants_prob))
        args = tuple(self.lower(a, mode) if prob else self.linear(a, mode) for a, prob in zip(e.args, wants_prob, strict=False))
        return self.emit(e.op, args, e.kind, e, e.attrs)

    def log(self, e: Typed, mode: str) -> int:
        """The logarithm of a number, in log space as far as probabilities reach."""
        rule = LOGS.get(e.op) if in_log_space(e) else None
        return rule(self, e, mode) if rule else self._plain_log(e, mode)

    def log_one_minus(self, q: Typed, mode: str) -> int:
        """log(1 - q) for an entry of a Prob, the largest or smallest of its entries, all entries but one, or 1 minus such a value."""
        text = f"log(1 - {show(q)})"
        if q.op == "at":
            return self.at(q, mode, "log_not_at", text)
        if q.op == "sub":
            return self.log(q.args[1], mode)
        assert q.axis is not None
        vector = q.args[0].args[0]
        if q.attrs[0] == "sum":
            assert q.axis.domain.expr is not None
            args = (self.lower(vector, mode), self.lower(q.axis.domain.expr, mode))
            return self.emit("log_at", args, Kind.REAL, q, text=text)
        logs = self.lower(vector, mode)
        best = self.reduce(q, self.log(q.args[0], mode), "arg" + q.attrs[0], mode, f"arg{show(q)}", Kind.CLASS)
        return self.emit("log_not_at", (logs, best), Kind.REAL, q, text=text)

    def _plain_log(self, e: Typed, mode: str) -> int:
        return self.emit("log", (self.linear(e, mode),), e.kind, e, text=f"log({show(e)})")

    def at(self, e: Typed, mode: str, op: str, text: str | None = None) -> int:
        vector, index = e.args
        args: tuple[int, ...] = (self.lower(vector, mode),)
        if index.value is not None:
            return self.emit(op, args, Kind.REAL, e, (int(index.value),), text=text)
        return self.emit(op, (*args, self.lower(index, mode)), Kind.REAL, e, text=text)

    def reduce(self, e: Typed, body: int, op: str, mode: str, text: str, kind: Kind | None = None) -> int:
        assert e.axis is not None
        classes, there = self.class_range(e.axis, mode), presence.presence(self, e, mode)
        axes = tuple(a for a in union(self.axes(body), self.axes(classes)) if a != e.axis)
        args = (body, classes) if there is None else (body, classes, there)
        return self.emit("reduce_" + op, args, kind or e.kind, e, axes=axes, text=text)

    def class_range(self, axis: Axis, mode: str) -> int:
        """The classes an axis runs over, as a value; no gradient leaves by it, whatever the conditions around."""
        domain = axis.domain
        key = (id(domain), f"classes {axis.depth} {mode}")
        outer, self.gates = self.gates, ()
        if key not in self.done and domain.kind == "top":
            self.done[key] = top.choose(self, axis)
        elif key not in self.done:
            args = (self.lower(domain.expr, mode),) if domain.expr is not None else ()
            axes = union(*(self.axes(a) for a in args), (axis,))
            what = Typed("bound", (), Kind.CLASS, axis=axis)
            self.done[key] = self.emit("class_range", args, Kind.CLASS, what, (domain.kind,), axes, domain.text)
            self.kept.append(what)
        self.gates = outer
        return self.done[key]


def union(*parts: tuple[Axis, ...]) -> tuple[Axis, ...]:
    return tuple(sorted({a for part in parts for a in part}, key=lambda a: (a.depth, a.domain.text)))


# --- one rule per core form ---


def _leaf(self: Emitter, e: Typed, mode: str) -> int:
    value = self.emit(e.op, (), e.kind, e, e.attrs)
    return self.gated(value, e) if e.op == "point" else value


def _number(self: Emitter, e: Typed, mode: str) -> int:
    return self.emit("number", (), Kind.CONST, e, (e.value,))


def _logits(self: Emitter, e: Typed, mode: str) -> int:
    outer, self.gates = self.gates, ()
    logits = self.emit("forward", (self.lower(e.args[0], mode),), e.kind, e, _which(self, e, mode))
    self.gates = outer
    return self.gated(logits, e)


def _which(self: Emitter, e: Typed, mode: str) -> tuple[str, ...]:
    """The model of a pass, its mode, and its weights where they are not its own."""
    model = e.attrs[0] if e.attrs else "f"
    if model != "f":
        return model, "eval" if model in self.frozen else mode
    weights = e.attrs[1] if len(e.attrs) > 1 else self.weights
    return (model, mode) if weights in (None, "theta") or weights in self.still else (model, mode, str(weights))


def _weights(self: Emitter, e: Typed, mode: str) -> int:
    name = "theta" if e.attrs[0] in self.still else e.attrs[0]
    return self.emit("weights", (), Kind.WEIGHTS, e, (name,))


def _grad(self: Emitter, e: Typed, mode: str) -> int:
    """A gradient by a fresh variable at the point; conditions around it do not reach in, but stand around its value."""
    outer, self.gates = self.gates, ()
    point = self.lower(e.args[0], mode)
    leaf = self.emit("leaf", (point,), e.args[0].kind, e.args[0], text=str(e.attrs[0]))
    outside = self.done
    self.done = {**outside, ("leaf", e.attrs): leaf}  # what holds this variable is of no use outside
    value = self.emit("grad", (leaf, self.linear(e.args[1], mode)), e.kind, e)
    self.done, self.gates = outside, outer
    return self.gated(value, e)


def _leaf_of(self: Emitter, e: Typed, mode: str) -> int:
    return self.gated(self.done["leaf", e.attrs], e)


def _grad_theta(self: Emitter, e: Typed, mode: str) -> int:
    return self.emit("grad_theta", (self.linear(e.args[0], mode),), Kind.WEIGHTS, e)


def _prob(self: Emitter, e: Typed, mode: str) -> int:
    return self.emit("log_softmax", (self.lower(e.args[0], mode),), Kind.PROB, e)


def _mode(self: Emitter, e: Typed, mode: str) -> int:
    return self.lower(e.args[0], e.attrs[0])


def _stop(self: Emitter, e: Typed, mode: str) -> int:
    return self.emit("stop", (self.lower(e.args[0], mode),), e.kind, e)


def _mix(self: Emitter, e: Typed, mode: str) -> int:
    return self.emit("mix", tuple(self.lower(a, mode) for a in e.args), Kind.PROB, e)


def _arithmetic(self: Emitter, e: Typed, mode: str) -> int:
    if e.op == "sub" and in_log_space(e) and e.args[1].op != "sub":
        return self.emit("exp", (self.log_one_minus(e.args[1], mode),), e.kind, e)
    return self.emit(e.op, tuple(self.linear(a, mode) for a in e.args), e.kind, e)


def _if(self: Emitter, e: Typed, mode: str) -> int:
    return self.emit("if", self.branches(e, mode, lambda a: self.lower(a, mode)), e.kind, e)


def _batch(self: Emitter, e: Typed, mode: str) -> int:
    """batch_mean(e where c): examples outside c give no value and no gradient. Conditions around it do not reach in: it is of all."""
    outer, self.gates = self.gates, ()
    value = _over_batch(self, e, mode)
    self.gates = outer
    for condition in outer:
        value = self.emit("gate_any", (value, condition), e.kind, e, axes=())
    return value


def _over_batch(self: Emitter, e: Typed, mode: str) -> int:
    if len(e.args) == 1:
        return self.emit(e.op, (self.lower(e.args[0], mode),), e.kind, e, axes=())
    self.lower(e.args[0], mode)  # written before the condition: its passes come first, and are shared with those behind the gate
    condition = self.linear(e.args[1], mode)
    return self.emit(e.op, (self.under(condition, e.args[0], lambda a: self.lower(a, mode)), condition), e.kind, e, axes=())


def _entry(self: Emitter, e: Typed, mode: str) -> int:
    if e.args[0].kind is Kind.PROB:
        return self.emit("exp", (self.at(e, mode, "log_at", f"log({show(e)})"),), Kind.REAL, e)
    return presence.class_entry(self, e, mode) if e.args[0].op in presence.CLASS_VECTORS else self.at(e, mode, "at")


def _log(self: Emitter, e: Typed, mode: str) -> int:
    inner = e.args[0]
    if inner.kind is Kind.PROB:
        return self.emit("as_vector", (self.lower(inner, mode),), Kind.VECTOR, e)
    return self.log(inner, mode)


def _cross_entropy(self: Emitter, e: Typed, mode: str) -> int:
    prediction, target = e.args
    if target.span.start < prediction.span.start:
        self.lower(target, mode)  # written first, so its passes come first
    logs = self.lower(prediction, mode)
    if prediction.kind is Kind.LOGITS:
        name = show(Typed("prob", (prediction,), Kind.PROB))
        logs = self.emit("log_softmax", (logs,), Kind.PROB, prediction, text=name)
    if target.kind is Kind.PROB:
        return self.emit("cross_entropy", (logs, self.lower(target, mode)), Kind.REAL, e)
    return self.emit("neg", (self.emit("log_at", (logs, self.lower(target, mode)), Kind.REAL, e, text=f"-{show(e)}"),), Kind.REAL, e)


def _reduce(self: Emitter, e: Typed, mode: str) -> int:
    assert e.axis is not None
    self.class_range(e.axis, mode)  # the header is written before the body, and so are its passes
    return self.reduce(e, presence.body(self, e, mode, lambda a: self.linear(a, mode)), e.attrs[0], mode, show(e))


def _nth(self: Emitter, e: Typed, mode: str) -> int:
    return self.emit("nth", (self.lower(e.args[0], mode),), Kind.REAL, e, e.attrs)


def _bound(self: Emitter, e: Typed, mode: str) -> int:
    assert e.axis is not None
    if self.own is not None and self.own.axis == e.axis:
        return self.emit("own_class", (), Kind.CLASS, e)
    return self.class_range(e.axis, mode)


def _pick(self: Emitter, e: Typed, mode: str) -> int:
    """A family at a class: its own variable inside its level, a whole axis inside a binder, else a choice per example."""
    family, index = e.args
    assert family.family is not None
    if self.own is not None and self.own.var == family.attrs[0] and index.op == "bound" and index.axis == self.own.axis:
        return self.gated(self.emit("point", (), Kind.INPUT, e, family.attrs), e)
    domain = Axis(0, family.family)
    if index.op == "bound" and index.axis is not None and index.axis.domain == family.family:
        return self.emit("family", (), Kind.INPUT, e, family.attrs, axes=(index.axis,))
    whole = self.emit("family", (), Kind.INPUT, family, family.attrs, axes=(domain,))
    classes = self.class_range(domain, mode)
    chosen = self.lower(index, mode)
    axes = tuple(a for a in union(self.axes(classes), self.axes(chosen)) if a != domain)
    return self.emit("select", (whole, classes, chosen), Kind.INPUT, e, axes=axes)


def _no_mass(self: Emitter, e: Typed, mode: str) -> int:
    return self.emit("no_mass", (self.lower(e.args[0], mode), self.linear(e.args[1], mode)), Kind.PROB, e)


def _fact(self: Emitter, e: Typed, mode: str) -> int:
    """fooled(x'): the prediction at the solution, in eval mode; survived and first_fooled were counted during the updates."""
    name, level = e.attrs
    member = e.args[0] if e.args else None
    if name == "fooled":
        point = self.lower(member, "eval") if member else self.emit("point", (), Kind.INPUT, e, (level,), text=level)
        at = show(member) if member else level
        logits = self.emit("forward", (point,), Kind.LOGITS, e, ("f", "eval"), text=f"f({at})")
        label = self.emit("label", (), Kind.LABEL, e, text="y")
        return self.emit("misclassified", (logits, label), Kind.REAL, e)
    if member is None:
        return self.emit("point", (), Kind.REAL, e, (level, name))
    family, index = member.args
    assert family.family is not None
    domain = Axis(0, family.family)
    whole_axis = index.axis if index.op == "bound" and index.axis is not None and index.axis.domain == family.family else None
    if whole_axis is not None:
        return self.emit("family", (), Kind.REAL, e, (level, name), axes=(whole_axis,))
    whole = self.emit("family", (), Kind.REAL, family, (level, name), axes=(domain,))
    classes, chosen = self.class_range(domain, mode), self.lower(index, mode)
    axes = tuple(a for a in union(self.axes(classes), self.axes(chosen)) if a != domain)
    return self.emit("select", (whole, classes, chosen), Kind.REAL, e, axes=axes)


def _of_law(self: Emitter, e: Typed, mode: str) -> int:
    """A small network whose weights are a value like its input; what a recipe's solver or a game leaves."""
    return self.emit(e.op, tuple(self.lower(a, mode) for a in e.args), e.kind, e, e.attrs)


def _draw(self: Emitter, e: Typed, mode: str) -> int:
    return self.emit("draw", tuple(self.lower(a, mode) for a in e.args), e.kind, e, e.attrs)


_RULES = {
    "draw": _draw,
    "number": _number, "input": _leaf, "label": _leaf, "classes": _leaf, "point": _leaf, "sample": _leaf, "logits": _logits,
    "apply": _logits,
    "state": _leaf, "found": _leaf, "weights": _weights, "grad": _grad, "leaf": _leaf_of, "grad_theta": _grad_theta,
    "prob": _prob, "mode": _mode, "stop": _stop, "mix": _mix, "if": _if, "at": _entry, "log": _log, "CE": _cross_entropy, "reduce": _reduce,
    "nth": _nth, "bound": _bound, "pick": _pick, "fact": _fact, "batch_mean": _batch, "batch_sum": _batch,
    **dict.fromkeys(presence.CLASS_VECTORS, presence.class_vector), "bregman": bregman, "no_mass": _no_mass,
    **dict.fromkeys(("network", "solution", "final"), _of_law),
    **dict.fromkeys(("add", "sub", "mul", "div", "pow", "neg", "not", "and", "or", "lt", "le", "gt", "ge", "eq", "ne"), _arithmetic),
}  # fmt: skip
