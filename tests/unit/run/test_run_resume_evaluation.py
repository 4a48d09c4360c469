"""Evaluations that are cut, resumed, cached and repeated: the same numbers, and no example attacked twice."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from run_fakes import FakeRecipe, make_request, tiny_data
from safetensors.torch import load_file
from torch import Tensor

from lossdsl.diagnostics import UserError
from lossdsl.engine.api import attack_compiler
from lossdsl.lang.specs import TrainOptions
from lossdsl.run import pieces
from lossdsl.run.evaluate import EvaluateRequest, EvaluateResult, evaluate, evaluate_all
from lossdsl.run.results import masks, masks_path
from lossdsl.run.train import train

SUITE = """attack two
param eps = 0.1
def M(v) = f(v) - f(v)[y]
run weak : x' in linf(x, eps) maximize CE(f(x'), y) by pgd(steps = 1, step = eps / 8, start = x + uniform(linf(0, eps)))
run strong : x'[j != y] in linf(x, eps) maximize M(x'[j])[j] by pgd(steps = 6, step = eps / 3, start = uniform, restarts = 2)
count worst
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train(make_request(out, recipe=FakeRecipe(train=TrainOptions(epochs=2, batch=32, validation=0.25, precision="float64"))))
    return out


def ask(run: Path, **changes: Any) -> EvaluateRequest:
    base = EvaluateRequest(run=run, compile_attack=attack_compiler, data=tiny_data(), device="cpu", attack=SUITE, batch=8, fresh=True)
    return replace(base, overrides={"eps": 0.25}, **changes)


def same(one: EvaluateResult, two: EvaluateResult) -> None:
    first, second = masks(one.measurement), masks(two.measurement)
    assert first.keys() == second.keys() and all(torch.equal(mask, second[name]) for name, mask in first.items())
    assert (one.clean, one.robust, dict(one.runs)) == (two.clean, two.robust, dict(two.runs))


