"""`lossdsl.evaluate`: any module; few classes, any rank of inputs, and models that are not as they should be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lossdsl
from lossdsl.diagnostics import NotFiniteError, UserError

RUNS = {
    "one": "x' in linf(x, eps) maximize CE(f(x'), y) by pgd(steps = {steps}, step = eps / 2, start = x + uniform(linf(0, eps)), restarts = {restarts})",
    "two": "x' in l2(x, 2 * eps) maximize max(j != y: f(x')[j]) - f(x')[y] by pgd(steps = {steps}, step = eps, start = uniform)",
    "three": "x'[j != y] in linf(x, eps) maximize f(x'[j])[j] - f(x'[j])[y] by pgd(steps = {steps}, step = eps / 2, start = corner, restarts = {restarts})",
}


def suite(*names: str, steps: int = 2, restarts: int = 1, count: str = "worst") -> str:
    lines = [f"run {name} : {RUNS[name].format(steps=steps, restarts=restarts)}" for name in names]
    return "\n".join(["attack s", "param eps = 0.1", *lines, f"count {count}"])


def model_of(classes: int, shape: tuple[int, ...], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    size = int(torch.tensor(shape).prod())
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 12), nn.ReLU(), nn.Linear(12, classes)).double()


def examples(model: nn.Module, shape: tuple[int, ...], count: int = 24) -> tuple[Tensor, Tensor]:
    """Inputs with the model's own labels, but for every fifth."""
    random = torch.Generator().manual_seed(1)
    x = torch.rand(count, *shape, generator=random, dtype=torch.float64)
    y = model(x).argmax(1)
    y[::5] = (y[::5] + 1) % model(x).shape[1]
    return x, y


@pytest.mark.parametrize(
    ("classes", "shape", "eps"), [(2, (1, 4, 4), 0.15), (3, (7,), 0.15), (10, (3, 2, 2, 3), 0.15), (3, (2, 6), 0.15)]
)  # fmt: skip
def test_few_classes_and_any_rank(classes: int, shape: tuple[int, ...], eps: float) -> None:
    model = model_of(classes, shape)
    x, y = examples(model, shape)
    found = lossdsl.evaluate(model, x, y, suite("one", "two", "three", steps=5), eps=eps)
    assert (found.clean.right, found.clean.total) == (19, 24)
    assert found.robust is not None and 0 < found.robust.right < 19, "otherwise this test shows nothing"
    points, broken = found.points, found.broken
    assert points is not None and points.shape == x.shape and points.dtype == torch.float64
    assert torch.equal(model(points).argmax(1) != y, broken), "the points are the proof"
    assert float((points - x).flatten(1).norm(dim=1).max()) <= max(2 * eps, eps * x[0].numel() ** 0.5) + 1e-9
    assert bool((points >= 0).all() and (points <= 1).all())
    for name, outcome in ((o.name, o) for o in found.measurement.outcomes):
        moved = (outcome.points != x).flatten(1).any(1)
        assert not bool((moved & ~outcome.attacked).any()), name


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    names=st.permutations(list(RUNS)), cut=st.integers(1, 3), seed=st.integers(0, 99), classes=st.sampled_from((2, 3, 5)), restarts=st.integers(1, 3)
)  # fmt: skip
def test_more_runs_and_restarts_never_repair(names: list[str], cut: int, seed: int, classes: int, restarts: int) -> None:
    """A suite breaks what any of its runs breaks alone; an added run or restart repairs nobody and leaves the other runs' numbers."""
    model = model_of(classes, (6,), seed)
    x, y = examples(model, (6,))

    def broken(*runs: str, restarts: int = restarts) -> Tensor:
        return lossdsl.evaluate(model, x, y, suite(*runs, restarts=restarts), eps=0.1, seed=seed, batch=7).broken

    alone = {name: broken(name) for name in names}
    some, every = broken(*names[:cut]), broken(*names)
    assert torch.equal(every, torch.stack(list(alone.values())).any(0))
    assert torch.equal(some, torch.stack([alone[name] for name in names[:cut]]).any(0))
    assert not bool((some & ~every).any())
    assert not bool((every & ~broken(*names, restarts=restarts + 1)).any())
    each = lossdsl.evaluate(model, x, y, suite(*names, restarts=restarts, count="each"), eps=0.1, seed=seed)
    assert {o.name: o.broken.tolist() for o in each.measurement.outcomes} == {
        name: (mask & each.measurement.predictions.right).tolist() for name, mask in alone.items()
    }


