"""The table of operations: one row says everything the checker, the plan, the docs and the tests need to know.

The engine keeps the kernel under the same name; a test checks that no table lacks a row of another.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import inf, log

from lossdsl.lang.types import CLASSES, SCALARS, Kind

_WORDS = {kind.value: frozenset({kind}) for kind in Kind} | {"Number": SCALARS, "Target": CLASSES | {Kind.PROB}, "AnyClass": CLASSES}


@dataclass(frozen=True)
class Surrogate:
    """What an operation of a prediction and the label says about the 0-1 error, for every K >= 2. With K = 2 `right` is `wrong`."""

    wrong: float
    """The least value where the prediction is wrong; taken at a tie of two classes."""
    right: float
    """An upper end, never taken, where the prediction is right."""
    half: float
    """The least value where the label has probability 1/2 or less."""
    laws: tuple[str, ...] = ()
    """Ids of the laws behind these numbers."""


@dataclass(frozen=True)
class Operation:
    """One operation. `signature` reads "Prob, Prob -> Real"; `|` separates alternatives of an argument, `?` marks an optional one."""

    name: str
    signature: str
    formula: str
    about: str
    example: str
    low: float = -inf
    high: float = inf
    bars: str = "no"
    """"only": written op(a || b); "swap": the bar form has its arguments the other way round; "no": commas only."""
    gradient: bool = True
    static: tuple[int, ...] = ()
    """Positions of arguments that are fixed numbers, known before the run."""
    refusal: str = ""
    """What to say when an argument has the wrong type."""
    source: str = ""
    surrogate: Surrogate | None = None
    """Of an operation that scores a prediction for a label (given as such or by onehot)."""
    rising: tuple[int, ...] = ()
    """Positions of arguments in which it never falls."""

    @cached_property
    def params(self) -> tuple[frozenset[Kind], ...]:
        left = self.signature.partition("->")[0].strip()
        return tuple(_kinds(p.strip().rstrip("?")) for p in left.split(","))

    @cached_property
    def required(self) -> int:
        return sum(not p.strip().endswith("?") for p in self.signature.partition("->")[0].split(","))

    @cached_property
    def result(self) -> Kind | None:
        """The kind of the value; None: that of the first argument (Logits and Prob become Vector)."""
        word = self.signature.partition("->")[2].strip()
        return None if word == "same" else Kind(word)


def _kinds(text: str) -> frozenset[Kind]:
    return frozenset().union(*(_WORDS[word.strip()] for word in text.split("|")))


_PROBS = "compares probabilities"
_ANY = "Real|Const|Input|Vector|Logits|Prob"
_LONG = "Input|Vector|Logits|Weights"

OPERATIONS: dict[str, Operation] = {
    row.name: row
    for row in (
        Operation("CE", "Logits|Prob, Target -> Real", "-sum_i t_i log q_i", "cross-entropy of a prediction under a target", "CE(f(x), y)", low=0.0, bars="swap", refusal="compares a prediction (Logits or Prob) with a target (Label or Prob)", surrogate=Surrogate(log(2), inf, log(2), ("A03",))),
        Operation("KL", "Prob, Prob -> Real", "sum_i t_i log(t_i / q_i)", "Kullback-Leibler divergence of the prediction from the target", "KL(p(x) || p(x'))", low=0.0, bars="only", refusal=_PROBS, surrogate=Surrogate(log(2), inf, log(2), ("D01", "A03"))),
        Operation("SE", "Prob, Prob -> Real", "sum_i (p_i - q_i)^2", "squared error, summed over classes", "SE(p(x'), onehot(y))", low=0.0, high=2.0, refusal=_PROBS, source="Pang et al., ICML 2022", surrogate=Surrogate(0.5, 1.0, 0.25)),
        Operation("JS", "Prob, Prob -> Real", "KL(p || m)/2 + KL(q || m)/2, m = (p + q)/2", "Jensen-Shannon divergence", "JS(p(x) || p(x'))", low=0.0, high=0.6931471805599453, bars="only", refusal=_PROBS, surrogate=Surrogate(0.75 * log(4 / 3), log(2), 0.75 * log(4 / 3))),
        Operation("TV", "Prob, Prob -> Real", "sum_i |p_i - q_i| / 2", "total variation distance", "TV(p(x) || p(x'))", low=0.0, high=1.0, bars="only", refusal=_PROBS, surrogate=Surrogate(0.5, 1.0, 0.5)),
        Operation("H", "Prob -> Real", "-sum_i p_i log p_i", "entropy in nats, at most log K", "H(p(x))", low=0.0, refusal="measures a probability vector"),
        Operation("DLR", "Logits, AnyClass, AnyClass? -> Real", "-(z_y - max_{i!=y} z_i) / (z_(1) - z_(3) + 1e-12); with a target t: -(z_y - z_t) / (z_(1) - (z_(3) + z_(4))/2 + 1e-12)", "difference of logits ratio, scale-free; needs K >= 3 (K >= 4 with a target)", "DLR(f(x'), y)", refusal="scores Logits", source="Croce & Hein, ICML 2020", surrogate=Surrogate(0.0, 0.0, -inf, ("A34",))),
        Operation("hinge", "Logits, AnyClass -> Real", "max(0, 1 + max_{j!=y} z_j - z_y)", "multiclass hinge loss", "hinge(f(x), y)", low=0.0, refusal="scores Logits", source="Robey et al., sec. 2.1", surrogate=Surrogate(1.0, 1.0, 0.0, ("A01",))),
        Operation("error", "Logits|Prob, AnyClass -> Real", "1[max_{j!=y} z_j >= z_y]", "0-1 error; a tie is an error; zero gradient", "error(f(x), y)", low=0.0, high=1.0, gradient=False, refusal="scores Logits or a Prob", surrogate=Surrogate(1.0, 0.0, 0.0)),
        Operation("onehot", "AnyClass -> Prob", "e_y", "all mass on one class", "onehot(y)", gradient=False, refusal="takes a Label or a Class"),
        Operation("smooth", "AnyClass, Const -> Prob", "(1 - s) e_y + s/K", "label smoothing as in torch.nn.CrossEntropyLoss, 0 <= s <= 1", "CE(f(x), smooth(y, 0.1))", gradient=False, static=(1,), refusal="takes a Label and a number"),
        Operation("norm", f"{_LONG}, Const -> Real", "|v|_q, q one of 1, 2, inf", "norm of a point, of a vector over classes, or of Weights (a Const)", "norm(x' - x, 2)", low=0.0, static=(1,), refusal="measures an Input, a Vector or Weights"),
        Operation("dot", f"{_LONG}, {_LONG} -> Real", "sum_i a_i b_i", "inner product; of two Weights a Const", "dot(g, h)", refusal="multiplies two Inputs, two Vectors or two Weights"),
        Operation("cos", f"{_LONG}, {_LONG} -> Real", "<a, b> / (|a| |b|)", "cosine similarity; 1 without gradient if either is zero; of two Weights a Const", "cos(g, h)", low=-1.0, high=1.0, refusal="compares two Inputs, two Vectors or two Weights"),
        Operation("unit", "Input|Vector|Logits -> same", "v / |v|_2", "direction of length one; unit(0) = 0", "unit(x' - x)", refusal="takes an Input or a Vector"),
        Operation("sign", f"{_ANY} -> same", "sign(v)", "elementwise sign; zero gradient", "sign(x' - x)", low=-1.0, high=1.0, gradient=False),
        Operation("abs", f"{_ANY} -> same", "|v|", "elementwise absolute value", "abs(f(x)[0])", low=0.0),
        Operation("exp", f"{_ANY} -> same", "e^v", "elementwise exponential", "exp(-CE(f(x), y))", low=0.0, rising=(0,)),
        Operation("log", f"{_ANY} -> same", "ln v", "elementwise natural logarithm; of a probability it is taken in log space", "log(p(x)[y])", rising=(0,)),
        Operation("sqrt", f"{_ANY} -> same", "v^(1/2)", "elementwise square root; its gradient at 0 is taken as 0", "sqrt(JS(p(x) || p(x')))", low=0.0, rising=(0,)),
        Operation("relu", f"{_ANY} -> same", "max(v, 0)", "elementwise positive part", "relu(CE(f(x), y) - 0.1)", low=0.0, rising=(0,)),
        Operation("tanh", f"{_ANY} -> same", "tanh(v)", "elementwise hyperbolic tangent", "tanh(f(x)[y])", low=-1.0, high=1.0, rising=(0,)),
        Operation("sin", f"{_ANY} -> same", "sin(v)", "elementwise sine, of an angle in radians", "sin(f(x)[y])", low=-1.0, high=1.0),
        Operation("clip", f"{_ANY}, Number, Number -> same", "min(max(v, lo), hi)", "elementwise clipping; no gradient outside", "clip(x', 0.1, 0.9)", rising=(0,)),
        Operation("max", "Number, Number -> same", "max(a, b)", "the larger of two numbers; max(j != y: e) is over classes", "max(CE(f(x), y), CE(f(x'), y))", rising=(0, 1)),
        Operation("min", "Number, Number -> same", "min(a, b)", "the smaller of two numbers; min(j != y: e) is over classes", "min(CE(f(x), y), CE(f(x'), y))", rising=(0, 1)),
        Operation("batch_mean", "Number -> Const", "mean over the batch", "mean over the batch; with `where c` over the examples that satisfy c (0 if none)", "batch_mean(CE(f(x), y))", rising=(0,)),
        Operation("batch_sum", "Number -> Const", "sum over the batch", "sum over the batch; with `where c` over the examples that satisfy c", "batch_sum(CE(f(x), y))", rising=(0,)),
        Operation("class_mean", "Number -> Vector", "mean over the examples of each class", "a Vector: the mean over the batch's examples of each class; with `where c` over those that satisfy c", "class_mean(CE(f(x), y))", rising=(0,)),
        Operation("class_sum", "Number -> Vector", "sum over the examples of each class", "a Vector: the sum over the batch's examples of each class; with `where c` over those that satisfy c", "class_sum(CE(f(x), y))", rising=(0,)),
        Operation("zeros", "Const -> Vector", "(0, ..., 0)", "0 for every class", "zeros(K)", low=0.0, high=0.0, gradient=False),
        Operation("ones", "Const -> Vector", "(1, ..., 1)", "1 for every class", "ones(K)", low=1.0, high=1.0, gradient=False),
        Operation("known", "Label -> Real", "1[y >= 0]", "1 where the label is given, 0 where it is missing (-1, in data = mix(...))", "known(y)", low=0.0, high=1.0, gradient=False, refusal="asks about the Label"),
        Operation("project", "Input, Set -> Input", "argmin_{u in S} |u - v|_2", "the nearest point of a set", "project(x', linf(x, 0.05))"),
        Operation("interior", "Input, Set -> Input", "1[v_i is held by no constraint of S]", "1 in the coordinates strictly inside a set (a ball of l2 or l1 holds all or none), else 0", "interior(x', linf(x, 0.05))", low=0.0, high=1.0, gradient=False),
    )
}  # fmt: skip

OVER_BATCH = frozenset(("batch_mean", "batch_sum", "class_mean", "class_sum"))
"""Operations over the examples of a batch, which take `where c`."""

BINDERS: dict[str, str] = {
    "max": "largest value over the classes",
    "min": "smallest value over the classes",
    "argmax": "the class of the largest value (the lowest class at a tie)",
    "argmin": "the class of the smallest value (the lowest class at a tie)",
    "sum": "sum over the classes or whole numbers",
    "mean": "mean over the classes or whole numbers",
    "logsumexp": "log of the sum of exponentials",
    "softmax": "a Vector of softmax weights, 0 where a class is left out",
    "sort": "a Vector in descending order; [1] is the largest",
}

FACTS_OF_A_LEVEL = {
    "fooled": "1 where the lower solution is misclassified",
    "survived": "how many of the iterates x'@0 .. x'@(n-1) were classified correctly",
    "first_fooled": "number of updates until first misclassified, the number of steps if never",
}
