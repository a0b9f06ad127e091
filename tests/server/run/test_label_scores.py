"""What devices tell of labels and of a shared test set, put together; what cannot be is left out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fedlora.wire.label_counts import TEST, LabelCounts
from fedlora_server.run.label_scores import enter_scores
from fedlora_server.run.round_record import RoundRecord

LABELS = 3


def told(actual: list[int], predicted: list[int], prefix: str = "", loss: float = 1.0) -> dict[str, float]:
    counts = LabelCounts.of(np.array(actual), np.array(predicted), LABELS)
    return {f"{prefix}loss": loss, f"{prefix}tokens": float(len(actual)), **counts.told(prefix)}


def entered(devices: dict[str, dict[str, float]], labels: int = LABELS) -> RoundRecord:
    record = RoundRecord(1)
    enter_scores(record, devices, labels)
    return record


def test_devices_have_their_accuracy_and_all_texts_together_have_theirs() -> None:
    record = entered({"a": told([0, 1], [0, 0]), "b": told([2, 2, 2, 1], [2, 2, 2, 1])})
    assert record.accuracy == {"a": 0.5, "b": 1.0}
    assert record.scores["accuracy"] == 5 / 6
    assert record.test == {}


def test_the_test_set_is_as_if_one_had_measured_it() -> None:
    first, second = told([0, 1], [0, 0], TEST, 1.0), told([2, 1, 0, 0, 1, 2], [2, 1, 1, 0, 1, 2], TEST, 2.0)
    record = entered({"a": first, "b": second})
    whole = LabelCounts.of(np.array([0, 1, 2, 1, 0, 0, 1, 2]), np.array([0, 0, 2, 1, 1, 0, 1, 2]), LABELS)
    assert record.test == {"loss": 14 / 8, "tokens": 8, "devices": 2, **whole.scores()}
    assert "test set 75.0% right" in summary(record)


def test_a_decoders_test_set_is_a_loss() -> None:
    record = entered({"a": {"test/loss": 1.0, "test/tokens": 10.0}, "b": {"test/loss": 4.0, "test/tokens": 20.0}}, 0)
    assert record.test == {"loss": 3.0, "tokens": 30.0, "devices": 2.0}
    assert "test set loss 3.0000" in summary(record)


def summary(record: RoundRecord) -> str:
    record.loss = {"a": 1.0}
    return record.summary(3)


@pytest.mark.parametrize(
    "lie",
    [
        {"test/loss": math.nan}, {"test/loss": -1.0}, {"test/loss": 1e300}, {"test/tokens": 0.0}, {"test/tokens": 1e300},
        {"test/label/0/right": 9.0}, {"test/label/7/actual": 4.0, "test/label/0/actual": 0.0}, {"test/label/0/actual": 0.5},
    ],
)  # fmt: skip
def test_a_device_that_tells_what_cannot_be_is_not_counted(lie: dict[str, float]) -> None:
    sound, liar = told([0, 1], [0, 0], TEST), told([0, 1], [0, 0], TEST) | lie
    assert entered({"a": sound, "liar": liar}).test == entered({"a": sound}).test
    assert entered({"liar": liar}).test == {}
