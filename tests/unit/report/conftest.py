"""A trained run with a stored evaluation, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from lossdsl.cli import main


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two short runs on digits; the first was evaluated under FGSM too."""
    place = tmp_path_factory.mktemp("runs")
    for recipe in ("trades", "fgsm_at"):
        words = ["--set", "eps=0.2", *(["--set", "step=0.05"] if recipe == "trades" else []), "--by", "adam(lr = 2e-3)", "--train", "epochs = 1, batch = 256"]
        attacks = ["--test-attack", "fgsm", "--validation-attack", "fgsm"]
        command = ["train", recipe, *words, "--model", "smallcnn", *attacks, "--out", str(place / recipe), "--quiet"]
        assert main(command) == 0
    assert main(["evaluate", str(place / "trades"), "--attack", "fgsm", "--quiet"]) == 0
    return [place / "trades", place / "fgsm_at"]
