"""The mode of the model: what each level runs in, what it leaves behind, and what comes back."""

from __future__ import annotations

import pytest
import torch
from engine_tools import batchnorm, data, gradients, moody, seeded, step_of, upper
from torch import Tensor, nn

from lossdsl.diagnostics import UserError

PGD = "by pgd(steps = 3, step = 0.05, start = x + normal(0.01))"
BY = "by sgd(lr = 0.1)"


def watched(model: nn.Module) -> list[tuple[str, bool]]:
    """(mode of the BatchNorm, does the pass ask for a graph) of every pass, as it happens."""
    seen: list[tuple[str, bool]] = []
    model.register_forward_hook(lambda m, _i, out: seen.append(("train" if m.layers[1].training else "eval", out.requires_grad)))
    return seen


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in model.named_buffers()}


@pytest.mark.parametrize(
    ("mode", "expected"), [("", "eval"), ("with f in eval", "eval"), ("with f in train", "train"), ("with f in untracked", "train")]
)
def test_the_mode_of_a_lower_level(mode: str, expected: str) -> None:
    model = moody()
    seen = watched(model)
    step_of(f"lower x' in linf(x, 0.1) maximize CE(f(x'), y) {PGD} {mode}\nupper minimize CE(f(x'), y) {BY}", model)(*data())
    assert [m for m, _ in seen] == [expected] * 3 + ["train"]
    assert [graph for _, graph in seen] == [True] * 4


def test_the_upper_level_is_in_train_mode_and_its_let_in_eval_mode() -> None:
    model = moody()
    seen = watched(model)
    upper("CE(f(x), y) + KL(stop(steady) || p(x))", model, before="let steady = p(x) with f in eval")(*data())
    assert seen == [("eval", False), ("train", True)], "what is seen in eval mode comes first, wherever it stands"


@pytest.mark.parametrize("training", [True, False])
def test_every_module_gets_its_mode_back(training: bool) -> None:
    model = moody().train(training)
    model.layers[1].training = not training
    before = [m.training for m in model.modules()]
    step = step_of(f"lower x' in linf(x, 0.1) maximize CE(f(x'), y) {PGD}\nupper minimize CE(f(x'), y) {BY}", model)
    step(*data())
    assert [m.training for m in model.modules()] == before
    step.objective(*data(), step.solve(*data()))
    assert [m.training for m in model.modules()] == before


def test_a_frozen_batchnorm_of_a_training_model_stays_frozen() -> None:
    model = batchnorm().train()
    model.layers[1].eval()
    before = buffers(model)
    step_of(f"lower x' in linf(x, 0.1) maximize CE(f(x'), y) {PGD} with f in train\nupper minimize CE(f(x'), y) {BY}", model)(*data())
    assert all(torch.equal(before[n], b) for n, b in model.named_buffers())


def test_a_model_in_eval_mode_is_trained_in_train_mode_all_the_same() -> None:
    """Weights stepped with the model left in eval mode: the classic mistake."""
    model = batchnorm().eval()
    before = buffers(model)
    seen = watched(model)
    upper("CE(f(x), y)", model)(*data())
    assert seen == [("train", True)] and not torch.equal(before["layers.1.running_mean"], model.layers[1].running_mean)
    assert not model.training and not model.layers[1].training


def test_modes_come_back_after_a_failure() -> None:
    model = moody().train()
    step = upper("CE(f(x), y)", model, classes=5)
    with pytest.raises(UserError):
        step(*data())
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_parameters_ask_for_gradients_again_after_a_lower_level_fails() -> None:
    model = moody()
    model.layers[0].bias.requires_grad_(False)
    failing = step_of(f"lower x' in linf(x, 0.1) maximize log(f(x')[0] - f(x')[0]) {PGD}\nupper minimize CE(f(x'), y) {BY}", model)
    with pytest.raises(UserError, match="x'"):
        failing(*data())
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True, True, True]


