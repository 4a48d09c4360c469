"""`lossdsl.evaluate`: any model, as a function of Python."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lossdsl import __version__
from lossdsl.diagnostics import UserError
from lossdsl.engine.api import attack_suite
from lossdsl.engine.api import compile as compile_suite
from lossdsl.front import Recipe
from lossdsl.run.check import PROBE, check_inputs, check_model
from lossdsl.run.examples import Split, TensorExamples, whole
from lossdsl.run.measure import Setting, evaluation_mode, measure
from lossdsl.run.pieces import stored_pieces
from lossdsl.run.protocols import Attack
from lossdsl.run.results import FORMAT, Evaluation, known_result, write_result
from lossdsl.run.stored import digest


def evaluate(  # noqa: PLR0913 - one question, all but four of its parts by name
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: str = "autoattack",
    *,
    eps: float | None = None,
    params: Mapping[str, float | int] | None = None,
    models: Mapping[str, nn.Module] | None = None,
    seed: int = 0,
    batch: int = 512,
    device: torch.device | str | None = None,
    points: bool = True,
    cache: Path | str | None = None,
    fresh: bool = False,
) -> Evaluation:
    """Clean and robust accuracy of any model under an attack suite.

    model: [N, *shape] -> logits [N, K]; its own normalisation belongs inside it. It is evaluated in eval mode, whatever mode it is in,
    and left as it was. x: floating-point inputs [N, *shape] in the suite's domain, [0, 1] unless its text says otherwise; any rank. y:
    labels 0..K-1, [N].
    attack: a suite by name ("autoattack", "pgd20"; `lossdsl list --attacks`), path or text. eps: its radius, in the units of x. params:
    other params of the suite. models: what the suite's `model g frozen` are, by name.
    seed: of the attack's random numbers, which depend on it, on the run's name and on the place of the example in x alone. batch: examples
    at a time. device: where to compute; the model is moved there and stays there; None is where it is.
    points: keep the points ([N, *shape] per run, in memory). cache: a directory for finished parts and the result: the same question is
    answered from there, and a killed evaluation goes on; only without points. The hash is of weights and buffers, of what the model
    prints as, and of x, y and suite: a change in the code of its forward is not seen, `fresh` measures anew.

    An example counts as broken if its clean output is wrong or not finite. Raises UserError for a model that does not return logits
    [N, K], for inputs and labels that do not fit, for an unknown suite, param or model, and when a number of the attack is not finite.
    """
    suite = _suite(attack, eps, params)
    split, setting = _examples(x, y), _setting(model, device, (seed, batch, points))
    classes = _classes(model, split, setting, suite)
    compiled: Attack = compile_suite(suite, model, num_classes=classes, device=setting.device, models=_placed(models, setting))
    if cache is None:
        return _result(compiled, seed, str(setting.device), measure(model, compiled, split, setting))
    if points:
        raise UserError("points are not kept on disk", where="lossdsl.evaluate", fix="pass points=False with cache=, or leave cache out")
    key = _key(model, models or {}, split, compiled, seed)
    file = Path(cache) / f"evaluate-{compiled.name}-{key[:16]}.json"
    if not fresh and (known := known_result(file, key)):
        return _result(compiled, seed, str(known[0]["device"]), known[1], cached=True)
    with stored_pieces(Path(cache) / f".evaluate-{key[:16]}", fresh) as pieces:
        file.unlink(missing_ok=True)
        result = _result(compiled, seed, str(setting.device), measure(model, compiled, split, setting, pieces=pieces))
        write_result(file, {"key": key, **result.to_json()}, result.measurement)
    return result


def _result(attack: Attack, seed: int, device: str, measurement: Any, cached: bool = False) -> Evaluation:
    return Evaluation(attack.name, attack.count, tuple(dict(row) for row in attack.settings), seed, device, cached, measurement)


def _suite(attack: str, eps: float | None, params: Mapping[str, float | int] | None) -> Recipe:
    suite = attack_suite(attack)
    chosen = {**(params or {}), **({} if eps is None else {"eps": eps})}
    return suite.with_params(**chosen) if chosen else suite


class _Given(TensorExamples):
    """Inputs in the precision they have."""

    def inputs(self, order: Any) -> Any:
        return (self.images[index] for index in order)


def _examples(x: Tensor, y: Tensor) -> Split:
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2:
        kind = f"{x.dtype} of shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise UserError(f"inputs are floating-point, [N, *shape], and this is {kind}", where="x", fix="scale images: x.float() / 255")
    if not isinstance(y, Tensor) or y.is_floating_point() or y.dtype == torch.bool or y.ndim != 1:
        kind = f"{y.dtype} of shape {list(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise UserError(f"labels are class indices [N], and this is {kind}", where="y", fix="pass y as torch.long, one index per example")
    return whole(_Given(x.detach().cpu(), y.detach().cpu()))


def _setting(model: Any, device: torch.device | str | None, rest: tuple[int, int, bool]) -> Setting:
    if not isinstance(model, nn.Module):
        fix = "wrap a function in a Module whose forward calls it"
        raise UserError(f"the model is a {type(model).__name__}, not a torch.nn.Module", where="model", fix=fix)
    seed, batch, points = rest
    if batch < 1:
        raise UserError(f"{batch} examples at a time", where="batch", fix="use 1 or more")
    if device is not None:
        model.to(device)
    own = next((tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()), torch.zeros(()))
    return Setting(own.device if device is None else torch.device(device), own.dtype, seed, batch, points)


def _placed(models: Mapping[str, nn.Module] | None, setting: Setting) -> dict[str, nn.Module]:
    given = models or {}
    return {name: model.to(setting.device, setting.dtype) if isinstance(model, nn.Module) else model for name, model in given.items()}


def _classes(model: nn.Module, split: Split, setting: Setting, suite: Recipe) -> int:
    """The width of the logits; everything about model, inputs and labels looked at."""
    probe = next(split.in_order(PROBE)).x.to(setting.device, setting.dtype)
    z: Any = None
    with evaluation_mode(model), torch.no_grad():
        try:
            z = model(probe)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise UserError(
                f"the model fails on inputs of shape {list(probe.shape)}: {error}", where="model", fix="pass inputs as it takes them"
            ) from error
    if not isinstance(z, Tensor) or z.ndim != 2 or z.shape[1] < 2:
        kind = f"shape {list(z.shape)}" if isinstance(z, Tensor) else type(z).__name__
        raise UserError(f"the model returns {kind}, not logits [N, K]", where="model", fix="return one number per class, K at least 2")
    check_model(model, split, z.shape[1], "model", setting.device, setting.dtype, finite=False)
    wrong = ((split.labels < 0) | (split.labels >= z.shape[1])).nonzero()
    if len(wrong):
        said = f"example {int(wrong[0])} has label {int(split.labels[wrong[0]])}, and the model knows the classes 0..{z.shape[1] - 1}"
        raise UserError(said, where="y", fix="number the classes from 0")
    for piece in split.in_order(setting.batch):
        check_inputs(piece.x, piece.index, suite.domain, "x")
    return int(z.shape[1])


def _key(model: nn.Module, models: Mapping[str, nn.Module], split: Split, attack: Attack, seed: int) -> str:
    """SHA-256 of all that the numbers depend on, as far as it can be seen."""
    weights = {
        name: digest(f"{type(m).__qualname__} {m}", {key: tensor.detach().cpu() for key, tensor in m.state_dict().items()})
        for name, m in {"": model, **models}.items()
    }
    content = {
        "version": [__version__, FORMAT], "models": weights, "suite": attack.hash, "seed": seed, "data": split.examples.digest(),
    }  # fmt: skip
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


__all__ = ["evaluate"]
