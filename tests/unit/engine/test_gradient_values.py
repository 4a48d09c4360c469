"""`grad(x: e)`, `grad(v = e: body)` and `grad(theta: e)` against autograd by hand, and how many passes they take."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from engine_tools import batchnorm, data, mlp, seeded, upper
from torch import Tensor, nn

Model = Callable[[Tensor], Tensor]
X, Y = data()


def ce(f: Model, v: Tensor) -> Tensor:
    return F.cross_entropy(f(v), Y, reduction="none")


def slope(e: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The gradient of every example's number, with its graph; `at` keeps its own."""
    v = at.view_as(at) if at.requires_grad else at.clone().requires_grad_()
    values = e(v)
    return torch.autograd.grad(values.sum(), v, create_graph=True)[0]


def sq(g: Tensor) -> Tensor:
    return (g * g).sum(1)


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)


def ce_slope(f: Model, v: Tensor) -> Tensor:
    return slope(lambda u: ce(f, u), v)


Hand = Callable[[Model], Tensor]
CASES: list[tuple[str, str, str, Hand, int]] = [
    ("alone", "", "norm(grad(x: CE(f(x), y)), 2)^2", lambda f: sq(ce_slope(f, X)), 1),
    ("bound", "", "norm(grad(v = x + 0.1: CE(f(v), y)), 2)^2", lambda f: sq(ce_slope(f, X + 0.1)), 1),
    ("beside its body", "", "CE(f(x), y) + norm(grad(x: CE(f(x), y)), 2)^2", lambda f: ce(f, X) + sq(ce_slope(f, X)), 1),
    ("after its body", "", "norm(grad(x: CE(f(x), y)), 2)^2 + CE(f(x), y)", lambda f: ce(f, X) + sq(ce_slope(f, X)), 1),
    ("bound at x beside its body", "", "CE(f(x), y) + norm(grad(v = x: CE(f(v), y)), 2)^2", lambda f: ce(f, X) + sq(ce_slope(f, X)), 1),
    ("of two bodies", "", "dot(grad(x: CE(f(x), y)), grad(v = x: f(v)[0]))", lambda f: dot(ce_slope(f, X), slope(lambda v: f(v)[:, 0], X)), 1),
    ("twice the same", "", "dot(grad(x: CE(f(x), y)), grad(v = x: CE(f(v), y)))", lambda f: sq(ce_slope(f, X)), 1),
    ("in a let", "let g = grad(x: CE(f(x), y))", "norm(g, 2)^2 + norm(g, 1)", lambda f: sq(ce_slope(f, X)) + ce_slope(f, X).abs().sum(1), 1),
    ("of a let", "let l = CE(f(x), y)", "l * norm(grad(x: l^2), 2)^2", lambda f: ce(f, X) * sq(slope(lambda v: ce(f, v) ** 2, X)), 1),
    (
        "in a def, at two points",
        "def G(v) = grad(u = v: CE(f(u), y))",
        "norm(G(x) - G(tanh(x)), 2)^2",
        lambda f: sq(ce_slope(f, X) - ce_slope(f, X.tanh())),
        2,
    ),
    (
        "of a def, whose argument is a constant",
        "def G(v) = grad(u = v: CE(f(u), y) * norm(u - 2*v, 2)^2)",
        "norm(G(x), 2)^2",
        lambda f: sq(slope(lambda u: ce(f, u) * sq(u - 2 * X), X)),
        1,
    ),
    ("stopped", "", "CE(f(x), y) * norm(stop(grad(x: CE(f(x), y))), 2)^2", lambda f: ce(f, X) * sq(ce_slope(f, X)).detach(), 1),
    ("of a stopped factor", "", "norm(grad(x: CE(f(x), y) * stop(f(x)[0])), 2)^2", lambda f: sq(slope(lambda v: ce(f, v) * f(v)[:, 0].detach(), X)), 1),
    (
        "with the point itself as a constant",
        "",
        "norm(grad(v = x: CE(f(v), y) * CE(f(x), y)), 2)^2",
        lambda f: sq(slope(lambda v: ce(f, v) * ce(f, X), X)),
        2,
    ),
    (
        "with the point itself as a stopped constant",
        "",
        "norm(grad(v = x: CE(f(v), y) * stop(CE(f(x), y))), 2)^2",
        lambda f: sq(slope(lambda v: ce(f, v) * ce(f, X).detach(), X)),
        2,
    ),
    (
        "with the named point twice",
        "",
        "norm(grad(x: CE(f(x), y) * CE(f(x), y)), 2)^2",
        lambda f: sq(slope(lambda v: ce(f, v) ** 2, X)),
        1,
    ),
    (
        "of a KL from the point itself",
        "",
        "CE(f(x), y) + norm(grad(v = x: KL(p(x) || p(v))), 2)^2",
        lambda f: ce(f, X) + sq(slope(lambda v: (f(X).softmax(1) * (f(X).log_softmax(1) - f(v).log_softmax(1))).sum(1), X)),
        2,
    ),
    (
        "of a CE from the point itself",
        "",
        "CE(f(x), y) + norm(grad(v = x: CE(f(v), y) + CE(p(x) || p(v))), 2)^2",
        lambda f: ce(f, X) + sq(slope(lambda v: ce(f, v) - (f(X).softmax(1) * f(v).log_softmax(1)).sum(1), X)),
        2,
    ),
    ("of the point beside", "", "CE(f(x), y) + norm(grad(v = x: dot(v, x) * f(v)[1]), 2)^2", lambda f: ce(f, X) + sq(slope(lambda v: dot(v, X) * f(v)[:, 1], X)), 1),
    (
        "of a gradient's norm",
        "",
        "norm(grad(x: norm(grad(x: CE(f(x), y)), 2)^2), 2)^2",
        lambda f: sq(slope(lambda v: sq(ce_slope(f, v)), X)),
        1,
    ),
    (
        "of a gradient's norm, bound at the outer point",
        "",
        "CE(f(x), y) + norm(grad(v = x: norm(grad(u = v: CE(f(u), y)), 2)^2), 2)^2",
        lambda f: ce(f, X) + sq(slope(lambda v: sq(ce_slope(f, v)), X)),
        1,
    ),
    (
        "of a gradient's norm, stopped",
        "",
        "CE(f(x), y) * norm(stop(grad(x: norm(grad(x: CE(f(x), y)), 2)^2)), 2)^2",
        lambda f: ce(f, X) * sq(slope(lambda v: sq(ce_slope(f, v)), X)).detach(),
        1,
    ),
    (
        "with a gradient at the same point as a constant",
        "",
        "norm(grad(v = x: dot(grad(u = x: CE(f(u), y)), v)), 2)^2",
        lambda f: sq(ce_slope(f, X)),
        1,
    ),
    (
        "along a gradient at the same point",
        "",
        "norm(grad(v = x: dot(grad(u = x: CE(f(u), y)), grad(w = v: CE(f(w), y)))), 2)^2",
        lambda f: sq(slope(lambda v: dot(ce_slope(f, X), ce_slope(f, v)), X)),
        2,
    ),
    (
        "three at one point, two of them apart",
        "",
        "CE(f(x), y) + norm(grad(u = x: CE(f(u), y)), 2)^2 + norm(grad(v = x: dot(grad(w = x: CE(f(w), y)), v)), 2)^2",
        lambda f: ce(f, X) + 2 * sq(ce_slope(f, X)),
        2,
    ),
    (
        "along a stopped gradient",
        "",
        "norm(grad(x: dot(stop(grad(x: CE(f(x), y))), grad(x: CE(f(x), y)))), 2)^2",
        lambda f: sq(slope(lambda v: dot(ce_slope(f, X).detach(), ce_slope(f, v)), X)),
        1,
    ),
    (
        "under a condition",
        "let c = norm(grad(x: CE(f(x), y)), 2) > 0.15",
        "CE(f(x), y) + if(c, norm(grad(x: CE(f(x), y)), 2), 0)",
        lambda f: ce(f, X) + torch.where(ce_slope(f, X).norm(dim=1) > 0.15, ce_slope(f, X).norm(dim=1), 0.0),
        1,
    ),
    (
        "in a batch mean",
        "",
        "batch_mean(CE(f(x), y)) + batch_mean(norm(grad(x: CE(f(x), y)), 2)^2 where norm(grad(x: CE(f(x), y)), 2) > 0.15)",
        lambda f: ce(f, X).mean() + (sq(ce_slope(f, X))[sq(ce_slope(f, X)) > 0.15**2]).mean(),
        1,
    ),
    (
        "of a maximum over classes",
        "",
        "norm(grad(x: max(j != y: f(x)[j]) - f(x)[y]), 2)^2",
        lambda f: sq(slope(lambda v: f(v).masked_fill(F.one_hot(Y, 4).bool(), -1e9).max(1).values - f(v).gather(1, Y[:, None])[:, 0], X)),
        1,
    ),
    (
        "of each entry by hand",
        "",
        "sum(k in 0..3: norm(grad(x: p(x)[k]), 2)^2)",
        lambda f: sum(sq(slope(lambda v, k=k: f(v).softmax(1)[:, k], X)) for k in range(4)),
        1,
    ),
    (
        "by a number of each example",
        "sample t ~ uniform(0, 1)",
        "grad(t: CE(f((1 + t) * x), y))^2",
        lambda f: slope(lambda t: ce(f, (1 + t).unsqueeze(1) * X), torch.rand(6, generator=seeded(), dtype=torch.float64)) ** 2,
        1,
    ),
]  # fmt: skip

