"""Networks for the models of a game, and what `keep` does to their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from lossdsl.check.game_typed import TypedGame
from lossdsl.check.typed import Typed, walk
from lossdsl.diagnostics import UserError, did_you_mean


@dataclass(frozen=True)
class Ports:
    """What a network takes and gives: the shape of one example, () for a number. `unit`: what it gives lies in [0, 1]."""

    takes: tuple[int, ...]
    gives: tuple[int, ...]
    unit: bool = False


@dataclass(frozen=True)
class NetworkRow:
    name: str
    about: str
    build: Callable[[Ports], nn.Module]


def _perceptron(ports: Ports, width: int, hidden: int) -> nn.Module:
    """Linear layers with leaky ReLU (slope 0.2) between them; no batch norm, which would tie the examples of a penalty together."""
    sizes = [prod(ports.takes), *[width] * hidden, prod(ports.gives)]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(before, after), nn.LeakyReLU(0.2)]
    layers.pop()
    if ports.unit:
        layers.append(nn.Sigmoid())
    return nn.Sequential(*layers, nn.Unflatten(1, ports.gives) if ports.gives else nn.Flatten(0))


NETWORKS: dict[str, NetworkRow] = {
    row.name: row
    for row in (
        NetworkRow("mlp", "3 hidden layers of 128", lambda ports: _perceptron(ports, 128, 3)),
        NetworkRow("mlp_small", "2 hidden layers of 16, for tests", lambda ports: _perceptron(ports, 16, 2)),
        NetworkRow("mlp_wide", "3 hidden layers of 512, as in Gulrajani et al., 2017", lambda ports: _perceptron(ports, 512, 3)),
    )
}  # fmt: skip


def build_networks(game: TypedGame, shape: tuple[int, ...], unit: bool, name: str = "mlp") -> dict[str, nn.Module]:
    """A network of the table for every model of a game; initial weights come from torch's global generator.

    shape: of one example of the data; unit: the data lie in [0, 1]. Raises UserError: no such network, no latent space to be seen.
    """
    if name not in NETWORKS:
        raise UserError(f"there is no network {name!r}", where="--network", fix=did_you_mean(name, NETWORKS))
    found = {}
    for model, (takes, gives) in game.models.items():
        ports = Ports(_shape(game, model, takes, shape), _shape(game, model, gives, shape), unit and gives == "Input")
        found[model] = NETWORKS[name].build(ports)
    return found


def _shape(game: TypedGame, model: str, word: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return {"Input": shape, "Real": ()}[word] if word != "Latent" else (latent_size(game, model),)


def latent_size(game: TypedGame, model: str) -> int:
    """The number of entries of the latent vectors that a model is called with (or of the only latent space of the game)."""
    sizes = {draw.name: draw.size for draw in game.samples if draw.over == "latent"}
    inside = {size for e in _arguments(game, model) for part in walk(e) if (size := sizes.get(_sample(part))) is not None}
    found = inside or set(sizes.values())
    if len(found) != 1:
        what = "draws nothing over latent(n)" if not found else f"has latent spaces of {', '.join(map(str, sorted(found)))} numbers"
        raise UserError(
            f"the game {what}: the size of {model} cannot be told", where=model, fix="write for example sample z ~ normal(1) over latent(2)"
        )
    return found.pop()


def _arguments(game: TypedGame, model: str) -> list[Typed]:
    nodes = [node for player in game.players for node in walk(player.objective)]
    return [node.args[0] for node in nodes if node.op == "apply" and node.attrs == (model,)]


def _sample(e: Typed) -> str:
    return str(e.attrs[0]) if e.op == "sample" else ""


# --- keep ---------------------------------------------------------------------------------------------------------

Hold = Callable[[nn.Module, float], None]


def _clip(model: nn.Module, bound: float) -> None:
    """Every parameter into [-bound, bound] (Arjovsky et al., 2017, alg. 1)."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.clamp_(-bound, bound)


def _iterate(model: nn.Module, bound: float) -> None:
    """One power iteration of every layer, whose vectors then stay as they are until the model's next step (Miyato et al., 2018, alg. 1)."""
    module: Any
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            norms = module.parametrizations.weight
            norms.train()
            with torch.no_grad():
                module.weight  # noqa: B018  (computing it in train mode is the iteration)
            norms.eval()


HOLDS: dict[str, Hold] = {"clip": _clip, "spectral": _iterate}


def prepare(models: Mapping[str, nn.Module], keeps: Mapping[str, tuple[str, float]]) -> None:
    """What `keep` needs once, before the first step: every layer of a spectrally normalised model gets its parametrization.

    Raises UserError for a model without a layer to normalise.
    """
    for name, (kind, bound) in keeps.items():
        if kind != "spectral":
            continue
        layers = [m for m in models[name].modules() if _is_layer(m) and not parametrize.is_parametrized(m, "weight")]
        if not layers and not any(parametrize.is_parametrized(m, "weight") for m in models[name].modules()):
            raise UserError(
                "has no layer with a weight matrix to normalise", where=f"the model {name}", fix=f"remove keep {name} in spectral"
            )
        for layer in layers:
            spectral_norm(layer, n_power_iterations=1)
        _iterate(models[name], bound)


def _is_layer(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return isinstance(weight, Tensor) and weight.dim() >= 2


def hold(models: Mapping[str, nn.Module], keeps: Mapping[str, tuple[str, float]], *moved: str) -> None:
    """What `keep` does after a step of the models that moved."""
    for name in moved:
        if name in keeps:
            kind, bound = keeps[name]
            HOLDS[kind](models[name], bound)
