"""What the options of `train` and of the optimizer do to the weights: normalize, ema, replays."""

from __future__ import annotations

import os
import shlex
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from run_fakes import FakeAttack, FakeRecipe, FakeStep, assert_same, check_cuts, compile_attack, make_request, outcome, tiny_data
from torch import Tensor, nn

from lossdsl.arguments import chosen_recipe
from lossdsl.cli import parse_arguments
from lossdsl.diagnostics import UserError
from lossdsl.lang.specs import Cyclic, OptimizerSpec, TrainOptions, UpperAdamOptions, UpperSgdOptions
from lossdsl.run import metrics
from lossdsl.run.checkpoint import read_checkpoint
from lossdsl.run.evaluate import EvaluateRequest, evaluate
from lossdsl.run.models import ModelInput, build_model
from lossdsl.run.optim import build_stepper
from lossdsl.run.train import train
from lossdsl.run_commands import parse_binds

MODEL = "run_fakes:DropoutNet"


def recipe(optimizer: OptimizerSpec | None = None, **changes: Any) -> FakeRecipe:
    found = FakeRecipe(train=TrainOptions(**{"epochs": 2, "batch": 32, "validation": 0.25, **changes}))
    return replace(found, optimizer=optimizer) if optimizer else found


class Recorder(FakeStep):
    """Keeps the batches and the weights that every call sees."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.inputs: list[Tensor] = []
        self.indices: list[Tensor] = []
        self.weights: list[dict[str, Tensor]] = []

    def __call__(self, x: Tensor, y: Tensor, *, index: Tensor, generator: torch.Generator) -> Any:
        self.inputs.append(x.clone())
        self.indices.append(index.clone())
        self.weights.append({name: value.clone() for name, value in self.model.state_dict().items()})
        return super().__call__(x, y, index=index, generator=generator)


def record(out: Path, **changes: Any) -> Recorder:
    steps: list[Recorder] = []

    def compiled(model: nn.Module, classes: int, device: Any, models: Any) -> Recorder:
        steps.append(Recorder(model, 0.1))
        return steps[0]

    train(make_request(out, compile_step=compiled, **changes))
    return steps[0]


# --- normalize --------------------------------------------------------------------------------------------------------


def test_normalize_makes_the_whole_gradient_one_long(tmp_path: Path) -> None:
    spec = OptimizerSpec("sgd", UpperSgdOptions(lr=0.05, normalize=True))
    step = record(tmp_path / "run", recipe=recipe(spec, epochs=1, batch=30))
    lengths = []
    for one, two in zip(step.weights, step.weights[1:], strict=False):
        moved = [two[name] - one[name] for name, _ in step.model.named_parameters()]
        lengths.append(float(torch.cat([m.flatten() for m in moved]).norm()))
    assert len(lengths) == 2 and lengths == pytest.approx([0.05, 0.05], rel=1e-4)
    line = metrics.read(tmp_path / "run" / "metrics.jsonl")[0]
    assert line["gradient_norm"] != pytest.approx(1, rel=1e-3)  # that of the gradient itself


def test_normalized_step_by_hand_and_a_zero_gradient() -> None:
    layer = nn.Linear(3, 2)
    layer.weight.grad, layer.bias.grad = torch.full((2, 3), 2.0), torch.tensor([1.0, -3.0])
    spec = OptimizerSpec("sgd", UpperSgdOptions(lr=0.5, weight_decay=0.1, normalize=True))
    stepper = build_stepper(spec, layer.parameters(), TrainOptions(epochs=1, batch=1), 1)
    norm = (6 * 4 + 1 + 9) ** 0.5
    wanted = layer.bias.detach() - 0.5 * (torch.tensor([1.0, -3.0]) / norm + 0.1 * layer.bias.detach())
    stepper.step(stepper.norm())
    assert torch.allclose(layer.bias, wanted)
    before = layer.bias.detach().clone()
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    stepper.step(stepper.norm())
    assert torch.allclose(layer.bias, before * (1 - 0.5 * 0.1))


def test_normalize_and_clip_are_not_both_meant(tmp_path: Path) -> None:
    spec = OptimizerSpec("sgd", UpperSgdOptions(lr=0.05, normalize=True))
    with pytest.raises(UserError, match=r"normalize = true\) makes every gradient one long, and clip = 0.5 would have no say"):
        train(make_request(tmp_path / "run", recipe=recipe(spec, clip=0.5)))
    assert not (tmp_path / "run").exists()


# --- ema ----------------------------------------------------------------------------------------------------------------


def average_by_hand(step: Recorder, decay: float) -> dict[str, Tensor]:
    """A_1 = W_1, A_(t+1) = decay A_t + (1 - decay) W_(t+1); buffers are the model's own."""
    after = [*step.weights[1:], step.model.state_dict()]
    found = dict(after[0])
    trained = {name for name, _ in step.model.named_parameters()}
    for weights in after[1:]:
        found = {n: decay * found[n] + (1 - decay) * weights[n] if n in trained else weights[n] for n in found}
    return found


