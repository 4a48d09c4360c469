"""Random texts that the checker must accept: expressions over the names of one recipe, and whole small recipes.

An expression grows from templates, one table per kind; a slot {kind} is filled by recursion, {inner_kind} with the name that the
template's binder adds. Texts are safe by construction, so that two ways to compute them agree: logarithms of positive numbers
only, no division near zero, exponentials of bounded numbers, no direction of a vector that may be zero up to rounding, no
condition that rounding decides. They are meant for 3 classes or more, inputs in [0, 1] and logits of moderate size.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st

BINDER_NAMES = ("j", "i", "k", "j'", "K", "lam", "a")
"""K, lam and a mean something else outside: a binder shadows them."""


@dataclass(frozen=True)
class Names:
    """What an expression may mention, as texts by kind."""

    points: tuple[str, ...] = ("x",)
    family: str = ""
    """A lower variable with one member per class j != y."""
    classes: tuple[str, ...] = ("y",)
    members: tuple[str, ...] = ()
    """Those that are one of the family's classes."""
    numbers: tuple[str, ...] = ("K",)
    vectors: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    """Names that stand for 0, 1 or 2: bound by `k in 0..2`."""
    solved: tuple[str, ...] = ()
    """Lower variables with one point."""
    counted: tuple[str, ...] = ()
    """Lower variables of which the text may ask how many iterates were right."""
    named: tuple[str, ...] = ()
    """Inputs that a gradient can be taken at by name."""
    models: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    """Variables of levels over weights."""
    batch: bool = True
    graded: bool = False
    """Inside a gradient, where no other stands."""
    bound: bool = False
    """Inside a binder over classes."""

    def without(self, var: str) -> Names:
        """Where a binder shadows a name."""
        kept: dict[str, Any] = {
            k: tuple(t for t in getattr(self, k) if t != var) for k in ("classes", "members", "numbers", "whole", "vectors")
        }
        return replace(self, **kept)

    def inside(self, var: str, relation: str) -> Names:
        """Within a binder; what it shadows is gone, and batch means are not allowed."""
        inner = replace(self.without(var), batch=False, bound=self.bound or not relation.startswith(" in"))
        if relation.startswith(" in"):
            return replace(inner, numbers=(*inner.numbers, var), whole=(*inner.whole, var))
        return replace(inner, classes=(*inner.classes, var), members=(*inner.members, *([var] if relation == " != y" else [])))

    @property
    def differentiable(self) -> bool:
        """May a gradient stand here? (its body cannot speak of the class of a binder around it)"""
        return not self.graded and not self.bound and bool(self.named)

    def under(self, point: str) -> Names:
        """Inside the body of a gradient at a point."""
        return replace(self, points=(*self.points, point), batch=False, graded=True)

    def plus(self, **more: str) -> Names:
        """With another text of a kind: plus(points="w'")."""
        longer: dict[str, Any] = {k: (*getattr(self, k), text) for k, text in more.items()}
        return replace(self, **longer)


LEAVES: dict[str, tuple[str, ...]] = {
    "real": (
        "f({point})[{index}]", "p({point})[{index}]", "log(p({point})[{class}])", "CE(f({point}), {class})", "{number}", "{name}", "{name}",
        "KL(p({point}) || p({point}))", "H(p({point}))", "error(f({point}), {class})", "hinge(f({point}), {class})", "(-{number})",
        "norm({point} - x, {order})", "{vec}[{class}]", "fooled({solved})", "DLR(f({point}), {class})", "M({point})[{class}]",
        "CE(f({member}), y)", "CE({atweights}({point}), {class})", "survived({counted})", "first_fooled({counted})", "CE({model}({point}), y)",
    ),
    "logits": ("f({point})", "M({point})", "{model}({point})", "{atweights}({point})"),
    "full": ("p({point})", "smooth({class}, 0.1)", "p[{model}]({point})"),
    "prob": ("p({point})", "onehot({class})", "smooth({class}, 0.2)"),
    "vector": ("relu(f({point}))", "(-p({point}))", "log(p({point}))", "(p({point}) - onehot({class}))", "{vec}"),
    "input": ("{point}", "{member}"),
    "slope": ("grad({at}: {bodyat})",),
    "cond": ("{real} > 0.137", "{class} == {class}", "{class} != {class}", "p({point})[{class}] < 0.41"),
    "class": ("{classname}", "{classname}", "argmax({head}: f({point})[{bound}])"),
    "weight": (
        "p({point})[{class}]", "TV(p({point}) || p({point}))", "error(f({point}), {class})", "softmax(j: f({point})[j])[{class}]",
        "({real} > 0.137)",
    ),
}  # fmt: skip