def test_more_batches_and_fewer_examples_change_no_example() -> None:
    model = model_of(3, (6,))
    x, y = examples(model, (6,))
    whole = lossdsl.evaluate(model, x, y, suite("one", "three", restarts=2))
    part = lossdsl.evaluate(model, x[:11], y[:11], suite("one", "three", restarts=2), batch=4)
    assert torch.equal(whole.broken[:11], part.broken) and torch.allclose(whole.points[:11], part.points, rtol=0, atol=1e-12)


def test_passes_are_those_the_model_sees() -> None:
    model, calls = model_of(3, (6,)), []
    x, y = examples(model, (6,))
    model.register_forward_hook(lambda m, inputs, output: calls.append((len(inputs[0]), output.requires_grad)))
    calls.clear()
    found = lossdsl.evaluate(model, x, y, suite("one", "two", steps=3), batch=10)
    seen = found.passes
    calls = calls[-seen.forward_calls :]  # without the trials of the model
    assert seen.forward_examples == sum(count for count, _ in calls)
    assert seen.backward_calls == sum(graph for _, graph in calls)
    assert seen.backward_examples == sum(count for count, graph in calls if graph)
    assert found.measurement.predictions.passes.forward_examples == len(x)
    alive = found.clean.right
    assert found.measurement.outcomes[0].passes.backward_examples <= 3 * alive


def test_points_are_those_that_decide() -> None:
    """Under best_loss the larger objective, whoever fools; under each every run has its own."""
    model = model_of(3, (6,))
    x, y = examples(model, (6,))
    runs = "\n".join(
        f"run {name} : x' in linf(x, {eps}) maximize CE(f(x'), y) by pgd(steps = 3, step = 0.1, start = uniform)"
        for name, eps in (("wide", 0.2), ("narrow", 0.02))
    )
    found = lossdsl.evaluate(model, x, y, f"attack b\n{runs}\ncount best_loss")
    wide, narrow = found.measurement.outcomes
    assert torch.equal(found.broken, model(found.points).argmax(1) != y)
    larger = torch.where(wide.objective > narrow.objective, wide.objective, narrow.objective)[wide.attacked]
    at = nn.functional.cross_entropy(model(found.points), y, reduction="none").detach()[wide.attacked]
    torch.testing.assert_close(at, larger)
    each = lossdsl.evaluate(model, x, y, f"attack b\n{runs}\ncount each")
    assert each.points is None and all(outcome.points.shape == x.shape for outcome in each.measurement.outcomes)