def test_ema_is_the_recursion_and_is_kept_as_best(tmp_path: Path) -> None:
    step = record(tmp_path / "run", recipe=recipe(epochs=1, ema=0.7), model=MODEL)
    wanted = average_by_hand(step, 0.7)
    last, best = (read_checkpoint(tmp_path / "run" / f"{name}.safetensors") for name in ("last", "best"))
    assert last.part("average").keys() == best.part("model").keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.allclose(last.part("average")[name].double(), value.double(), atol=1e-6), name
        assert torch.equal(best.part("model")[name], last.part("average")[name])
        assert torch.equal(last.part("model")[name], step.model.state_dict()[name])
    assert not torch.equal(last.part("model")["0.weight"], last.part("average")["0.weight"])


def test_the_average_is_what_is_validated_tested_and_evaluated(tmp_path: Path) -> None:
    """Nearly all its weight lies on the first update, so that it is far from the trained weights."""
    out, data = tmp_path / "run", tiny_data()
    result = train(
        make_request(out, data=data, recipe=recipe(OptimizerSpec("sgd", UpperSgdOptions(lr=0.01, momentum=0.9)), epochs=5, ema=0.999))
    )
    assert result.last is not None
    found = read_checkpoint(out / "last.safetensors")
    right = {}
    for part in ("model", "average"):
        model = build_model("smallcnn", ModelInput(data.shape, 3), data.mean, data.std)
        model.load_state_dict(found.part(part))
        batches = [next(split.in_order(512)) for split in (data.test, data.validated(0.25)[1])]
        right[part] = [int((model.eval()(batch.x).argmax(1) == batch.y).sum()) for batch in batches]
    assert right["model"][0] > right["average"][0] and right["model"][1] > right["average"][1]
    assert result.last.clean.right == right["average"][0]
    assert metrics.read(out / "metrics.jsonl")[-1]["validation"]["clean"] == right["average"][1] / 30
    for which, report in (("last", result.last), ("best", result.best)):
        again = evaluate(EvaluateRequest(run=out, compile_attack=compile_attack, which=which, data=data, device="cpu"))  # type: ignore[arg-type]
        assert report is not None and again.clean.right == report.clean.right
        assert again.robust is not None and again.robust.right == report.robust.right


def test_the_average_is_what_is_attacked(tmp_path: Path) -> None:
    attacked = {}

    def watched(name: str, overrides: Any, model: nn.Module, classes: int, device: Any) -> Any:
        attacked[name] = model
        return compile_attack(name, overrides, model, classes, device)

    step = record(tmp_path / "run", recipe=recipe(epochs=1, ema=0.5), compile_attack=watched)
    assert attacked["pgd10"] is attacked["pgd20"] is not step.model


def test_ema_resumes_exactly(tmp_path: Path) -> None:
    check_cuts(tmp_path, 2, recipe=recipe(epochs=3, ema=0.8, augment="crop_flip"), model=MODEL)


def test_ema_resumes_exactly_when_cut_before_the_first_update(tmp_path: Path) -> None:
    """The first update copies the weights, which a resumed run must not do again."""
    check_cuts(tmp_path, 1, recipe=recipe(epochs=1, ema=0.8), model=MODEL)


# --- replays --------------------------------------------------------------------------------------------------------------


def test_replays_repeat_each_batch_as_it_is(tmp_path: Path) -> None:
    step = record(tmp_path / "run", recipe=recipe(replays=3, augment="crop_flip"))
    assert len(step.inputs) == 2 * 3 * 3
    for at in range(0, 18, 3):
        for other in (at + 1, at + 2):
            assert torch.equal(step.inputs[at], step.inputs[other]) and torch.equal(step.indices[at], step.indices[other])
    assert not torch.equal(step.inputs[0], step.inputs[3])
    for epoch in range(2):
        seen = torch.cat(step.indices[9 * epoch : 9 * epoch + 9 : 3])
        assert torch.equal(seen.sort().values, torch.arange(90))
    assert all(not torch.equal(a["network.0.weight"], b["network.0.weight"]) for a, b in zip(step.weights, step.weights[1:], strict=False))
    assert [line["updates"] for line in metrics.read(tmp_path / "run" / "metrics.jsonl")] == [9, 18]