class Seen:
    """Counts the examples that each run of a suite is given."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, bytes]] = Counter()

    def compile(self, *args: Any, **more: Any) -> Any:
        attack = attack_compiler(*args, **more)
        plain = attack.run

        def run(x: Tensor, y: Tensor, *, generator: Any, only: str) -> Any:
            found = plain(x, y, generator=generator, only=only)
            self.counts.update((only, row.numpy().tobytes()) for row in x)
            return found

        attack.run = run
        return attack


class Cut(BaseException):
    """Stands for the end of the process."""


def cut_after(saves: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends just before it writes its next piece, after some that were written."""
    left, plain = [saves], pieces.write_atomic

    def write(path: Path, content: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Cut
        plain(path, content)

    monkeypatch.setattr(pieces, "write_atomic", write)


@pytest.mark.parametrize("saves", [0, 1, 3, 6, 7])
def test_a_cut_evaluation_goes_on_with_the_numbers_of_a_whole_one(run: Path, saves: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_seen, seen = Seen(), Seen()
    whole = evaluate(ask(run, compile_attack=whole_seen.compile))
    with monkeypatch.context() as patch:
        cut_after(saves, patch)
        with pytest.raises(Cut):
            evaluate(ask(run, compile_attack=seen.compile))
    finished = Counter(seen.counts)
    later = Seen()
    resumed = evaluate(ask(run, compile_attack=later.compile, fresh=False))
    same(whole, resumed)
    assert not resumed.cached
    twice = finished & later.counts
    assert len(twice) <= 8, "at most the batch that was cut is attacked again"
    assert (finished | later.counts) == whole_seen.counts
    assert resumed.passes == whole.passes
    assert not list(run.glob(".evaluate-*"))


KILLED = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, {folder!r})
from test_run_resume_evaluation import Seen, ask, evaluate
seen = Seen()
log = open({log!r}, "a")
def compile(*args, **more):
    attack = seen.compile(*args, **more)
    counted = attack.run
    def run(x, y, *, generator, only):
        found = counted(x, y, generator=generator, only=only)
        for row in x:
            print(only, row.numpy().tobytes().hex(), file=log, flush=True)
        return found
    attack.run = run
    return attack
evaluate(ask(Path({run!r}), compile_attack=compile, fresh=False))
"""


@pytest.mark.slow
@pytest.mark.parametrize("saved", [1, 5])
def test_kill_9_and_the_same_command_again(run: Path, tmp_path: Path, saved: int) -> None:
    """A real SIGKILL once some pieces are on disk; then the same evaluation in a process of its own."""
    whole_seen, later = Seen(), Seen()
    whole = evaluate(ask(run, compile_attack=whole_seen.compile))
    whole.file.unlink()
    log = tmp_path / "attacked"
    log.touch()
    script = KILLED.format(folder=str(Path(__file__).parent), run=str(run), log=str(log))
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 120
    while len(list(run.glob(".evaluate-*/run.*.safetensors"))) < saved and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    assert not whole.file.exists()
    finished = Counter({(run_, bytes.fromhex(row)): 1 for run_, row in (line.split() for line in log.read_text().splitlines())})
    resumed = evaluate(ask(run, compile_attack=later.compile, fresh=False))
    same(whole, resumed)
    assert len(finished & later.counts) <= 8, "at most the batch that was killed is attacked again"
    assert (finished | later.counts) == whole_seen.counts
    assert set(whole_seen.counts.values()) == {1}


def test_the_same_command_again_answers_from_the_result(run: Path) -> None:
    seen = Seen()
    first = evaluate(ask(run))
    again = evaluate(ask(run, compile_attack=seen.compile, fresh=False, batch=3))
    same(first, again)
    assert again.cached and not first.cached and not seen.counts and again.passes == first.passes and again.seconds == first.seconds
    stored = load_file(masks_path(first.file))
    assert torch.equal(~stored["survivors"], first.broken)


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"limit": 39}, {"overrides": {"eps": 0.26}}, {"split": "validation"}, {"attack": SUITE.replace("eps / 8", "eps / 9")}, {"data": tiny_data(seed=1)}, {"which": "last"}]
)  # fmt: skip
def test_another_question_is_another_evaluation(run: Path, changes: dict[str, Any]) -> None:
    evaluate(ask(run))
    request = replace(ask(run), fresh=False, **changes)
    found = evaluate(request)
    assert not found.cached
    assert evaluate(request).cached


def test_a_changed_weight_is_another_evaluation(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    first = evaluate(ask(copy))
    train(make_request(tmp_path / "other", seed=1, recipe=FakeRecipe(train=TrainOptions(epochs=2, batch=32, validation=0.25, precision="float64"))))
    (copy / "best.safetensors").write_bytes((tmp_path / "other" / "best.safetensors").read_bytes())
    second = evaluate(ask(copy, fresh=False))
    assert not second.cached and second.file != first.file


def test_a_damaged_result_is_said(run: Path) -> None:
    found = evaluate(ask(run))
    masks_path(found.file).write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"(?s)is no whole result of an evaluation.*--fresh"):
        evaluate(ask(run, fresh=False))
    same(found, evaluate(ask(run)))


def test_two_processes_do_not_make_one_evaluation(run: Path) -> None:
    first = evaluate(ask(run))
    key = json.loads(first.file.read_text())["key"]
    with pieces.stored_pieces(run / f".evaluate-{key[:16]}", False), pytest.raises(UserError, match="another process is making this evaluation"):
        evaluate(ask(run))


def test_batches_and_other_runs_change_nothing(run: Path) -> None:
    """float64: batches of one and of all; the second run alone."""
    whole = evaluate(ask(run))
    for batch in (1, 100):
        same(whole, evaluate(ask(run, batch=batch)))
    alone = evaluate(ask(run, attack="\n".join(line for line in SUITE.splitlines() if not line.startswith("run weak")) + "\n"))
    weak, strong = whole.measurement.outcomes
    assert torch.equal(alone.measurement.outcomes[0].broken & strong.attacked, strong.broken)


def test_several_suites_share_the_clean_predictions(run: Path) -> None:
    first, second = evaluate_all(ask(run), [SUITE, SUITE.replace("steps = 6", "steps = 3")])
    assert first.measurement.predictions is second.measurement.predictions
