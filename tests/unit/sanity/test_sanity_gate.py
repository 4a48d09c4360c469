"""The sanity gate: each fault gives its finding, sound models give none, and nothing passes unseen."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
import zoo
from torch import Tensor, nn

from lossdsl.diagnostics import UserError
from lossdsl.run.measure import Rate
from lossdsl.sanity import Measured, Report, Settings, Threat, check_model
from lossdsl.sanity.catalogue import ROWS
from lossdsl.sanity.subject import Subject

EPS = 0.1
HARD = 0.1
"""Radius of the adversarially trained models."""


def report(model: nn.Module, classes: int = 10, **changes: object) -> Report:
    return check_model(model.eval(), *zoo.held_out(classes), Threat(EPS), **changes)  # type: ignore[arg-type]


def found(report: Report) -> list[str]:
    return [outcome.code for outcome in report.findings]


def statuses(report: Report) -> dict[str, str]:
    return {outcome.code: outcome.status for outcome in report.outcomes}


ALWAYS_OPEN = {"S14": "not run", "S15": "not run", "S16": "not run"}
"""Without surrogates and without measured numbers."""


@pytest.mark.parametrize("make", ["perceptron", "convolutions"])
@pytest.mark.parametrize("eps", [0.0, HARD])
def test_no_finding_on_a_sound_model(make: str, eps: float) -> None:
    found_ = report(zoo.trained(make, 0, eps))
    assert statuses(found_) == {code: "passed" for code in ROWS} | ALWAYS_OPEN
    assert found_.examples == 128 and 100 < found_.right <= 128


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_no_finding_on_sound_models_of_many_seeds(norm: str) -> None:
    x, y = zoo.held_out()
    for make in ("perceptron", "convolutions"):
        for eps in (0.0, 0.2):
            for seed in range(1, 4):
                for radius in {"linf": (HARD, 0.2), "l2": (0.5,), "l1": (2.0,)}[norm]:
                    model = zoo.trained(make, seed, eps)
                    assert found(check_model(model, x, y, Threat(radius, norm), settings=Settings(seed=seed))) == [], (make, eps, seed)


@pytest.mark.parametrize(
    ("wrap", "codes"),
    [
        (zoo.Probabilities, {"S03"}),
        (zoo.DropoutOn, {"S04"}),
        (zoo.Noisy, {"S04"}),
        (zoo.BatchStatistics, {"S05"}),
        (zoo.Constant, {"S06"}),
        (zoo.Quantised, {"S07", "S11", "S13"}),
        (zoo.Detached, {"S07"}),
        (zoo.NotANumber, {"S02"}),
        (zoo.Scaled, {"S08", "S11", "S12", "S13"}),
        (zoo.Wavy, {"S11", "S13"}),
        (zoo.Overflowing, {"S17"}),
    ],
)
def test_each_fault_gives_its_finding(wrap: Callable[[nn.Module], nn.Module], codes: set[str]) -> None:
    got = report(wrap(zoo.trained()))
    assert codes <= set(found(got)), got.summary()
    allowed = {zoo.DropoutOn: {"S09", "S10"}, zoo.Noisy: {"S09", "S10"}, zoo.Constant: {"S08"}}.get(wrap, set())  # type: ignore[call-overload]
    assert set(found(got)) - codes <= allowed
    for outcome in got.outcomes:
        assert outcome.status != "not run" or outcome.verdict.detail, outcome.code


def test_a_model_in_train_mode() -> None:
    model = nn.Sequential(zoo.trained("convolutions"), nn.Dropout(0.5))
    model.train()
    before = [module.training for module in model.modules()]
    got = check_model(model, *zoo.held_out(), Threat(EPS))
    assert found(got) == ["S01"] and "train mode" in got["S01"].verdict.detail
    assert [module.training for module in model.modules()] == before


def test_a_module_that_stays_in_train_mode() -> None:
    got = report(nn.Sequential(zoo.Stubborn(0.3), zoo.trained()))
    assert {"S01", "S04"} <= set(found(got)) and "0" in got["S01"].verdict.detail


@pytest.mark.parametrize("classes", [2, 3])
def test_two_and_three_classes(classes: int) -> None:
    sound = zoo.trained("perceptron", 0, 0.0, classes)
    got = report(sound, classes)
    assert statuses(got) == {code: "passed" for code in ROWS} | ALWAYS_OPEN
    assert ("needs K >= 3" in got["S12"].verdict.detail) == (classes == 2)
    assert {"S08", "S11"} <= set(found(report(zoo.Scaled(sound), classes)))


@pytest.mark.parametrize("shape", [(64,), (8, 8), (2, 4, 2, 4)])
def test_inputs_of_any_rank(shape: tuple[int, ...]) -> None:
    x, y = zoo.held_out()
    got = check_model(zoo.trained(), x.reshape(-1, *shape), y, Threat(EPS))
    assert found(got) == []
    assert got["S09"].verdict.numbers == report(zoo.trained())["S09"].verdict.numbers


def test_unbounded_domain_and_radius_zero() -> None:
    x, y = zoo.held_out()
    shifted = nn.Sequential(Shift(2.0), zoo.trained())
    got = check_model(shifted.eval(), x + 2, y, Threat(EPS, domain=None))
    assert found(got) == [] and got["S11"].verdict.numbers["radius"] == 1.0
    got = check_model(zoo.trained(), x, y, Threat(0.0))
    assert got["S09"].status == "not run" and got["S09"].verdict.detail == "the radius is 0"
    got = check_model(zoo.trained(), x, y, Threat(1.0))
    assert "already without a bound" in got["S10"].verdict.detail and found(got) == []


class Shift(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return x - self.by


def test_few_examples_are_too_few() -> None:
    x, y = zoo.held_out()
    got = check_model(zoo.trained(), x[:6], y[:6], Threat(EPS))
    assert "too few" in got["S09"].verdict.detail and got["S07"].status == "passed"
    got = check_model(zoo.trained(), x[y == 3][:40], y[y == 3][:40], Threat(EPS))
    assert "one label" in got["S06"].verdict.detail


def test_transfer() -> None:
    """The twin without the ripple breaks the model that hides behind it; the two sound ones do not break each other more than themselves."""
    got = report(zoo.Wavy(zoo.trained()), surrogates=(zoo.trained(),))
    assert "S14" in found(got)
    assert report(zoo.trained(), surrogates=(zoo.trained("perceptron", 1), zoo.trained("convolutions")))["S14"].status == "passed"


def test_measured_numbers() -> None:
    sound = zoo.trained()
    good = Measured("pgd20", Rate(120, 128), Rate(30, 128), torch.zeros(128, dtype=torch.bool))
    assert {report(sound, measured=good)[code].status for code in ("S15", "S16")} == {"passed"}
    assert report(sound, measured=Measured("pgd20", Rate(120, 128), Rate(121, 128)))["S15"].status == "error"
    assert report(sound, measured=Measured("pgd20", Rate(120, 128), Rate(60, 100)))["S15"].status == "error"
    weak = report(sound, measured=Measured("weak", Rate(120, 128), Rate(120, 128), torch.ones(128, dtype=torch.bool)))
    assert found(weak) == ["S16"] and "weak left" in weak["S16"].verdict.detail


@pytest.mark.parametrize("outputs", [lambda z: (z, z), lambda z: z[:, 0], lambda z: z[:, :1], lambda z: z[:, :4]])
def test_outputs_that_are_no_logits(outputs: Callable[[Tensor], Tensor]) -> None:
    class Odd(zoo.Around):
        def forward(self, x: Tensor) -> Tensor:
            return outputs(super().forward(x))

    got = report(Odd(zoo.trained()))
    assert found(got) == ["S02"] and got["S02"].status == "error"
    assert all(outcome.status == "not run" for outcome in got.outcomes[2:])


def test_wrong_arguments() -> None:
    x, y = zoo.held_out()
    model = zoo.trained()
    for arguments, match in (
        ((lambda z: z, x, y, Threat(0.1)), "not a torch.nn.Module"),
        ((model, x.to(torch.uint8), y, Threat(0.1)), "no tensor of floats"),
        ((model, x, y[:3], Threat(0.1)), "one label for each"),
        ((model, x, y, Threat(-0.1)), "the radius is -0.1"),
        ((model, x, y, Threat(0.1, "linff")), "did you mean linf"),
        ((model, x * 255, y, Threat(0.1)), "outside the recipe's domain"),
        ((model, x[..., :4], y, Threat(0.1)), "the model fails on inputs of shape"),
    ):
        with pytest.raises(UserError, match=match):
            check_model(*arguments)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="did you mean quick"):
        check_model(model, x, y, Threat(0.1), settings=Settings("quik"))


def test_nothing_is_left_behind_and_the_seed_decides() -> None:
    model, before = zoo.Noisy(zoo.trained("convolutions")).eval(), torch.get_rng_state()
    buffers = [b.clone() for b in model.buffers()]
    one, two = (report(model).to_json()["checks"] for _ in range(2))
    assert one == two
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
    assert not model._forward_hooks


def test_the_report_is_json_and_says_what_it_cost() -> None:
    got = report(zoo.Quantised(zoo.trained()))
    value = json.loads(json.dumps(got.to_json(), allow_nan=False))
    assert value["findings"] == found(got) and [row["code"] for row in value["checks"]] == sorted(ROWS)
    assert all(row[key] for row in value["checks"] for key in ("title", "claim", "remedy", "reference", "detail"))
    assert value["passes"]["forward_examples"] > value["passes"]["backward_examples"] > 10 * 128
    assert got.summary().startswith(f"sanity: {len(ROWS)} checks (")
    assert "S07 gradients are not zero, S11" in got.summary() and "forward and" in got.summary()


def test_points_without_finite_outputs_break_nothing_and_are_counted() -> None:
    x, y = zoo.held_out()
    model = zoo.Overflowing(zoo.trained())
    subject = Subject(model.eval(), x[:50], y[:50], Threat(EPS), Settings())
    right = int(subject.correct.sum())
    assert int(subject.broken(x[:50][subject.correct] + 0.001).sum()) == 0 and subject.not_finite == right