def test_parameters_are_frozen_in_the_attack_and_free_in_the_loss() -> None:
    """Full parameter graphs at every update are the classic waste."""
    model = moody()
    model.layers[0].bias.requires_grad_(False)
    seen: list[list[bool]] = []
    model.register_forward_hook(lambda m, _i, _o: seen.append([p.requires_grad for p in m.parameters()]))
    step_of(f"lower x' in linf(x, 0.1) maximize KL(p(x) || p(x')) {PGD}\nupper minimize CE(f(x'), y) {BY}", model)(*data())
    assert seen == [[False] * 6] * 4 + [[True, False, True, True, True, True]]


@pytest.mark.parametrize("mode", ["eval", "untracked"])
def test_running_statistics_are_bit_identical_after_eval_and_untracked(mode: str) -> None:
    model = moody()
    model(data()[0])
    before = buffers(model)
    step = step_of(f"lower x' in linf(x, 0.1) maximize CE(f(x'), y) {PGD} with f in {mode}\nupper minimize CE(f(x'), y) {BY}", model)
    step.solve(*data())
    assert before and all(torch.equal(before[n], b) for n, b in model.named_buffers())


def test_untracked_uses_batch_statistics() -> None:
    """The gradient of an untracked level is that of train mode; only the statistics are put back."""
    text = "lower x' in linf(x, 0.1) maximize CE(f(x'), y) by ascent(steps = 2, step = 1, start = x) with f in {}\nupper minimize CE(f(x'), y) by sgd(lr = 0.1)"
    found = {mode: step_of(text.format(mode), batchnorm()).solve(*data())["x'"] for mode in ("train", "untracked", "eval")}
    assert torch.equal(found["train"], found["untracked"])
    assert not torch.allclose(found["train"], found["eval"])


def test_train_mode_counts_every_update() -> None:
    model = batchnorm()
    step_of(f"lower x' in linf(x, 0.1) maximize CE(f(x'), y) {PGD} with f in train\nupper minimize CE(f(x'), y) + CE(f(x), y) {BY}", model)(
        *data()
    )
    assert int(model.layers[1].num_batches_tracked) == 3 + 2


def test_the_upper_level_in_untracked_lets() -> None:
    model = batchnorm()
    upper("CE(f(x), y) + KL(stop(other) || p(x))", model, before="let other = p(x) with f in untracked")(*data())
    assert int(model.layers[1].num_batches_tracked) == 1


def test_training_statistics_follow_the_order_of_first_appearance() -> None:
    """f(x') first: its statistics are the older ones."""
    x, y = data()
    for expression, order in (("CE(f(x), y) + CE(f(x + 0.1), y)", (x, x + 0.1)), ("CE(f(x + 0.1), y) + CE(f(x), y)", (x + 0.1, x))):
        model, plain = batchnorm(), batchnorm()
        upper(expression, model)(x, y)
        for v in order:
            plain(v)
        assert torch.equal(model.layers[1].running_mean, plain.layers[1].running_mean)


def test_an_eval_pass_before_a_train_pass_has_the_gradient_of_its_own_statistics() -> None:
    """BatchNorm in eval mode keeps its running statistics for the backward pass by reference."""
    x, y = data()
    model, plain = batchnorm(), batchnorm()
    loss = upper("steady + CE(f(x + 0.1), y)", model, before="let steady = CE(f(x), y) with f in eval")(x, y)
    copy = batchnorm()
    ce = torch.nn.functional.cross_entropy
    expected = [a + b for a, b in zip(gradients(ce(copy.eval()(x), y), copy), gradients(ce(plain.train()(x + 0.1), y), plain), strict=True)]
    for a, b in zip(gradients(loss, model), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_a_step_touches_no_gradient_before_backward() -> None:
    model = moody()
    step = step_of(f"lower x' in linf(x, 0.1) maximize CE(f(x'), y) {PGD}\nupper minimize CE(f(x'), y) {BY}", model)
    loss = step(*data(), generator=seeded())
    assert all(p.grad is None for p in model.parameters())
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_step_reads_but_does_not_write_the_batch() -> None:
    x, y = data()
    before = x.clone(), y.clone()
    step_of(f"lower x' in linf(x, 0.1) maximize CE(f(x'), y) {PGD}\nupper minimize CE(f(x'), y) {BY}", moody())(x, y)
    assert torch.equal(x, before[0]) and torch.equal(y, before[1]) and x.grad is None
