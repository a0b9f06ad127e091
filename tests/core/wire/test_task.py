"""What a round asks of a device."""

from __future__ import annotations

import pytest
from fedlora.errors import ConfigError
from fedlora.wire.task import FACTOR_SETS, Task


def test_by_default_both_factors_train_and_are_sent() -> None:
    assert (Task().trains, Task().sends, Task().keeps) == ("AB", "AB", "")


@pytest.mark.parametrize(
    ("trains", "sends", "keeps"), [("AB", "A", "B"), ("AB", "B", "A"), ("A", "A", ""), ("B", "B", ""), ("AB", "AB", "")]
)
def test_what_trains_and_is_not_sent_stays(trains: str, sends: str, keeps: str) -> None:
    assert Task(trains=trains, sends=sends).keeps == keeps  # type: ignore[arg-type]


def test_every_task_of_known_factors_is_made_or_refused() -> None:
    made = 0
    for trains in FACTOR_SETS:
        for sends in FACTOR_SETS:
            if set(sends) <= set(trains):
                assert set(Task(trains=trains, sends=sends).keeps) == set(trains) - set(sends)
                made += 1
            else:
                with pytest.raises(ConfigError, match=f"task: {sends} is sent, but only {trains} trains"):
                    Task(trains=trains, sends=sends)
    assert made == 5


@pytest.mark.parametrize("wrong", ["", "BA", "a", "C", None, 1, ["A"], {"A": 1}])
def test_other_factors_are_refused_with_the_known_ones(wrong: object) -> None:
    for name in ("trains", "sends"):
        with pytest.raises(ConfigError, match=f"task: {name} must be one of AB, A, B, got"):
            Task(**{name: wrong})  # type: ignore[arg-type]
