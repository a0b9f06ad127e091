"""Scores from counts by label are those from all predictions, over one device or many; false words are nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fedlora.wire.label_counts import LabelCounts
from hypothesis import given
from hypothesis import strategies as st

PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)


def counts(pairs: list[tuple[int, int]], labels: int = 5) -> LabelCounts:
    actual, predicted = (np.array(column) for column in zip(*pairs, strict=True))
    return LabelCounts.of(actual, predicted, labels)


def test_scores_are_those_of_scikit_learn() -> None:
    """accuracy_score, f1_score(average="macro") and matthews_corrcoef of scikit-learn 1.9.1 print these."""
    actual = [0, 0, 0, 1, 1, 2, 2, 2, 2, 3]
    predicted = [0, 1, 0, 1, 2, 2, 2, 0, 2, 2]
    assert counts(list(zip(actual, predicted, strict=True))).scores() == pytest.approx(SKLEARN)


SKLEARN = {"accuracy": 0.6, "macro_f1": 0.458333333333, "mcc": 0.409844299985}


@given(PAIRS)
def test_scores_are_those_of_their_definitions(pairs: list[tuple[int, int]]) -> None:
    table = np.zeros((5, 5))
    for pair in pairs:
        table[pair] += 1
    one_hot = np.eye(5)
    x, y = (one_hot[[pair[side] for pair in pairs]] for side in (0, 1))
    x, y = x - x.mean(0), y - y.mean(0)
    spread = math.sqrt((x * x).sum() * (y * y).sum())
    seen = [label for label in range(5) if table[label].sum() + table[:, label].sum()]
    f1 = [2 * table[label, label] / (table[label].sum() + table[:, label].sum()) for label in seen]
    assert counts(pairs).scores() == pytest.approx(
        {
            "accuracy": np.trace(table) / len(pairs),
            "macro_f1": np.mean(f1),
            "mcc": (x * y).sum() / spread if spread > 1e-9 else 0.0,
        }
    )


@given(PAIRS, PAIRS)
def test_devices_add_up_and_numbers_travel(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> None:
    together = counts(first) + counts(second)
    assert together.scores() == counts(first + second).scores()
    read = LabelCounts.read(together.told("test/"), 5, "test/")
    assert read is not None
    assert read.scores() == together.scores()
    assert LabelCounts.read(together.told("test/"), 5) is None  # another's name


@pytest.mark.parametrize(
    "change",
    [
        {"label/0/right": 3.0}, {"label/0/actual": 1.5}, {"label/0/actual": -1.0}, {"label/0/predicted": math.nan},
        {"label/0/actual": math.inf}, {"label/1/actual": 7.0}, {"label/0/actual": 1e12, "label/0/predicted": 1e12},
    ],
)  # fmt: skip
def test_what_cannot_be_is_no_word(change: dict[str, float]) -> None:
    told = counts([(0, 0), (0, 0), (1, 1)]).told()
    assert LabelCounts.read(told, 5) is not None
    assert LabelCounts.read(told | change, 5) is None


def test_no_texts_have_no_scores() -> None:
    assert LabelCounts.none(3).scores() == {}
    assert LabelCounts.read({}, 3) is None
