"""Bregman divergences: generators that are recognised, others by differentiation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from engine_tools import BY, Logits, data, gradients, mlp, seeded, step_of, upper
from torch import Tensor

import lossdsl
from lossdsl.check.typed import show
from lossdsl.engine.reference import Reference
from lossdsl.plan.ir import codes

RECOGNISED = {
    "-H(p)": "KL(p(x) || p(x'))",
    "sum(j: p[j] * log(p[j]))": "KL(p(x) || p(x'))",
    "sum(j: log(p[j]) * p[j]) - 3": "KL(p(x) || p(x'))",
    "sum(j: p[j]^2)": "SE(p(x), p(x'))",
    "sum(i: p[i] * p[i]) / 2": "0.5 * SE(p(x), p(x'))",
    "2 - 3 * H(p) + p[0] * 7": "3 * KL(p(x) || p(x'))",
    "a * sum(j: 2 * p[j] * log(p[j]) + p[j]^2 - p[j] / K)": "3 * KL(p(x) || p(x')) + 1.5 * SE(p(x), p(x'))",
    "-(H(p) - sum(j: p[j]^2)) + sum(j: p[j] * log(p[j]))": "2 * KL(p(x) || p(x')) + SE(p(x), p(x'))",
    "mean(j: p[j]^2)": "1 / K * SE(p(x), p(x'))",
    "CE(p, p) * -1": "KL(p(x) || p(x'))",
}


def divergence(generator: str) -> str:
    level = "lower x' in linf(x, 0.3) maximize CE(f(x'), y) by pgd(steps = 1, step = 0.3, start = uniform)"
    return f"param a = 1.5\n{level}\ngenerator psi(p) = {generator}\nupper minimize CE(f(x), y) + D[psi](p(x) || p(x')) {BY}"


@pytest.mark.parametrize("generator", RECOGNISED)
def test_known_generators_are_exactly_their_divergence(generator: str) -> None:
    objective = lossdsl.parse(f"recipe r\n{divergence(generator)}").typed.objective
    assert objective is not None and show(objective.args[1]) == RECOGNISED[generator]


def test_a_part_that_is_not_known_is_all_that_is_differentiated() -> None:
    typed = lossdsl.parse("recipe r\n" + divergence("sum(j: p[j]^3 + p[j]^2 + p[j]) - H(p) + sqrt(1 + p[0]^2)")).typed
    assert typed.objective is not None
    known, rest = typed.objective.args[1].args
    assert show(known) == "SE(p(x), p(x')) + KL(p(x) || p(x'))"
    assert show(rest.args[2]) == "sum(k: p[k] ^ 3) + sqrt(1 + p[0] ^ 2)"


OTHERS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    # psi and its gradient, by hand
    "sum(j: p[j]^3)": (lambda p: (p**3).sum(-1), lambda p: 3 * p**2),
    "-sum(j: log(p[j]))": (lambda p: -p.log().sum(-1), lambda p: -1 / p),
    "sum(j: p[j]^1.5)": (lambda p: (p**1.5).sum(-1), lambda p: 1.5 * p**0.5),
    "log(sum(j: p[j]^2))": (lambda p: (p**2).sum(-1).log(), lambda p: 2 * p / (p**2).sum(-1, keepdim=True)),
    "logsumexp(j: 3 * p[j])": (lambda p: (3 * p).logsumexp(-1), lambda p: 3 * (3 * p).softmax(-1)),
    "p[0]^4 + p[1] * p[2]": (lambda p: p[..., 0] ** 4 + p[..., 1] * p[..., 2], lambda p: torch.stack([4 * p[..., 0] ** 3, p[..., 2], p[..., 1], 0 * p[..., 3]], -1)),
    "sum(j: log(p[j]) * p[j]^2)": (lambda p: (p.log() * p**2).sum(-1), lambda p: 2 * p * p.log() + p),
}  # fmt: skip


def by_hand(generator: str, p: Tensor, q: Tensor) -> Tensor:
    psi, slope = OTHERS[generator]
    return psi(p) - psi(q) - (slope(q) * (p - q)).sum(-1)


@pytest.mark.parametrize("generator", OTHERS)
def test_other_generators_have_value_and_gradient_of_the_definition(generator: str) -> None:
    model, (x, y) = mlp(), data()
    step = step_of(divergence(generator), model)
    solutions = step.solve(x, y, generator=seeded())
    loss = step.objective(x, y, solutions)
    p, q = model(x).softmax(-1), model(solutions["x'"]).softmax(-1)
    expected = torch.nn.functional.cross_entropy(model(x), y) + by_hand(generator, p, q).mean()
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-12, atol=1e-14)
    oracle = Reference(step.recipe.typed, model, 4).objective(x, y, solutions)
    torch.testing.assert_close(oracle.detach(), expected.detach(), rtol=1e-12, atol=1e-14)
    for a, b in zip(gradients(loss, model), gradients(expected, model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "stopped", ["D[psi](stop(p(x)) || p(x'))", "D[psi](p(x) || stop(p(x')))", "D[psi](p(x') || onehot(y)) + D[psi](onehot(y) || p(x'))"]
)
def test_gradients_by_finite_differences(stopped: str) -> None:
    """Each argument alone, and a target with zeros."""
    model, (x, y) = mlp(), data()
    text = divergence("sum(j: p[j]^3) + log(1 + p[0]^2)").replace("D[psi](p(x) || p(x'))", stopped)
    step = step_of(text, model)
    solutions = step.solve(x, y, generator=seeded())
    weight = next(model.parameters())
    slope = gradients(step.objective(x, y, solutions), model)[0][1, 2]
    frozen = {"stop(p(x))": x, "stop(p(x'))": solutions["x'"]}
    held = next((model(at).softmax(-1).detach() for part, at in frozen.items() if part in stopped), None)

    def value() -> float:
        p, q = model(x).softmax(-1), model(solutions["x'"]).softmax(-1)
        hot = torch.nn.functional.one_hot(y, 4).double()
        pairs = [(q, hot), (hot, q)] if held is None else [(held, q)] if "stop(p(x))" in stopped else [(p, held)]

        def psi(v: Tensor) -> Tensor:
            return (v**3).sum(-1) + torch.log(1 + v[:, 0] ** 2)

        total = torch.nn.functional.cross_entropy(model(x), y)
        for a, b in pairs:
            at = b.detach().requires_grad_()
            gradient = torch.autograd.grad(psi(at).sum(), at)[0]
            total = total + (psi(a) - psi(b) - (gradient * (a - b)).sum(-1)).mean()
        return float(total.detach())

    ends = []
    for move in (1e-6, -2e-6):
        with torch.no_grad():
            weight[1, 2] += move
        ends.append(value())
    assert float(slope) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5)


@pytest.mark.parametrize("generator", [g for g in OTHERS if "p[1] * p[2]" not in g])
def test_a_lower_level_climbs_a_divergence(generator: str) -> None:
    """Input gradients in eval mode, where nothing else is differentiated."""
    model, (x, y) = mlp(), data()
    text = f"generator psi(q) = {generator.replace('p[', 'q[')}\nlower x' in linf(x, 0.1) maximize D[psi](p(x) || p(x')) by pgd(steps = 1, step = 0.1, start = x + 0.01)\n"
    found = upper("CE(f(x'), y)", model, before=text).solve(x, y)["x'"]
    start = (x + 0.01).requires_grad_()
    q = model(start).softmax(-1)
    slope = torch.autograd.grad(by_hand(generator, model(x).softmax(-1).detach(), q).sum(), start)[0]
    torch.testing.assert_close(found, (x + 0.01 + 0.1 * slope.sign()).clamp(x - 0.1, x + 0.1).detach())


@pytest.mark.parametrize("generator", ["-sum(j: log(p[j]))", "sum(j: p[j]^1.5)", "sum(j: p[j]^3)", "sum(j: log(p[j])^2)"])
@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])
def test_probabilities_that_underflow(generator: str, size: float) -> None:
    """Finite in float32 whatever the logits; where no probability is below 1e-30 it is the definition in double precision."""
    model, before = Logits(torch.float32), f"input x in reals\ngenerator psi(p) = {generator}\n"
    z = size * torch.tensor([[1.0, 0.0, -1.0], [0.1, 1.0, 0.3], [0.0, 0.0, 0.0]])
    y = torch.tensor([0, 1, 2])
    loss = upper("D[psi](p(-x) || p(x)) + D[psi](onehot(y) || p(x))", model, 3, before=before)(z, y)
    (slope,) = gradients(loss, model)
    assert torch.isfinite(loss.detach()) and torch.isfinite(slope)
    if size > 1:
        return
    step = upper("D[psi](p(-x) || p(x))", model, 3, before=before)
    wide = Logits()
    expected = Reference(step.recipe.typed, wide, 3).objective(z.double(), y, {})
    value = step(z, y)
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert float(gradients(value, model)[0]) == pytest.approx(float(gradients(expected, wide)[0]), rel=1e-5)


def test_a_small_divergence_is_accurate_in_single_precision() -> None:
    """psi(p) - psi(q) - <..> cancels; it is taken in double precision."""
    model = Logits(torch.float32)
    z = torch.tensor([[0.3, -0.2, 0.5]])
    loss = upper("D[psi](p(1.0001 * x) || p(x))", model, 3, before="input x in reals generator psi(p) = sum(j: p[j]^3)\n")(
        z, torch.tensor([0])
    )
    p, q = ((1.0001 * z).softmax(-1).double(), z.softmax(-1).double())
    expected = (p**3 - q**3 - 3 * q**2 * (p - q)).sum()
    assert 0 < float(expected) < 1e-8 and float(loss.detach()) == pytest.approx(float(expected), rel=1e-3)


def test_a_generator_shared_by_a_file_is_also_a_def() -> None:
    text = f"generator psi(q) = sum(j: q[j]^3)\nrecipe r\nupper minimize CE(f(x), y) + psi(p(x)) {BY}"
    model, (x, y) = mlp(), data()
    loss = lossdsl.compile(lossdsl.parse(text), model, num_classes=4)(x, y)
    expected = torch.nn.functional.cross_entropy(model(x), y) + (model(x).softmax(-1) ** 3).sum(-1).mean()
    torch.testing.assert_close(loss.detach(), expected.detach())


def test_recognised_generators_cost_what_the_divergence_costs() -> None:
    one, other = (
        lossdsl.parse("recipe r\n" + divergence("-H(p)").replace("D[psi](p(x) || p(x'))", text)).plan
        for text in ("D[psi](p(x) || p(x'))", "KL(p(x) || p(x'))")
    )
    assert [i.op for code in codes(one) for i in code] == [i.op for code in codes(other) for i in code]
    general = lossdsl.parse("recipe r\n" + divergence("sum(j: p[j]^3)")).plan
    assert str(general).splitlines()[-1] == str(one).splitlines()[-1], "a generator takes no pass through the model"
