"""Markers: gpu tests are skipped, with the reason, where there is no CUDA device. One thread: the tensors of tests are small."""

from __future__ import annotations

import pytest


def pytest_configure() -> None:
    import torch

    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting:
        return
    import torch

    if torch.cuda.is_available():
        return
    for item in wanting:
        item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch finds none"))
