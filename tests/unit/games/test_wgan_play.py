"""`lossdsl play` for games of models: runs, checkpoints, pictures, and what a user can get wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from lossdsl.cli import main
from lossdsl.diagnostics import UserError
from lossdsl.front import Recipe, load, parse_recipe
from lossdsl.games.choice import with_solver
from lossdsl.games.neural import ModelPlay, PlayRequest, play_models
from lossdsl.games.neural_pictures import draw_play
from lossdsl.games.neural_store import LAST, RESULT
from lossdsl.run.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow

SMALL = "mlp_small"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are slowed down by threads, most of all where tests run side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(play: ModelPlay) -> torch.Tensor:
    return play.trainer.game.point()


def played(recipe: Recipe, iterations: int, **options: object) -> ModelPlay:
    return play_models(
        recipe, PlayRequest(network=SMALL, options={"iterations": iterations, "batch": 16}, every=2, device="cpu", **options)
    )  # type: ignore[arg-type]


CASES = {
    "adam and spectral": lambda: load("wgan_sn"),
    "rmsprop and clip": lambda: load("wgan_clip"),
    "penalty": lambda: load("wgan_gp"),
    "seg_plus": lambda: with_solver(
        load("wgan_sn"), "seg_plus(step = 0.1, alpha = 0.5, every = 2, iterations = 9, batch = 16, noise = normal(0.1))", {}
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_same_run(case: str, tmp_path: Path) -> None:
    recipe = CASES[case]()
    whole = played(recipe, 6, out=tmp_path / "whole", seed=5)
    first = played(recipe, 3, out=tmp_path / "parts", seed=5)
    assert not torch.equal(weights(first), weights(whole))
    second = played(recipe, 6, out=tmp_path / "parts", seed=5, resume=True)
    assert torch.equal(weights(second), weights(whole))
    assert second.records[-1] == whole.records[-1] and second.trainer.iteration == 6
    for name, value in read_checkpoint(tmp_path / "whole" / LAST).tensors.items():
        assert torch.equal(value, read_checkpoint(tmp_path / "parts" / LAST).tensors[name]), name


def test_seeds_and_measurements() -> None:
    one, again, other = (played(load("wgan_sn"), 3, seed=s) for s in (1, 1, 2))
    assert torch.equal(weights(one), weights(again)) and not torch.equal(weights(one), weights(other))
    often = play_models(load("wgan_sn"), PlayRequest(network=SMALL, options={"iterations": 3, "batch": 16}, every=1, seed=1, device="cpu"))
    assert torch.equal(weights(one), weights(often)), "measuring must not change the run"
    assert [r["iteration"] for r in one.records] == [0, 2, 3] and [r["iteration"] for r in often.records] == [0, 1, 2, 3]
    assert set(one.records[0]) == {"iteration", "gap", "modes", "near", "w1"}


def test_the_critic_gap() -> None:
    """mean critic(x) - mean critic(h(z)), here of weights that know it: the critic is the first coordinate, samples are all (-3, 0)."""
    nets = {"critic": nn.Linear(2, 1), "h": nn.Linear(8, 2)}
    for net, bias in ((nets["critic"], [0.0]), (nets["h"], [-3.0, 0.0])):
        net.weight.data.zero_()
        net.bias.data = torch.tensor(bias)
    nets["critic"].weight.data[0, 0] = 1.0
    play = play_models(load("wgan_gp"), PlayRequest(models=nets, options={"iterations": 1, "batch": 4}, device="cpu"))
    assert play.records[0]["gap"] == pytest.approx(3, abs=0.15)  # the mean of 2000 points of the ring is near 0
    assert play.records[0]["modes"] == 0


def test_the_ring_is_found() -> None:
    """At the start no sample is near a mean and W1 is 2; 300 iterations (about 5 s) cover 5 to 7 of the 8 modes on the seeds tried."""
    text = load("wgan_gp").text.replace("beta1 = 0,", "beta1 = 0.5,").replace("steps = 5", "steps = 3")
    recipe = parse_recipe(text).with_params(gp=1, lr=1e-3)
    play = play_models(recipe, PlayRequest(options={"iterations": 300, "batch": 128}, every=300, device="cpu"))
    start, end = play.records
    assert start["w1"] > 1.5 and start["modes"] == 0
    assert end["w1"] < 0.75 and end["modes"] >= 4 and end["near"] > 0.06


def test_solvers_in_place_of_the_declared_one() -> None:
    recipe = with_solver(load("wgan_sn"), "extragradient", {"step": 0.1, "iterations": 4})
    solver = recipe.game.solver
    assert (solver.name, solver.options.iterations, solver.options.batch) == ("extragradient", 4, 64)
    assert all(p.optimizer is None for p in recipe.game.players)
    kept = with_solver(load("wgan_sn"), None, {"batch": 8}).game
    assert kept.solver.options.batch == 8 and kept.solver.options.iterations == 2000 and kept.players[0].optimizer is not None


def test_networks_of_your_own() -> None:
    torch.manual_seed(0)
    nets = {"critic": nn.Linear(2, 1), "h": nn.Linear(8, 2)}
    play = play_models(load("wgan_clip"), PlayRequest(models=nets, options={"iterations": 1, "batch": 4}, device="cpu"))
    assert play.trainer.game.models["critic"] is nets["critic"] and float(nets["critic"].weight.detach().abs().max()) <= 0.01 + 1e-9


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["play", "wgan_gp", "--network", SMALL, "--iterations", "4", "--batch", "8", "--device", "cpu", "--out", str(tmp_path / "run")]
    assert main([*words, "--plot", str(tmp_path / "picture.png"), "--set", "gp=1"]) == 0
    shown = capsys.readouterr()
    assert "critic gap" in shown.out and "modes of 8" in shown.out and "iteration 4/4" in shown.err
    assert (tmp_path / "picture.png").stat().st_size > 10000 and "<svg" in (tmp_path / "picture.svg").read_text()
    found = json.loads((tmp_path / "run" / RESULT).read_text())
    assert found["data"] == "ring" and found["records"][-1]["iteration"] == 4
    assert main([*words, "--set", "gp=1"]) == 2 and "already holds a run" in capsys.readouterr().err
    assert main([*words, "--set", "gp=2", "--resume"]) == 2 and "another run" in capsys.readouterr().err
    assert main([*words, "--set", "gp=1", "--resume", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_digits_as_a_grid(tmp_path: Path) -> None:
    play = played(load("wgan_sn"), 2, data="digits")
    assert set(play.records[0]) == {"iteration", "gap"}
    assert [p.suffix for p in draw_play(play, tmp_path / "digits.png")] == [".png", ".svg"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["wgan_gp", "--data", "rings"], "did you mean ring"),
        (["wgan_gp", "--network", "mlpp"], "did you mean mlp"),
        (["wgan_gp", "--starts", "3"], "--starts"),
        (["wgan_gp", "--solver", "gda", "--solver", "extragradient"], "one solver at a time"),
        (["wgan_gp", "--solver", "extragradient"], "extragradient needs step"),
        (["wgan_gp", "--device", "tpu"], "--device"),
        (["bilinear", "--data", "ring"], "are no models"),
        (["bilinear", "--resume"], "are no models"),
    ],
)
def test_wrong_words(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["play", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_directory_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        played(load("wgan_gp"), 1, out=tmp_path)


def test_a_damaged_checkpoint(tmp_path: Path) -> None:
    played(load("wgan_gp"), 1, out=tmp_path / "run")
    path = tmp_path / "run" / LAST
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match="damaged"):
        played(load("wgan_gp"), 2, out=tmp_path / "run", resume=True)


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path) -> None:
    """The same draws as on the CPU, and weights that stay close to those for a few iterations; checkpoints are taken up."""
    options = {"iterations": 2, "batch": 16}
    one, two = (play_models(load("wgan_gp"), PlayRequest(network=SMALL, options=options, device=d)) for d in ("cpu", "cuda"))
    assert torch.allclose(weights(one), weights(two).cpu(), atol=1e-3)
    first = play_models(load("wgan_sn"), PlayRequest(network=SMALL, options=options, device="cuda", out=tmp_path))
    again = PlayRequest(network=SMALL, options={**options, "iterations": 3}, device="cuda", out=tmp_path, resume=True)
    assert play_models(load("wgan_sn"), again).trainer.iteration == 3 and first.finished
