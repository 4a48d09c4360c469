"""The table of models. A new one is a function with `@model("name", ...)`; a user's own is named module:factory."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lossdsl.diagnostics import UserError, did_you_mean


@dataclass(frozen=True)
class ModelInput:
    """What a model is built for: inputs [N, *shape] with shape = (channels, height, width), and K classes."""

    shape: tuple[int, ...]
    num_classes: int

    def require_images(self) -> None:
        if len(self.shape) != 3:
            raise UserError(
                f"this model takes images, the data has shape {self.shape}",
                where="--model",
                fix="use --model module:factory with a model of your own",
            )

    @property
    def channels(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width. Raises UserError for inputs that are not images."""
        self.require_images()
        return self.shape[1], self.shape[2]


@dataclass(frozen=True)
class ModelRow:
    name: str
    about: str
    build: Callable[[ModelInput], nn.Module]


MODELS: dict[str, ModelRow] = {}
Builder = Callable[[ModelInput], nn.Module]


def model(name: str, about: str) -> Callable[[Builder], Builder]:
    """Enter a builder into the table."""

    def enter(build: Builder) -> Builder:
        MODELS[name] = ModelRow(name, about, build)
        return build

    return enter


class Normalize(nn.Module):
    """(x - mean) / std per channel, inside the model: radii keep the units of x."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], rank: int) -> None:
        super().__init__()
        shape = (-1,) + (1,) * (rank - 1)
        self.register_buffer("mean", torch.tensor(mean).reshape(shape))
        self.register_buffer("std", torch.tensor(std).reshape(shape))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std  # type: ignore[operator]


def build_model(name: str, wanted: ModelInput, mean: tuple[float, ...], std: tuple[float, ...]) -> nn.Module:
    """A model of the table behind its `Normalize` layer, or a user's own, which gets x as it is.

    Initial weights come from torch's global generator. Raises UserError: unknown name, factory that fails, missing package.
    """
    if ":" in name:
        return user_model(name, wanted)
    if name not in MODELS:
        raise UserError(
            f"there is no model {name!r}", where="--model", fix=did_you_mean(name, MODELS) + "; or module:factory for a model of your own"
        )
    network = MODELS[name].build(wanted)
    return nn.Sequential(OrderedDict(normalize=Normalize(mean, std, len(wanted.shape)), network=network))


@model("smallcnn", "convolutions with batch norm, halved down to 4x4, one hidden layer: for 8x8 digits, MNIST and quick tries")
def smallcnn(wanted: ModelInput) -> nn.Module:
    height, width = wanted.size
    channels = 32
    layers = _conv_block(wanted.channels, channels)
    while min(height, width) > 4:
        before, channels = channels, min(2 * channels, 128)
        layers += [nn.MaxPool2d(2), *_conv_block(before, channels)]
        height, width = height // 2, width // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width, 128), nn.ReLU(), nn.Linear(128, wanted.num_classes))


def _conv_block(before: int, after: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]


@model("lenet", "LeNet-5 (LeCun et al., 1998) with ReLU and max pooling; needs at least 12x12 pixels")
def lenet(wanted: ModelInput) -> nn.Module:
    height, width = ((n // 2 - 4) // 2 for n in wanted.size)
    if min(height, width) < 1:
        raise UserError(
            f"lenet needs at least 12x12 pixels, the data has {wanted.size[0]}x{wanted.size[1]}",
            where="--model",
            fix="use --model smallcnn",
        )
    return nn.Sequential(
        nn.Conv2d(wanted.channels, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16 * height * width, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, wanted.num_classes),
    )  # fmt: skip


def _cifar_stem(wanted: ModelInput) -> nn.Conv2d:
    wanted.require_images()
    return nn.Conv2d(wanted.channels, 64, 3, stride=1, padding=1, bias=False)


@model("resnet18", "torchvision's ResNet-18 with a CIFAR stem (3x3, no pooling)")
def resnet18(wanted: ModelInput) -> nn.Module:
    from torchvision.models import resnet18 as torchvision_resnet18

    network: nn.Module = torchvision_resnet18(num_classes=wanted.num_classes)
    network.conv1 = stem = _cifar_stem(wanted)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")  # as torchvision initialises the layer it replaces
    network.maxpool = nn.Identity()
    return network


def _pytorchcv(module: str, name: str, wanted: ModelInput) -> nn.Module:
    wanted.require_images()
    try:
        found = importlib.import_module(f"pytorchcv.models.{module}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "pytorchcv":
            raise
        raise UserError(
            f"{name} comes from the package pytorchcv, which is not installed",
            where="--model",
            fix='pip install "lossdsl[models]"  (or pip install pytorchcv)',
        ) from error
    network: nn.Module = getattr(found, name)(in_channels=wanted.channels, num_classes=wanted.num_classes)
    return network


@model("preresnet18", "pre-activation ResNet-18 (pytorchcv) with a CIFAR stem")
def preresnet18(wanted: ModelInput) -> nn.Module:
    network: Any = _pytorchcv("preresnet", "preresnet18", wanted)
    network.features.init_block = _cifar_stem(wanted)
    nn.init.kaiming_uniform_(network.features.init_block.weight)  # as pytorchcv initialises its convolutions
    network.features.final_pool = nn.AdaptiveAvgPool2d(1)  # theirs is fixed to the 7x7 map of 224x224 images
    return network


@model("wrn28_10", "wide ResNet-28-10 (pytorchcv)")
def wrn28_10(wanted: ModelInput) -> nn.Module:
    network: Any = _pytorchcv("wrn_cifar", "wrn28_10_cifar10", wanted)
    network.features.final_pool = nn.AdaptiveAvgPool2d(1)  # theirs is fixed to 32x32 images; equal to it there
    return network


# --- a user's own model ------------------------------------------------------------------------------------------


def user_model(name: str, wanted: ModelInput) -> nn.Module:
    """The result of `factory` in `module`, looked up in the current directory first.

    The factory is called with those of in_channels, image_size (height, width), input_shape and num_classes that it has as arguments.
    """
    module_name, _, attribute = name.partition(":")
    factory = _find_factory(module_name, attribute)
    options = _factory_options(factory, wanted, name)
    try:
        made = factory(**options)
    except Exception as error:
        raise UserError(
            f"the factory failed: {_reason(error)}",
            where=name,
            fix="mend the factory; it was called with " + (", ".join(options) or "no arguments"),
        ) from error
    if not isinstance(made, nn.Module):
        raise UserError(f"the factory returned {type(made).__name__}, not a torch.nn.Module", where=name, fix="return the model")
    return made


def _find_factory(module_name: str, attribute: str) -> Callable[..., Any]:
    where = f"{module_name}:{attribute}"
    sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(
                f"importing {module_name} failed: {_reason(error)}", where=where, fix="install what the module imports"
            ) from error
        raise UserError(
            f"there is no module {module_name}", where=where, fix="run from the directory that has it, and leave out .py"
        ) from error
    except Exception as error:
        raise UserError(f"importing {module_name} failed: {_reason(error)}", where=where, fix="mend the module") from error
    finally:
        sys.path.remove("")
    if not hasattr(module, attribute):
        raise UserError(
            f"{module_name} has no {attribute!r}",
            where=where,
            fix=did_you_mean(attribute, [n for n in dir(module) if not n.startswith("_")]),
        )
    factory = getattr(module, attribute)
    if isinstance(factory, nn.Module) or not callable(factory):
        raise UserError(
            f"{attribute} is a {type(factory).__name__}, not a function that makes a model",
            where=where,
            fix=f"write def make(): return {attribute}",
        )
    return factory


def _factory_options(factory: Callable[..., Any], wanted: ModelInput, name: str) -> dict[str, Any]:
    offered: dict[str, Any] = {"in_channels": wanted.channels, "num_classes": wanted.num_classes, "input_shape": wanted.shape}
    if len(wanted.shape) == 3:
        offered["image_size"] = wanted.size
    parameters = inspect.signature(factory).parameters.values()
    needed = [
        p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in offered
    ]
    if needed:
        raise UserError(
            f"the factory needs {', '.join(needed)}", where=name, fix=f"give defaults; known arguments are {', '.join(offered)}"
        )
    return {p.name: offered[p.name] for p in parameters if p.name in offered}


def _reason(error: BaseException) -> str:
    """The error with its innermost place in the user's code."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"
