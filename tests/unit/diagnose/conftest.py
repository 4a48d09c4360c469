"""One small run on digits for all tests of this folder: TRADES in float64, every epoch kept, with the alarm."""

from __future__ import annotations

from pathlib import Path

import pytest

from lossdsl.cli import main
from lossdsl.diagnose.runs import OpenRun
from lossdsl.diagnose.subject import Options

TRAIN = "epochs = 3, batch = 256, precision = float64"


@pytest.fixture(scope="session")
def run_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "trades"
    words = ["train", "trades", "--set", "eps=0.2", "--set", "step=0.05", "--by", "adam(lr = 5e-3)", "--train", TRAIN]
    assert main([*words, "--model", "diagnose_tools:small", "--keep-epochs", "--quiet", "--out", str(out)]) == 0
    return out


@pytest.fixture
def run(run_path: Path) -> OpenRun:
    """The run, looked at with forty examples."""
    return OpenRun(run_path, Options(limit=40, attack="pgd10"))
