"""The second stream of `train data = mix(labelled, pseudo, fraction = ...)`: unlabelled examples and the labels a teacher gives them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lossdsl.diagnostics import UserError
from lossdsl.run.check import check_inputs
from lossdsl.run.checkpoint import read_checkpoint, write_checkpoint
from lossdsl.run.data import DataRequest, DataSet, load_data
from lossdsl.run.examples import Split, stratified
from lossdsl.run.request import TrainRequest
from lossdsl.run.stored import MANIFEST, StoredModel, open_run, split_name

LABELS = "pseudo.safetensors"
NONE, SPLIT = "none", "split"
UNKNOWN = -1
"""The label of an example that has none: cross-entropy leaves it out, and known(y) is 0."""


@dataclass(frozen=True)
class Unlabelled:
    """Where the second stream comes from: another data set, or a `share` of the training examples. `teacher` is None where the examples
    get the label -1, and where the run has its labels already and the teacher's files are gone."""

    data: DataSet | None
    source: dict[str, Any]
    share: float
    teacher_name: str
    teacher: StoredModel | None

    def identity(self) -> dict[str, Any]:
        """For a manifest. A digest of None stands for files that are gone."""
        if self.teacher_name == NONE:
            return {"data": self.source, "teacher": NONE}
        return {"data": self.source, "teacher": self.teacher.identity() if self.teacher else {"digest": None}}

    def divide(self, train: Split, classes: tuple[str, ...]) -> tuple[Split, Split, Tensor | None]:
        """The labelled examples, the unlabelled ones, and the true labels of these where they are known."""
        if self.data is None:
            first, second = stratified(train, self.share, "labelled and unlabelled")
            return first, second, second.labels
        return train, self.data.train, self.data.train.labels if self.data.classes == classes else None


def resolve_unlabelled(request: TrainRequest, data: DataSet) -> Unlabelled | None:
    """The second stream of a request, None if its recipe has none.

    Raises UserError: a recipe that mixes without the arguments, the arguments without such a recipe, data or a teacher that do not fit.
    """
    given = [name for name, value in (("--unlabelled", request.unlabelled), ("--teacher", request.teacher)) if value is not None]
    if request.recipe.train.data is None:
        if given:
            raise UserError(
                f"{request.recipe.name} takes one stream of examples",
                where=given[0],
                fix=f"leave out {' and '.join(given)}, or add to the recipe: train data = mix(labelled, pseudo, fraction = 0.5)",
            )
        return None
    if request.unlabelled is None or request.teacher is None:
        raise UserError(
            f"{request.recipe.name} mixes labelled and pseudo-labelled examples",
            where="train data",
            fix="say which and who labels them: --unlabelled DATA --teacher DIR  (split:0.5 for a half of the training examples, "
            "--teacher none for no labels)",
        )
    if request.recipe.sampled:
        raise UserError(
            "draws classes, which pseudo-labelled examples do not have", where="train sampler", fix="leave out sampler, or data"
        )
    found, source, share = _source(request, data)
    return Unlabelled(found, source, share, request.teacher, _teacher(request, data))


def _source(request: TrainRequest, data: DataSet) -> tuple[DataSet | None, dict[str, Any], float]:
    asked = request.unlabelled
    files: dict[str, Any]
    assert asked is not None
    if isinstance(asked, str) and asked.partition(":")[0] == SPLIT:
        return None, {"name": asked}, _share(asked)
    if isinstance(asked, DataSet):
        found, files = asked, {}
    else:
        base = request.data if isinstance(request.data, DataRequest) else DataRequest()
        found = load_data(replace(base, name=asked))
        files = {"root": str(base.root.resolve()), "image_size": base.image_size}
    if found.shape != data.shape:
        raise UserError(
            f"{found.name} has inputs of shape {list(found.shape)}, {data.name} of {list(data.shape)}",
            where="--unlabelled",
            fix="use data of the same shape" + (" (images of a folder: --image-size N)" if len(found.shape) == 3 else ""),
        )
    if found.digest() == data.digest():
        raise UserError(
            f"{found.name} is the labelled data itself, the validation examples among it",
            where="--unlabelled",
            fix="use --unlabelled split:0.5 for a half of the training examples",
        )
    _check(found, request)
    return found, {"name": found.name, "digest": found.digest(), **files}, 0.0


