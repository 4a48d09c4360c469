"""What names mean at one place of a file, and where findings are collected."""

from __future__ import annotations

from dataclasses import dataclass, field

from lossdsl.check.typed import Axis, Domain, Typed
from lossdsl.diagnostics import Diagnostic, Edit, Related, suggest
from lossdsl.lang.ops import BINDERS, FACTS_OF_A_LEVEL, OPERATIONS
from lossdsl.lang.specs import SETS
from lossdsl.lang.types import Kind
from lossdsl.source import NOWHERE, Span
from lossdsl.syntax import tree as t

DRAWS = ("normal", "uniform", "corner", "rademacher")
ELSEWHERE = {
    "cross_entropy": "CE", "CrossEntropyLoss": "CE", "nll": "CE", "NLL": "CE", "ce_loss": "CE", "kl_div": "KL",
    "KLDivLoss": "KL", "js": "JS", "mse": "SE", "MSE": "SE", "entropy": "H", "detach": "stop", "stopgrad": "stop",
    "stop_gradient": "stop", "no_grad": "stop", "sg": "stop", "model": "f", "net": "f", "logits": "f", "F": "f", "prob": "p",
    "probs": "p", "sigmoid": "tanh", "ln": "log", "one_hot": "onehot", "dist": "norm", "clamp": "clip",
    "cosine_similarity": "cos", "cos_sim": "cos", "normalize": "unit", "where": "if", "zero_one": "error",
    "max_margin": "hinge", "x_adv": "x'", "xadv": "x'", "adv": "x'", "x_pert": "x'", "x_hat": "x'", "x_tilde": "x'",
    "label": "y", "labels": "y", "target": "y", "num_classes": "K", "C": "K", "epsilon": "eps", "alpha": "step",
    "step_size": "step",
}  # fmt: skip
"""What other libraries and papers call the names of the language; only a hint in messages."""

BUILT_IN = ("x", "y", "f", "p", "theta", "K")


def functions() -> frozenset[str]:
    """Every name that can be called; the tables can grow from Python."""
    return frozenset({"f", "p", "if", "stop", "D", "grad", *OPERATIONS, *BINDERS, *FACTS_OF_A_LEVEL, *SETS, *DRAWS})


@dataclass(frozen=True)
class Value:
    """A name that stands for a typed expression (param, let, sample, argument, x, y, K)."""

    typed: Typed
    span: Span = NOWHERE
    what: str = "let"


@dataclass(frozen=True)
class LevelName:
    """The variable of a lower level."""

    name: str
    steps: int | None
    domain: Domain | None
    span: Span
    own: Axis | None = None
    """Inside the level's own objective: the only class its variable can be taken at."""
    over: str = "input"
    """What the variable is: an "input", "weights" of f, or a distribution over "classes"."""
    search: str = ""
    """The solver, if it says itself which point is evaluated next."""
    facts: bool = True
    """Whether fooled(...), survived(...) can be asked of it."""


@dataclass(frozen=True)
class ModelName:
    """Another model, declared by `model`."""

    name: str
    frozen: bool
    span: Span = NOWHERE


@dataclass(frozen=True)
class Function:
    """A `def` with the names it can see."""

    node: t.Def
    scope: Scope


@dataclass(frozen=True)
class Later:
    """A name whose statement is wrong; uses of it are silent."""

    what: str
    kind: Kind | None = None


Binding = Value | LevelName | ModelName | Function | Later


@dataclass(frozen=True)
class Scope:
    """An immutable chain of names; `declare` gives a longer one."""

    names: dict[str, Binding] = field(default_factory=dict)

    def declare(self, name: str, binding: Binding) -> Scope:
        return Scope({**self.names, name: binding})

    def get(self, name: str) -> Binding | None:
        return self.names.get(name)


class Report:
    """Collects the findings of one file; the same finding at the same place counts once."""

    def __init__(self, lost_words: frozenset[str] = frozenset()) -> None:
        self._found: dict[tuple[str, Span, str], Diagnostic] = {}
        self.lost_words = lost_words
        self.used: set[str] = set()

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        return tuple(self._found.values())

    @property
    def failed(self) -> bool:
        return any(d.severity == "error" for d in self._found.values())

    def error(
        self,
        code: str,
        message: str,
        span: Span,
        help: str = "",
        *,
        label: str = "",
        edit: Edit | None = None,
        related: tuple[Related, ...] = (),
    ) -> Typed:
        """Record an error and return the expression that silences what would follow from it."""
        finding = Diagnostic(code, message, span, label, help, related, edit)
        self._found.setdefault((code, span, message), finding)
        return Typed("?", (), Kind.CONST, span)

    def misnamed(self, code: str, message: str, span: Span, best: str | None, otherwise: str) -> None:
        """Record an error about a name at `span`: with the near match, offered as an edit, or with other help."""
        self.error(code, message, span, f"did you mean {best}?" if best else otherwise, edit=Edit(span, best) if best else None)

    def warn(self, code: str, message: str, span: Span, help: str = "", edit: Edit | None = None) -> None:
        self._found.setdefault((code, span, message), Diagnostic(code, message, span, help=help, edit=edit, severity="warning"))

    def unknown(self, name: str, scope: Scope, span: Span, later: frozenset[str] = frozenset()) -> Typed:
        if name in self.lost_words:
            return Typed("?", (), Kind.CONST, span)
        if name in later:
            return self.error("E010", f"{name} is used before it is declared", span, f"declare {name} above this line")
        names = {*scope.names, "x", "y", "K"}
        best = ELSEWHERE.get(name, "")
        self.misnamed(
            "E010",
            f"there is no {name} here",
            span,
            best if best in names else suggest(name, names),
            "known here: " + ", ".join(sorted(names)),
        )
        return Typed("?", (), Kind.CONST, span)


def is_error(*values: Typed) -> bool:
    return any(v.op == "?" for v in values)
