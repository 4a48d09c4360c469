"""Models besides the trained one: frozen ones from runs, trained ones from fresh weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from run_fakes import FakeRecipe, FakeStep, check_cuts, make_request, tiny_data
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lossdsl.diagnostics import UserError
from lossdsl.lang.specs import Cyclic, OptimizerSpec, TrainOptions, UpperAdamOptions, UpperSgdOptions
from lossdsl.run.checkpoint import read_checkpoint
from lossdsl.run.data import from_tensors
from lossdsl.run.others import Other
from lossdsl.run.stored import open_run
from lossdsl.run.train import train
from lossdsl.run_commands import parse_binds

TRAIN = TrainOptions(epochs=2, batch=32, validation=0.25)
ADAM = OptimizerSpec("adam", UpperAdamOptions(lr=0.01))
MODEL = "run_fakes:DropoutNet"


class Team(FakeStep):
    """The loss of f, pulled towards the labels of a frozen g and with the loss of a trained h beside it."""

    def __init__(self, model: nn.Module, models: dict[str, nn.Module], log: dict[str, Any]) -> None:
        super().__init__(model, 0.1)
        self.models, self.log = models, log
        log["models"] = models

    def __call__(self, x: Tensor, y: Tensor, *, index: Tensor, generator: torch.Generator) -> Any:
        made = super().__call__(x, y, index=index, generator=generator)
        total = made
        if "g" in self.models:
            g = self.models["g"]
            assert not g.training and not any(p.requires_grad for p in g.parameters())
            total = total + 0.5 * cross_entropy(self.model(x), g(x).argmax(1))
        if "h" in self.models:
            assert self.models["h"].training
            total = total + cross_entropy(self.models["h"](x), y)
        whole = total.as_subclass(type(made))
        whole.terms, whole.logs = made.terms, made.logs
        return whole


def team(models: dict[str, bool], log: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    known: dict[str, Any] = {} if log is None else log
    fields = {name: changes.pop(name) for name in ("train", "optimizer", "optimizers") if name in changes}
    return {
        "recipe": FakeRecipe(**{"train": TRAIN, "models": models, **fields}),
        "compile_step": lambda model, classes, device, others: Team(model, others, known),
        **changes,
    }


@pytest.fixture(scope="module")
def helper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of its own architecture and with averaged weights."""
    out = tmp_path_factory.mktemp("helper") / "erm"
    options = TrainOptions(epochs=5, batch=32, validation=0.25, ema=0.5)
    result = train(make_request(out, seed=3, recipe=FakeRecipe(train=options), model=MODEL))
    assert result.best is not None and result.best.epoch < 5
    return out


@pytest.mark.parametrize(("ending", "which"), [("", "best"), (":last", "last"), (":best", "best")])
def test_a_frozen_model_is_the_runs_measured_weights(tmp_path: Path, helper: Path, ending: str, which: str) -> None:
    log: dict[str, Any] = {}
    train(make_request(tmp_path / "run", **team({"g": True}, log, binds={"g": f"{helper}{ending}"})))
    wanted = read_checkpoint(helper / f"{which}.safetensors").part("model" if which == "best" else "average")
    found = log["models"]["g"].state_dict()
    assert type(log["models"]["g"]).__name__ == "DropoutNet"
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    entry = manifest["identity"]["models"]["g"]
    assert entry == {
        "frozen": True,
        "run": str(helper),
        "checkpoint": which,
        "model": MODEL,
        "digest": open_run(f"{helper}{ending}").digest,
    }
    assert manifest["models"]["g"] == {"parameters": sum(p.numel() for p in log["models"]["g"].parameters()), "trained": False}


def test_the_hash_knows_weights_and_architecture(helper: Path) -> None:
    best, last = open_run(str(helper)), open_run(f"{helper}:last")
    assert best.digest == open_run(str(helper)).digest != last.digest
    assert replace(best, model="other").digest != best.digest


