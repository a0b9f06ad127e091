"""The learning rate over a run."""

from __future__ import annotations

import itertools
import math

import pytest
from fedlora.config.run import TrainConfig
from fedlora_client.training.learning_rate import learning_rate
from hypothesis import given
from hypothesis import strategies as st

TOTAL = 20


def rates(total: int = TOTAL, **config: object) -> list[float]:
    known = TrainConfig(lr=0.1, **config)  # type: ignore[arg-type]
    return [learning_rate(known, step, total) for step in range(total)]


def test_constant_is_constant() -> None:
    assert rates() == [0.1] * TOTAL


def test_the_warm_up_rises_in_equal_parts_to_the_rate_and_is_over() -> None:
    for schedule in ("constant", "cosine"):
        assert rates(schedule=schedule, warmup_steps=4)[:5] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])
    assert rates(warmup_steps=4)[4:] == [0.1] * (TOTAL - 4)


def test_the_cosine_begins_at_the_rate_halves_in_the_middle_and_would_be_0_after_the_last_step() -> None:
    found = rates(schedule="cosine")
    assert found[0] == 0.1
    assert found[TOTAL // 2] == pytest.approx(0.05)
    assert found[-1] == pytest.approx(0.05 * (1 - math.cos(math.pi / TOTAL)))
    config = TrainConfig(lr=0.1, schedule="cosine")
    assert learning_rate(config, TOTAL, TOTAL) == learning_rate(config, TOTAL + 5, TOTAL) == 0
    assert all(later < earlier for earlier, later in itertools.pairwise(found))


@given(
    warmup=st.integers(0, 50),
    total=st.integers(1, 40),
    step=st.integers(0, 80),
    schedule=st.sampled_from(["constant", "cosine"]),
)
def test_a_rate_is_never_negative_nor_above_the_configured_one(
    warmup: int, total: int, step: int, schedule: str
) -> None:
    config = TrainConfig(lr=0.1, schedule=schedule, warmup_steps=warmup)
    assert 0 <= learning_rate(config, step, total) <= config.lr * (1 + 1e-12)
