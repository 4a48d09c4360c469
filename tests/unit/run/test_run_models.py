from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from run_fakes import tiny_data
from torch import nn

from lossdsl.diagnostics import UserError
from lossdsl.run.check import check_model
from lossdsl.run.models import MODELS, ModelInput, build_model

SHAPES = {"smallcnn": [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 3, 5)], "lenet": [(1, 28, 28), (3, 32, 32), (1, 12, 12)]}
OTHERS = [(3, 32, 32), (1, 28, 28)]
NEEDS_EXTRA = {"preresnet18", "wrn28_10"}
HAS_EXTRA = importlib.util.find_spec("pytorchcv") is not None


def test_every_row_is_covered() -> None:
    assert set(MODELS) == {"smallcnn", "lenet", "resnet18"} | NEEDS_EXTRA


@pytest.mark.parametrize("name", ["smallcnn", "lenet", "resnet18", *(sorted(NEEDS_EXTRA) if HAS_EXTRA else ())])
def test_output_shape_and_normalisation_inside(name: str) -> None:
    for shape in SHAPES.get(name, OTHERS):
        mean, std = tuple(0.1 + 0.1 * c for c in range(shape[0])), tuple(0.5 + 0.1 * c for c in range(shape[0]))
        torch.manual_seed(0)
        model = build_model(name, ModelInput(shape, 7), mean, std).eval()
        x = torch.rand(2, *shape)
        assert model(x).shape == (2, 7)
        by_hand = (x - torch.tensor(mean).reshape(1, -1, 1, 1)) / torch.tensor(std).reshape(1, -1, 1, 1)
        assert torch.allclose(model(x), model.network(by_hand), atol=1e-5)  # type: ignore[operator]


@pytest.mark.skipif(not HAS_EXTRA, reason="needs the extra lossdsl[models]")
@pytest.mark.parametrize(("name", "millions"), [("preresnet18", 11.17), ("wrn28_10", 36.48)])
def test_pytorchcv_models_have_the_papers_size(name: str, millions: float) -> None:
    model = build_model(name, ModelInput((3, 32, 32), 10), (0.5,) * 3, (0.5,) * 3)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_resnet18_has_a_cifar_stem() -> None:
    network = build_model("resnet18", ModelInput((3, 32, 32), 10), (0.5,) * 3, (0.5,) * 3).network
    features = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool, network.layer1)  # type: ignore[union-attr, arg-type]
    assert features(torch.rand(1, 3, 32, 32)).shape == (1, 64, 32, 32)


def test_missing_extra_gives_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == "pytorchcv":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pytorchcv", None)
    with pytest.raises(UserError, match=r'pip install "lossdsl\[models\]"'):
        build_model("preresnet18", ModelInput((3, 32, 32), 10), (0.5,) * 3, (0.5,) * 3)


def test_seed_decides_the_initial_weights() -> None:
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(build_model("smallcnn", ModelInput((1, 8, 8), 10), (0.3,), (0.4,)).state_dict()["network.0.weight"])
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("smalcnn", (1, 8, 8), "did you mean smallcnn"),
        ("lenet", (1, 8, 8), "at least 12x12 pixels"),
        ("smallcnn", (9,), "takes images"),
        ("resnet18", (9,), "takes images"),
    ],
)
def test_models_that_cannot_be_built(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_model(name, ModelInput(shape, 10), (0.5,), (0.5,))


# --- a user's own --------------------------------------------------------------------------------------------------

FACTORIES = """
import torch
from torch import nn

def plain(): return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
def told(in_channels, image_size, num_classes, width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size[0] * image_size[1], num_classes))
class Net(nn.Sequential):
    def __init__(self, num_classes): super().__init__(nn.Flatten(), nn.Linear(36, num_classes))
def needy(depth): return plain()
def number(): return 7
def broken(): return 1 / 0
net = plain()
def soft(): return nn.Sequential(plain(), nn.Softmax(dim=1))
def logsoft(): return nn.Sequential(plain(), nn.LogSoftmax(dim=1))
def five(): return nn.Sequential(nn.Flatten(), nn.Linear(36, 5))
def wide(): return nn.Sequential(nn.Flatten(), nn.Linear(35, 3))
def infinite():
    made = plain(); nn.init.constant_(made[1].bias, float("inf")); return made
class Pair(nn.Module):
    def forward(self, x): return x, x
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_nets.py").write_text(FACTORIES)
    (tmp_path / "own_bad.py").write_text("import no_such_package_at_all\n")
    (tmp_path / "own_worse.py").write_text("x = 1\nraise RuntimeError('boom')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_nets", raising=False)
    return tmp_path


@pytest.mark.parametrize("name", ["plain", "told", "Net", "logsoft"])
def test_own_models_are_found_in_the_current_directory(own: Path, name: str) -> None:
    before = list(sys.path)
    model = build_model(f"own_nets:{name}", ModelInput((1, 6, 6), 3), (9.0,), (9.0,))
    assert sys.path == before
    check_model(model, tiny_data().train, 3, name, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_net:plain", "there is no module own_net\n"),
        ("own_nets:plane", "own_nets has no 'plane'\n  help: did you mean plain"),
        ("own_bad:plain", "importing own_bad failed: ModuleNotFoundError: No module named 'no_such_package_at_all'"),
        ("own_worse:plain", r"importing own_worse failed: RuntimeError: boom \(.*own_worse\.py, line 2\)"),
        ("own_nets:needy", "the factory needs depth"),
        ("own_nets:number", "returned int, not a torch.nn.Module"),
        ("own_nets:broken", r"the factory failed: ZeroDivisionError: division by zero \(.*own_nets\.py, line \d+\)"),
        ("own_nets:net", "net is a Sequential, not a function that makes a model"),
    ],
)
def test_own_models_that_cannot_be_built(own: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_model(name, ModelInput((1, 6, 6), 3), (0.5,), (0.5,))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("soft", "probabilities(.|\n)*softmax"),
        ("five", r"output has shape \[8, 5\], \[8, 3\] was expected \(the data has 3 classes\)"),
        ("wide", r"the model fails on inputs of shape \[8, 1, 6, 6\]"),
        ("infinite", "NaN or infinity"),
        ("Pair", "returned tuple, not a tensor"),
    ],
)
def test_own_models_that_do_not_fit(own: Path, name: str, message: str) -> None:
    model = build_model(f"own_nets:{name}", ModelInput((1, 6, 6), 3), (0.5,), (0.5,))
    with pytest.raises(UserError, match=message):
        check_model(model, tiny_data().train, 3, name, torch.device("cpu"), torch.float32)


def test_the_check_leaves_modes_and_statistics_alone() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 3))
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_model(model, tiny_data().train, 3, "own", torch.device("cpu"), torch.float32)
    assert [module.training for module in model] == [True, False, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