def test_other_models_do_not_change_the_first_weights_of_f(tmp_path: Path, helper: Path) -> None:
    """With both other models bound, f starts as without them, and h as with another g."""
    first: dict[str, Any] = {}
    for name, models in (("both", {"g": True, "h": False}), ("one", {"h": False}), ("none", {})):
        log: dict[str, Any] = {}
        binds = {"g": str(helper), "h": "smallcnn"}
        request = make_request(tmp_path / name, **team(models, log, binds={n: binds[n] for n in models}))

        def stop(*args: Any, at: str = name, log: dict[str, Any] = log) -> Any:
            step = Team(args[0], args[3], log)
            first[at] = {k: v.clone() for m in (step.model, *([args[3]["h"]] if "h" in args[3] else ())) for k, v in m.state_dict().items()}
            first[at, "f"] = {k: v.clone() for k, v in step.model.state_dict().items()}
            return step

        train(replace(request, compile_step=stop))
    for name in ("both", "one"):
        assert all(torch.equal(first[name, "f"][k], v) for k, v in first["none", "f"].items())
    assert all(torch.equal(first["both"][k], v) for k, v in first["one"].items())
    assert not torch.equal(first["one"]["network.0.weight"], first["one", "f"]["network.0.weight"])


def test_fresh_weights_depend_on_seed_and_name_alone(helper: Path) -> None:
    """And building any other model leaves the global generators, from which dropout draws, as they are."""
    cpu, data = torch.device("cpu"), tiny_data()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = [Other(name, "smallcnn").build(data, seed, cpu, torch.float32) for name, seed in (("h", 0), ("h", 0), ("k", 0), ("h", 1))]
    frozen = Other("g", MODEL, open_run(str(helper))).build(data, 0, cpu, torch.float64)
    assert torch.equal(before, torch.get_rng_state())
    weights = [model.state_dict()["network.0.weight"] for model in first]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2]) and not torch.equal(weights[0], weights[3])
    assert frozen.state_dict()["0.weight"].dtype == torch.float64


def test_a_trained_model_joins_the_optimizer_or_has_its_own(tmp_path: Path) -> None:
    sgd = OptimizerSpec("sgd", UpperSgdOptions(lr=0.2))
    groups = {}
    for name, own in (("joint", {}), ("own", {"h": sgd})):
        log: dict[str, Any] = {}
        schedule = TrainOptions(epochs=2, batch=32, validation=0.25, schedule=Cyclic())
        train(make_request(tmp_path / name, **team({"h": False}, log, optimizers=own, train=schedule, binds={"h": "smallcnn"})))
        found = read_checkpoint(tmp_path / name / "last.safetensors")
        assert all(torch.equal(found.part("model.h")[k], v) for k, v in log["models"]["h"].state_dict().items())
        groups[name] = found.state["steppers"]
    count = len(list(log["models"]["h"].parameters()))
    assert len(groups["joint"][""]["optimizer"]["groups"][0]["params"]) == 2 * count
    assert len(groups["own"][""]["optimizer"]["groups"][0]["params"]) == count
    assert groups["own"]["h"]["optimizer"]["groups"][0]["initial_lr"] == 0.2
    assert groups["own"]["h"]["schedule"]["last_epoch"] == groups["own"][""]["schedule"]["last_epoch"] == 6
    identity = json.loads((tmp_path / "own" / "manifest.json").read_text())["identity"]
    assert identity["optimizers"]["h"]["lr"] == 0.2 and identity["models"] == {"h": {"frozen": False, "model": "smallcnn"}}


def test_each_optimizer_scales_its_own_gradient(tmp_path: Path) -> None:
    """With normalize and lr 0.1 for h and none for f, h moves by 0.1 in its one update, whatever f does."""
    spec = OptimizerSpec("sgd", UpperSgdOptions(lr=0.1, normalize=True))
    start: dict[str, Tensor] = {}
    log: dict[str, Any] = {}
    options = team({"h": False}, log, optimizers={"h": spec}, train=TrainOptions(epochs=1, batch=90, validation=0.25))
    request = make_request(tmp_path / "run", **options, binds={"h": "smallcnn"})

    def compiled(model: Any, classes: int, device: Any, others: Any) -> Team:
        start.update({name: p.detach().clone() for name, p in others["h"].named_parameters()})
        return Team(model, others, log)

    train(replace(request, compile_step=compiled))
    moved = [p - start[name] for name, p in log["models"]["h"].named_parameters()]
    assert float(torch.cat([m.detach().flatten() for m in moved]).norm()) == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("own", [{}, {"h": ADAM}], ids=["joint", "own"])
