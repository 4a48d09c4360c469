"""The exact form of every operation of the table, and of the core forms that a law can hold."""

from __future__ import annotations

import operator
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from lossdsl.check.typed import Typed
from lossdsl.lang.types import CLASSES, Kind
from lossdsl.laws import numbers as n
from lossdsl.laws.exact_sets import interior, project
from lossdsl.laws.numbers import Dual, Real, base, inf, isfinite, mp, mpf

if TYPE_CHECKING:
    from lossdsl.laws.exact import Run

ZERO, ONE = mpf(0), mpf(1)


def elementwise(f: Callable[..., Real]) -> Callable[..., Any]:
    """Numbers and vectors go together as they do in the language."""

    def apply(*args: Any) -> Any:
        sizes = [len(a) for a in args if isinstance(a, list)]
        if not sizes:
            return f(*args)
        return [f(*(a[i] if isinstance(a, list) else a for a in args)) for i in range(sizes[0])]

    return apply


def _compare(holds: Callable[[Any, Any], bool]) -> Callable[[Any, Any], Real]:
    return lambda a, b: n.holds(holds(base(a), base(b)))


def log_entry(p: list[Real], i: int) -> Real:
    """log p_i of a probability vector; from the others where it is nearly 1. As a variable of its own, p need not sum to 1."""
    others = [v for j, v in enumerate(p) if j != i]
    if isinstance(p[i], Dual) or p[i] <= mpf(1) / 2:
        return n.log(p[i])
    return n.log1p(n.neg(n.total(others)))


def _cross_entropy(q: list[Real], t: list[Real]) -> Real:
    return n.neg(n.total([n.mul(a, log_entry(q, i)) for i, a in enumerate(t) if base(a) != 0]))


def _kl(t: list[Real], q: list[Real]) -> Real:
    return n.total([n.mul(a, n.sub(log_entry(t, i), log_entry(q, i))) for i, a in enumerate(t) if base(a) != 0])


def _js(p: list[Real], q: list[Real]) -> Real:
    middle = [n.div(n.add(a, b), mpf(2)) for a, b in zip(p, q, strict=True)]
    return n.div(n.add(_kl(p, middle), _kl(q, middle)), mpf(2))


def _softmax(z: list[Real]) -> list[Real]:
    top = max(base(v) for v in z)
    powers = [n.exp(n.sub(v, top)) for v in z]
    whole = n.total(powers)
    return [n.div(p, whole) for p in powers]


def _logsumexp(z: list[Real]) -> Real:
    """The largest plus log(1 + the rest)."""
    top = z[first_best(z)]
    if base(top) == -inf:
        return -inf
    rest = [n.exp(n.sub(v, top)) for i, v in enumerate(z) if i != first_best(z)]
    return n.add(n.log1p(n.total(rest)), top)


def _dot(a: Any, b: Any) -> Real:
    if not isinstance(a, list):
        return n.mul(a, b)
    return n.total([n.mul(p, q) for p, q in zip(a, b, strict=True)])


def _norm(v: Any, order: Any) -> Real:
    entries = v if isinstance(v, list) else [v]
    if base(order) == inf:
        return largest([n.absolute(e) for e in entries])
    if base(order) == 1:
        return n.total([n.absolute(e) for e in entries])
    return n.sqrt(n.total([n.mul(e, e) for e in entries]))


def largest(values: list[Real], sign: int = 1) -> Real:
    """The first of the largest (of the smallest, for sign -1)."""
    return values[first_best(values, sign)]


def first_best(values: list[Real], sign: int = 1) -> int:
    return max(range(len(values)), key=lambda i: (sign * base(values[i]), -i))


def _runner_up(z: list[Real], y: int) -> Real:
    return largest([v for i, v in enumerate(z) if i != y])


def _unit(v: list[Real]) -> list[Real]:
    size = _norm(v, mpf(2))
    return [ZERO] * len(v) if base(size) == 0 else [n.div(e, size) for e in v]


def _cos(a: list[Real], b: list[Real]) -> Real:
    sizes = n.mul(_norm(a, mpf(2)), _norm(b, mpf(2)))
    return ONE if base(sizes) == 0 else n.div(_dot(a, b), sizes)


