"""What a training run does between its first and its last batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from run_fakes import FakeAttack, FakeRecipe, FakeStep, make_request, pgd, tiny_data
from torch import nn

from lossdsl.diagnostics import UserError
from lossdsl.lang.specs import TrainOptions
from lossdsl.run import metrics
from lossdsl.run.batches import epoch_order
from lossdsl.run.checkpoint import read_checkpoint
from lossdsl.run.plots import plot_runs
from lossdsl.run.progress import Reporter
from lossdsl.run.request import AttackChoice, TrainRequest
from lossdsl.run.train import train


def options(**changes: Any) -> FakeRecipe:
    return FakeRecipe(train=TrainOptions(**{"epochs": 2, "batch": 32, "validation": 0.25, **changes}))


def lines(out: Path) -> list[dict[str, Any]]:
    return metrics.read(out / "metrics.jsonl")


def test_it_learns_and_reports_both_checkpoints(tmp_path: Path) -> None:
    result = train(make_request(tmp_path / "run", recipe=options(epochs=5)))
    assert result.best and result.last
    assert (result.status, result.epochs, result.updates) == ("finished", 5, 15)
    assert result.last.clean.value > 0.9
    assert result.last.robust.total == 40
    assert json.loads((tmp_path / "run" / "result.json").read_text())["best"]["epoch"] == result.best.epoch


def test_one_update_is_plain_sgd(tmp_path: Path) -> None:
    """One batch, written out by hand: same order, same attack randomness, same weights."""
    from lossdsl.run.models import ModelInput, build_model
    from lossdsl.run.rng import derive

    data = tiny_data()
    train(make_request(tmp_path / "run", recipe=options(epochs=1, batch=90), data=data, seed=5))
    torch.manual_seed(5)
    model = build_model("smallcnn", ModelInput(data.shape, 3), data.mean, data.std)
    split, _ = data.validated(0.25)
    (batch,) = split.batches([epoch_order(5, 1, len(split))])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    point = pgd(model, batch.x, batch.y, 0.1, 0.1, 2, torch.Generator().manual_seed(derive(5, "attack")))
    nn.functional.cross_entropy(model(point), batch.y).backward()
    optimizer.step()
    found = read_checkpoint(tmp_path / "run" / "last.safetensors").part("model")
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())


def test_every_example_is_seen_once_per_epoch_in_a_new_order(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    class Watching(FakeStep):
        def __call__(self, x: Any, y: Any, *, index: Any, generator: Any) -> Any:
            seen.append(index)
            return super().__call__(x, y, index=index, generator=generator)

    steps = []
    request = make_request(tmp_path / "run")
    changed = {"compile_step": lambda model, k, d, models: steps.append(Watching(model, 0.1)) or steps[0]}
    train(TrainRequest(**{**{name: getattr(request, name) for name in request.__dataclass_fields__}, **changed}))
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert torch.equal(first.sort().values, torch.arange(90)) and torch.equal(second.sort().values, torch.arange(90))
    assert not torch.equal(first, second)
    assert steps[0].epochs == [1, 2]


def test_metrics_hold_means_over_examples(tmp_path: Path) -> None:
    train(make_request(tmp_path / "run"))
    one, two = lines(tmp_path / "run")
    assert (one["epoch"], one["updates"], two["updates"], one["lr"]) == (1, 3, 6, 0.05)
    assert one["terms"].keys() == {"CE"} and one["logs"].keys() == {"confidence"}
    assert one["loss"] == one["terms"]["CE"] > two["loss"] > 0
    assert one["validation"]["examples"] == 30
    assert one["gradient_norm"] > 0


def test_manifest_tells_the_whole_story(tmp_path: Path) -> None:
    train(make_request(tmp_path / "run", seed=9))
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    identity = manifest["identity"]
    assert identity["params"] == {"eps": 0.1, "step": 0.05}
    assert identity["train"]["clip"] is None and identity["train"]["schedule"] == {"kind": "constant"}
    assert identity["optimizer"] == {"name": "sgd", "lr": 0.05, "weight_decay": 0.0, "normalize": False, "momentum": 0.9, "nesterov": False}
    assert (identity["seed"], identity["model"], identity["device"]) == (9, "smallcnn", "cpu")
    assert identity["data"]["digest"] == tiny_data().digest()
    assert manifest["recipe"]["text"] == "recipe pgd_at" and manifest["recipe"]["resolved"] == "everything filled in"
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["hardware"]["threads"] == torch.get_num_threads()
    assert manifest["data"]["examples"] == {"train": 90, "validation": 30, "test": 40}


class Ranked(FakeAttack):
    """Robust accuracy on the validation split as scripted, epoch by epoch."""

    script: tuple[int, ...] = ()
    calls = 0

    def run(self, x: Any, y: Any, *, generator: Any, only: Any = None) -> Any:
        survivors = type(self).script[type(self).calls] if type(self).calls < len(type(self).script) else 0
        type(self).calls += 1
        flip = torch.arange(len(x)) >= survivors
        return {"ce": (torch.where(flip.reshape(-1, 1, 1, 1), x + 10, x), None)}


class Constant(nn.Module):
    """Right on every example whose input is in [0, 1], wrong outside; it has a parameter to train."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(36, 3)
        self.counter = nn.Buffer(torch.zeros(()))

    def forward(self, x: Any) -> Any:
        if self.training:
            self.counter += 1
        z = torch.zeros(len(x), 3)
        z[:, 0] = torch.where(x.flatten(1).amax(1) > 5, -9.0, 9.0)
        return z + 0 * self.inner(x.flatten(1))