TEMPLATES: dict[str, tuple[str, ...]] = {
    "real": (
        "({real} + {real})", "({real} - {real})", "({real} * {real})", "(-{real})", "({real} / (1 + abs({real})))", "({real} / {number})",
        "(-tanh({real})^2)", "((1 + abs({real}))^0.5)", "(2^tanh({real}))", "exp(tanh({real}))", "exp(-abs({real}))",
        "(tanh({real})^{power})", "log(1 + abs({real}))", "log(1 - max({head}: p({inner_input})[{bound}]))", "log(1 - p({input})[{class}])",
        "sqrt(0.1 + abs({real}))", "relu({real})", "abs({real})", "sign({real} + 0.0137)", "clip({real}, -1.5, {number})",
        "max({real}, {real})", "min({real}, {real})", "if({cond}, {real}, {real})", "stop({real})", "({cond})", "(({cond}) * {real})",
        "gap({real}, {real})", "CE({logits}, {class})", "CE({full}, {class})", "CE({full}, {prob})", "CE({prob} || {logits})",
        "CE({class} || {full})", "KL({prob} || {full})", "JS({prob} || {full})", "TV({prob} || {prob})", "SE({prob}, {prob})", "H({prob})",
        "{logits}[{index}]", "{vector}[{class}]", "{full}[{index}]", "hinge({logits}, {class})", "error({full}, {class})",
        "norm({vector}, {order})", "norm({input}, {order})", "f({input})[{class}]", "dot({vector}, {vector})", "dot({input}, {input})",
        "cos(log({full}), log({full}))", "cos({point} + 0.3, {point} + 0.2)", "f({member})[{class}]", "{binder}({head}: {inner_real})",
        "{binder}({head}: {inner_real} + f({point})[{bound}])", "mean({head}: {inner_real})", "log({full}[{class}])",
        "logsumexp({head}: tanh({inner_real}) + f({point})[{bound}])", "sort({head}: {inner_real})[{place}]",
        "softmax({head}: tanh({inner_real}))[{class}]", "{series}({whole_head}: {inner_real})",
        "{series}({whole_head}: {inner_logits}[{bound}] * {bound})", "{binder}({head}: CE(f({inner_member}), {bound}))",
        "{batched}({real})", "{batched}({real} where {cond})", "class_mean({real})[{class}]", "class_sum({real} where {cond})[{index}]",
        "{binder}({head}: class_mean({outer_real})[{bound}])", "mean({head}: class_mean({outer_real} where {outer_cond})[{bound}])",
        "softmax({head}: class_mean(tanh({outer_real}))[{bound}] * f({point})[{bound}])[{class}]", "sort({head}: class_sum({outer_real})[{bound}])[{place}]",
        "logsumexp({head}: tanh(class_mean({outer_real})[{bound}]) + f({point})[{bound}])", "dot(project({input}, linf(x, 0.3)), x)",
        "norm(project({input}, linf(0, 0.4)), 2)", "D[psi]({full} || {full})", "D[psi]({prob} || {full})",
        "dot({input}, {slope})", "norm({slope} + 0.1, 2)", "tanh(norm({slope}, 1))",
    ),
    "logits": (
        "f({input})", "({logits} + {logits})", "(tanh({real}) * {logits})", "({logits} - {logits}[{class}])",
        "if({cond}, {logits}, {logits})", "stop({logits})", "M({input})", "({logits} - {vector})", "f({member})",
    ),
    "full": (
        "p({input})", "(0.7 * {full} + 0.3 * {full})", "((1 - {weight}) * {full} + {weight} * {full})", "if({cond}, {full}, {full})",
        "stop({full})", "p({member})", "({full} * 0.25 + {full} * 0.75)",
    ),
    "prob": (
        "{full}", "((1 - {weight}) * {full} + {weight} * {prob})", "if({cond}, {prob}, {full})", "(0.25 * {prob} + 0.75 * {prob})",
        "onehot({class})",
    ),
    "vector": (
        "({vector} - {vector})", "(p({input}) - {prob})", "({vector} * {logits})", "(tanh({logits})^2)",
        "softmax({head}: tanh({inner_real}))", "log({full})", "({prob} * {vector})", "({vector} + 0.5)", "clip({vector}, -1, 1)",
        "relu({logits})", "exp(tanh({vector}))", "unit(log({full}))", "sqrt({full} + 0.1)",
    ),
    "input": (
        "({point} + 0.1 * ({input} - {point}))", "clip({input}, 0.1, 0.9)", "(0.5 * {input})", "(tanh({real}) * {point} + 0.1)",
        "if({cond}, {input}, {point})", "stop({input})", "unit({point} + 0.3)", "({point} - {input}^2)", "{member}",
        "sqrt(abs({point}) + 0.2)", "sign({point} + 0.0137)", "(0.1 * {slope})",
    ),
    "slope": (
        "grad({at}: {bodyat} + 0.2 * tanh({inner_real}))", "stop(grad(v = {input}: {bodyv} + 0.2 * tanh({inner_real})))",
        "grad(v = {input}: {bodyv} * (1.5 + tanh({inner_real})))",
    ),
    "cond": (
        "{real} > {real} + 0.0137", "0.137 < {real} <= 1.893", "({cond} and {cond})", "({cond} or {cond})", "(not {cond})",
        "{class} == {class}", "error(f({input}), {class}) > 0.5", "{class} != {index}", "norm({input}, 2) >= 0.513",
    ),
    "class": (
        "{classname}", "argmax({head}: tanh({inner_real}) + 1.7 * f({point})[{bound}])",
        "argmin({head}: tanh({inner_logits}[{bound}]) - 1.7 * f({point})[{bound}])", "stop(argmax({head}: f({point})[{bound}]))",
    ),
    "weight": LEAVES["weight"],
}  # fmt: skip

