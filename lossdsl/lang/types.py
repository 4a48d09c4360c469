"""The types of values in a recipe (section 6 of the language)."""

from __future__ import annotations

from enum import Enum


class Kind(Enum):
    """What a value is, per example unless said otherwise; in brackets the shape the engine gives it for a batch of B."""

    INPUT = "Input"
    """a point of the input space [B, *input]"""
    LABEL = "Label"
    """the true class [B]"""
    LOGITS = "Logits"
    """one unnormalised score per class [B, K]"""
    PROB = "Prob"
    """a probability vector, held as its logarithm [B, K]"""
    CLASS = "Class"
    """a class index [B]"""
    REAL = "Real"
    """one number per example [B]"""
    CONST = "Const"
    """one number []"""
    VECTOR = "Vector"
    """one number per class [B, K]"""
    WEIGHTS = "Weights"
    """parameters of a model"""
    SET = "Set"
    """a set of points"""
    MODEL = "Model"
    """a model"""

    def __str__(self) -> str:
        return self.value


SCALARS = frozenset({Kind.REAL, Kind.CONST})
OVER_CLASSES = frozenset({Kind.LOGITS, Kind.PROB, Kind.VECTOR})
CLASSES = frozenset({Kind.LABEL, Kind.CLASS})

DESCRIPTION = {
    Kind.INPUT: "an Input",
    Kind.LABEL: "a Label",
    Kind.LOGITS: "Logits",
    Kind.PROB: "a Prob",
    Kind.CLASS: "a Class",
    Kind.REAL: "a Real (one number per example)",
    Kind.CONST: "a Const (one number)",
    Kind.VECTOR: "a Vector over classes",
    Kind.WEIGHTS: "Weights",
    Kind.SET: "a Set",
    Kind.MODEL: "a Model",
}
