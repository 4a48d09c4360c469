"""`state` and `memory`: numbers that live across batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_tools import BY, batchnorm, data, gradients, mlp, seeded, step_of
from torch import Tensor, nn

import lossdsl
from lossdsl.diagnostics import LossdslError, UserError

CE = nn.functional.cross_entropy


def advance(step: Any, x: Tensor, y: Tensor, index: Tensor | None = None) -> Tensor:
    loss = step(x, y, generator=seeded(), index=index)
    step.after_update()
    return loss.detach()  # type: ignore[no-any-return]


def held(step: Any) -> dict[str, Any]:
    return {name: value.tolist() for name, value in step.state_dict().items()}


# --- states -----------------------------------------------------------------------------------------------------------


def test_all_states_change_at_once() -> None:
    """Two numbers change places; the third sees the old values of both."""
    x, y = data()
    step = step_of(
        f"state a = 1 then b, b = 2 then a\nstate c = 0 then 10 * a + b\nupper minimize CE(f(x), y) + 0 * (a + b + c) {BY}", mlp()
    )
    for expected in ({"a": 2, "b": 1, "c": 12}, {"a": 1, "b": 2, "c": 21}):
        advance(step, x, y)
        assert held(step) == {f"state.{name}": value for name, value in expected.items()}


def test_new_values_act_from_the_next_batch_and_only_after_the_update() -> None:
    x, y = data()
    step = step_of(f"state c = 1 then 3 * c\nupper minimize c * CE(f(x), y) {BY}", mlp())
    ce = float(CE(step.model(x), y).detach())
    factors = []
    for update in (False, False, True, False, True, False):
        factors.append(round(float(step(x, y).detach()) / ce, 9))
        if update:
            step.after_update()
    assert factors == [1, 1, 1, 3, 3, 9]
    step.solve(x, y)
    step.after_update()
    assert held(step) == {"state.c": 27}
    step.after_update()
    assert held(step) == {"state.c": 27}


def test_a_state_is_read_before_its_statement() -> None:
    """A level's radius, a let and the weight of a term, all above the statement."""
    x, y = data()
    text = (
        "let twice = 2 * r\n"
        "lower x' in linf(x, r) maximize CE(f(x'), y) by linear(start = x)\n"
        f"upper minimize twice * CE(f(x'), y) {BY}\nstate r = 0.1 then r / 2"
    )
    step = step_of(text, mlp())
    for radius in (0.1, 0.05, 0.025):
        found = step.solve(x, y)["x'"]
        assert float((found - x).abs().max()) == pytest.approx(radius, rel=1e-12)
        assert float(advance(step, x, y)) == pytest.approx(2 * radius * float(CE(step.model(found), y).detach()), rel=1e-12)


def test_an_update_uses_this_batch_before_the_optimizer_step_and_has_no_gradient() -> None:
    x, y = data()
    model = mlp()
    step = step_of(f"let m = batch_mean(CE(f(x), y))\nstate s = 0 then s + m\nupper minimize m + s * 0 {BY}", model)
    before = float(CE(model(x), y).detach())
    loss = step(x, y)
    loss.backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients(CE(model(x), y), model), strict=True))
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(p.grad)
    step.after_update()
    assert held(step)["state.s"] == pytest.approx(before, rel=1e-12)
    assert not step.state_dict()["state.s"].requires_grad


def test_the_mode_of_an_update() -> None:
    """That of the upper level, unless the statement says otherwise; its value is that before the statistics are written."""
    x, y = data()
    model = batchnorm()
    text = f"state a = 0 then batch_mean(CE(f(x), y)) with f in eval\nstate b = 0 then batch_mean(CE(f(x), y))\nupper minimize CE(f(x), y) {BY}"
    train, evaluated = batchnorm().train(), batchnorm().train()
    expected = float(CE(train(x), y).detach())
    evaluated(x)
    advance(step := step_of(text, model), x, y)
    assert held(step)["state.b"] == pytest.approx(expected, rel=1e-12)
    assert held(step)["state.a"] != pytest.approx(expected, rel=1e-3)


def test_class_vectors() -> None:
    """w counts the labels; a let of it weighs classes."""
    x, y = data()
    text = f"state w = zeros(K) then w + class_sum(1)\nlet q = softmax(j: w[j])\nupper minimize q[y] * CE(f(x), y) {BY}"
    step = step_of(text, mlp())
    losses = CE(step.model(x), y, reduction="none").detach()
    counts = torch.bincount(y, minlength=4).double()
    for n in range(3):
        q = torch.softmax(n * counts, 0)
        assert float(advance(step, x, y)) == pytest.approx(float((q[y] * losses).mean()), rel=1e-12)
        assert held(step)["state.w"] == ((n + 1) * counts).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_states_have_the_precision_of_the_batch(dtype: torch.dtype) -> None:
    x, y = data(dtype=dtype)
    step = step_of(f"state c = 0.5 then c + 1\nmemory r = 0.1 then r + c\nupper minimize (c + r) * CE(f(x), y) {BY}", mlp(dtype=dtype))
    assert advance(step, x, y, torch.arange(6)).dtype is dtype
    assert {value.dtype for value in step.state_dict().values()} == {dtype}