def _dlr(z: list[Real], y: int, target: int | None = None) -> Real:
    ordered = sorted(z, key=base, reverse=True)
    small = mpf(10) ** -12
    if target is None:
        return n.neg(n.div(n.sub(z[y], _runner_up(z, y)), n.add(n.sub(ordered[0], ordered[2]), small)))
    middle = n.div(n.add(ordered[2], ordered[3]), mpf(2))
    return n.neg(n.div(n.sub(z[y], z[target]), n.add(n.sub(ordered[0], middle), small)))


def _clip(v: Real, low: Real, high: Real) -> Real:
    raised = low if base(v) < base(low) else v
    return high if base(raised) > base(high) else raised


FORMS: dict[str, Callable[..., Any]] = {
    "add": elementwise(n.add), "sub": elementwise(n.sub), "mul": elementwise(n.mul), "div": elementwise(n.div), "pow": elementwise(n.power),
    "neg": elementwise(n.neg), "exp": elementwise(n.exp), "log": elementwise(n.log), "sqrt": elementwise(n.sqrt),
    "relu": elementwise(n.relu), "tanh": elementwise(n.tanh), "sin": elementwise(n.sin), "abs": elementwise(n.absolute),
    "sign": elementwise(lambda v: mpf(mp.sign(base(v)))), "stop": elementwise(base), "clip": elementwise(_clip),
    "lt": _compare(lambda a, b: a < b), "le": _compare(lambda a, b: a <= b), "gt": _compare(lambda a, b: a > b),
    "ge": _compare(lambda a, b: a >= b), "eq": _compare(lambda a, b: a == b), "ne": _compare(lambda a, b: a != b),
    "and": _compare(lambda a, b: a != 0 and b != 0), "or": _compare(lambda a, b: a != 0 or b != 0), "not": lambda a: n.holds(base(a) == 0),
    "max": lambda a, b: a if base(a) >= base(b) else b, "min": lambda a, b: a if base(a) <= base(b) else b,
    "KL": _kl, "SE": lambda p, q: n.total([n.mul(n.sub(a, b), n.sub(a, b)) for a, b in zip(p, q, strict=True)]), "JS": _js,
    "TV": lambda p, q: n.div(n.total([n.absolute(n.sub(a, b)) for a, b in zip(p, q, strict=True)]), mpf(2)),
    "H": lambda p: _cross_entropy(p, p), "DLR": _dlr,
    "hinge": lambda z, y: n.relu(n.add(ONE, n.sub(_runner_up(z, y), z[y]))),
    "error": lambda z, y: n.holds(base(_runner_up(z, y)) >= base(z[y])),
    "norm": _norm, "dot": _dot, "unit": _unit, "cos": _cos,
    "prob": _softmax, "at": lambda v, c: v[int(base(c))],
    "mix": lambda a, p, q: [n.add(n.mul(n.sub(ONE, a), u), n.mul(a, v)) for u, v in zip(p, q, strict=True)],
    "known": lambda y: n.holds(y >= 0),
}  # fmt: skip

REDUCTIONS: dict[str, Callable[[list[int], list[Real], int], Any]] = {
    # The classes of the header in ascending order, the value of the body at each, and K.
    "max": lambda classes, values, k: largest(values),
    "min": lambda classes, values, k: largest(values, -1),
    "argmax": lambda classes, values, k: classes[first_best(values)],
    "argmin": lambda classes, values, k: classes[first_best(values, -1)],
    "sum": lambda classes, values, k: n.total(values),
    "mean": lambda classes, values, k: n.div(n.total(values), mpf(len(values))),
    "logsumexp": lambda classes, values, k: _logsumexp(values),
    "softmax": lambda classes, values, k: _spread(classes, _softmax(values), k),
    "sort": lambda classes, values, k: sorted(values, key=base, reverse=True),
}


def _spread(classes: list[int], weights: list[Real], k: int) -> list[Real]:
    found = dict(zip(classes, weights, strict=True))
    return [found.get(c, ZERO) for c in range(k)]


# --- core forms: they need more than the values of their arguments ---


def _ce(run: Run, e: Typed) -> Real:
    prediction, target = e.args
    q, t = run.value(prediction), run.value(target)
    if target.kind not in CLASSES:
        return _cross_entropy(_softmax(q) if prediction.kind is Kind.LOGITS else q, t)
    if prediction.kind is Kind.LOGITS:
        return _logsumexp([n.sub(v, q[t]) for v in q])
    return n.neg(log_entry(q, t))


