"""A run that is cut anywhere and resumed ends with the same weights, bit for bit."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from run_fakes import Cut, FakeRecipe, FakeStep, assert_same, check_cuts, cut_after, make_request, outcome

from lossdsl.diagnostics import UserError
from lossdsl.lang.specs import Cosine, OneCycle, OptimizerSpec, TrainOptions, UpperAdamOptions
from lossdsl.run import metrics
from lossdsl.run.checkpoint import read_checkpoint
from lossdsl.run.progress import stop_request
from lossdsl.run.train import train

pytestmark = pytest.mark.slow

RECIPE = FakeRecipe(train=TrainOptions(epochs=3, batch=32, validation=0.25, schedule=Cosine(), warmup=0.5, clip=1.0, augment="crop_flip"))
ADAM = replace(
    RECIPE,
    train=TrainOptions(epochs=3, batch=32, validation=0.25, schedule=OneCycle()),
    optimizer=OptimizerSpec("adam", UpperAdamOptions(lr=0.01)),
)
MODEL = "run_fakes:DropoutNet"


@pytest.mark.parametrize("recipe", [RECIPE, ADAM], ids=["sgd", "adam"])
def test_cut_after_every_other_batch_and_resumed(tmp_path: Path, recipe: FakeRecipe) -> None:
    check_cuts(tmp_path, 2, recipe=recipe, model=MODEL)


def test_cut_between_best_and_last_repeats_the_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(make_request(tmp_path / "whole", recipe=RECIPE, model=MODEL))
    request = make_request(tmp_path / "cut", recipe=RECIPE, model=MODEL, resume=True)
    real = metrics.append
    calls = []

    def append_then_die(path: Path, record: Any) -> None:
        real(path, record)
        calls.append(record)
        if len(calls) == 2:
            raise Cut

    monkeypatch.setattr(metrics, "append", append_then_die)
    with pytest.raises(Cut):
        train(request)
    with open(tmp_path / "cut" / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "half a li')
    train(request)
    assert_same(outcome(tmp_path / "whole"), outcome(tmp_path / "cut"))


def test_the_seed_matters(tmp_path: Path) -> None:
    for seed in (0, 1):
        train(make_request(tmp_path / str(seed), seed=seed))
    one, two = (read_checkpoint(tmp_path / str(seed) / "last.safetensors").part("model") for seed in (0, 1))
    assert not torch.equal(one["network.0.weight"], two["network.0.weight"])


def test_training_leaves_the_callers_generators_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    random.seed(5)
    before = torch.get_rng_state(), random.getstate()
    train(make_request(tmp_path / "run", model=MODEL))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


def test_ctrl_c_stops_at_a_batch_and_says_how_to_go_on(tmp_path: Path) -> None:
    train(make_request(tmp_path / "whole", recipe=RECIPE, model=MODEL))
    request = make_request(tmp_path / "cut", recipe=RECIPE, model=MODEL, resume=True)
    count = [0]

    class InterruptedStep(FakeStep):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == 4:
                os.kill(os.getpid(), signal.SIGINT)
            return super().__call__(*args, **kwargs)

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    result = train(replace(request, compile_step=lambda model, classes, device, models: InterruptedStep(model, 0.1)))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert (result.status, result.updates) == ("interrupted", 4)
    assert result.resume_command == f"lossdsl train pgd_at --out {tmp_path / 'cut'} --resume"
    assert read_checkpoint(tmp_path / "cut" / "last.safetensors").state["place"]["updates"] == 4
    assert train(request).status == "finished"
    assert_same(outcome(tmp_path / "whole"), outcome(tmp_path / "cut"))


@pytest.mark.parametrize(("seconds", "ended"), [(60.0, False), (-1.0, True)])
def test_a_second_signal_ends_at_once_unless_it_is_an_echo(monkeypatch: pytest.MonkeyPatch, seconds: float, ended: bool) -> None:
    monkeypatch.setattr("lossdsl.run.progress.SAME_SIGNAL_SECONDS", seconds)
    reached = []
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is born ignoring the signal
    try:
        with stop_request() as stop:
            assert not stop()
            os.kill(os.getpid(), signal.SIGINT)
            assert stop()
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(True)
    except KeyboardInterrupt:
        reached.append(False)
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert reached == [not ended]


def test_works_outside_the_main_thread(tmp_path: Path) -> None:
    results = []
    thread = threading.Thread(target=lambda: results.append(train(make_request(tmp_path / "run"))))
    thread.start()
    thread.join()
    assert results[0].status == "finished"


def test_a_held_directory_resumes_only_when_asked(tmp_path: Path) -> None:
    request = make_request(tmp_path / "run", checkpoint_every=1)
    with pytest.raises(Cut):
        train(cut_after(request, 2))
    with pytest.raises(UserError, match=r"unfinished\n  help: go on with it: lossdsl train pgd_at --out .* --resume$"):
        train(request)
    assert train(replace(request, resume=True)).status == "finished"
    with pytest.raises(UserError, match="already holds this run, and it is finished"):
        train(request)
    again = train(replace(request, resume=True))
    assert again.status == "already finished"
    assert again.best is not None and again.best.clean.total == 40


def test_another_run_in_the_directory_is_left_alone(tmp_path: Path) -> None:
    train(make_request(tmp_path / "run"))
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    other = FakeRecipe(params={"eps": 0.2, "step": 0.05})
    for resume in (False, True):
        with pytest.raises(UserError, match=r"already holds another run; it differs in params\.eps: 0\.1 there, 0\.2 asked"):
            train(make_request(tmp_path / "run", recipe=other, resume=resume))
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == before


def test_files_without_a_manifest_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "last.safetensors").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"holds last\.safetensors but no manifest\.json"):
        train(make_request(tmp_path))
    assert (tmp_path / "last.safetensors").read_bytes() == b"mine"


def test_two_processes_never_share_a_directory(tmp_path: Path) -> None:
    from lossdsl.run.files import run_directory

    with run_directory(tmp_path / "run"), pytest.raises(UserError, match="another process is training"):
        train(make_request(tmp_path / "run"))


def test_resuming_an_empty_directory_starts(tmp_path: Path) -> None:
    assert train(make_request(tmp_path / "run", resume=True)).status == "finished"


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    train(make_request(tmp_path / "other", seed=3))
    request = make_request(tmp_path / "run", checkpoint_every=1)
    with pytest.raises(Cut):
        train(cut_after(request, 2))
    (tmp_path / "run" / "last.safetensors").write_bytes((tmp_path / "other" / "last.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"last\.safetensors: belongs to another run"):
        train(replace(request, resume=True))


# --- kill -9 ---------------------------------------------------------------------------------------------------------

KILLED = FakeRecipe(train=TrainOptions(epochs=4, batch=16, validation=0.25, augment="crop_flip"))


def slow_run(out: Path, started: Any) -> None:
    """In a process of its own: resume, tell when the first batch begins, take a while for each."""
    torch.set_num_threads(1)

    class SlowStep(FakeStep):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            started.set()
            time.sleep(0.03)
            return super().__call__(*args, **kwargs)

    request = make_request(out, recipe=KILLED, model=MODEL, checkpoint_every=1, resume=True)
    train(replace(request, compile_step=lambda model, classes, device, models: SlowStep(model, 0.1)))


def kill_and_resume(out: Path, kills: int) -> int:
    """Start the run, kill -9 it `kills` times at most, by turns soon after its start and soon after its first batch, then let it end.

    Returns the number of kills that hit."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["lossdsl.run.train", "torchvision", "sklearn.model_selection", "scipy.stats"])
    hit = 0
    for kill in range(kills + 1):
        started = processes.Event()
        process = processes.Process(target=slow_run, args=(out, started))
        process.start()
        if kill < kills:
            while kill % 2 and process.is_alive() and not started.wait(0.05):
                pass
            process.join(random.uniform(0, 0.25))
            process.kill()
        process.join()
        hit += process.exitcode == -signal.SIGKILL
    assert process.exitcode == 0
    return hit


def test_kill_9_at_ten_random_moments(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(make_request(tmp_path / "whole", recipe=KILLED, model=MODEL))
    finally:
        torch.set_num_threads(threads)
    assert kill_and_resume(tmp_path / "killed", 10) >= 6
    assert_same(outcome(tmp_path / "whole"), outcome(tmp_path / "killed"))
    assert not list((tmp_path / "killed").glob(".*.tmp"))