# --- memories ---------------------------------------------------------------------------------------------------------

MEMORY = f"memory r = 0.5 then r + CE(f(x), y)\nupper minimize r * CE(f(x), y) {BY}"


def test_a_memory_is_kept_by_example() -> None:
    x, y = data()
    step = step_of(MEMORY, mlp())
    losses = CE(step.model(x), y, reduction="none").detach()
    seen: dict[int, float] = {}
    for rows, index in (([0, 1, 2], [10, 3, 5]), ([2, 0], [5, 10]), ([3, 4, 5], [0, 12, 3])):
        at = torch.tensor([seen.get(i, 0.5) for i in index], dtype=torch.float64)
        loss = advance(step, x[rows], y[rows], torch.tensor(index))
        assert float(loss) == pytest.approx(float((at * losses[rows]).mean()), rel=1e-12)
        seen.update(zip(index, (at + losses[rows]).tolist(), strict=True))
    memory = step.state_dict()["memory.r"]
    assert len(memory) == 13
    assert memory.tolist() == pytest.approx([seen.get(i, 0.5) for i in range(13)], rel=1e-12)


@pytest.mark.parametrize(
    "index", [None, torch.arange(5), torch.arange(6) - 1, torch.arange(6).double(), torch.arange(6).reshape(6, 1), [0, 1, 2, 3, 4, 5]]
)
def test_a_memory_needs_the_places_of_the_examples(index: Any) -> None:
    x, y = data()
    with pytest.raises(UserError, match="index|which examples"):
        step_of(MEMORY, mlp())(x, y, index=index)


def test_without_memory_no_index_is_needed() -> None:
    x, y = data()
    step = step_of(f"state c = 1 then c + 1\nupper minimize c * CE(f(x), y) {BY}", mlp())
    assert not step.recipe.needs_index and step_of(MEMORY, mlp()).recipe.needs_index
    step(x, y)


LEVELS = """
lower x'{family} in linf(x, r) maximize {objective} by pgd(steps = 3, step = r, start = x)
memory r = 0.02 then r + 0.03 * (1 - fooled(x'{at}))
upper minimize {upper} + 0 * norm(x'{at} - x, inf) by sgd(lr = 0.1)
"""


@pytest.mark.parametrize("family", [False, True])
@pytest.mark.parametrize("chunk", [3, 4096])
def test_a_memory_inside_a_level(family: bool, chunk: int) -> None:
    """Radius and step of every example are its own, in chunks and for every class of a family."""
    x, y = data()
    parts = {
        "family": "[j != y]",
        "at": "[argmax(j != y: f(x)[j])]",
        "objective": "f(x'[j])[j] - f(x'[j])[y]",
        "upper": "max(j != y: CE(f(x'[j]), y))",
    }
    none = {"family": "", "at": "", "objective": "CE(f(x'), y)", "upper": "CE(f(x'), y)"}
    text = LEVELS.format(**(parts if family else none))
    step = step_of(text, mlp(), chunk=chunk)
    radii = torch.tensor([0.02, 0.1, 0.05, 0.02, 0.2, 0.15], dtype=torch.float64)
    step.load_state_dict({"memory.r": radii})
    found = step.solve(x, y, generator=seeded(), index=torch.arange(6))["x'"]
    reached = (found - (x.unsqueeze(1) if family else x)).abs().flatten(1).amax(1)
    torch.testing.assert_close(reached, radii, rtol=1e-9, atol=0)
    advance(step, x, y, torch.arange(6))
    grown = step.state_dict()["memory.r"] - radii
    assert set(grown.mul(100).round().tolist()) <= {0.0, 3.0}


# --- saving -----------------------------------------------------------------------------------------------------------

BOTH = f"state a = 1 then a + batch_mean(CE(f(x), y)), w = ones(K) then w + class_mean(CE(f(x), y))\nmemory r = 0 then r + a * CE(f(x), y)\nupper minimize (a + r + w[y]) * CE(f(x), y) {BY}"  # fmt: skip


def test_saved_and_loaded_exactly() -> None:
    """Bit for bit the same numbers as without the stop; what was saved does not change when training goes on."""
    x, y = data()
    step = step_of(BOTH, mlp())
    index = torch.tensor([4, 1, 0, 7, 2, 9])
    advance(step, x, y, index)
    saved = step.state_dict()
    assert set(saved) == {"state.a", "state.w", "memory.r"}
    copies = {name: value.clone() for name, value in saved.items()}
    losses = [advance(step, x, y, index) for _ in range(2)]
    assert all(torch.equal(saved[name], copies[name]) for name in saved)
    again = step_of(BOTH, mlp())
    again.load_state_dict(saved)
    assert [advance(again, x, y, index) for _ in range(2)] == losses
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), step.state_dict().values(), strict=True))
    assert all(torch.equal(saved[name], copies[name]) for name in saved)


