"""Two streams of examples: where the second comes from, who labels it, and that a resumed run has the same labels."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from run_fakes import Cut, FakeRecipe, FakeStep, check_cuts, compile_attack, cut_after, make_request, tiny_data
from torch import Tensor

from lossdsl.diagnostics import UserError
from lossdsl.lang.specs import Mix, OptimizerSpec, TrainOptions, UpperSgdOptions
from lossdsl.run.checkpoint import read_checkpoint
from lossdsl.run.data import DataSet, from_tensors
from lossdsl.run.evaluate import EvaluateRequest, evaluate
from lossdsl.run.models import ModelInput, build_model
from lossdsl.run.train import train

RECIPE = FakeRecipe(train=TrainOptions(epochs=2, batch=32, validation=0.25, augment="crop_flip", data=Mix(fraction=0.5)))
MODEL = "run_fakes:DropoutNet"


class Masked(FakeStep):
    """Cross-entropy over the labelled examples; keeps what it saw."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x: Tensor, y: Tensor, *, index: Tensor, generator: torch.Generator) -> Any:
        self.seen.append((index.clone(), y.clone()))
        known = y >= 0
        return super().__call__(x[known], y[known], index=index[known], generator=generator)


def mixed(**changes: Any) -> dict[str, Any]:
    return {"recipe": RECIPE, "unlabelled": "split:0.5", **changes}