def ranked_run(out: Path, script: tuple[int, ...], **changes: Any) -> Any:
    attack = type("Script", (Ranked,), {"script": script, "calls": 0})

    def compiled(name: str, overrides: Any, model: Any, classes: int, device: Any) -> Any:
        made = attack(name, model, 0.1, 1)
        made.settings = [{"name": "ce"}]
        return made

    data = tiny_data()
    labels = torch.zeros_like(data.train.examples.labels)
    data.train.examples.labels = labels
    data.test.examples.labels = torch.zeros_like(data.test.examples.labels)
    return train(make_request(out, recipe=options(**changes), data=data, model="test_run_train:Constant", compile_attack=compiled))


def test_best_is_the_highest_and_of_equals_the_earliest(tmp_path: Path) -> None:
    result = ranked_run(tmp_path / "run", (10, 20, 15, 20, 5), epochs=5)
    assert (result.best.epoch, result.last.epoch) == (2, 5)
    assert [line["best"] for line in lines(tmp_path / "run")] == [True, True, False, False, False]
    best = read_checkpoint(tmp_path / "run" / "best.safetensors")
    assert best.state["best"] == {"epoch": 2, "clean": 1.0, "robust": 20 / 30}
    assert float(best.part("model")["counter"]) == 2 * 3
    assert float(read_checkpoint(tmp_path / "run" / "last.safetensors").part("model")["counter"]) == 5 * 3


def test_patience_stops_early(tmp_path: Path) -> None:
    result = ranked_run(tmp_path / "run", (10, 20, 15, 20, 25), epochs=5, patience=2)
    assert (result.epochs, result.best.epoch) == (4, 2)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match=r"epoch 2, batch 2 of 3: not a finite number: CE\n  help: .*last\.safetensors"):
        train(make_request(out, poison=4))
    found = read_checkpoint(out / "last.safetensors")
    assert found.state["place"]["updates"] == 3
    assert all(torch.isfinite(value).all() for value in found.part("model").values())


def test_the_term_that_is_not_finite_is_named(tmp_path: Path) -> None:
    class Bad(FakeStep):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            made = super().__call__(*args, **kwargs)
            made.terms = {"CE": made.terms["CE"], "lambda * KL": made.terms["CE"] * float("inf")}
            return made

    request = make_request(tmp_path / "run")
    with pytest.raises(UserError, match=r"epoch 1, batch 1 of 3: not a finite number: lambda \* KL\n"):
        train(TrainRequest(**{**vars(request), "compile_step": lambda model, k, d, models: Bad(model, 0.1)}))


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path: Path) -> None:
    class Steep(FakeStep):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            made = super().__call__(*args, **kwargs)
            steep = (made + torch.sqrt(next(self.model.parameters()).sum() * 0)).as_subclass(type(made))  # value unchanged, slope 0/0
            steep.terms, steep.logs = made.terms, made.logs
            return steep

    request = make_request(tmp_path / "run")
    with pytest.raises(UserError, match=r"epoch 1, batch 1 of 3: not a finite number: the gradient \(the loss itself is finite\)"):
        train(TrainRequest(**{**vars(request), "compile_step": lambda model, k, d, models: Steep(model, 0.1), "checkpoint_every": 1}))
    found = read_checkpoint(tmp_path / "run" / "last.safetensors")
    assert found.state["place"]["updates"] == 0


def test_a_log_that_is_not_finite_is_no_reason_to_stop(tmp_path: Path) -> None:
    class Odd(FakeStep):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            made = super().__call__(*args, **kwargs)
            made.logs = {"ratio": torch.tensor(float("nan"))}
            return made

    request = make_request(tmp_path / "run")
    train(TrainRequest(**{**vars(request), "compile_step": lambda model, k, d, models: Odd(model, 0.1), "checkpoint_every": 1}))
    assert lines(tmp_path / "run")[0]["logs"] == {"ratio": None}


def test_clip_bounds_the_step(tmp_path: Path) -> None:
    sizes = []
    for clip in (None, 1e-3):
        out = tmp_path / str(clip)
        train(make_request(out, recipe=options(epochs=1, batch=90, clip=clip)))
        after = read_checkpoint(out / "last.safetensors").part("optimizer")
        sizes.append(float(torch.cat([t.flatten() for t in after.values()]).norm()))
    assert sizes[0] > 0.1 and sizes[1] == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(("precision", "dtype"), [("float64", torch.float64), ("bfloat16", torch.float32)])
