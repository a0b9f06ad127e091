"""The learning rate over a run."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
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
    for schedule in ("constant", "linear", "cosine"):
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


@pytest.mark.parametrize("warmup", [0, 1, 5, TOTAL, TOTAL + 3])
def test_the_linear_schedule_is_that_of_transformers_whose_warm_up_begins_a_step_earlier_at_0(warmup: int) -> None:
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, TOTAL)
    theirs = []
    for _ in range(TOTAL + 1):
        theirs.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    ours = rates(schedule="linear", warmup_steps=warmup)
    assert ours[:warmup] == pytest.approx([0.1 * (step + 1) / warmup for step in range(min(warmup, TOTAL))])
    assert ours[warmup:] == pytest.approx(theirs[warmup:-1])
    assert learning_rate(TrainConfig(lr=0.1, schedule="linear"), TOTAL, TOTAL) == 0


@given(
    warmup=st.integers(0, 50),
    total=st.integers(1, 40),
    step=st.integers(0, 80),
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
)
def test_a_rate_is_never_negative_nor_above_the_configured_one(
    warmup: int, total: int, step: int, schedule: str
) -> None:
    config = TrainConfig(lr=0.1, schedule=schedule, warmup_steps=warmup)
    assert 0 <= learning_rate(config, step, total) <= config.rate * (1 + 1e-12)