def test_runs_with_other_models_resume_exactly(tmp_path: Path, helper: Path, own: dict[str, OptimizerSpec]) -> None:
    found = check_cuts(
        tmp_path, 2, **team({"g": True, "h": False}, optimizers=own, model=MODEL, binds={"g": str(helper), "h": "smallcnn"}, optimizer=ADAM)
    )
    for name in ("last", "best"):
        models = {key.partition("/")[0] for key in found[name][0] if key.startswith("model")}
        assert models == {"model", "model.h"}  # the weights of a frozen model are those of its own run


def test_a_frozen_model_may_move_but_not_change(tmp_path: Path, helper: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(helper, moved)
    run = tmp_path / "run"
    train(make_request(run, **team({"g": True}, binds={"g": str(helper)})))
    again = make_request(run, **team({"g": True}, binds={"g": str(moved)}), resume=True)
    assert train(again).status == "already finished"
    (moved / "best.safetensors").write_bytes((moved / "last.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"differs in models\.g\.digest: .* models\.g\.run"):
        train(again)
    with pytest.raises(UserError, match=r"differs in models\.g\.checkpoint: best there, last asked"):
        train(make_request(run, **team({"g": True}, binds={"g": f"{helper}:last"}), resume=True))


@pytest.mark.parametrize(
    ("models", "binds", "message"),
    [
        ({"g": True}, {}, r"--bind: the recipe's frozen model g is not bound\n  help: add --bind g=DIR"),
        ({"h": False}, {}, r"--bind: the recipe's trained model h is not bound\n  help: add --bind h=ARCHITECTURE"),
        ({}, {"g": "HELPER"}, r"--bind g: the recipe has no model g\n  help: leave out --bind"),
        ({"helper": True}, {"helpr": "HELPER"}, r"has no model helpr\n  help: did you mean helper"),
        ({"g": True}, {"g": "smallcnn"}, r"g is frozen and needs trained weights; smallcnn is an architecture"),
        ({"g": True}, {"g": "run_fakes:DropoutNet"}, r"needs trained weights; run_fakes:DropoutNet is an architecture"),
        ({"g": True}, {"g": "no/such"}, r"manifest\.json: there is no manifest of a run here"),
        ({"h": False}, {"h": "HELPER"}, r"h is trained from fresh weights; .* is a directory"),
        ({"h": False}, {"h": "smalcnn"}, r"--bind h: there is no model 'smalcnn'\n  help: did you mean smallcnn"),
    ],
)
def test_binds_that_do_not_fit(tmp_path: Path, helper: Path, models: dict[str, bool], binds: dict[str, str], message: str) -> None:
    known = {name: str(helper) if what == "HELPER" else what for name, what in binds.items()}
    with pytest.raises(UserError, match=message):
        train(make_request(tmp_path / "run", **team(models, binds=known)))
    assert not (tmp_path / "run").exists()


def test_a_helper_of_other_inputs_or_classes(tmp_path: Path, helper: Path) -> None:
    x, y = torch.rand(60, 1, 8, 8), torch.arange(60) % 3
    for data, message in (
        (from_tensors("large", (x, y), (x, y), 3), r"--bind g: .* was trained on inputs of shape \[1, 6, 6\], and these have \[1, 8, 8\]"),
        (tiny_data(classes=4), r"--bind g: .* knows 3 classes, the data 4"),
    ):
        with pytest.raises(UserError, match=message):
            train(make_request(tmp_path / "run", **team({"g": True}, binds={"g": str(helper)}, data=data)))


def test_words_of_bind() -> None:
    assert parse_binds(["g=runs/erm:last", "h = smallcnn", "k=a=b"]) == {"g": "runs/erm:last", "h": "smallcnn", "k": "a=b"}
    for words, message in ((["g"], "binds no model"), (["=a"], "binds no model"), (["g=a", "g=b"], "g is bound twice")):
        with pytest.raises(UserError, match=message):
            parse_binds(words)
