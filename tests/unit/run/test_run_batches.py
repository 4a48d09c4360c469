"""Which examples the batches hold: orders, mixtures, and draws class by class."""

from __future__ import annotations

import os
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from run_fakes import FakeRecipe, FakeStep, assert_same, check_cuts, make_request, outcome, tiny_data
from torch import Tensor, nn

from lossdsl.diagnostics import UserError
from lossdsl.lang.specs import TrainOptions
from lossdsl.run.batches import ClassSampler, Feed, cycled_order, mixed_count
from lossdsl.run.checkpoint import read_checkpoint
from lossdsl.run.data import from_tensors
from lossdsl.run.examples import Joined, Split, TensorExamples, whole
from lossdsl.run.train import train


def some_split(count: int) -> Split:
    return whole(TensorExamples(torch.rand(count, 2), torch.arange(count) % 3))


# --- two streams --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("labelled", "others", "batch", "pseudo"), [(50, 23, 10, 5), (47, 200, 12, 3), (9, 4, 16, 8), (30, 7, 10, 9)])
def test_an_epoch_goes_once_through_the_first_stream_at_the_right_share(labelled: int, others: int, batch: int, pseudo: int) -> None:
    feed = Feed(some_split(labelled + others), labelled, batch, pseudo)
    own = batch - pseudo
    for epoch in (1, 2, 5):
        order = feed.order(3, epoch)
        assert len(order) == feed.per_epoch == -(-labelled // own)
        first = torch.cat([b[b < labelled] for b in order])
        assert torch.equal(first.sort().values, torch.arange(labelled))
        for number, b in enumerate(order):
            mine = int((b < labelled).sum())
            assert mine == feed.size(number)
            assert len(b) - mine == round(mine * pseudo / own)
        if labelled >= own:
            assert len(order[0]) == batch
    orders = [torch.cat(feed.order(seed, epoch)) for seed, epoch in ((3, 1), (3, 2), (4, 1))]
    firsts = [order[order < labelled] for order in orders]
    assert not torch.equal(firsts[0], firsts[1]) and not torch.equal(firsts[0], firsts[2])
    assert not torch.equal(orders[0][orders[0] >= labelled], orders[2][orders[2] >= labelled])
    assert all(torch.equal(a, b) for a, b in zip(feed.order(3, 2), feed.order(3, 2), strict=True))


def test_the_second_stream_goes_on_from_epoch_to_epoch() -> None:
    """Over several epochs every example of it comes equally often, up to one."""
    feed = Feed(some_split(50 + 23), 50, 10, 5)
    seen = torch.cat([b[b >= 50] - 50 for epoch in (1, 2, 3) for b in feed.order(7, epoch)])
    assert len(seen) == 150
    counts = torch.bincount(seen, minlength=23)
    assert set(counts.tolist()) == {6, 7}
    assert torch.equal(seen, cycled_order(7, 0, 150, 23))
    assert not torch.equal(seen[:23], seen[23:46])


def test_one_stream_is_as_before() -> None:
    feed = Feed(some_split(50), 50, 16)
    assert [len(b) for b in feed.order(0, 1)] == [16, 16, 16, 2] == [feed.size(n) for n in range(4)]


def test_the_share_of_a_batch() -> None:
    assert [mixed_count(b, f) for b, f in ((256, 0.5), (10, 0.25), (7, 0.9))] == [128, 2, 6]
    with pytest.raises(UserError, match="has no example of the second stream"):
        mixed_count(2, 0.1)
    with pytest.raises(UserError, match="has no example of the first stream"):
        mixed_count(2, 0.9)


def test_joined_streams_keep_inputs_and_labels_together() -> None:
    first = Split(TensorExamples(torch.arange(10.0).reshape(10, 1), torch.arange(10)), torch.tensor([3, 1, 8]))
    second = Split(TensorExamples(100 + torch.arange(5.0).reshape(5, 1), torch.zeros(5)), torch.tensor([4, 2]))
    joined = whole(Joined(first, second, torch.tensor([-1, 7])))
    assert joined.labels.tolist() == [3, 1, 8, -1, 7]
    order = [torch.tensor([4, 0, 3]), torch.tensor([1]), torch.tensor([4])]
    batches = list(joined.batches(order))
    assert [b.x.flatten().tolist() for b in batches] == [[102, 3, 104], [1], [102]]
    assert [b.y.tolist() for b in batches] == [[7, 3, -1], [1], [7]]
    assert [b.index.tolist() for b in batches] == [[4, 0, 3], [1], [4]]


# --- draws class by class -------------------------------------------------------------------------------------------------


def test_draws_follow_the_law_and_are_uniform_within_a_class() -> None:
    from scipy.stats import chisquare

    labels = torch.tensor([2, 0, 1, 1, 2, 0, 2, 1, 2, 2])
    law = torch.tensor([0.6, 0.3, 0.1])
    index = ClassSampler(labels, 3).draw(law, 30_000, torch.Generator().manual_seed(0))
    wanted = law[labels] / torch.bincount(labels)[labels]
    assert chisquare(torch.bincount(index, minlength=10), 30_000 * wanted.double() / wanted.double().sum()).pvalue > 1e-4


def test_a_class_of_probability_zero_never_comes_and_may_be_absent() -> None:
    index = ClassSampler(torch.tensor([0, 2, 2, 0]), 4).draw(torch.tensor([0.5, 0.0, 0.5, 0.0]), 1000, torch.Generator().manual_seed(0))
    assert set(index.tolist()) == {0, 1, 2, 3}
    index = ClassSampler(torch.tensor([0, 1, 2, 0]), 3).draw(torch.tensor([0.0, 1.0, 0.0]), 100, torch.Generator())
    assert set(index.tolist()) == {1}


@pytest.mark.parametrize(
    ("law", "message"),
    [
        ([0.5, 0.2, 0.3, 0.0], "class 1 has probability 0.2 and no training example"),
        ([0.5, 0.0, 0.4, 0.0], "add up to 1"),
        ([1.5, 0.0, -0.5, 0.0], "0 or more"),
        ([float("nan"), 0.0, 0.5, 0.5], "nan"),
        ([0.5, 0.5], "4 classes"),
    ],
)
def test_a_law_that_is_none(law: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ClassSampler(torch.tensor([0, 2, 2, 3]), 4).draw(torch.tensor(law), 5, torch.Generator())


class Focused(FakeStep):
    """A law that moves with every update, and a record of the labels it led to."""

    seen: list[Tensor]

    def __init__(self, model: nn.Module, eps: float, log: list[Tensor]) -> None:
        super().__init__(model, eps)
        self.weights, self.log = torch.zeros(3), log

    def __call__(self, x: Tensor, y: Tensor, *, index: Tensor, generator: torch.Generator) -> Any:
        self.log.append(index.clone())
        self.counts = torch.bincount(y, minlength=3)
        return super().__call__(x, y, index=index, generator=generator)

    def after_update(self) -> None:
        self.weights = self.weights + 0.05 * self.counts

    def class_probabilities(self) -> Tensor:
        return torch.softmax(self.weights, 0)

    def state_dict(self) -> dict[str, Tensor]:
        return {**super().state_dict(), "w": self.weights}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.weights = state["w"].clone()


def focused(**changes: Any) -> dict[str, Any]:
    log: list[Tensor] = []
    train_options = TrainOptions(**{"epochs": 2, "batch": 32, "validation": 0.25, "augment": "crop_flip", **changes})
    return {
        "recipe": FakeRecipe(train=train_options, sampled=True),
        "compile_step": lambda model, classes, device, models: Focused(model, 0.1, log),
        "model": "run_fakes:DropoutNet",
    }


def test_a_sampled_run_draws_as_many_examples_as_it_has(tmp_path: Path) -> None:
    log: list[Tensor] = []
    request = make_request(tmp_path / "run", **focused())
    train(replace(request, compile_step=lambda model, classes, device, models: Focused(model, 0.1, log)))
    assert [len(index) for index in log] == [32, 32, 26] * 2
    assert len(set(torch.cat(log[:3]).tolist())) < 90  # with replacement
    assert max(int(index.max()) for index in log) < 90


@pytest.mark.parametrize(("every", "saves", "replays"), [(2, 2, 1), (3, 2, 1), (2, 2, 3), (5, 4, 3)])
def test_a_sampled_run_resumes_exactly(tmp_path: Path, every: int, saves: int, replays: int) -> None:
    check_cuts(tmp_path, every, checkpoint_every=saves, **focused(replays=replays))


def test_ctrl_c_in_a_sampled_run(tmp_path: Path) -> None:
    options = focused(replays=2)
    train(make_request(tmp_path / "whole", **options))
    for calls in (2, 3):  # at the end of a batch and in its middle
        request = make_request(tmp_path / str(calls), resume=True, **options)
        left = [calls]

        class Interrupted(Focused):
            def after_update(self, left: list[int] = left) -> None:
                super().after_update()
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGINT)

        cut = replace(request, compile_step=lambda model, classes, device, models, kind=Interrupted: kind(model, 0.1, []))
        assert train(cut).status == "interrupted"
        parts = read_checkpoint(tmp_path / str(calls) / "last.safetensors").part("batch")
        assert ("drawn" in parts) == (calls == 3)
        assert train(request).status == "finished"
        assert_same(outcome(tmp_path / "whole"), outcome(tmp_path / str(calls)))


def test_stopped_wherever_the_run_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a batch, between its replays, in the validation: the n-th time the run asks whether to stop, it is told to."""
    options = focused(epochs=1, batch=64, replays=2)
    train(make_request(tmp_path / "whole", **options))
    whole, number, status = outcome(tmp_path / "whole"), 0, "interrupted"
    while status == "interrupted":
        number += 1
        asked = iter(range(1, 100))
        with monkeypatch.context() as patch:
            patch.setattr("lossdsl.run.train.stop_request", lambda n=number, asked=asked: nullcontext(lambda: next(asked) == n))
            status = train(make_request(tmp_path / str(number), **options)).status
        assert train(make_request(tmp_path / str(number), **options, resume=True)).status in ("finished", "already finished")
        assert_same(whole, outcome(tmp_path / str(number)))
    # four updates; the validation and two tests ask before the clean predictions and before the attack; then no question is left
    assert number == 2 * 2 + 3 * 2 + 1


def test_a_class_without_examples_stops_the_run(tmp_path: Path) -> None:
    data = tiny_data()
    x, y = data.train.examples.images, data.train.labels  # type: ignore[attr-defined]
    four = from_tensors("tiny", (x, y), (x, y), 4)

    class Uniform(FakeStep):
        def class_probabilities(self) -> Tensor:
            return torch.full((4,), 0.25)

    request = make_request(tmp_path / "run", recipe=FakeRecipe(sampled=True), data=four)
    with pytest.raises(UserError, match=r"train sampler: class 3 has probability 0.25 and no training example"):
        train(replace(request, compile_step=lambda model, classes, device, models: Uniform(model, 0.1)))
