"""D4, D5, D10, D15, D17, D19 against plain PyTorch in float64; degenerate models give findings, not NaN."""

from __future__ import annotations

import pytest
import torch
from diagnose_tools import Broken, Constant, Stepped, network, subject
from torch.nn.functional import cosine_similarity, cross_entropy

from lossdsl.diagnose.accuracy import classes, radii
from lossdsl.diagnose.alignment import aligned
from lossdsl.diagnose.landscape import landscape
from lossdsl.diagnose.margins import decomposition, margins
from lossdsl.diagnose.perturbations import distances
from lossdsl.diagnose.ratios import entropies, ratios
from lossdsl.diagnose.subject import Options, Subject
from lossdsl.diagnostics import UserError
from lossdsl.run.rng import derive, generator

SHAPES = [(2, 1), (2, 6), (3, 6), (10, 6)]


def slope(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(cross_entropy(model(x), y, reduction="sum"), x)[0]


def near(looked: Subject, purpose: str) -> torch.Tensor:
    noise = torch.rand(looked.x.shape, dtype=looked.x.dtype, generator=generator("cpu", derive(looked.seed, purpose)))
    return looked.x + looked.radius * (2 * noise - 1)


@pytest.mark.parametrize(("k", "features"), SHAPES)
def test_alignment_is_the_cosine_of_input_gradients(k: int, features: int) -> None:
    looked = subject(k, features=features)
    looked.model.eval()
    found = aligned(looked)
    here, there = slope(looked.model, looked.x, looked.y), slope(looked.model, near(looked, "alignment"), looked.y)
    assert found[0] == pytest.approx(float(cosine_similarity(here, there).mean()), abs=1e-9)
    fgsm = (looked.x + 0.2 * here.sign()).clamp(0, 1) - looked.x
    assert found[1] == pytest.approx(float(cosine_similarity(fgsm, looked.adversarial - looked.x).mean()), abs=1e-9)
    assert found[2] == 0


@pytest.mark.parametrize("model", [Constant(3), Stepped(network(3))])
def test_zero_gradients_count_as_one_and_are_counted(model: torch.nn.Module) -> None:
    looked = subject(3, model=model)
    assert aligned(looked) == (1.0, None, len(looked))
    with pytest.raises(UserError, match="passes no gradient to its inputs"):
        margins(looked)


@pytest.mark.parametrize(("k", "features"), SHAPES)
def test_log_ratios(k: int, features: int) -> None:
    looked = subject(k, features=features)
    looked.model.eval()
    table = ratios(looked)
    with torch.no_grad():
        p, q = looked.model(looked.x).log_softmax(1), looked.model(looked.adversarial).log_softmax(1)
    rows = torch.arange(len(looked))
    others = q.clone()
    others[rows, looked.y] = -torch.inf
    t = others.argmax(1)
    torch.testing.assert_close(torch.tensor(table["label"], dtype=torch.float64), (p - q)[rows, looked.y])
    torch.testing.assert_close(torch.tensor(table["target"], dtype=torch.float64), (q - p)[rows, t])


def test_log_ratios_at_several_radii() -> None:
    looked = subject()
    table = ratios(looked, Options(radii=(0.05, 0.2)))
    assert list(table.split("eps")) == ["0.05", "0.2"]
    assert table.split("eps")["0.2"]["label"] == ratios(looked)["label"]


@pytest.mark.parametrize("k", [2, 10])
def test_the_gradient_of_kl_is_weighted_by_the_ratios(k: int) -> None:
    """Prop. 1 of Bridged AT: grad KL(p || p*) = (grad p)^T log a - (grad p*)^T a, a = p / p*."""
    looked = subject(k, count=1)
    model = looked.model.eval()
    weights = [p.requires_grad_() for p in model.parameters()]

    def jacobian(point: torch.Tensor) -> list[list[torch.Tensor]]:
        p = model(point).softmax(1)[0]
        return [list(torch.autograd.grad(p[i], weights, retain_graph=True)) for i in range(k)]

    p, q = model(looked.x).softmax(1)[0], model(looked.adversarial).softmax(1)[0]
    whole = torch.autograd.grad((p * (p / q).log()).sum(), weights)
    a = (p / q).detach()
    for n, (expected, one, two) in enumerate(
        zip(whole, zip(*jacobian(looked.x), strict=True), zip(*jacobian(looked.adversarial), strict=True), strict=True)
    ):
        summed = sum(a[i].log() * one[i] - a[i] * two[i] for i in range(k))
        torch.testing.assert_close(summed, expected, rtol=1e-8, atol=1e-12, msg=f"weights {n}")
    weight = ratios(looked)
    assert weight["label"][0] == pytest.approx(float(a[looked.y[0]].log()))


@pytest.mark.parametrize(("k", "features"), SHAPES)
def test_entropies(k: int, features: int) -> None:
    looked = subject(k, features=features)
    looked.model.eval()
    table = entropies(looked)
    points = {"clean": looked.x, "near": near(looked, "entropies"), "attacked": looked.adversarial}
    for name, point in points.items():
        p = looked.model(point).softmax(1).detach()
        torch.testing.assert_close(torch.tensor(table[name], dtype=torch.float64), -(p * p.log()).sum(1))
    assert table["predicted"] == looked.model(points["near"]).argmax(1).tolist()


def test_the_landscape_is_the_loss_along_two_directions() -> None:
    looked = subject(3)
    looked.model.eval()
    table = landscape(looked, Options(example=4))
    one = looked.x[4:5]
    ascent = slope(looked.model, one, looked.y[4:5]).sign()
    draws = torch.rand(one.shape, generator=generator("cpu", derive(0, "landscape", 4)))
    sides = torch.where(draws < 0.5, -1.0, 1.0)
    assert max(table["a"]) == max(table["b"]) == pytest.approx(0.3) and len(table) == 31 * 31
    for row in list(table)[::97]:
        point = one + row["a"] * ascent + row["b"] * sides
        assert row["loss"] == pytest.approx(float(cross_entropy(looked.model(point), looked.y[4:5]).detach()))
    with pytest.raises(UserError, match="no example 9"):
        landscape(looked, Options(example=9))


def test_distances_pair_by_pair() -> None:
    looked = subject(3)
    table = distances(looked, Options(example=2, starts=6))
    kinds = [row["quantity"] for row in table]
    assert kinds.count("distance") == 15 and kinds.count("loss") == 6
    looked.model.eval()
    assert table.facts["clean loss"] == pytest.approx(float(cross_entropy(looked.model(looked.x[2:3]), looked.y[2:3]).detach()))
    assert all(0 <= row["value"] <= 0.4 * 6**0.5 + 1e-9 for row in table if row["quantity"] == "distance")
    with pytest.raises(UserError, match="one point from every start"):
        distances(subject(3, attack="fgsm"), Options(starts=3))


def test_accuracy_per_class() -> None:
    looked = subject(4, count=40)
    table = classes(looked)
    for k, row in enumerate(table):
        own = looked.y == k
        assert row["examples"] == int(own.sum())
        assert row["clean"] == pytest.approx(float(looked.clean[own].double().mean())) and row["robust"] <= row["clean"]
    absent = classes(looked.at(looked.x[looked.y != 1], looked.y[looked.y != 1]))
    assert list(absent)[1]["clean"] is None and any("no examples of class 1" in note for note in absent.notes)


def test_accuracy_against_the_radius() -> None:
    looked = subject(3, count=60)
    table = radii(looked, Options(radii=(0.0, 0.1, 0.2)))
    assert table["robust"][0] == table["clean"][0] == pytest.approx(float(looked.clean.double().mean()))
    assert table["robust"][2] == pytest.approx(float(looked.robust.double().mean()))


def test_outputs_that_are_not_finite_are_named() -> None:
    looked = subject(3, model=Broken(network(3)), count=30, eps=1e-6)
    with pytest.raises(UserError, match="margin is nan for example"):
        margins(looked)
    bad = int((looked.x[:, 0] > 0.8).sum())
    assert bad and dict(zip(decomposition(looked)["error"], decomposition(looked)["examples"], strict=True))["R_nat"] >= bad


def test_without_a_gradient_the_landscape_is_flat_along_it() -> None:
    table = landscape(subject(3, model=Constant(3)))
    assert table.notes[-1].startswith("the gradient is 0 here") and len(set(table["loss"])) == 1


def test_subjects_are_checked() -> None:
    x, y = torch.rand(4, 2), torch.tensor([0, 1, 2, 5])
    with pytest.raises(UserError, match="labels reach from 0 to 5"):
        Subject.of(network(3, features=2), x, y, 3)
    with pytest.raises(UserError, match="0 labels"):
        Subject.of(network(3, features=2), x[:0], y[:0], 3)