def watched(out: Path, **changes: Any) -> Masked:
    steps: list[Masked] = []

    def compiled(model: Any, classes: int, device: Any, models: Any) -> Masked:
        steps.append(Masked(model, 0.1))
        return steps[0]

    train(make_request(out, compile_step=compiled, **changes))
    return steps[0]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A poor one, which is wrong about some."""
    out = tmp_path_factory.mktemp("teacher") / "erm"
    slow = OptimizerSpec("sgd", UpperSgdOptions(lr=0.003))
    train(make_request(out, seed=3, recipe=FakeRecipe(train=TrainOptions(epochs=1, batch=32, validation=0.25), optimizer=slow)))
    return out


def teachers_labels(teacher: Path, x: Tensor) -> Tensor:
    data = tiny_data()
    model = build_model("smallcnn", ModelInput(data.shape, 3), data.mean, data.std)
    model.load_state_dict(read_checkpoint(teacher / "best.safetensors").part("model"))
    return model.eval()(x).argmax(1)


def test_half_of_the_training_examples_as_the_second_stream(tmp_path: Path, teacher: Path) -> None:
    """90 training examples, 45 of each stream; a batch of 32 has 16 of each, and the last 13 and 13."""
    out, data = tmp_path / "run", tiny_data()
    step = watched(out, **mixed(teacher=str(teacher)))
    assert [len(index) for index, _ in step.seen] == [32, 32, 26] * 2
    assert [int((index < 45).sum()) for index, _ in step.seen] == [16, 16, 13] * 2
    train_split, _ = data.validated(0.25)
    from lossdsl.run.examples import stratified

    first, second = stratified(train_split, 0.5, "labelled and unlabelled")
    assert torch.bincount(second.labels).tolist() == [15, 15, 15]
    given = teachers_labels(teacher, next(second.in_order(100)).x)
    wanted = torch.cat([first.labels, given])
    for index, y in step.seen:
        assert torch.equal(y, wanted[index])
    seen = torch.cat([index for index, _ in step.seen])
    assert torch.bincount(seen, minlength=90).tolist() == [2] * 90
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["unlabelled"] == {"examples": 45, "teacher": str(teacher), "agreement": float((given == second.labels).double().mean())}
    assert 0 < manifest["unlabelled"]["agreement"] < 1
    assert manifest["data"]["examples"] == {"train": 45, "validation": 30, "test": 40, "unlabelled": 45}
    assert manifest["identity"]["unlabelled"]["data"] == {"name": "split:0.5"}
    assert torch.equal(read_checkpoint(out / "pseudo.safetensors").tensors["labels"], given)
    assert manifest["identity"]["train"]["data"] == {"fraction": 0.5}
    found = evaluate(EvaluateRequest(run=out, compile_attack=compile_attack, data=data, device="cpu"))  # type: ignore[arg-type]
    assert found.clean.total == 40


def test_without_labels_they_are_minus_one(tmp_path: Path) -> None:
    step = watched(tmp_path / "run", **mixed(teacher="none"))
    assert all(torch.equal(y < 0, index >= 45) and set(y[index >= 45].tolist()) == {-1} for index, y in step.seen)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["unlabelled"] == {"examples": 45, "teacher": "none", "agreement": None}


def test_another_data_set_as_the_second_stream(tmp_path: Path, teacher: Path) -> None:
    """Its training part: 30 examples for 90 labelled ones, so that an epoch takes each of them three times."""
    other = tiny_data(40, seed=0)
    x = other.train.examples.images  # type: ignore[attr-defined]
    step = watched(tmp_path / "run", **mixed(unlabelled=other, teacher=f"{teacher}:best"))
    for index, y in step.seen:
        second = index >= 90
        assert torch.equal(y[second], teachers_labels(teacher, x)[index[second] - 90])
    counts = torch.bincount(torch.cat([index for index, _ in step.seen]), minlength=120)
    assert counts[:90].tolist() == [2] * 90 and counts[90:].tolist() == [6] * 30
    entry = json.loads((tmp_path / "run" / "manifest.json").read_text())["identity"]["unlabelled"]
    assert entry["data"]["digest"] == other.digest() and entry["teacher"]["checkpoint"] == "best"


def test_agreement_is_said_where_the_truth_is_known(tmp_path: Path, teacher: Path) -> None:
    x, y = tiny_data(40).train.examples.images, tiny_data(40).train.labels  # type: ignore[attr-defined]
    foreign = from_tensors("foreign", (x, y), (x, y), ("a", "b", "c"))
    texts = []
    for number, options in enumerate(({"teacher": str(teacher)}, {"teacher": str(teacher), "unlabelled": foreign}, {"teacher": "none"})):
        with open(tmp_path / f"screen{number}", "w+") as file:
            console = Console(file=file, width=300)
            compiled = {"compile_step": lambda model, k, d, models: Masked(model, 0.1)}
            train(make_request(tmp_path / f"run{number}", **mixed(**options), **compiled, console=console))
            file.seek(0)
            texts.append(file.read())
    assert "45 unlabelled examples, labelled by " in texts[0] and "% agree with the true labels" in texts[0]
    assert "a batch has 16 labelled and 16 unlabelled examples; an epoch goes through the 45 labelled ones" in texts[0]
    assert "30 unlabelled examples" in texts[1] and "the true labels are not known" in texts[1]
    assert "45 unlabelled examples, without labels" in texts[2]


@pytest.mark.parametrize(("every", "replays"), [(2, 1), (3, 2)])
def test_a_mixed_run_resumes_exactly(tmp_path: Path, teacher: Path, every: int, replays: int) -> None:
    recipe = replace(RECIPE, train=RECIPE.train.model_copy(update={"replays": replays}))
    check_cuts(tmp_path, every, **mixed(recipe=recipe, teacher=str(teacher), model=MODEL))


def test_resuming_needs_no_teacher_and_keeps_the_labels(tmp_path: Path, teacher: Path) -> None:
    gone = tmp_path / "gone"
    shutil.copytree(teacher, gone)
    out = tmp_path / "run"
    request = make_request(out, **mixed(teacher=str(gone)), checkpoint_every=1, resume=True)
    with pytest.raises(Cut):
        train(cut_after(request, 2))
    labels = read_checkpoint(out / "pseudo.safetensors").tensors["labels"]
    shutil.rmtree(gone)
    steps: list[Masked] = []

    def compiled(model: Any, classes: int, device: Any, models: Any) -> Masked:
        steps.append(Masked(model, 0.1))
        return steps[-1]

    assert train(replace(request, compile_step=compiled)).status == "finished"
    assert all(torch.equal(y[index >= 45], labels[index[index >= 45] - 45]) for index, y in steps[0].seen)
    with pytest.raises(UserError, match="no manifest of a run"):
        train(make_request(tmp_path / "new", **mixed(teacher=str(gone))))


def test_another_teacher_is_another_run(tmp_path: Path, teacher: Path) -> None:
    train(make_request(tmp_path / "run", **mixed(teacher=str(teacher))))
    moved = tmp_path / "moved"
    shutil.copytree(teacher, moved)
    assert train(make_request(tmp_path / "run", **mixed(teacher=str(moved)), resume=True)).status == "already finished"
    train(make_request(tmp_path / "better"))
    for other in (str(tmp_path / "better"), "none"):
        with pytest.raises(UserError, match=r"differs in unlabelled\.teacher"):
            train(make_request(tmp_path / "run", **mixed(teacher=other), resume=True))
    with pytest.raises(UserError, match=r"unlabelled\.data\.name: split:0\.5 there, split:0\.4 asked"):
        train(make_request(tmp_path / "run", **mixed(unlabelled="split:0.4", teacher=str(teacher)), resume=True))


def test_lost_or_foreign_labels(tmp_path: Path, teacher: Path) -> None:
    out = tmp_path / "run"
    request = make_request(out, **mixed(teacher=str(teacher)), checkpoint_every=1, resume=True)
    with pytest.raises(Cut):
        train(cut_after(request, 2))
    train(make_request(tmp_path / "other", **mixed(teacher=str(teacher)), seed=5))
    (out / "pseudo.safetensors").write_bytes((tmp_path / "other" / "pseudo.safetensors").read_bytes())
    with pytest.raises(UserError, match="holds the labels of another run"):
        train(request)
    (out / "pseudo.safetensors").unlink()
    with pytest.raises(UserError, match="the labels of the second stream are missing"):
        train(request)


def large() -> DataSet:
    x, y = torch.rand(60, 1, 8, 8), torch.arange(60) % 3
    return from_tensors("large", (x, y), (x, y), 3)


def bright() -> DataSet:
    x, y = 2 + torch.rand(60, 1, 6, 6), torch.arange(60) % 3
    return from_tensors("bright", (x, y), (x, y), 3)


PLAIN = FakeRecipe()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": PLAIN}, r"--unlabelled: pgd_at takes one stream of examples\n  help: leave out --unlabelled, or add"),
        ({"recipe": PLAIN, "unlabelled": None, "teacher": "none"}, r"--teacher: pgd_at takes one stream"),
        ({"unlabelled": None, "teacher": "none"}, r"train data: pgd_at mixes labelled and pseudo-labelled examples\n  help: .*--unlabelled DATA"),
        ({}, r"train data: pgd_at mixes .*\n  help: .*--teacher DIR"),
        ({"unlabelled": "split:1.5", "teacher": "none"}, r"--unlabelled: 'split:1.5' is not a share"),
        ({"unlabelled": "split", "teacher": "none"}, r"'split' is not a share"),
        ({"unlabelled": "digit", "teacher": "none"}, r"there is no data set 'digit'"),
        ({"unlabelled": large(), "teacher": "none"}, r"large has inputs of shape \[1, 8, 8\], tiny of \[1, 6, 6\]"),
        ({"unlabelled": bright(), "teacher": "none"}, r"--unlabelled bright: example 0 has values from .*, outside the recipe's domain"),
        ({"unlabelled": tiny_data(), "teacher": "none"}, r"tiny is the labelled data itself"),
        ({"teacher": "no/such"}, r"there is no manifest of a run here"),
        ({"teacher": __file__}, r"is a file, not the directory of a run\n  help: name a directory"),
        ({"teacher": "TEACHER", "data": tiny_data(classes=4)}, r"--teacher: .* knows 3 classes, the data 4"),
        ({"teacher": "TEACHER", "data": large()}, r"--teacher: .* was trained on inputs of shape \[1, 6, 6\], and these have \[1, 8, 8\]"),
        ({"teacher": "none", "recipe": replace(RECIPE, sampled=True)}, r"train sampler: draws classes, which pseudo-labelled examples"),
    ],
)  # fmt: skip
def test_streams_that_do_not_fit(tmp_path: Path, teacher: Path, changes: dict[str, Any], message: str) -> None:
    known = {name: str(teacher) if value == "TEACHER" else value for name, value in changes.items()}
    with pytest.raises(UserError, match=message):
        train(make_request(tmp_path / "run", **mixed(**known)))
    assert not (tmp_path / "run").exists()