def _complement(run: Run, e: Typed) -> Real:
    """1 - q for a probability q: the sum of the others, which has all its digits when q is nearly 1."""
    one, q = e.args
    from_one = one.value == 1
    if from_one and q.op == "at" and q.args[0].kind is Kind.PROB:
        place = int(base(run.value(q.args[1])))
        return n.total([v for i, v in enumerate(run.value(q.args[0])) if i != place])
    if from_one and q.op == "reduce" and q.attrs[0] in ("max", "min") and _own_entry(q):
        entries = run.value(q.args[0].args[0])
        assert q.axis is not None
        classes = run.domain(q.axis.domain)
        place = classes[first_best([entries[c] for c in classes], 1 if q.attrs[0] == "max" else -1)]
        return n.total([v for i, v in enumerate(entries) if i != place])
    return FORMS["sub"](run.value(one), run.value(q))


def _log(run: Run, e: Typed) -> Any:
    inner = e.args[0]
    if inner.op == "at" and inner.args[0].kind is Kind.PROB:
        return log_entry(run.value(inner.args[0]), int(base(run.value(inner.args[1]))))
    if inner.op == "sub" and inner.args[0].value == 1 and inner.args[1].op == "at" and inner.args[1].args[0].kind is Kind.PROB:
        q = run.value(inner.args[1])
        return n.log1p(n.neg(q)) if base(q) < mpf(1) / 2 else n.log(run.value(inner))
    return FORMS["log"](run.value(inner))


def _own_entry(q: Typed) -> bool:
    body = q.args[0]
    own = body.op == "at" and body.args[0].kind is Kind.PROB and body.args[1].op == "bound" and body.args[1].axis == q.axis
    return own and q.axis is not None and f"@{q.axis.depth}" not in body.args[0].depends


def _if(run: Run, e: Typed) -> Any:
    return run.value(e.args[1] if base(run.value(e.args[0])) != 0 else e.args[2])


def _reduce(run: Run, e: Typed) -> Any:
    assert e.axis is not None
    classes, values = run.domain(e.axis.domain), []
    before = run.classes.get(e.axis)
    for c in classes:
        run.classes[e.axis] = c
        values.append(run.value(e.args[0]))
    if before is None:
        del run.classes[e.axis]
    else:
        run.classes[e.axis] = before
    return REDUCTIONS[e.attrs[0]](classes, values, run.law.classes)


def _bound(run: Run, e: Typed) -> int:
    assert e.axis is not None
    return run.classes[e.axis]


def _onehot(run: Run, e: Typed) -> list[Real]:
    y, k = run.value(e.args[0]), run.law.classes
    share = base(run.value(e.args[1])) if e.op == "smooth" else ZERO
    return [(1 - share) * (i == y) + share / k for i in range(k)]


def _moving(run: Run, point: Any) -> tuple[Any, int]:
    """The point as a variable of its own: a dual number for every coordinate, and the tag they carry."""
    tag = run.fresh_tag()
    entries = point if isinstance(point, list) else [point]
    size = len(entries)
    duals = [Dual(tag, v, tuple(ONE if i == j else ZERO for j in range(size))) for i, v in enumerate(entries)]
    return (duals if isinstance(point, list) else duals[0]), tag


def _slope(value: Real, tag: int, size: int) -> list[Real]:
    return list(value.b) if isinstance(value, Dual) and value.tag == tag else [ZERO] * size


def _grad(run: Run, e: Typed) -> Any:
    point = run.value(e.args[0])
    moving, tag = _moving(run, point)
    run.bind(e.attrs, moving)
    value = run.value(e.args[1])
    del run.leaves[e.attrs]
    found = _slope(value, tag, len(point) if isinstance(point, list) else 1)
    return found if isinstance(point, list) else found[0]


def _bregman(run: Run, e: Typed) -> Real:
    """psi(p) - psi(q) - <grad psi(q), p - q>."""
    p, q, psi = e.args
    first, second, leaf = run.value(p), run.value(q), e.attrs[:-1]
    run.bind(leaf, first)
    at_first = run.value(psi)
    moving, tag = _moving(run, second)
    run.bind(leaf, moving)
    moved = run.value(psi)
    del run.leaves[leaf]
    at_second = moved.a if isinstance(moved, Dual) and moved.tag == tag else moved
    steps = [n.sub(a, b) for a, b in zip(first, second, strict=True)]
    return n.sub(n.sub(at_first, at_second), _dot(_slope(moved, tag, len(second)), steps))


