"""Operations registered from Python: used like the built-in ones, or refused at the door."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from engine_tools import BY, data, gradients, mlp, seeded, step_of, upper
from torch import Tensor

import lossdsl
from lossdsl import UserError
from lossdsl.engine.kernels import KERNELS
from lossdsl.lang.ops import OPERATIONS


@pytest.fixture(autouse=True)
def tables() -> Iterator[None]:
    """Operations of a test end with it."""
    before = dict(OPERATIONS), dict(KERNELS)
    yield
    for table, content in zip((OPERATIONS, KERNELS), before, strict=True):
        table.clear()
        table.update(content)


def focal() -> None:
    """As in the docstring of lossdsl.operation."""

    @lossdsl.operation("focal", "Logits, Label -> Real", formula="-(1 - p_y)^2 log p_y", low=0)
    def focal(z: Tensor, y: Tensor) -> Tensor:
        logs = z.log_softmax(-1).gather(-1, y.unsqueeze(-1)).squeeze(-1)
        return -((1 - logs.exp()) ** 2) * logs


BUILT_IN = "(1 - p({0})[y])^2 * CE(f({0}), y)"


def same(a: str, b: str, before: str = "") -> None:
    """Value and gradient of two upper objectives."""
    model, (x, y) = mlp(), data()
    one, two = (step_of(f"{before}upper minimize {text} {BY}", model)(x, y, generator=seeded()) for text in (a, b))
    torch.testing.assert_close(one.detach(), two.detach())
    for g, h in zip(gradients(one, model), gradients(two, model), strict=True):
        torch.testing.assert_close(g, h)


def test_an_operation_is_used_like_a_built_in_one() -> None:
    focal()
    same("focal(f(x), y)", BUILT_IN.format("x"))
    level = "lower x' in linf(x, 0.1) maximize {} by pgd(steps = 3, step = 0.05, start = x)\n"
    model, (x, y) = mlp(), data()
    found = [
        step_of(level.format(t) + f"upper minimize CE(f(x'), y) {BY}", model).solve(x, y)["x'"]
        for t in ("focal(f(x'), y)", BUILT_IN.format("x'"))
    ]
    torch.testing.assert_close(found[0], found[1])


FAMILY = "lower x'[j != y] in linf(x, 0.1) maximize f(x'[j])[j] by pgd(steps = 1, step = 0.05, start = uniform)\n"


def test_the_operation_of_the_docstring_over_a_family() -> None:
    focal()
    same("sum(j != y: focal(f(x'[j]), y))", f"sum(j != y: {BUILT_IN.format('x' + chr(39) + '[j]')})", FAMILY)


def test_the_operation_of_the_docstring_at_every_class() -> None:
    @lossdsl.operation("nll", "Logits, Label|Class -> Real")
    def nll(z: Tensor, y: Tensor) -> Tensor:
        return -z.log_softmax(-1).gather(-1, y.unsqueeze(-1)).squeeze(-1)

    same("sum(j: nll(f(x), j) * p(x)[j])", "sum(j: CE(f(x), j) * p(x)[j])")


def test_every_kind_arrives_in_its_shape() -> None:
    seen: list[tuple[int, ...]] = []

    @lossdsl.operation("look", "Input, Logits, Prob, Label, Real, Const -> Real")
    def look(v: Tensor, z: Tensor, p: Tensor, y: Tensor, r: Tensor, c: Tensor) -> Tensor:
        seen.extend(tuple(t.shape) for t in (v, z, p, y, r, c))
        assert y.dtype == torch.long and bool((p <= 0).all())
        return z.sum(-1) * r * c

    same("look(x, f(x), p(x), y, f(x)[0], 3)", "sum(j: f(x)[j]) * f(x)[0] * 3")
    assert seen == [(6, 5), (6, 4), (6, 4), (6,), (6,), ()]


def test_the_range_of_an_operation_is_known_to_the_checker() -> None:
    @lossdsl.operation("share", "Logits -> Real", low=0, high=1)
    def share(z: Tensor) -> Tensor:
        return z.sigmoid()[..., 0]

    model, (x, y) = mlp(), data()
    loss = upper("KL(share(f(x)) * p(x) + (1 - share(f(x))) * onehot(y) || p(x))", model)(x, y)
    assert bool(loss.isfinite())


@pytest.mark.parametrize("name", ["KL", "max", "softmax", "f", "x", "K", "stop", "log_softmax", "add"])
def test_taken_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"operation {name}: the name is taken"):
        lossdsl.operation(name, "Logits -> Real")


@pytest.mark.parametrize("name", ["fooled", "linf", "normal", "lower", "maximize", "grad", "inf", "theta", "uniform", "where"])
def test_names_that_mean_something_else_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="taken"):
        lossdsl.operation(name, "Logits -> Real")


@pytest.mark.parametrize("name", ["my-loss", "2x", "", "a b", "class"])
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="is not a name"):
        lossdsl.operation(name, "Logits -> Real")


@pytest.mark.parametrize("signature", ["Logits", "Logit -> Real", "Logits -> Reel", "-> Real", "", "Logits => Real", "Logits, -> Real"])
def test_signatures_that_cannot_be_read_are_refused(signature: str) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        lossdsl.operation("mine", signature)
    assert "mine" not in OPERATIONS


def test_a_refused_name_leaves_the_tables_alone() -> None:
    before = set(KERNELS)
    lossdsl.operation("mine", "Logits -> Real")
    assert set(KERNELS) == before and "mine" not in OPERATIONS, "only the decorated function enters the tables"