_FIXED = {
    "number": ("0.5", "2", "1.25", "3", "0.04"),
    "order": ("1", "2", "inf"),
    "power": ("2", "3", "2.0", "1"),
    "place": ("1", "2"),
    "binder": ("max", "min", "sum"),
    "series": ("sum", "mean", "max", "min"),
    "batched": ("batch_mean", "batch_sum"),
}
_SLOT = re.compile(r"\{(\w+)\}")
_NEEDS = {
    "member}": "family", "{solved}": "solved", "{vec}": "vectors", "{batched}": "batch", "class_": "batch", "{counted}": "counted",
    "{model}": "models", "{atweights}": "weights", "{at}": "named", "{slope}": "differentiable",
}  # fmt: skip
TABLE = {"Real": "real", "Logits": "logits", "Prob": "prob", "Vector": "vector", "Input": "input", "Class": "class"}


@dataclass
class _Filler:
    """Fills the slots of templates with what Hypothesis draws."""

    draw: st.DrawFn

    def one(self, *choices: str) -> str:
        return self.draw(st.sampled_from(choices))

    def text(self, kind: str, names: Names, depth: int) -> str:
        """An expression of a kind, its operators nested at most `depth` deep and some more."""
        table = LEAVES if depth <= 0 else TEMPLATES
        possible = [t for t in table[kind] if all(getattr(names, need) for word, need in _NEEDS.items() if word in t)]
        return self.fill(self.one(*possible), names, depth - 1)

    def fill(self, template: str, names: Names, depth: int) -> str:
        inner, outer, known = names, names, {}
        if "head}" in template:
            var = self.one(*BINDER_NAMES)
            others = ["", *(f" != {c}" for c in names.classes)] if names.family == "" else [" != y", *(f" != {c}" for c in names.classes)]
            relation = " in 0..2" if "{whole_head}" in template else " != y" if "{inner_member}" in template else self.one(*others)
            outer = names.without(var)
            inner, known = names.inside(var, relation), {"head": var + relation, "whole_head": var + relation, "bound": var}
        if "{weight}" in template:  # the same text in both places
            known["weight"] = self.text("weight", names, 0)
        if "grad(" in template:
            at = self.one(*names.named) if "{at}" in template else "v"
            inner, known = names.under(at), {"at": at}
            known["bodyat" if "{at}" in template else "bodyv"] = self.one(
                "CE(f({}), y)", "H(p({}))", "M({})[0]", "norm({} - 1.3, 2)"
            ).format(at)

        def slot(found: re.Match[str]) -> str:
            word = found.group(1)
            if word in known:
                return known[word]
            own = {"inner_": inner, "outer_": outer}.get(word[:6])
            return self.slot(word, names, depth) if own is None else self.slot(word[6:], own, depth)

        return _SLOT.sub(slot, template)

    def slot(self, word: str, names: Names, depth: int) -> str:
        if word in TEMPLATES:
            return self.text(word, names, depth)
        if word == "member":
            return f"{names.family}[{self.one(*names.members, 'argmax(j != y: f(x)[j])')}]"
        index = (*names.classes, *names.whole, "0", "1", "2")
        if word == "atweights":
            return "f{" + self.one(*names.weights, "theta") + "}"
        choices = {
            "model": names.models,
            "counted": names.counted,
            "point": names.points,
            "classname": names.classes,
            "index": index,
            "vec": names.vectors,
            "name": names.numbers,
        }
        return self.one(*(choices | {"solved": names.solved} | _FIXED)[word])