def _limit(run: Run, e: Typed) -> Real:
    """At a number that goes to its end as the digits grow: far enough to settle, not so far that nothing is left of the digits."""
    run.bind(e.attrs, mpf(10) ** (-(run.digits // 2)) if e.attrs[2] == "zero" else mpf(10) ** (20 * run.digits))
    value = run.value(e.args[0])
    del run.leaves[e.attrs]
    return value


def _network(run: Run, e: Typed) -> Any:
    theta, value, shape = run.value(e.args[0]), run.value(e.args[1]), e.attrs[0]
    activation = _ACTIVATIONS[shape.activation]
    start = 0
    for layer, (inputs, outputs) in enumerate(shape.layers):
        rows = [theta[start + i * inputs : start + (i + 1) * inputs] for i in range(outputs)]
        start += inputs * outputs
        value = [n.add(_dot(row, value), bias) for row, bias in zip(rows, theta[start : start + outputs], strict=True)]
        start += outputs
        if layer < len(shape.layers) - 1:
            value = [activation(v) for v in value]
    return value


_ACTIVATIONS: dict[str, Callable[[Real], Real]] = {"tanh": n.tanh, "softplus": n.softplus, "relu": n.relu, "linear": lambda v: v}


_FOLDED: dict[str, Callable[..., Any]] = {
    "neg": operator.neg, "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv, "pow": operator.pow,
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "max": max, "min": min, "not": lambda a: not a, "and": lambda a, b: bool(a and b), "or": lambda a, b: bool(a or b),
}  # fmt: skip


def _numeral(run: Run, e: Typed) -> Real:
    """A number as the text writes it: 0.1 is a tenth and 1/3 a third, not the floats beside them."""
    value = e.value or 0
    if e.written is None or not isfinite(mpf(value)):
        return mpf(value)
    if e.written == "pi":
        return +mp.pi
    if isinstance(e.written, str):
        exact = Fraction(e.written)
        return mpf(exact.numerator) / exact.denominator
    op, parts = e.written
    return mpf(_FOLDED[op](*(_numeral(run, part) for part in parts)))


CORE: dict[str, Callable[[Run, Typed], Any]] = {
    "number": _numeral,
    "classes": lambda run, e: mpf(run.law.classes),
    "sample": lambda run, e: run.quantities[e.attrs[0]],
    "input": lambda run, e: run.quantities["x"],
    "label": lambda run, e: run.quantities["y"],
    "leaf": lambda run, e: run.leaves[e.attrs][1],
    "vanishing": lambda run, e: run.leaves[e.attrs][1],
    "bound": _bound,
    "sub": _complement,
    "log": _log,
    "if": _if,
    "reduce": _reduce,
    "nth": lambda run, e: run.value(e.args[0])[e.attrs[0] - 1],
    "CE": _ce,
    "onehot": _onehot,
    "smooth": _onehot,
    "zeros": lambda run, e: [ZERO] * run.law.classes,
    "ones": lambda run, e: [ONE] * run.law.classes,
    "grad": _grad,
    "bregman": _bregman,
    "limit": _limit,
    "network": _network,
    "project": project,
    "interior": interior,
    "mode": lambda run, e: run.value(e.args[0]),
    # One example is the whole batch of a law.
    "batch_mean": lambda run, e: run.value(e.args[0]) if len(e.args) == 1 or base(run.value(e.args[1])) else ZERO,
    "batch_sum": lambda run, e: run.value(e.args[0]) if len(e.args) == 1 or base(run.value(e.args[1])) else ZERO,
}


def _measured(run: Run, e: Typed) -> list[Real]:
    """What only running a solver can tell: its answer in float64, taken as given."""
    import torch

    from lossdsl.engine.kernels import KERNELS

    def tensor(v: Any) -> Any:
        return torch.tensor([v]) if isinstance(v, int) else torch.tensor([[float(base(n)) for n in v]], dtype=torch.float64)

    found = KERNELS[e.op](*(tensor(run.value(a)) for a in e.args), *e.attrs)
    return [mpf(v) for v in found[0].tolist()]


CORE["solution"] = CORE["final"] = _measured