def test_precisions(tmp_path: Path, precision: str, dtype: torch.dtype) -> None:
    seen = []

    class Watching(FakeStep):
        def __call__(self, x: Any, y: Any, **kwargs: Any) -> Any:
            seen.append((x.dtype, torch.is_autocast_enabled("cpu")))
            return super().__call__(x, y, **kwargs)

    request = make_request(tmp_path / "run", recipe=options(precision=precision))
    train(TrainRequest(**{**vars(request), "compile_step": lambda model, k, d, models: Watching(model, 0.1)}))
    assert set(seen) == {(dtype, precision == "bfloat16")}
    assert read_checkpoint(tmp_path / "run" / "last.safetensors").part("model")["network.0.weight"].dtype == dtype


def test_deterministic_is_switched_on_and_off_again(tmp_path: Path) -> None:
    seen = []

    class Watching(FakeStep):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(torch.are_deterministic_algorithms_enabled())
            return super().__call__(*args, **kwargs)

    request = make_request(tmp_path / "run", deterministic=True)
    train(TrainRequest(**{**vars(request), "compile_step": lambda model, k, d, models: Watching(model, 0.1)}))
    assert set(seen) == {True} and not torch.are_deterministic_algorithms_enabled()


def test_attack_radius_is_the_recipes_own_unless_said() -> None:
    assert AttackChoice("pgd10").resolved({"eps": 0.3, "step": 1}) == {"eps": 0.3}
    assert AttackChoice("pgd10").resolved({"step": 1}) == {}
    assert AttackChoice("pgd10", {"eps": 0.1}).resolved({"eps": 0.3}) == {"eps": 0.1}
    assert AttackChoice("pgd10", {"steps": 5}).resolved({"eps": 0.3}) == {"eps": 0.3, "steps": 5}


def test_a_suite_that_counts_each_cannot_choose_a_checkpoint(tmp_path: Path) -> None:
    class Each(FakeAttack):
        count = "each"

    with pytest.raises(UserError, match="training run needs one robust accuracy"):
        train(make_request(tmp_path / "run", compile_attack=lambda name, overrides, model, k, d: Each(name, model, 0.1, 1)))


def test_validation_does_not_touch_the_run(tmp_path: Path) -> None:
    """With another size of validation batches the weights stay the same, also for a model that draws numbers in eval mode."""
    for size in (7, 512):
        train(make_request(tmp_path / str(size), model="run_fakes:NoisyNet", eval_batch=size))
    one, two = (read_checkpoint(tmp_path / str(size) / "last.safetensors").part("model") for size in (7, 512))
    assert all(torch.equal(one[name], two[name]) for name in one)


# --- what a person sees ------------------------------------------------------------------------------------------------


def seen_by(tmp_path: Path, terminal: bool) -> str:
    with open(tmp_path / "screen", "w+") as file:
        train(make_request(tmp_path / "run", console=Console(file=file, force_terminal=terminal, width=200)))
        file.seek(0)
        return file.read()


def test_plain_lines_without_a_terminal(tmp_path: Path) -> None:
    text = seen_by(tmp_path, terminal=False).splitlines()
    assert len(text) == 2
    assert text[0].startswith("epoch 1/2: loss ") and " CE " in text[0] and "| clean " in text[0] and "(best)" in text[0]
    assert "\x1b" not in text[0]


def test_a_bar_on_a_terminal(tmp_path: Path) -> None:
    text = seen_by(tmp_path, terminal=True)
    assert "epoch 2/2" in text and "6/6" in text and "CE" in text and "robust" in text and "left" in text


def test_no_console_no_output(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter(None).note("hello")
    assert capsys.readouterr().out == ""


# --- metrics and plots ---------------------------------------------------------------------------------------------


def test_metrics_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert metrics.read(path) == []
    for epoch in (1, 2, 3):
        metrics.append(path, {"epoch": epoch})
    with open(path, "a") as file:
        file.write('{"epoch": 4')
    assert [record["epoch"] for record in metrics.read(path)] == [1, 2, 3]
    metrics.keep_until(path, 2)
    assert path.read_text() == '{"epoch": 1}\n{"epoch": 2}\n'
    path.write_text('{"epoch": 1}\njunk\n{"epoch": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is not an epoch's record"):
        metrics.read(path)
    with pytest.raises(UserError, match="could not be written"):
        metrics.append(tmp_path / "no" / "metrics.jsonl", {"epoch": 1})


def test_plot_of_two_runs(tmp_path: Path) -> None:
    for seed in (0, 1):
        train(make_request(tmp_path / f"seed{seed}", seed=seed))
    png, svg = plot_runs([tmp_path / "seed0", tmp_path / "seed1"], tmp_path / "figure.png")
    assert png.read_bytes().startswith(b"\x89PNG")
    text = svg.read_text()
    assert "seed0 (pgd_at), robust" in text and "seed1 (pgd_at), best (epoch" in text
    assert plot_runs([tmp_path / "seed0", tmp_path / "seed1"], tmp_path / "again")[1].read_bytes() == svg.read_bytes()
    with pytest.raises(UserError, match="could not be written"):
        plot_runs([tmp_path / "seed0"], tmp_path / "no" / "figure.png")
    (tmp_path / "seed0" / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="no finished epoch yet"):
        plot_runs([tmp_path / "seed0"], tmp_path / "figure.png")
