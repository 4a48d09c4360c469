"""Typed recipe to plan, word for word: nothing shared, nothing moved. Logarithms of probabilities are taken in log space here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lossdsl.check.typed import Axis, Typed, TypedLevel, TypedRecipe, show
from lossdsl.lang.ops import OPERATIONS
from lossdsl.lang.types import Kind
from lossdsl.plan.ir import Code, Instr, Plan, Solve, Upper


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
            axes = _union(*(self.axes(a) for a in args))
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

    def under(self, condition: int, e: Typed, mode: str) -> int:
        """The value of an expression that counts only where a condition holds."""
        outer = self.gates
        self.gates = (*outer, condition)
        value = self.lower(e, mode)
        self.gates = outer
        return value

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
        return self.emit(e.op, args, e.kind, e)

    def log(self, e: Typed, mode: str) -> int:
        """The logarithm of a number, in log space as far as probabilities reach."""
        if e.op == "at" and e.args[0].kind is Kind.PROB:
            return self._at(e, mode, "log_at")
        if e.op == "sub" and e.args[0].value == 1 and _in_log_space(e.args[1]):
            return self.log_one_minus(e.args[1], mode) or self._plain_log(e, mode)
        if not _in_log_space(e):
            return self._plain_log(e, mode)
        text = f"log({show(e)})"
        if e.op in ("mul", "div"):
            parts = (self.log(e.args[0], mode), self.log(e.args[1], mode))
            return self.emit("add" if e.op == "mul" else "sub", parts, e.kind, e, text=text)
        if e.op == "reduce":
            body = self.log(e.args[0], mode)
            return self._reduce(e, body, "logsumexp" if e.attrs[0] == "sum" else e.attrs[0], mode, text)
        if e.op in ("stop", "mode"):
            inner = self.log(e.args[0], e.attrs[0] if e.op == "mode" else mode)
            return inner if e.op == "mode" else self.emit("stop", (inner,), e.kind, e, text=text)
        return self._plain_log(e, mode)

    def log_one_minus(self, q: Typed, mode: str) -> int | None:
        """log(1 - q) for an entry of a Prob or the largest of several entries."""
        text = f"log(1 - {show(q)})"
        if q.op == "at":
            return self._at(q, mode, "log_not_at", text)
        if q.op == "reduce" and q.attrs[0] in ("max", "min"):
            body = q.args[0]
            if body.op == "at" and body.args[0].kind is Kind.PROB and body.args[1].op == "bound" and body.args[1].axis == q.axis:
                vector = self.lower(body.args[0], mode)
                if q.axis not in self.axes(vector):
                    best = self._reduce(q, self.log(body, mode), "arg" + q.attrs[0], mode, f"arg{show(q)}", Kind.CLASS)
                    return self.emit("log_not_at", (vector, best), Kind.REAL, q, text=text)
        return None

    def _plain_log(self, e: Typed, mode: str) -> int:
        return self.emit("log", (self.linear(e, mode),), e.kind, e, text=f"log({show(e)})")

    def _at(self, e: Typed, mode: str, op: str, text: str | None = None) -> int:
        vector, index = e.args
        args: tuple[int, ...] = (self.lower(vector, mode),)
        if index.value is not None:
            return self.emit(op, args, Kind.REAL, e, (int(index.value),), text=text)
        return self.emit(op, (*args, self.lower(index, mode)), Kind.REAL, e, text=text)

    def _reduce(self, e: Typed, body: int, op: str, mode: str, text: str, kind: Kind | None = None) -> int:
        assert e.axis is not None
        classes = self.class_range(e.axis, mode)
        axes = tuple(a for a in _union(self.axes(body), self.axes(classes)) if a != e.axis)
        return self.emit("reduce_" + op, (body, classes), kind or e.kind, e, axes=axes, text=text)

    def class_range(self, axis: Axis, mode: str) -> int:
        """The classes an axis runs over, as a value."""
        domain = axis.domain
        key = (id(domain), f"classes {axis.depth} {mode}", self.gates)
        if key not in self.done:
            args = (self.lower(domain.expr, mode),) if domain.expr is not None else ()
            axes = _union(*(self.axes(a) for a in args), (axis,))
            what = Typed("bound", (), Kind.CLASS, axis=axis)
            self.done[key] = self.emit("class_range", args, Kind.CLASS, what, (domain.kind,), axes, domain.text)
            self.kept.append(what)
        return self.done[key]


def _union(*parts: tuple[Axis, ...]) -> tuple[Axis, ...]:
    return tuple(sorted({a for part in parts for a in part}, key=lambda a: (a.depth, a.domain.text)))


def _in_log_space(e: Typed) -> bool:
    """Is the logarithm of this built from log-probabilities?"""
    if e.op == "at":
        return e.args[0].kind is Kind.PROB
    if e.op == "sub" and e.args[0].value == 1:
        inner = e.args[1]
        return (inner.op == "at" and inner.args[0].kind is Kind.PROB) or (
            inner.op == "reduce" and inner.attrs[0] in ("max", "min") and _in_log_space(inner)
        )
    if e.op in ("mul", "div"):
        return all(_in_log_space(a) for a in e.args)
    if e.op == "reduce":
        return e.attrs[0] in ("max", "min", "sum", "mean") and e.attrs[0] != "mean" and _in_log_space(e.args[0])
    return e.op in ("stop", "mode") and _in_log_space(e.args[0])


# --- one rule per core form ---


def _leaf(self: Emitter, e: Typed, mode: str) -> int:
    value = self.emit(e.op, (), e.kind, e, e.attrs)
    return self.gated(value, e) if e.op == "point" else value


def _number(self: Emitter, e: Typed, mode: str) -> int:
    return self.emit("number", (), Kind.CONST, e, (e.value,))


def _logits(self: Emitter, e: Typed, mode: str) -> int:
    outer, self.gates = self.gates, ()
    logits = self.emit("forward", (self.lower(e.args[0], mode),), Kind.LOGITS, e, ("f", mode))
    self.gates = outer
    return self.gated(logits, e)


def _prob(self: Emitter, e: Typed, mode: str) -> int:
    return self.emit("log_softmax", (self.lower(e.args[0], mode),), Kind.PROB, e)


def _mode(self: Emitter, e: Typed, mode: str) -> int:
    return self.lower(e.args[0], e.attrs[0])


def _stop(self: Emitter, e: Typed, mode: str) -> int:
    return self.emit("stop", (self.lower(e.args[0], mode),), e.kind, e)


def _mix(self: Emitter, e: Typed, mode: str) -> int:
    return self.emit("mix", tuple(self.lower(a, mode) for a in e.args), Kind.PROB, e)


def _arithmetic(self: Emitter, e: Typed, mode: str) -> int:
    if e.op == "sub" and e.args[0].value == 1 and _in_log_space(e):
        inside = self.log_one_minus(e.args[1], mode)
        if inside is not None:
            return self.emit("exp", (inside,), e.kind, e)
    return self.emit(e.op, tuple(self.linear(a, mode) for a in e.args), e.kind, e)


def _if(self: Emitter, e: Typed, mode: str) -> int:
    condition = self.linear(e.args[0], mode)
    otherwise = self.emit("not", (condition,), e.args[0].kind, e, text=f"not({show(e.args[0])})")
    branches = (self.under(condition, e.args[1], mode), self.under(otherwise, e.args[2], mode))
    return self.emit("if", (condition, *branches), e.kind, e)


def _batch(self: Emitter, e: Typed, mode: str) -> int:
    """batch_mean(e where c): examples outside c give no value and no gradient."""
    if len(e.args) == 1:
        return self.emit(e.op, (self.lower(e.args[0], mode),), e.kind, e, axes=())
    condition = self.linear(e.args[1], mode)
    return self.emit(e.op, (self.under(condition, e.args[0], mode), condition), e.kind, e, axes=())


def _entry(self: Emitter, e: Typed, mode: str) -> int:
    if e.args[0].kind is Kind.PROB:
        return self.emit("exp", (self._at(e, mode, "log_at", f"log({show(e)})"),), Kind.REAL, e)
    return self._at(e, mode, "at")


def _log(self: Emitter, e: Typed, mode: str) -> int:
    inner = e.args[0]
    if inner.kind is Kind.PROB:
        return self.emit("as_vector", (self.lower(inner, mode),), Kind.VECTOR, e)
    return self.log(inner, mode)


def _cross_entropy(self: Emitter, e: Typed, mode: str) -> int:
    prediction, target = e.args
    logs = self.lower(prediction, mode)
    if prediction.kind is Kind.LOGITS:
        name = f"p({show(prediction.args[0])})" if prediction.op == "logits" else f"softmax({show(prediction)})"
        logs = self.emit("log_softmax", (logs,), Kind.PROB, prediction, text=name)
    if target.kind is Kind.PROB:
        return self.emit("cross_entropy", (logs, self.lower(target, mode)), Kind.REAL, e)
    return self.emit("neg", (self.emit("log_at", (logs, self.lower(target, mode)), Kind.REAL, e, text=f"-{show(e)}"),), Kind.REAL, e)


def _reduce(self: Emitter, e: Typed, mode: str) -> int:
    return self._reduce(e, self.linear(e.args[0], mode), e.attrs[0], mode, show(e))


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
    if index.op == "bound" and index.axis is not None:
        return self.emit("family", (), Kind.INPUT, e, family.attrs, axes=(index.axis,))
    whole = self.emit("family", (), Kind.INPUT, family, family.attrs, axes=(domain,))
    classes = self.class_range(domain, mode)
    chosen = self.lower(index, mode)
    axes = tuple(a for a in _union(self.axes(classes), self.axes(chosen)) if a != domain)
    return self.emit("select", (whole, classes, chosen), Kind.INPUT, e, axes=axes)


def _fact(self: Emitter, e: Typed, mode: str) -> int:
    """fooled(x'): the prediction at the solution, in eval mode."""
    point = self.emit("point", (), Kind.INPUT, e, (e.attrs[1],), text=e.attrs[1])
    logits = self.emit("forward", (point,), Kind.LOGITS, e, ("f", "eval"), text=f"f({e.attrs[1]})")
    label = self.emit("label", (), Kind.LABEL, e, text="y")
    return self.emit("misclassified", (logits, label), Kind.REAL, e)


def _draw(self: Emitter, e: Typed, mode: str) -> int:
    return self.emit("draw", tuple(self.lower(a, mode) for a in e.args), e.kind, e, e.attrs)


_RULES = {
    "draw": _draw,
    "number": _number, "input": _leaf, "label": _leaf, "classes": _leaf, "point": _leaf, "sample": _leaf, "logits": _logits,
    "prob": _prob, "mode": _mode, "stop": _stop, "mix": _mix, "if": _if, "at": _entry, "log": _log, "CE": _cross_entropy, "reduce": _reduce,
    "nth": _nth, "bound": _bound, "pick": _pick, "fact": _fact, "batch_mean": _batch, "batch_sum": _batch,
    **dict.fromkeys(("add", "sub", "mul", "div", "pow", "neg", "not", "and", "or", "lt", "le", "gt", "ge", "eq", "ne"), _arithmetic),
}  # fmt: skip


# --- levels ---


def lower_recipe(recipe: TypedRecipe) -> Plan:
    """The naive plan of a recipe."""
    counter = [0]
    samples = Emitter(counter)
    results = []
    for s in recipe.samples:
        args = tuple(samples.lower(a, "eval") for a in s.draw.args)
        kind = {"x": Kind.INPUT, "example": Kind.REAL, "batch": Kind.CONST, "classes": Kind.VECTOR}[s.over]
        results.append(samples.emit("draw", args, kind, s.draw, (*s.draw.attrs, "as", s.name), axes=()))
    solves = tuple(_level(level, counter, _captures(level, recipe)) for level in recipe.levels)
    upper = _upper(recipe, counter) if recipe.objective is not None else None
    return Plan(recipe.name, Code(tuple(samples.instrs), tuple(results)), solves, upper)


def _level(level: TypedLevel, counter: list[int], captures: tuple[int, ...]) -> Solve:
    before = Emitter(counter)
    center, radius = before.lower(level.set.center, level.mode), before.lower(level.set.radius, level.mode)
    classes = before.class_range(level.axis, level.mode) if level.axis else None
    start = Emitter(counter, level)
    first = () if level.solver.start_kind in ("uniform", "corner", "previous") else (start.lower(level.solver.start, level.mode),)
    body = Emitter(counter, level)
    objective = body.lower(level.objective, level.mode)
    wanted = (center, radius) if classes is None else (center, radius, classes)
    return Solve(
        level,
        Code(tuple(before.instrs), wanted),
        Code(tuple(start.instrs), first),
        Code(tuple(body.instrs), (objective,)),
        center,
        radius,
        classes,
        captures,
    )


def _captures(level: TypedLevel, recipe: TypedRecipe) -> tuple[int, ...]:
    """The iterates of a level that anything else speaks of."""
    found: set[int] = set()
    seen: set[int] = set()
    roots = [recipe.objective, *(e for _, e in recipe.logs)]
    for other in recipe.levels:
        roots += [other.objective, other.set.center, other.set.radius, other.solver.start]
    stack = [e for e in roots if e is not None]
    while stack:
        e = stack.pop()
        if id(e) in seen:
            continue
        seen.add(id(e))
        if e.op == "point" and e.attrs[0] == level.var and len(e.attrs) > 1:
            found.add(e.attrs[1])
        stack.extend(e.args)
        if e.axis is not None and e.axis.domain.expr is not None:
            stack.append(e.axis.domain.expr)
    return tuple(sorted(found))


def _upper(recipe: TypedRecipe, counter: list[int]) -> Upper:
    assert recipe.objective is not None
    code = Emitter(counter)
    names, results = [], []
    for sign, term in _terms(recipe.objective):
        value = code.lower(term, "train")
        if term.kind is Kind.PROB:
            value = code.linear(term, "train")
        if sign < 0:
            value = code.emit("neg", (value,), term.kind, term, text=f"-{show(term)}")
        names.append(("-" if sign < 0 else "") + show(term))
        results.append(value)
    for _, e in recipe.logs:
        results.append(code.lower(e, "train"))
    return Upper(Code(tuple(code.instrs), tuple(results)), tuple(names), tuple(name for name, _ in recipe.logs))


def _terms(e: Typed, sign: int = 1) -> list[tuple[int, Typed]]:
    """The addends of the objective as written; a sum over whole numbers is one of them."""
    if e.op in ("add", "sub") and e.args[0].span != e.args[1].span and e.span not in (e.args[0].span, e.args[1].span):
        return _terms(e.args[0], sign) + _terms(e.args[1], sign if e.op == "add" else -sign)
    return [(sign, e)]
