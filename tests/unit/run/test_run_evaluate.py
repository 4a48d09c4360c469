"""Counting rules, modes and intervals of robust accuracy; `evaluate` on a finished run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from run_fakes import FakeRecipe, compile_attack, make_request, tiny_data
from torch import Tensor, nn

from lossdsl.diagnostics import UserError
from lossdsl.lang.specs import TrainOptions
from lossdsl.run.data import from_tensors
from lossdsl.run.evaluate import EvaluateRequest, evaluate
from lossdsl.run.measure import Interrupted, Measurement, Rate, Setting, evaluation_mode, measure
from lossdsl.run.report import evaluations_report, settings_line, show_number, train_report
from lossdsl.run.train import train
from lossdsl.solve import Randomness

# Six examples of one pixel; the model predicts class 1 where the pixel is above 1/2. The third is wrong when clean.
PIXELS = torch.tensor([0.1, 0.2, 0.3, 0.8, 0.9, 1.0]).reshape(6, 1, 1, 1)
LABELS = torch.tensor([0, 0, 1, 1, 1, 1])


class Threshold(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        z = self.scale * (x.flatten(1) - 0.5)
        return torch.cat([-z, z], 1)


class Scripted:
    """Each run moves the examples it names to the other side of the threshold; objectives as given."""

    name = "scripted"
    helpers: Sequence[nn.Module] = ()
    hash = ""

    def __init__(self, count: str, runs: dict[str, tuple[list[int], list[float] | None]], radius: float | None = None) -> None:
        self.count, self.plan = count, runs
        self.settings: Sequence[Mapping[str, Any]] = [{"name": name, "norm": "linf", "radius": radius} for name in runs]
        self.seen: dict[str, list[float]] = {name: [] for name in runs}

    def run(self, x: Tensor, y: Tensor, *, generator: Randomness, only: str | None = None) -> dict[str, tuple[Tensor, Tensor | None]]:
        where = [int((pixel - PIXELS.flatten()).abs().argmin()) for pixel in x.flatten()]
        found = {}
        for name, (broken, objective) in self.plan.items():
            if only in (None, name):
                self.seen[name] += [round(float(pixel), 1) for pixel in x.flatten()]
                flip = torch.tensor([at in broken for at in where]).reshape(-1, 1, 1, 1)
                values = None if objective is None else torch.tensor([objective[at] for at in where])
                found[name] = (torch.where(flip, 1 - x, x), values)
        return found


def measured(attack: Scripted, **changes: Any) -> Measurement:
    split = from_tensors("t", (PIXELS, LABELS), (PIXELS, LABELS), 2).test
    return measure(Threshold(), attack, split, Setting(torch.device("cpu"), torch.float32, 0, 4), **changes)


def test_worst_counts_any_success_and_later_runs_skip_the_broken() -> None:
    attack = Scripted("worst", {"one": ([0], None), "two": ([0, 3], None), "three": ([], None)})
    found = measured(attack)
    assert (found.clean, found.robust) == (Rate(5, 6), Rate(3, 6))
    assert found.runs == {"one": Rate(4, 6), "two": Rate(3, 6), "three": Rate(3, 6)}
    assert attack.seen == {"one": [0.1, 0.2, 0.8, 0.9, 1.0], "two": [0.2, 0.8, 0.9, 1.0], "three": [0.2, 0.9, 1.0]}


def test_a_clean_error_stays_broken_even_if_the_attack_mends_it() -> None:
    for count in ("worst", "best_loss", "each"):
        found = measured(Scripted(count, {"one": ([2], [0.0] * 6)}))
        assert found.runs == {"one": Rate(5, 6)}
        assert found.robust == (None if count == "each" else Rate(5, 6))


def test_best_loss_takes_the_larger_objective_and_the_later_of_equals() -> None:
    one = ([0, 3, 4], [9.0, 1.0, 1.0, 1.0, 9.0, 5.0])
    two = ([1, 5], [1.0, 1.0, 1.0, 9.0, 1.0, 5.0])
    # 0: run one wins and breaks; 1: tie, the later breaks; 3: run two wins, survives; 4: run one wins and breaks; 5: tie, the later breaks
    assert measured(Scripted("best_loss", {"one": one, "two": two})).robust == Rate(1, 6)
    assert measured(Scripted("worst", {"one": one, "two": two})).robust == Rate(0, 6)
    with pytest.raises(UserError, match="needs an objective from every run"):
        measured(Scripted("best_loss", {"one": one, "two": ([], None)}))


def test_each_gives_one_number_per_run() -> None:
    found = measured(Scripted("each", {"one": ([0], None), "two": ([0, 3], None)}))
    assert found.robust is None
    assert found.runs == {"one": Rate(4, 6), "two": Rate(3, 6)}
    with pytest.raises(UserError, match="unknown count rule 'most'"):
        measured(Scripted("most", {"one": ([], None)}))


def test_an_attack_outside_its_radius_is_our_fault_and_said() -> None:
    with pytest.raises(RuntimeError, match=r"outside the radius 0\.5"):
        measured(Scripted("worst", {"one": ([0], None)}, radius=0.5))
    assert measured(Scripted("worst", {"one": ([0], None)}, radius=0.81)).robust == Rate(4, 6)


class Family(Scripted):
    """One run with three points per example; example 0 is broken at the second, 3 at the third; objectives say so for 0 alone."""

    def run(self, x: Tensor, y: Tensor, *, generator: Randomness, only: str | None = None) -> dict[str, tuple[Tensor, Tensor | None]]:
        points = x.unsqueeze(1).repeat(1, 3, 1, 1, 1)
        objective = torch.tensor([[0.0, 5.0, 1.0]]).repeat(len(x), 1)
        for n, pixel in enumerate(x.flatten()):
            if abs(float(pixel) - 0.1) < 1e-3:
                points[n, 1] = 1 - points[n, 1]
            if abs(float(pixel) - 0.8) < 1e-3:
                points[n, 2] = 1 - points[n, 2]
        return {"one": (points, objective)}


def test_a_family_of_points_must_be_survived_whole() -> None:
    assert measured(Family("worst", {"one": ([], None)})).robust == Rate(3, 6)
    assert measured(Family("each", {"one": ([], None)})).runs == {"one": Rate(3, 6)}
    assert measured(Family("best_loss", {"one": ([], None)})).robust == Rate(4, 6)
    with pytest.raises(RuntimeError, match=r"a point is 0\.8 away"):
        measured(Family("worst", {"one": ([], None)}, radius=0.7))


def test_logits_that_are_not_finite_are_wrong() -> None:
    class Broken(Threshold):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / 0

    split = from_tensors("t", (PIXELS, LABELS), (PIXELS, LABELS), 2).test
    attack = Scripted("worst", {"one": ([], None)})
    assert measure(Broken(), attack, split, Setting(torch.device("cpu"), torch.float32, 0, 6)).clean == Rate(0, 6)


def test_stops_between_batches() -> None:
    answers = iter([False, True])
    with pytest.raises(Interrupted):
        measured(Scripted("worst", {"one": ([], None)}), stop=lambda: next(answers))


def test_modes_and_gradients_come_back_one_by_one() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(), nn.BatchNorm1d(2))
    model[2].eval()
    model[2].weight.requires_grad_(False)
    with pytest.raises(ZeroDivisionError), evaluation_mode(model):
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        1 / 0  # noqa: B018
    assert [module.training for module in model] == [True, True, False]
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, True, False, True]


def test_wilson_interval() -> None:
    """Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662; 0 of 20 gives 0 to 0.1611; 29 of 29 gives 0.8830 to 1."""
    for right, total, low, high in ((81, 263, 0.2553, 0.3662), (0, 20, 0.0, 0.1611), (29, 29, 0.8830, 1.0)):
        assert Rate(right, total).interval == pytest.approx((low, high), abs=5e-5)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train(make_request(out, recipe=FakeRecipe(train=TrainOptions(epochs=2, batch=32, validation=0.25, precision="float64"))))
    return out


def ask(run: Path, **changes: Any) -> Any:
    return evaluate(EvaluateRequest(**{"run": run, "compile_attack": compile_attack, "data": tiny_data(), "device": "cpu", **changes}))


def test_evaluate_repeats_the_numbers_of_the_run(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    for which in ("best", "last"):
        found = ask(run, which=which)
        assert found.clean.to_json() == result[which]["clean"]
        assert found.robust.to_json() == result[which]["robust"]
        assert found.epoch == result[which]["epoch"]
        assert found.settings[0]["radius"] == 0.1


def test_evaluate_writes_what_it_measured(run: Path) -> None:
    found = ask(run, overrides={"eps": 0.3}, seed=4, limit=30)
    written = json.loads(found.file.read_text())
    assert found.file.parent == run and found.file.name.startswith("evaluate-pgd20-best-")
    assert (written["seed"], written["count"], written["settings"][0]["radius"], written["clean"]["total"]) == (4, "worst", 0.3, 30)
    assert found.robust.right < ask(run, overrides={"eps": 0.0}, limit=30).robust.right
    assert ask(run, overrides={"eps": 0.3}, seed=5, limit=30).file != found.file


def test_evaluate_on_the_validation_split(run: Path) -> None:
    assert ask(run, split="validation").clean.total == 30
    assert ask(run).clean.total == 40


def test_evaluate_refuses_what_does_not_fit(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.json: there is no manifest of a run here"):
        ask(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"manifest\.json: is not a manifest of lossdsl"):
        ask(tmp_path)
    with pytest.raises(UserError, match="the data has 4 classes, the run was trained on 3"):
        ask(run, data=tiny_data(classes=4))
    with pytest.raises(UserError, match="was trained on tensors"):
        ask(run, data=None)
    with pytest.raises(UserError, match="--limit: 0 examples"):
        ask(run, limit=0)
    with pytest.raises(UserError, match="torch knows no device"):
        ask(run, device="warp")
    for name in ("manifest.json", "best.safetensors"):
        (tmp_path / name).write_bytes((run / name).read_bytes()[: None if name == "manifest.json" else 500])
    with pytest.raises(UserError, match=r"best\.safetensors: is damaged"):
        ask(tmp_path)


def test_changed_data_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lossdsl.run.stored.load_data", lambda request: tiny_data(seed=1))
    train(make_request(tmp_path / "run"))
    manifest = tmp_path / "run" / "manifest.json"
    about = json.loads(manifest.read_text())
    about["identity"]["data"]["root"] = "elsewhere"  # as of data with files
    manifest.write_text(json.dumps(about))
    with pytest.raises(UserError, match="is not the data the run was trained on"):
        ask(tmp_path / "run", data=None)
    monkeypatch.setattr("lossdsl.run.stored.load_data", lambda request: tiny_data())
    assert ask(tmp_path / "run", data=None).clean.total == 40


def printed(renderable: Any) -> str:
    from rich.console import Console

    console = Console(width=120, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    console.file.close()
    return console.export_text()


def test_reports_say_every_setting(run: Path) -> None:
    text = " ".join(printed(evaluations_report([ask(run, overrides={"eps": 8 / 255})])).split())
    for part in (
        "best checkpoint",
        "count worst",
        "steps 4",
        "restarts 1",
        "radius 8/255",
        "seed 0",
        "made up",
        "Wilson",
        "pgd20 robust",
    ):
        assert part in text
    text = printed(
        train_report(
            train(
                make_request(
                    run, recipe=FakeRecipe(train=TrainOptions(epochs=2, batch=32, validation=0.25, precision="float64")), resume=True
                )
            )
        )
    )
    for part in ("best", "last", "robust (pgd20)", "count worst", "nothing was trained", "6 updates"):
        assert part in text


def test_numbers_are_shown_as_people_write_them() -> None:
    assert [show_number(v) for v in (8 / 255, 2 / 255, 0.3, 0.2, 1.0, 0.001, 10, "uniform")] == [
        "8/255",
        "2/255",
        "0.3",
        "0.2",
        "1",
        "0.001",
        "10",
        "uniform",
    ]
    assert settings_line({"name": "ce", "steps": 10, "step": 2 / 255, "start": None}) == "ce: steps 10, step 2/255"