class Dropped(nn.Module):
    """Dropout, left in train mode by its owner."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop = model_of(3, (6,)), nn.Dropout(0.9)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.drop(x))


def test_a_model_in_train_mode_is_evaluated_in_eval_mode_and_put_back() -> None:
    model = Dropped().train()
    model.body[1].eval()
    x, y = examples(model.body, (6,))
    one, two = (lossdsl.evaluate(model, x, y, suite("one")) for _ in range(2))
    assert one.clean.right == 19 and torch.equal(one.broken, two.broken)
    assert model.training and model.drop.training and not model.body[1].training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


class Wild(nn.Module):
    """NaN where the first coordinate is above a border."""

    def __init__(self, border: float) -> None:
        super().__init__()
        self.body, self.border = model_of(3, (6,)), border

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + torch.where(x[:, :1] > self.border, torch.nan, 0.0)


def test_outputs_that_are_not_finite_count_as_wrong_and_are_said() -> None:
    model = Wild(0.6)
    x, y = examples(model.body, (6,))
    x[:, 0] = torch.where(x[:, 0] > 0.6, x[:, 0], x[:, 0].clamp(max=0.45))
    wild = int((x[:, 0] > 0.6).sum())
    found = lossdsl.evaluate(model, x, y, suite("one"))
    assert found.not_finite == wild > 0 and bool(found.broken[x[:, 0] > 0.6].all())
    assert f"{wild} examples have outputs that are not finite; they count as wrong" in str(found)


@pytest.mark.parametrize("batch", [5, 512])
@pytest.mark.parametrize("solver", ["pgd(steps = 2, step = eps / 2", "apgd(steps = 2"])
def test_a_number_that_is_not_finite_in_an_attack_names_the_example_in_the_split(solver: str, batch: int) -> None:
    model = Wild(0.6)
    x, y = examples(model.body, (6,))
    x[:, 0] = 0.1
    x[[13, 17], 0] = 0.58
    y[:] = model(x).argmax(1)
    with pytest.raises(NotFiniteError) as error:
        text = suite("three", "one").replace("corner", "x + 0.05").replace("pgd(steps = 2, step = eps / 2", solver)
        lossdsl.evaluate(model, x, y, text, batch=batch)
    assert error.value.where == "attack s, run three, example 13 of the split"
    assert error.value.problem in ("the objective is nan at iterate 0", "the objective is not finite at evaluation 0")
    assert "lossdsl sanity" in error.value.fix


def test_what_it_refuses() -> None:
    model = model_of(3, (6,))
    x, y = examples(model, (6,))
    softmax = nn.Sequential(model, nn.Softmax(1))
    for bad, message in (
        (lambda: lossdsl.evaluate(softmax, x, y, "pgd20"), "outputs are probabilities"),
        (lambda: lossdsl.evaluate(nn.Flatten(), x[:, :1], y, "pgd20"), r"the model returns shape \[8, 1\], not logits"),
        (lambda: lossdsl.evaluate(model, x[:, :5], y, "pgd20"), r"model: the model fails on inputs of shape \[8, 5\]"),
        (lambda: lossdsl.evaluate(model, (x * 255).long(), y, "pgd20"), r"x: inputs are floating-point, \[N, \*shape\], and this is torch.int64"),
        (lambda: lossdsl.evaluate(model, x * 2, y, "pgd20"), r"outside the recipe's domain \[0, 1\]"),
        (lambda: lossdsl.evaluate(model, x, y + 1, "pgd20"), "example . has label 3, and the model knows the classes 0..2"),
        (lambda: lossdsl.evaluate(model, x, y[:5], "pgd20"), "24 inputs but 5 labels"),
        (lambda: lossdsl.evaluate(model, x, y.double(), "pgd20"), "labels are class indices"),
        (lambda: lossdsl.evaluate(model, x, y, "pgd21"), "did you mean pgd2"),
        (lambda: lossdsl.evaluate(model, x, y, "trades"), "trades is a training recipe, not an attack suite"),
        (lambda: lossdsl.evaluate(model, x, y, "pgd20", params={"stepp": 1}), "has no param stepp"),
        (lambda: lossdsl.evaluate(model, x, y, "transfer"), "needs the frozen model g"),
        (lambda: lossdsl.evaluate(lambda v: v, x, y, "pgd20"), "the model is a function, not a torch.nn.Module"),
        (lambda: lossdsl.evaluate(model, x, y, "pgd20", cache="somewhere"), "pass points=False"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            bad()


def test_transfer_attacks_the_surrogate_and_counts_the_model() -> None:
    model, other = model_of(3, (6,)), model_of(3, (6,), seed=5)
    x, y = examples(model, (6,))
    found = lossdsl.evaluate(model, x, y, "transfer", eps=0.2, models={"g": other})
    assert found.robust is None and found.broken is None and "from_g" in str(found)
    outcome = found.measurement.outcomes[0]
    assert torch.equal(outcome.broken, outcome.attacked & (model(outcome.points).argmax(1) != y))
    before, after = (nn.functional.cross_entropy(other(at), y, reduction="none") for at in (x, outcome.points))
    assert bool((after >= before)[outcome.attacked].all())
    assert lossdsl.evaluate(model, x, y, "pgd20", eps=0.2).robust.right <= found.runs["from_g"].right


def test_a_cache_answers_and_knows_other_weights(tmp_path: Path) -> None:
    model = model_of(3, (6,))
    x, y = examples(model, (6,))

    def ask(**changes: object) -> lossdsl.Evaluation:
        return lossdsl.evaluate(model, x, y, suite("one", "three"), points=False, cache=tmp_path, **changes)

    first, second = ask(), ask()
    assert (first.cached, second.cached) == (False, True) and torch.equal(first.broken, second.broken)
    assert first.passes == second.passes and not list(tmp_path.glob(".*"))
    assert not ask(fresh=True).cached and not ask(seed=1).cached and not ask(eps=0.2).cached
    with torch.no_grad():
        model[1].bias += 1e-9
    assert not ask().cached
