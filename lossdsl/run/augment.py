"""Random crops and flips, one draw per example, from an explicit generator.

torchvision.transforms.v2 draws once per batch and only from the global generator; its functional forms are the oracle of the test.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from lossdsl.diagnostics import UserError

PADDING = 4


def augment(x: Tensor, kind: str, random: torch.Generator) -> Tensor:
    """`x` [N, C, H, W] in its own units; `none`, `crop` (4 pixels of zero padding, then a random window of the old size) or `crop_flip`
    (then mirrored with probability 1/2). Raises UserError for inputs that are not images."""
    if kind == "none":
        return x
    if x.ndim != 4:
        raise UserError(
            f"augmentation works on images, the data has shape {list(x.shape[1:])}", where="train augment", fix="use augment = none"
        )
    x = _crop(x, random)
    if kind == "crop":
        return x
    mirrored = torch.rand(len(x), generator=random) < 0.5
    return torch.where(mirrored.reshape(-1, 1, 1, 1).to(x.device), x.flip(-1), x)


def _crop(x: Tensor, random: torch.Generator) -> Tensor:
    count, _, height, width = x.shape
    top, left = torch.randint(2 * PADDING + 1, (2, count), generator=random).to(x.device)
    windows = pad(x, (PADDING,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(count, device=x.device), :, top, left]
