"""Inputs of any rank, precision and domain."""

from __future__ import annotations

import pytest
import torch
from engine_tools import Flat, data, gradients, mlp, moody, seeded, step_of, upper
from torch import Tensor, nn

import lossdsl
from lossdsl import UserError
from lossdsl.assets import recipe_paths
from lossdsl.engine.reference import Reference

SHAPES = [(), (5,), (3, 4), (3, 4, 4), (2, 1, 3, 3)]
BY = "by sgd(lr = 0.1)"

GEOMETRY = (
    "sample e ~ normal(0.01)\nsample r ~ uniform(0, 1) over example\n"
    "lower x' in linf(x, 0.1) maximize KL(p(x) || p(x')) * (1 + norm(x' - x, 2)) by pgd(steps = 2, step = 0.05, start = x + r * e)\n"
    "lower z in l2(x', 0.2 * p(x)[y]) maximize CE(f(z), y) - dot(z, x) by pgd(steps = 2, step = 0.1, start = uniform, restarts = 2)\n"
    "lower v[j != y] in l1(x, 0.3) maximize f(v[j])[j] - norm(v[j] - x, inf) by pgd(steps = 2, step = 0.2, start = corner)\n"
    "upper minimize CE(f(r * x + (1 - r) * x'), y) + norm(z - x, 1) * norm(unit(x' - x), 2) * H(p(z)) + cos(x', z) * CE(f(x), y)"
    " + sum(j != y: CE(f(v[j]), y) * norm(p(x)[j] * v[j] - x, inf)) + H(p(if(f(x)[y] > 0, x, x'))) by sgd(lr = 0.1)"
)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_inputs_of_any_rank(shape: tuple[int, ...]) -> None:
    model, (x, y) = mlp(shape), data(6, shape)
    step = step_of(GEOMETRY, model)
    found = step.solve(x, y, generator=seeded())
    assert found["x'"].shape == x.shape and found["v"].shape == (6, 3, *shape)
    assert float((found["x'"] - x).abs().max()) <= 0.1 + 1e-12
    loss, expected = step.objective(x, y, found), Reference(step.recipe.typed, model, 4).objective(x, y, found)
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-9, atol=1e-10)
    for a, b in zip(gradients(loss, model), gradients(expected, model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(recipe_paths()))
def test_every_shipped_recipe_in_single_and_double_precision(name: str, dtype: torch.dtype) -> None:
    model, (x, y) = mlp((3, 4, 4), dtype=dtype), data(6, (3, 4, 4), dtype=dtype)
    helpers = {other: mlp((3, 4, 4), dtype=dtype) for other in lossdsl.load(name).models}
    loss = lossdsl.compile(name, model, num_classes=4, models=helpers)(x, y, generator=seeded(), index=torch.arange(6))
    loss.backward()
    assert loss.dtype == dtype and bool(loss.isfinite())
    assert all(p.grad.dtype == dtype and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_single_precision_agrees_with_double() -> None:
    losses = []
    for dtype in (torch.float32, torch.float64):
        x, y = data(dtype=dtype)
        text = "lower x' in linf(x, 0.1) maximize KL(p(x) || p(x')) by ascent(steps = 3, step = 1, start = 0.9 * x)\nupper minimize CE(f(x'), y) + JS(p(x) || p(x')) by sgd(lr = 0.1)"
        losses.append(float(step_of(text, mlp(dtype=dtype))(x, y).detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_bfloat16_autocast() -> None:
    """Logits come back as float32; the losses are computed there."""
    model, (x, y) = moody(torch.float32).eval(), data(dtype=torch.float32)
    step = lossdsl.compile("trades", model, num_classes=4)
    dtypes: list[torch.dtype] = []
    model.register_forward_hook(lambda _m, _i, out: dtypes.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        found = step.solve(x, y, generator=seeded())
        loss = step.objective(x, y, found)
    assert set(dtypes) == {torch.bfloat16} and loss.dtype == torch.float32 and found["x'"].dtype == torch.float32
    assert float((found["x'"] - x).abs().max()) <= 8 / 255 + 1e-6
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and bool(p.grad.isfinite().all()) for p in model.parameters())


class Half(nn.Module):
    """Computes its logits in float32 and returns them in half precision."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype = mlp(dtype=torch.float32), dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).to(self.dtype)  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["trades", "mart", "beta_at", "fait"])
def test_a_model_that_returns_half_precision(dtype: torch.dtype, name: str) -> None:
    model, (x, y) = Half(dtype), data(dtype=torch.float32)
    loss = lossdsl.compile(name, model, num_classes=4)(x, y, generator=seeded())
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_a_model_and_inputs_in_half_precision() -> None:
    x, y = data(dtype=torch.bfloat16)
    loss = lossdsl.compile("trades", mlp(dtype=torch.bfloat16), num_classes=4)(x, y, generator=seeded())
    loss.backward()
    assert bool(loss.isfinite())


# --- domains ---


def test_solutions_stay_in_the_domain() -> None:
    x = data(8, (3, 2, 2))[0] * 0.02
    text = "{}\nlower x' in linf(x, 0.5) minimize f(x')[y] - sum(j: f(x')[j]) by pgd(steps = 3, step = 0.4, start = corner)\nupper minimize CE(f(x'), y) by sgd(lr = 0.1)"
    y = data(8)[1]
    for domain, low, high in (("", 0, 1), ("input x in [-0.25, 2]", -0.25, 2), ("input x in reals", -0.5, 3)):
        found = step_of(text.format(domain), mlp((3, 2, 2))).solve(x, y, generator=seeded())["x'"]
        assert low - 1e-12 <= float(found.min()) < low + 0.05 and float(found.max()) <= high


def test_a_perturbation_is_not_held_in_the_domain() -> None:
    x, y = data()
    text = "lower d in linf(0, 0.5) maximize CE(f(x + d), y) by pgd(steps = 1, step = 0.1, start = corner)\nupper minimize CE(f(x + d), y) by sgd(lr = 0.1)"
    found = step_of(text, mlp()).solve(x, y, generator=seeded())["d"]
    assert float(found.min()) < -0.3 and float(found.max()) > 0.3


def test_reals_take_any_finite_input() -> None:
    x, y = data()
    step = upper("CE(f(x), y)", mlp(), before="input x in reals")
    assert bool(step(100 * x - 50, y).isfinite())
    with pytest.raises(UserError, match="example 0 holds NaN"):
        step(x / torch.tensor([0.0, 1, 1, 1, 1]), y)


CHANNELS = "input x in [[0, 0, 0.5], [1, 0.5, 1]]\n"
RANGES = torch.tensor([[0.0, 1.0], [0.0, 0.5], [0.5, 1.0]], dtype=torch.float64)


def test_a_range_per_channel() -> None:
    x, y = data(6, (3, 4, 4))
    x = RANGES[:, :1, None] + (RANGES[:, 1:, None] - RANGES[:, :1, None]) * x
    text = f"{CHANNELS}lower x' in linf(x, 2) maximize CE(f(x'), y) by pgd(steps = 2, step = 1, start = uniform)\nupper minimize CE(f(x'), y) {BY}"
    step = step_of(text, mlp((3, 4, 4)))
    found = step.solve(x, y, generator=seeded())["x'"]
    for channel, (low, high) in enumerate(RANGES.tolist()):
        values = found[:, channel]
        assert float(values.min()) == low and float(values.max()) == high
    for channel, value in ((1, 0.75), (2, 0.25)):
        bad = x.clone()
        bad[3, channel, 1, 2] = value
        with pytest.raises(UserError, match="x: example 3 lies outside the input domain"):
            step(bad, y)


@pytest.mark.parametrize("shape", [(3,), (3, 4)])
def test_a_range_per_channel_of_other_ranks(shape: tuple[int, ...]) -> None:
    x, y = data(6, shape)
    ranges = RANGES.reshape(3, 2, *[1] * (len(shape) - 1))
    x = ranges[:, 0] + (ranges[:, 1] - ranges[:, 0]) * x
    text = f"{CHANNELS}lower x' in linf(x, 2) maximize CE(f(x'), y) by pgd(steps = 2, step = 1, start = uniform)\nupper minimize CE(f(x'), y) {BY}"
    found = step_of(text, mlp(shape)).solve(x, y, generator=seeded())["x'"]
    assert bool(((found >= ranges[:, 0]) & (found <= ranges[:, 1])).all())


# --- devices ---


def test_batches_are_moved_to_the_device() -> None:
    """The meta device stands in for an accelerator: what is moved there has no values, so only shapes and places are seen."""
    x, y = data()
    seen: list[str] = []

    class Stop(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.device.type)
            raise LookupError("far enough")

    step = upper("CE(f(x), y)", Stop(), device="meta", check=False)
    with pytest.raises(UserError, match="far enough"):
        step(x, y)
    assert seen == ["meta"] and x.device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(recipe_paths()))
def test_a_step_on_a_gpu_is_that_on_the_cpu(name: str) -> None:
    x, y = data(6, (3, 4, 4))
    found = {}
    others, index = lossdsl.load(name).models, torch.arange(6)
    on_cpu = {other: mlp((3, 4, 4)) for other in others}
    solutions = lossdsl.compile(name, mlp((3, 4, 4)), num_classes=4, models=on_cpu).solve(x, y, generator=seeded(), index=index)
    for device in ("cpu", "cuda"):
        model, helpers = mlp((3, 4, 4)).to(device), {other: mlp((3, 4, 4)).to(device) for other in others}
        step = lossdsl.compile(name, model, num_classes=4, device=device, models=helpers)
        loss = step.objective(x, y, {k: v.to(device) for k, v in solutions.items()}, index=index)
        loss.backward()
        assert step(x, y, generator=torch.Generator(device).manual_seed(1), index=index).device.type == device
        found[device] = [loss.detach().cpu(), *(p.grad.cpu() for p in model.parameters())]
    for a, b in zip(found["cpu"], found["cuda"], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.gpu
def test_a_range_per_channel_on_a_gpu() -> None:
    x, y = data(6, (3, 4, 4))
    x = RANGES[:, :1, None] + (RANGES[:, 1:, None] - RANGES[:, :1, None]) * x
    text = f"{CHANNELS}lower x' in linf(x, 2) maximize CE(f(x'), y) by pgd(steps = 2, step = 1, start = uniform)\nupper minimize CE(f(x'), y) {BY}"
    assert bool(step_of(text, mlp((3, 4, 4)).cuda(), device="cuda")(x, y).isfinite())


def test_inputs_that_require_a_gradient_get_none() -> None:
    x, y = data()
    x.requires_grad_()
    upper("CE(f(x), y)", mlp())(x, y).backward()
    assert x.grad is None


def test_non_contiguous_batches() -> None:
    x, y = data(6, (4, 3))
    model = Flat(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    step = lossdsl.compile("trades", model, num_classes=4)
    a = step(x.transpose(1, 2), y, generator=seeded())
    b = step(x.transpose(1, 2).contiguous(), y, generator=seeded())
    torch.testing.assert_close(a.detach(), b.detach())
    assert bool(step(x[::2], y[::2]).isfinite())
    assert bool(step(x[:1].expand(6, 4, 3), y).isfinite())