def test_the_schedule_counts_updates(tmp_path: Path) -> None:
    """A cyclic schedule with its peak in the middle is at the peak after one of two epochs, and has one update left at the end."""
    train(make_request(tmp_path / "run", recipe=recipe(replays=4, schedule=Cyclic(peak=0.5))))
    rates = [line["lr"] for line in metrics.read(tmp_path / "run" / "metrics.jsonl")]
    assert rates == pytest.approx([0.05 * 11 / 12, 0.05 * 1 / 12])


@pytest.mark.parametrize(("every", "saves"), [(2, 2), (3, 2), (4, 1)])
def test_replays_resume_exactly_in_their_middle(tmp_path: Path, every: int, saves: int) -> None:
    adam = OptimizerSpec("adam", UpperAdamOptions(lr=0.01))
    found = check_cuts(
        tmp_path, every, checkpoint_every=saves, recipe=recipe(adam, replays=3, augment="crop_flip", schedule=Cyclic()), model=MODEL
    )
    assert found["last"][1]["place"]["updates"] == 18


def test_ctrl_c_in_the_middle_of_the_replays(tmp_path: Path) -> None:
    method = recipe(replays=3, augment="crop_flip")
    train(make_request(tmp_path / "whole", recipe=method, model=MODEL))
    request = make_request(tmp_path / "cut", recipe=method, model=MODEL, resume=True)
    calls = [0]

    class Interrupted(FakeStep):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == 5:
                os.kill(os.getpid(), signal.SIGINT)
            return super().__call__(*args, **kwargs)

    result = train(replace(request, compile_step=lambda model, classes, device, models: Interrupted(model, 0.1)))
    assert (result.status, result.updates) == ("interrupted", 5)
    place = read_checkpoint(tmp_path / "cut" / "last.safetensors").state["place"]
    assert (place["batch"], place["replay"]) == (1, 2)
    assert train(request).status == "finished"
    assert_same(outcome(tmp_path / "whole"), outcome(tmp_path / "cut"))


def test_the_replay_that_diverges_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"epoch 1, batch 2 of 3, replay 1 of 2: not a finite number"):
        train(make_request(tmp_path / "run", recipe=recipe(replays=2), poison=2))


# --- the end of a run ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ema", [None, 0.5])
def test_ctrl_c_in_the_final_test_keeps_the_last_checkpoint(tmp_path: Path, ema: float | None) -> None:
    """The best checkpoint is in memory then, and must not be written over the last one."""
    method = recipe(epochs=5, ema=ema)
    found = train(make_request(tmp_path / "whole", recipe=method, eval_batch=16))
    assert found.best is not None and found.best.epoch < 5
    calls = [0]

    class Interrupting(FakeAttack):
        def run(self, *args: Any, **kwargs: Any) -> Any:
            calls[0] += self.name == "pgd20"
            if calls[0] == 4 and self.name == "pgd20":  # the first of three batches under the best checkpoint
                os.kill(os.getpid(), signal.SIGINT)
            return super().run(*args, **kwargs)

    request = make_request(tmp_path / "cut", recipe=method, eval_batch=16, resume=True)
    cut = replace(request, compile_attack=lambda name, overrides, model, classes, device: Interrupting(name, model, 0.1, 4))
    assert train(cut).status == "interrupted"
    whole = read_checkpoint(tmp_path / "whole" / "last.safetensors").tensors
    assert all(torch.equal(value, whole[name]) for name, value in read_checkpoint(tmp_path / "cut" / "last.safetensors").tensors.items())
    assert train(request).status == "finished"
    assert outcome(tmp_path / "whole")["result"] == outcome(tmp_path / "cut")["result"]


def test_every_command_of_the_training_page_can_be_read() -> None:
    page = (Path(__file__).parents[3] / "docs" / "training.md").read_text(encoding="utf-8")
    commands = [shlex.split(line) for line in page.splitlines() if line.startswith("    lossdsl ")]
    assert len(commands) > 5
    for command in commands:
        arguments = parse_arguments(command[1:])
        parse_binds(arguments.bind)
        if not arguments.recipe.endswith(".loss"):
            chosen_recipe(arguments)
