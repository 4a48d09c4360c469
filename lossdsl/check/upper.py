"""The upper level and its optimizers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lossdsl.check.flow import gradient_reaches
from lossdsl.check.options import binder_as_call, validated
from lossdsl.check.scope import Later, LevelName, ModelName, is_error
from lossdsl.check.typed import Typed
from lossdsl.diagnostics import did_you_mean, suggest
from lossdsl.lang.specs import OPTIMIZERS, OptimizerSpec
from lossdsl.source import Span
from lossdsl.syntax import tree as t

if TYPE_CHECKING:
    from lossdsl.check.recipe import Checker


def check_upper(self: Checker, node: t.Upper) -> None:
    """`upper [at w] minimize EXPR by OPTIMIZER(...) [by OPTIMIZER(...) for h] [with f in MODE [joint]]`."""
    _weights(self, node)
    if node.mode == "eval":
        self.report.error(
            "E029",
            f"the upper level runs in train mode, not in {node.mode}",
            node.span,
            "let NAME = e with f in eval evaluates e in eval mode",
        )
    self.upper_mode, self.joint = node.mode or "train", node.joint
    objective = self.inference.scalar(node.objective, self.scope, self.at, "the upper objective")
    if not is_error(objective):
        _trains(self, node, objective)
        if node.joint:
            _known_before(self, node, objective)
    self.objective = objective
    _optimizers(self, node)


def _weights(self: Checker, node: t.Upper) -> None:
    if node.at is None:
        return
    binding = self.scope.get(node.at)
    if isinstance(binding, Later):
        self.report.used.add(node.at)
        return
    if isinstance(binding, LevelName) and binding.over == "weights":
        self.report.used.add(node.at)
        self.upper_at = node.at
        return
    known = [name for name, b in self.scope.names.items() if isinstance(b, LevelName) and b.over == "weights"]
    help = did_you_mean(node.at, known) if known else "declare it: lower w in l2(theta, rho) maximize CE(f{w}(x), y) by linear"
    place = Span(node.span.start, node.span.start + len("upper at ") + len(node.at), node.span.file)
    self.report.error("E010", f"there are no weights {node.at} for the upper level", place, help)


def _trains(self: Checker, node: t.Upper, objective: Typed) -> None:
    """The objective must pass a gradient to f, and to every other model that is trained."""
    if "theta" not in objective.depends:
        self.report.error("E021", "the upper objective does not depend on the model", node.objective.span, "use f(...) or p(...) in it")
    elif not gradient_reaches(objective, lambda e: e.op == "weights" or (e.op == "logits" and (not e.attrs or e.attrs[0] == "f"))):
        help = "its gradient is zero everywhere: minimize a surrogate such as CE, and stop less"
        self.report.error("E021", "the upper objective passes no gradient to the model", node.objective.span, help)
    for name, binding in self.scope.names.items():
        own = isinstance(binding, ModelName) and not binding.frozen
        if own and not gradient_reaches(objective, lambda e, g=name: e.op == "logits" and e.attrs[:1] == (g,)):  # type: ignore[misc]
            help = f"use {name}(...) in it, or declare: model {name} frozen"
            self.report.error("E021", f"the upper objective passes no gradient to the model {name}", node.objective.span, help)


def _known_before(self: Checker, node: t.Upper, objective: Typed) -> None:
    """All points of a joint pass are there before it."""
    stack, seen = [objective], set[int]()
    while stack:
        e = stack.pop()
        if id(e) in seen or (e.op == "mode" and e.attrs == ("eval",)):
            continue
        seen.add(id(e))
        if e.op == "logits" and _holds_pass(e.args[0]):
            help = "evaluate what it is built from in eval mode (let NAME = e with f in eval), or leave out joint"
            self.report.error("E029", "a joint pass needs all its points before it, and this one comes from a pass", e.args[0].span, help)
            return
        stack.extend(e.args)


def _holds_pass(e: Typed) -> bool:
    return e.op in ("logits", "grad") or (not (e.op == "mode" and e.attrs == ("eval",)) and any(_holds_pass(a) for a in e.args))


def _optimizers(self: Checker, node: t.Upper) -> None:
    if not any(o.model in (None, "f") for o in node.optimizers) and not self.report.lost_words:
        said = "the upper level names no optimizer" + (" for f" if node.optimizers else "")
        self.report.error("E018", said, node.span, "add: by sgd(lr = 0.1, momentum = 0.9)")
    seen: set[str] = set()
    for given in node.optimizers:
        name = given.model or "f"
        if name in seen:
            self.report.error("E007", f"there are two optimizers for {name}", given.span, "keep one of them")
            continue
        seen.add(name)
        spec = optimizer(self, given.call)
        if name == "f":
            self.optimizer = spec
        elif _has_optimizer(self, given, name) and spec is not None:
            self.optimizers[name] = spec


def _has_optimizer(self: Checker, given: t.Optimizer, name: str) -> bool:
    binding = self.scope.get(name)
    if not isinstance(binding, ModelName):
        self.report.error("E010", f"there is no model {name} to optimize", given.span, f"declare it: model {name}")
        return False
    self.report.used.add(name)
    if binding.frozen:
        self.report.error("E029", f"{name} is frozen and has no optimizer", given.span, f"declare model {name} without frozen to train it")
    return not binding.frozen


def optimizer(self: Checker, call: t.Call) -> OptimizerSpec | None:
    """A named optimizer with its options; None after reporting."""
    if binder_as_call(self.inference, call.func):
        return None
    name = call.func.id if isinstance(call.func, t.Name) else ""
    if name not in OPTIMIZERS:
        otherwise = "the optimizers are " + ", ".join(OPTIMIZERS)
        self.report.misnamed("E023", f"there is no optimizer {name}".rstrip(), call.func.span, suggest(name, OPTIMIZERS), otherwise)
        return None
    options = validated(self.inference, OPTIMIZERS[name], name, call.args, call.span, self.scope, self.at)
    return None if options is None else OptimizerSpec(name, options)
