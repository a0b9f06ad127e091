"""How many texts of each label were told right: what accuracy and its like are made of, over one device or over many."""

# C labels

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TEST = "test/"  # stands before the names of what a device measured on its share of a test set

_KINDS = ("actual", "predicted", "right")
_MOST = 1 << 31  # texts: what is more is nobody's word
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class LabelCounts:
    """For each of C labels, how many texts have it, how many were given it, and of how many both is true. They add up."""

    actual: Counts  # [C]
    predicted: Counts  # [C]
    right: Counts  # [C]

    @classmethod
    def of(cls, actual: Counts, predicted: Counts, labels: int) -> LabelCounts:
        """Of the label and the given label of each text [M]."""
        right = actual[actual == predicted]
        return cls(*(np.bincount(numbers, minlength=labels) for numbers in (actual, predicted, right)))

    @classmethod
    def none(cls, labels: int) -> LabelCounts:
        """Those of no text."""
        return cls(*(np.zeros(labels, np.int64) for _ in _KINDS))

    def __add__(self, other: LabelCounts) -> LabelCounts:
        return LabelCounts(self.actual + other.actual, self.predicted + other.predicted, self.right + other.right)

    @property
    def texts(self) -> int:
        return int(self.actual.sum())

    def told(self, prefix: str = "") -> dict[str, float]:
        """The counts as numbers by name, as a device sends them: those that are not 0."""
        return {
            f"{prefix}label/{label}/{kind}": float(count)
            for kind in _KINDS
            for label, count in enumerate(getattr(self, kind).tolist())
            if count
        }

    @classmethod
    def read(cls, metrics: Mapping[str, float], labels: int, prefix: str = "") -> LabelCounts | None:
        """What a device told of a base with so many labels; None where it told nothing, or what cannot be."""
        found = []
        for kind in _KINDS:
            told = [metrics.get(f"{prefix}label/{label}/{kind}", 0.0) for label in range(labels)]
            if not all(0 <= count <= _MOST and count == int(count) for count in told):  # NaN is none of them
                return None
            found.append(np.array(told, np.int64))
        counts = cls(*found)
        sound = (
            counts.texts == counts.predicted.sum()
            and (counts.right <= np.minimum(counts.actual, counts.predicted)).all()
        )
        return counts if counts.texts and sound else None

    def scores(self) -> dict[str, float]:
        """{measure: value}; empty where there are no texts.

        accuracy    the share of the texts that were given their label
        macro_f1    mean over the labels that a text has or was given of 2 right / (actual + predicted)
        mcc         Matthews' correlation coefficient of C labels (Gorodkin, 2004); 0 where either side has one label alone
        """
        if not self.texts:
            return {}
        total, right = self.texts, int(self.right.sum())
        either = self.actual + self.predicted
        f1 = 2 * self.right[either > 0] / either[either > 0]
        a, p = (counts.astype(object) for counts in (self.actual, self.predicted))  # their squares have no bound
        spread = (total**2 - int((a * a).sum())) * (total**2 - int((p * p).sum()))
        covariance = right * total - int((a * p).sum())
        return {
            "accuracy": right / total,
            "macro_f1": float(f1.mean()),
            "mcc": covariance / math.sqrt(spread) if spread else 0.0,
        }