def _share(text: str) -> float:
    try:
        share = float(text.partition(":")[2])
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise UserError(f"{text!r} is not a share of the training examples", where="--unlabelled", fix="write split:0.5, between 0 and 1")
    return share


def _check(data: DataSet, request: TrainRequest) -> None:
    where = f"--unlabelled {data.name}"
    for batch in data.train.in_order(request.eval_batch):
        check_inputs(batch.x, batch.index, request.recipe.domain, where)
        if not data.train.examples.in_memory:
            break


def _teacher(request: TrainRequest, data: DataSet) -> StoredModel | None:
    assert request.teacher is not None
    labelled = all((request.out / name).exists() for name in (MANIFEST, LABELS))
    if request.teacher == NONE or (labelled and not split_name(request.teacher)[0].exists()):
        return None
    stored = open_run(request.teacher)
    stored.require(data.shape, data.num_classes, "--teacher")
    return stored


@dataclass(frozen=True)
class PseudoLabels:
    """The labels [N] of the second stream, and how many of them agree with the true ones (None where those are not known)."""

    labels: Tensor
    teacher: str
    agreement: float | None

    @property
    def about(self) -> str:
        """One line for a person."""
        if self.teacher == NONE:
            return f"{len(self.labels)} unlabelled examples, without labels"
        known = "the true labels are not known" if self.agreement is None else f"{self.agreement:.1%} agree with the true labels"
        return f"{len(self.labels)} unlabelled examples, labelled by {self.teacher}: {known}"

    def to_json(self) -> dict[str, Any]:
        return {"examples": len(self.labels), "teacher": self.teacher, "agreement": self.agreement}


def label(unlabelled: Unlabelled, second: Split, truth: Tensor | None, setting: tuple[torch.device, torch.dtype, int]) -> PseudoLabels:
    """The class of largest logit (the lowest at a tie) by the teacher, in eval mode on inputs as they are; -1 without a teacher.

    `setting`: device, type and batch size of the forward passes. Raises UserError for logits that are not finite.
    """
    if unlabelled.teacher_name == NONE:
        return PseudoLabels(torch.full((len(second),), UNKNOWN), unlabelled.teacher_name, None)
    device, dtype, batch = setting
    model, found = (unlabelled.teacher or open_run(unlabelled.teacher_name)).build(device, dtype), []
    with torch.no_grad():
        for piece in second.in_order(batch):
            logits = model(piece.x.to(device, dtype))
            if not bool(torch.isfinite(logits).all()):
                raise UserError("the teacher's output holds NaN or infinity", where="--teacher", fix="use another checkpoint")
            found.append(logits.argmax(1).cpu())
    labels = torch.cat(found)
    agreement = None if truth is None else float((labels == truth).double().mean())
    return PseudoLabels(labels, unlabelled.teacher_name, agreement)


def write_labels(out: Path, found: PseudoLabels, run: str) -> None:
    """Keep the labels in the directory of the run, whose id is `run`."""
    state = {"kind": "pseudo-labels", "run": run, "teacher": found.teacher, "agreement": found.agreement}
    write_checkpoint(out / LABELS, {"labels": found.labels}, state)


def read_labels(out: Path, count: int, run: str) -> PseudoLabels:
    """The labels that the run was started with. Raises UserError: missing, damaged, of another run."""
    path = out / LABELS
    if not path.is_file():
        raise UserError("the labels of the second stream are missing", where=str(path), fix="put the file back, or train anew elsewhere")
    found = read_checkpoint(path)
    if found.state.get("run") != run or len(found.tensors.get("labels", ())) != count:
        raise UserError("holds the labels of another run", where=str(path), fix="put back the file of this run, or train anew elsewhere")
    return PseudoLabels(found.tensors["labels"], found.state["teacher"], found.state["agreement"])