HEAD = """param lam = 0.7, eps = 0.2
model g frozen
state n0 = 0.4 then 0.9 * n0 + 0.1, cw = 0.3 * ones(K) then cw
memory mem = 0.2 then 0.5 * mem
sample eta ~ uniform(linf(0, eps))
sample u ~ uniform(0.2, 0.8)
sample s ~ normal(0.5) over batch
sample q ~ normal(1) over classes
generator psi(q) = sum(j: q[j]^3) - H(q) + tanh(1 + q[0]^2 * q[1]) * max(2 * q[0], 1)
def M(v) = f(v) - f(v)[y]
def gap(a, j) = a - 0.5 * j / K
"""
"""What every random recipe declares."""
GIVEN = Names(
    points=("x", "x + eta"), numbers=("K", "lam", "u", "s", "n0", "mem"), vectors=("q", "cw"), named=("x",), models=("g",),
)  # fmt: skip
ALL = Names(
    points=("x", "x + eta", "x'", "x'@1", "x'@0", "mid(0.3)", "w'"), family="z'", classes=("y", "worst"), members=("worst",),
    numbers=("K", "lam", "u", "s", "a", "n0", "mem", "t"), vectors=("q", "cw", "d"), solved=("x'", "w'"), counted=("x'", "w'"),
    named=("x", "x'", "w'"), models=("g",), weights=("W",),
)  # fmt: skip
"""The names of `STAGE`."""
STAGE = (
    HEAD
    + """
lower x' in linf(x, eps) maximize CE(f(x'), y) by pgd(steps = 2, step = 0.1, start = x + eta)
lower z'[j != y] in l2(x, eps) maximize M(z'[j])[j] by pgd(steps = 1, step = 0.1, start = uniform)
lower w' in l1(x', eps) minimize CE(f(w'), y) - 0.1 * norm(w' - x', 2) by ascent(steps = 1, step = 0.1, start = x') with f in train
lower W in l2(theta, 0.1) maximize CE(f{W}(x'), y) by linear
lower d in simplex(K) maximize batch_mean(d[y] * CE(f(x), y)) by ascent(steps = 1, step = 0.1, start = ones(K)/K)
find t in [0, 1] where CE(f(x + t * (x' - x)), y) == 1.3 by bisection(steps = 3)
def mid(t) = (1 - t) * x + t * x'
let a = KL(p(x) || p(x')) + s
let worst = argmax(j != y: M(z'[j])[j]) with f in eval
"""
)
_WRAPPED = {"Real": "({})", "Logits": "({})[0]", "Prob": "H({})", "Vector": "norm({}, 2)", "Input": "norm({}, 2)", "Class": "f(x)[{}]"}


