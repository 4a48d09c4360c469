"""`grad(x: e)`, `grad(v = point: e)`, `grad(theta: e)`: gradients as values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from lossdsl.check import build
from lossdsl.check.flow import gradient_reaches
from lossdsl.check.scope import LevelName, Scope, Value, is_error
from lossdsl.check.typed import Typed, show
from lossdsl.lang.types import DESCRIPTION, Kind
from lossdsl.syntax import tree as t

if TYPE_CHECKING:
    from lossdsl.check.infer import Context, Inference





def infer_gradient(self: Inference, e: t.Binder, scope: Scope, at: Context) -> Typed:
    """A gradient per example with respect to a named Input, to a bound point, or one of the batch with respect to theta."""
    header = e.header
    if header.var == "theta" and header.relation == "":
        return _by_weights(self, e, scope, at)
    bound = header.relation == "=" and header.domain is not None
    if not bound and header.relation != "":
        return self.report.error("E034", "grad binds a point", header.span, "write grad(x: e) or grad(v = x + eta: e)")
    if not bound and _is_weights(scope, header.var):
        return _by_weights(self, e, scope, at)
    point = self.infer(header.domain if bound and header.domain else t.Name(header.var, span=header.span), scope, at)
    if is_error(point):
        return point
    if point.kind not in self.grad_points or point.op == "number":
        help = "write grad(x: e), or grad(v = x + eta: e) for the gradient by v at x + eta"
        said = f"grad is taken at an Input, and this is {DESCRIPTION[point.kind]}"
        return self.report.error("E013", said, header.span, help, label=str(point.kind))
    leaf = self.leaf(header.var, point)
    inner = scope.declare(header.var, Value(leaf, header.span, "binder")) if bound else scope
    body = self.scalar(e.body, inner, at, "the body of grad")
    if is_error(body):
        return body
    if not bound:
        body = substituted(body, lambda n: _same_leaf(n, point), leaf)
    return _checked(self, e, point, body, leaf)


def _checked(self: Inference, e: t.Binder, point: Typed, body: Typed, leaf: Typed) -> Typed:
    """The gradient, where its body is one number per example that depends on the point."""
    name = e.header.var
    if body.kind is not Kind.REAL:
        help = "leave out batch_mean and batch_sum: the gradient is that of each example's own number"
        return self.report.error("E013", "grad differentiates one number per example, and this is one of the batch", e.body.span, help)
    classes = {d for d in body.depends - point.depends if d.startswith("@")}
    if classes:
        help = "take the entry of a fixed class, or the gradient of a sum or maximum over the classes"
        return self.report.error("E013", "grad cannot depend on the class of a binder around it", e.body.span, help)
    if not gradient_reaches(body, lambda n: n is leaf):
        at = f"{name} = {show(point)}" if e.header.relation == "=" else name
        help = f"use {name} in it, for example grad({at}: CE(f({name}), y))"
        return self.report.error("E021", f"the body of grad passes no gradient to {name}", e.body.span, help)
    return Typed("grad", (point, body), point.kind, e.span, leaf.attrs, depends=build.depends(point, body))


def _by_weights(self: Inference, e: t.Binder, scope: Scope, at: Context) -> Typed:
    if not at.logged:
        help = "write log NAME = norm(grad(theta: e), 2); a term of the objective cannot hold it"
        return self.report.error("E013", "gradients by the parameters belong to log statements and laws", e.span, help)
    if e.header.var != "theta":
        return self.report.error("E034", f"the parameters are called theta, not {e.header.var}", e.header.span, "write grad(theta: e)")
    body = self.scalar(e.body, scope, at, "the body of grad")
    if is_error(body):
        return body
    if not gradient_reaches(body, of_model):
        return self.report.error("E021", "the body of grad passes no gradient to theta", e.body.span, "use f(...) or p(...) in it")
    return Typed("grad_theta", (body,), Kind.WEIGHTS, e.span, depends=body.depends)


def _is_weights(scope: Scope, name: str) -> bool:
    binding = scope.get(name)
    return isinstance(binding, LevelName) and binding.over == "weights"


def of_model(e: Typed) -> bool:
    """Does a gradient that reaches this node reach the parameters of f?"""
    return (e.op == "logits" and (not e.attrs or e.attrs[0] == "f")) or e.op == "weights"


def _same_leaf(node: Typed, point: Typed) -> bool:
    """Is this the Input that grad(x: e) names?"""
    return node.op == point.op and node.attrs == point.attrs and node.kind is point.kind and not node.args and not point.args


def substituted(e: Typed, match: Callable[[Typed], bool], by: Typed) -> Typed:
    """The expression with another one in place of every node that matches; unchanged parts stay the same objects."""
    done: dict[int, Typed] = {}

    def visit(node: Typed) -> Typed:
        if id(node) not in done:
            if match(node):
                done[id(node)] = by
            else:
                args = tuple(visit(a) for a in node.args)
                same = all(a is b for a, b in zip(args, node.args, strict=True))
                done[id(node)] = node if same else replace(node, args=args)
        return done[id(node)]

    return visit(e)
