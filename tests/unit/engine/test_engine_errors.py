"""What a user can do wrong: each message names the place, the fault and the way out, and leaves the model as it was."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from engine_tools import data, mlp, step_of, upper
from torch import Tensor, nn

import lossdsl
from lossdsl import UserError

ATTACK = "lower x' in linf(x, 0.1) maximize CE(f(x'), y) by pgd(steps = 2, step = 0.05, start = x)\n"


def trades_like(model: nn.Module, classes: int = 4, **options: object) -> object:
    return step_of(f"{ATTACK}upper minimize CE(f(x), y) + KL(p(x) || p(x')) by sgd(lr = 0.1)", model, classes, **options)


def spoilt(change: Callable[[Tensor, Tensor], tuple[object, object]]) -> tuple[object, object]:
    return change(*data())


def put(t: Tensor, index: tuple[int, ...] | int, value: float) -> Tensor:
    t = t.clone()
    t[index] = value
    return t


BATCHES = {
    "label too large": (lambda x, y: (x, put(y, 2, 4)), r"y: the label of example 2 is 4, and classes are 0\.\.3"),
    "label negative": (lambda x, y: (x, put(y, 5, -1)), r"y: the label of example 5 is -1, and classes are 0\.\.3"),
    "NaN": (lambda x, y: (put(x, (3, 1), math.nan), y), r"x: example 3 holds NaN or an infinity"),
    "infinity": (lambda x, y: (put(x, (0, 4), math.inf), y), r"x: example 0 holds NaN or an infinity"),
    "above the domain": (lambda x, y: (put(x, (1, 0), 1.01), y), r"x: example 1 lies outside the input domain: its values run from .* to 1\.01"),
    "below the domain": (lambda x, y: (put(x, (4, 0), -0.2), y), r"x: example 4 lies outside the input domain: its values run from -0\.2 to "),
    "pixels": (lambda x, y: ((255 * x), y), r"outside the input domain[\s\S]*scale the data"),
    "integer inputs": (lambda x, y: ((255 * x).to(torch.uint8), y), r"x: inputs are floating-point tensors, and this is torch\.uint8[\s\S]*x\.float\(\) / 255"),
    "integer inputs, long": (lambda x, y: (x.long(), y), r"x: inputs are floating-point tensors, and this is torch\.int64"),
    "not a tensor": (lambda x, y: (x.numpy(), y), r"x: inputs are floating-point tensors, and this is ndarray"),
    "labels as one-hot": (lambda x, y: (x, torch.eye(4)[y]), r"y: labels are class indices of shape \[batch\], and this is torch\.float32 of shape \[6, 4\]"),
    "labels as a column": (lambda x, y: (x, y[:, None]), r"this is torch\.int64 of shape \[6, 1\]"),
    "labels as booleans": (lambda x, y: (x, y > 1), r"this is torch\.bool of shape \[6\]"),
    "labels as a list": (lambda x, y: (x, y.tolist()), r"y: labels are class indices of shape \[batch\], and this is list"),
    "fewer labels": (lambda x, y: (x, y[:5]), r"x, y: x has shape \[6, 5\] and y has 5 labels"),
    "empty": (lambda x, y: (x[:0], y[:0]), r"x, y: the batch is empty"),
    "no batch dimension": (lambda x, y: (x[0, 0], y[:1]), r"x, y: x has shape \[\]"),
    "another width": (lambda x, y: (x[:, :4], y), r"<text>:3:\d+: the model failed on f\(x\), shapes \[6, 4\]: "),
}  # fmt: skip


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("method", ["__call__", "solve"])
def test_a_bad_batch_is_explained(name: str, method: str) -> None:
    change, message = BATCHES[name]
    model = mlp().train()
    step = upper("CE(f(x), y)", model, before=f"{ATTACK}") if method == "__call__" else trades_like(model)
    if name == "another width":
        message = message.replace("<text>:3", r"<text>:\d").replace(r"f\(x\)", r"f\(x'?\)")
    with pytest.raises(UserError, match=message):
        getattr(step, method)(*spoilt(change))
    assert all(p.requires_grad for p in model.parameters()) and all(m.training for m in model.modules())


def test_values_are_not_looked_at_without_check() -> None:
    x, y = data()
    loss = upper("CE(f(x), y)", mlp(), check=False)(x + 3, y)
    assert bool(loss.isfinite())
    with pytest.raises(UserError, match="floating-point"):
        upper("CE(f(x), y)", mlp(), check=False)(x.long(), y)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_labels_of_any_integer_type(kind: torch.dtype) -> None:
    x, y = data()
    text = "CE(f(x), y) + error(f(x), y) + CE(f(x), smooth(y, 0.1))"
    torch.testing.assert_close(upper(text, mlp())(x, y.to(kind)).detach(), upper(text, mlp())(x, y).detach())


# --- models ---


class Wrapped(nn.Module):
    """A model whose result is changed on the way out."""

    def __init__(self, change: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.inner, self.change = mlp(), change

    def forward(self, x: Tensor) -> object:
        return self.change(self.inner(x))


MODELS = {
    "too few classes": (lambda z: z[:, :3], r"model: the model returned shape \[6, 3\] where \[batch, classes\] = \[6, 4\] is expected[\s\S]*num_classes"),
    "one number": (lambda z: z.sum(), r"model: the model returned shape \[\] where"),
    "a feature map": (lambda z: z[:, :, None], r"model: the model returned shape \[6, 4, 1\] where"),
    "another batch": (lambda z: z[:5], r"model: the model returned shape \[5, 4\] where"),
    "a tuple": (lambda z: (z, z), r"model: the model returned tuple, not a tensor of logits[\s\S]*return the logits alone"),
    "a dict": (lambda z: {"logits": z}, r"model: the model returned dict"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_bad_model_is_explained(name: str) -> None:
    change, message = MODELS[name]
    model = Wrapped(change)
    for step in (upper("CE(f(x), y)", model), trades_like(model)):
        with pytest.raises(UserError, match=message):
            step(*data())


def test_a_failure_inside_the_model_names_the_line_the_point_and_the_shapes() -> None:
    def fail(z: Tensor) -> Tensor:
        raise RuntimeError("out of luck")

    model = Wrapped(fail)
    with pytest.raises(UserError, match=r"<text>:3:\d+: the model failed on f\(x\), shapes \[6, 5\]: out of luck") as caught:
        upper("CE(f(x), y)", model)(*data())
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(UserError, match=r"<text>:2:\d+: the model failed on f\(x'\), shapes \[6, 5\]: out of luck"):
        step_of(f"{ATTACK}upper minimize CE(f(x'), y) by sgd(lr = 0.1)", model)(*data())


def test_a_failing_operation_names_the_line_the_operation_and_the_shapes() -> None:
    @lossdsl.operation("unlucky", "Logits, Label -> Real")
    def unlucky(z: Tensor, y: Tensor) -> Tensor:
        raise ValueError("no such luck")

    try:
        with pytest.raises(UserError, match=r"<text>:2:30: unlucky failed on unlucky\(f\(x\), y\), shapes \[6, 4\], \[6\]: no such luck"):
            step_of("upper minimize CE(f(x), y) + unlucky(f(x), y) by sgd(lr = 0.1)", mlp())(*data())
    finally:
        forget("unlucky")


def forget(name: str) -> None:
    from lossdsl.engine.kernels import KERNELS
    from lossdsl.lang.ops import OPERATIONS

    del KERNELS[name], OPERATIONS[name]


def test_out_of_memory_is_not_dressed_up() -> None:
    def fail(z: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("the device is full")

    with pytest.raises(torch.OutOfMemoryError):
        upper("CE(f(x), y)", Wrapped(fail))(*data())


def test_weights_that_are_not_finite_are_found_in_the_lower_level() -> None:
    model = mlp()
    with torch.no_grad():
        next(model.parameters())[0, 0] = math.nan
    with pytest.raises(UserError, match=r"x': the objective of example 0 is nan at iterate 0"):
        trades_like(model)(*data())


# --- compile ---


def test_compile_refuses_what_is_not_a_model() -> None:
    for wrong, name in ((lambda x: x, "function"), (mlp, "function"), (None, "NoneType"), (nn.Linear, "type")):
        with pytest.raises(UserError, match=f"compile: the model is a {name}, not a torch.nn.Module"):
            lossdsl.compile("trades", wrong, num_classes=10)


@pytest.mark.parametrize("classes", [0, 1, -3, 2.0, True, None, "10"])
def test_compile_refuses_a_wrong_number_of_classes(classes: object) -> None:
    with pytest.raises(UserError, match="compile: num_classes is"):
        lossdsl.compile("trades", mlp(), num_classes=classes)


def test_compile_refuses_an_empty_chunk_and_an_unknown_recipe() -> None:
    with pytest.raises(UserError, match="compile: chunk is 0"):
        lossdsl.compile("trades", mlp(), num_classes=4, chunk=0)
    with pytest.raises(UserError, match="there is no recipe tradse[\\s\\S]*trades"):
        lossdsl.compile("tradse", mlp(), num_classes=4)


@pytest.mark.parametrize(
    ("expression", "needed"),
    [
        ("DLR(f(x), y)", 3),
        ("f(x)[7]", 8),
        ("p(x)[2]", 3),
        ("sort(j: f(x)[j])[4]", 4),
        ("log(1 - p(x)[3])", 4),
        ("DLR(f(x), y, argmax(j != y: f(x)[j]))", 4),
    ],
)
def test_operations_that_need_more_classes_are_found_at_once(expression: str, needed: int) -> None:
    text = f"CE(f(x), y) + {expression}"
    with pytest.raises(UserError, match=rf"<text>:3:\d+: .* needs {needed} classes, and there are {needed - 1}"):
        upper(text, mlp(classes=needed - 1), needed - 1)
    assert bool(upper(text, mlp(classes=needed), needed)(*data(classes=needed)).isfinite())


def test_a_place_beyond_the_other_classes_is_found_at_once() -> None:
    with pytest.raises(UserError, match="needs 4 classes"):
        upper("CE(f(x), y) + sort(j != y: f(x)[j])[3]", mlp(classes=3), 3)


def test_the_smallest_number_of_classes_works_everywhere_else() -> None:
    for name in ("trades", "mart", "beta_at", "sbeta_at", "bat", "fait_mer", "score"):
        model = mlp(classes=2)
        assert bool(lossdsl.compile(name, model, num_classes=2)(*data(classes=2)).isfinite()), name


def test_arithmetic_on_numbers_stays_real() -> None:
    loss = upper("CE(f(x), y) * (1 + 0 * (1 - K)^0.5)", mlp())(*data())
    assert not loss.is_complex()


# --- objective ---


def test_missing_solutions_are_named() -> None:
    text = "sample e ~ normal(0.01)\n" + ATTACK + "upper minimize CE(f(x'@1 + e), y) + CE(f(x'), y) by sgd(lr = 0.1)"
    step, (x, y) = step_of(text, mlp()), data()
    with pytest.raises(UserError, match=r"r: objective needs e, x', x'@1[\s\S]*step\.solve"):
        step.objective(x, y, {})
    found = step.solve(x, y)
    del found["x'@1"]
    with pytest.raises(UserError, match=r"r: objective needs x'@1"):
        step.objective(x, y, found)


def test_solutions_that_only_lower_levels_use_are_not_needed() -> None:
    text = "sample e ~ normal(0.01)\nlower x' in linf(x, 0.1) maximize CE(f(x' + e), y) by pgd(steps = 1, step = 0.05, start = x)\nupper minimize CE(f(x), y) by sgd(lr = 0.1)"
    assert bool(step_of(text, mlp()).objective(*data(), {}).isfinite())


def test_attacks_have_no_objective_and_recipes_no_runs() -> None:
    attack = lossdsl.compile("pgd10", mlp(), num_classes=4)
    assert not hasattr(attack, "objective") and not hasattr(lossdsl.compile("erm", mlp(), num_classes=4), "run")


@pytest.mark.parametrize("name", ["pgd_at", "free_at", "fast_bat", "gradalign", "ddi"])
def test_a_step_under_no_grad_gives_the_same_loss(name: str) -> None:
    """Gradients as values, implicit terms and combined gradients are made all the same."""
    torch.manual_seed(0)
    model, x, y, losses = torch.nn.Linear(5, 3), torch.rand(4, 5), torch.tensor([0, 1, 2, 0]), []
    for wanted in (True, False):
        step = lossdsl.compile(lossdsl.load(name), model, num_classes=3)
        with torch.set_grad_enabled(wanted):
            losses.append(step(x, y, generator=torch.Generator().manual_seed(1)))
    assert [loss.requires_grad for loss in losses] == [True, False]
    assert float(losses[0].detach()) == float(losses[1]) and losses[0].terms == losses[1].terms


def test_danskin_needs_a_parameter_to_train() -> None:
    model, x, y = torch.nn.Linear(5, 3).requires_grad_(False), torch.rand(4, 5), torch.tensor([0, 1, 2, 0])
    with pytest.raises(UserError, match=r"ddi: through danskin combines gradients[\s\S]*requires_grad"):
        lossdsl.compile(lossdsl.load("ddi"), model, num_classes=3)(x, y)