def test_before_the_first_batch_there_is_nothing_to_save() -> None:
    x, y = data()
    step = step_of(BOTH, mlp())
    assert step.state_dict() == {}
    first = advance(step, x, y, torch.arange(6))
    step.load_state_dict({})
    assert torch.equal(advance(step, x, y, torch.arange(6)), first)


def test_unknown_state_is_refused() -> None:
    step = step_of(MEMORY, mlp())
    for key in ("state.r", "memory.s", "r", "previous.x'"):
        with pytest.raises(UserError, match="has no state"):
            step.load_state_dict({key: torch.zeros(3)})


def test_loading_drops_what_was_proposed() -> None:
    x, y = data()
    step = step_of(f"state c = 1 then c + 1\nupper minimize c * CE(f(x), y) {BY}", mlp())
    step(x, y)
    step.load_state_dict({"state.c": torch.tensor(7.0, dtype=torch.float64)})
    step.after_update()
    assert held(step) == {"state.c": 7}


def test_a_change_of_epoch_keeps_everything() -> None:
    """Also the perturbations of the last batch."""
    x, y = data()
    text = (
        "param a = 0 then 1 from epoch 2\n"
        "lower x' in linf(x, 0.1) maximize CE(f(x'), y) by pgd(steps = 1, step = 0.04, start = previous)\n"
        f"state c = 1 then c + a + 1\nmemory r = 0 then r + c\nupper minimize (c + r) * CE(f(x'), y) {BY}"
    )
    step = step_of(text, mlp())
    advance(step, x, y, torch.arange(6))
    before = {name: value.clone() for name, value in step.state_dict().items()}
    step.set_epoch(2)
    assert set(before) == {"previous.x'", "state.c", "memory.r"}
    assert all(torch.equal(value, step.state_dict()[name]) for name, value in before.items())
    advance(step, x, y, torch.arange(6))
    assert held(step)["state.c"] == 4 and held(step)["memory.r"] == [3.0] * 6


# --- the sampler ------------------------------------------------------------------------------------------------------


def test_the_law_of_the_sampler_follows_the_states() -> None:
    x, y = data()
    model = batchnorm().train()
    text = f"state w = zeros(K) then w + class_sum(1)\nupper minimize CE(f(x), y) {BY}\ntrain epochs = 1, batch = 4, sampler = classes(softmax(j: w[j]))"
    step = step_of(text, model)
    buffers = [b.clone() for b in model.buffers()]
    assert step.class_probabilities().tolist() == [0.25] * 4
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True)) and model.training
    step(x, y)
    assert step.class_probabilities().tolist() == [0.25] * 4
    step.after_update()
    expected = torch.softmax(torch.bincount(y, minlength=4).double(), 0)
    torch.testing.assert_close(step.class_probabilities(), expected, rtol=1e-12, atol=0)
    assert float(step.class_probabilities().sum()) == pytest.approx(1, abs=1e-15)
    assert step_of(f"upper minimize CE(f(x), y) {BY}", mlp()).class_probabilities() is None


def test_a_sampler_that_is_no_distribution_is_refused() -> None:
    for law in ("ones(K)", "ones(K) - 0.75 * ones(K) - w", "w"):
        step = step_of(
            f"state w = zeros(K) then w\nupper minimize CE(f(x), y) + 0 * w[y] {BY}\ntrain epochs = 1, batch = 4, sampler = classes({law})",
            mlp(),
        )
        if law.endswith("- w"):
            assert step.class_probabilities().tolist() == [0.25] * 4
            step.load_state_dict({"state.w": torch.tensor([0.5, -0.5, 0.0, 0.0], dtype=torch.float64)})
        with pytest.raises(UserError, match="no distribution"):
            step.class_probabilities()


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    "state a = 0 then CE(f(x), y)",
    "state a = CE(f(x), y) then a",
    "state a = 0 then f(x)",
    "state a = 0 then x",
    "memory r = 0 then f(x)",
    "memory r = zeros(K) then r",
    "state w = zeros(K) then 0",
    "state a = 0 then nowhere",
    "state a = 0 then 1\nstate a = 1 then 2",
    "param a = 1\nstate a = 0 then 1",
])  # fmt: skip
def test_what_cannot_be_held_is_one_clear_error(text: str) -> None:
    with pytest.raises(LossdslError) as caught:
        lossdsl.parse(f"recipe r\n{text}\nupper minimize CE(f(x), y) {BY}").plan  # noqa: B018
    assert len([d for d in caught.value.diagnostics if d.severity == "error"]) == 1  # type: ignore[attr-defined]