THIRD_ORDER = {
    "of a gradient's norm",
    "of a gradient's norm, bound at the outer point",
    "along a gradient at the same point",
    "along a stopped gradient",
}
"""torch has no third derivative of batch_norm."""


class Counted(nn.Module):
    """The model, counting its passes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.passes = model, 0

    def forward(self, v: Tensor) -> Tensor:
        self.passes += 1
        return self.model(v)  # type: ignore[no-any-return]


def both(model: nn.Module, before: str, expression: str, hand: Hand) -> int:
    """Compares loss and gradients; the number of passes of ours."""
    ours = Counted(copy.deepcopy(model))
    loss = upper(expression, ours, before=before)(X, Y, generator=seeded())
    theirs = copy.deepcopy(model).train()
    value = hand(theirs).mean()
    assert float(loss.detach()) == pytest.approx(float(value.detach()), rel=1e-10, abs=1e-14)
    found = torch.autograd.grad(loss, list(ours.parameters()), allow_unused=True)
    wanted = torch.autograd.grad(value, list(theirs.parameters()), allow_unused=True)
    size = torch.cat([g.flatten() for g in wanted if g is not None]).norm()
    assert size > 1e-6
    for a, b in zip(found, wanted, strict=True):
        assert ((0 if a is None else a) - (0 if b is None else b)).norm() < 1e-9 * size if a is not None or b is not None else True
    return ours.passes


@pytest.mark.parametrize(("before", "expression", "hand", "passes"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_against_autograd(before: str, expression: str, hand: Hand, passes: int) -> None:
    assert both(mlp(), before, expression, hand) == passes


COUPLED = [c for c in CASES if c[0] not in THIRD_ORDER]


@pytest.mark.parametrize(("before", "expression", "hand", "passes"), [c[1:] for c in COUPLED], ids=[c[0] for c in COUPLED])
def test_with_batchnorm_in_train_mode(before: str, expression: str, hand: Hand, passes: int) -> None:
    """The gradient of an example's number is that of the sum: the statistics of the batch couple the examples."""
    assert both(batchnorm(), before, expression, hand) == passes