def on_stage(text: str, kind: str = "Real") -> str:
    """A recipe that logs an expression over the names of `ALL`, as `value`: itself if it is a number, else inside an operation."""
    return f"recipe stage\n{STAGE}\nlog value = {_WRAPPED[kind].format(text)}\nupper minimize CE(f(x'), y) by sgd(lr = 0.1)"


def unwrapped(logged: Any, kind: str = "Real") -> Any:
    """The typed expression inside what `on_stage` logs."""
    return logged if kind == "Real" else logged.args[1 if kind == "Class" else 0]


@st.composite
def well_typed(draw: st.DrawFn, kind: str = "Real", depth: int = 3, names: Names = ALL) -> str:
    """The text of a random expression of a kind."""
    return _Filler(draw).text(TABLE[kind], names, depth)


# --- whole recipes ---


@dataclass
class _Writer:
    """Writes one recipe, statement by statement, and keeps track of the names."""

    fill: _Filler
    depth: int
    names: Names = GIVEN
    lines: list[str] = field(default_factory=list)

    def expression(self, kind: str, names: Names | None = None) -> str:
        return self.fill.text(TABLE[kind], names or self.names, self.fill.draw(st.integers(0, self.depth)))

    def let(self, name: str, kind: str, batch: bool) -> None:
        """A let that the rest may use; in a mode of its own or not."""
        text = self.expression(kind, replace(self.names, batch=batch))
        mode = self.fill.one("", "", " with f in eval", " with f in train", " with f in untracked")
        self.lines.append(f"let {name} = {text}{mode}")
        place = {"Real": "numbers", "Vector": "vectors", "Input": "points", "Class": "classes"}[kind]
        self.names = self.names.plus(**{place: name})

    def lower(self, var: str) -> None:
        """One point per example: near an earlier point, or a perturbation of it."""
        one = self.fill.one
        center = one("x", "x", *self.names.solved, "0")
        point = var if center != "0" else f"x + {var}"
        inside = replace(self.names.plus(points=point), batch=False, solved=())
        sense = one("maximize", "minimize")
        objective = f"{one('CE(f({}), y)', 'KL(p(x) || p({}))', 'M({})[0]').format(point)} + 0.1 * tanh({self.expression('Real', inside)})"
        steps = self.fill.draw(st.integers(1, 2))
        mode = one("", " with f in train", " with f in untracked")
        ball = f"{one('linf', 'l2', 'l1')}({center}, eps)"
        self.lines.append(f"lower {var} in {ball} {sense} {objective} by {self.solver(steps, center)}{mode}")
        iterate = f"{var}@{one(*map(str, range(steps + 1)))}"
        self.names = self.names.plus(points=point, solved=var) if point == var else self.names.plus(points=point)
        if point == var:
            self.names = self.names.plus(counted=var, named=var)
        self.names = self.names.plus(points=iterate if point == var else f"x + {iterate}")

    def solver(self, steps: int, center: str) -> str:
        one = self.fill.one
        name = one("pgd", "ascent", "momentum", "sgd", "adam", "rmsprop") if steps > 1 else one("pgd", "linear")
        near = "" if center == "0" else f"{center} + "
        start = one("uniform", "corner", center, f"{near}normal(0.05)", f"{near}uniform(linf(0, eps))", "raw(x + eta)" if near else "eta")
        options = [f"start = {start}", one("restarts = 2", "restarts = 1", "keep = best")]
        step = one("0.07", "0.07", "0.1 * p(x)[y]", "0.1 * n0") if name in ("pgd", "ascent", "momentum") else "0.07"
        if name in ("pgd", "ascent", "momentum"):
            options += one("", "", "noise = normal(0.02)", "until fooled(0)", "noise = rademacher, until fooled(1)").split(", ")
        options = [option for option in options if option]
        return f"{name}({', '.join(options if name == 'linear' else [f'steps = {steps}, step = {step}', *options])})"

    def family(self) -> None:
        """One point per class other than y."""
        one = self.fill.one
        inner = replace(self.names, batch=False, members=(), family="").inside("j", "")
        objective = f"{one('M(z[j])[j]', '-CE(f(z[j]), j)')} + 0.1 * tanh({self.expression('Real', inner)})"
        rest = f"{self.solver(1, 'x')}{one('', ' with f in train')}"
        self.lines.append(f"lower z[j != y] in {one('linf', 'l2', 'l1')}(x, eps) maximize {objective} by {rest}")
        self.lines.append("let worst = argmax(j != y: M(z[j])[j]) with f in eval")
        self.names = replace(self.names.plus(classes="worst", members="worst"), family="z")

    def weights(self) -> None:
        """A level over the weights."""
        one = self.fill.one
        point, inside = one(*self.names.points), replace(self.names, graded=True).plus(weights="W")
        ball = one(
            "l2(theta, 0.1)", "layerwise(theta, 0.02)", "layerwise(theta, 0.02, only = matrices)", "adaptive(theta, 0.1)", "l2(theta, 0)"
        )
        objective = f"CE(f{{W}}({point}), y) + 0.1 * tanh({self.expression('Real', inside)})"
        solver = one("linear", "pgd(steps = 2, step = 0.05)", "ascent(steps = 1, step = 0.05, keep = best)", "linear(start = theta)")
        self.lines.append(f"lower W in {ball} maximize {objective} by {solver}{one('', ' with f in train', ' with f in untracked')}")
        self.names = self.names.plus(weights="W")

    def rest(self) -> str:
        """Levels over the batch, a root, states; what the upper level is taken at."""
        one, draw = self.fill.one, self.fill.draw
        if draw(st.booleans()):
            body = f"cls[y] * CE(f({one(*self.names.points)}), y) + 0.1 * {self.expression('Real')}"
            self.lines.append(
                f"lower cls in simplex(K) maximize {body} by {one('ascent', 'adam')}(steps = 2, step = 0.1, start = ones(K)/K)"
            )
            self.names = self.names.plus(vectors="cls")
        if draw(st.booleans()) and self.names.solved:
            end = one(*self.names.solved)
            self.lines.append(f"find t in [0, {one('1', '1.3', 'lam')}] where CE(f(x + t * ({end} - x)), y) == 1.1 by bisection(steps = 3)")
            self.names = self.names.plus(numbers="t", points=f"x + t * ({end} - x)")
        at = ""
        if draw(st.booleans()):
            self.weights()
            at = one("", " at W")
        self.lines.append(
            f"state n1 = lam then batch_mean({self.expression('Real')}), c1 = zeros(K) then class_mean({self.expression('Real')})"
        )
        self.lines.append(f"memory m1 = 0 then {self.expression('Real')}{one('', ' with f in eval')}")
        self.names = self.names.plus(numbers="n1").plus(numbers="m1", vectors="c1")
        return at

    def recipe(self) -> str:
        draw = self.fill.draw
        self.let("a", "Real", batch=False)
        for n, var in enumerate(draw(st.sampled_from((("x'",), ("x'", "d"), ("x'", "w'"), ("x'", "w'", "d"), ())))):
            self.lower(var)
            if n == 0:
                self.let("v", draw(st.sampled_from(("Input", "Vector", "Class"))), batch=False)
        if draw(st.booleans()):
            self.family()
        at = self.rest()
        self.let("b", "Real", batch=True)
        objective = f"CE(f({self.fill.one(*self.names.points)}), y) + {self.expression('Real')}"
        self.lines.append(f"log shown = {self.expression('Real')}")
        if draw(st.booleans()):
            objective = f"batch_mean({objective})"
        return "recipe random\n" + HEAD + "\n".join([*self.lines, f"upper{at} minimize {objective} by sgd(lr = 0.1)"])


@st.composite
def recipes(draw: st.DrawFn, depth: int = 2) -> str:
    """The text of a random small recipe: up to three levels and a family, lets in several modes, a log."""
    return _Writer(_Filler(draw), depth).recipe()
