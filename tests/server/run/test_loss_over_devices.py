"""What the losses of a round say of its devices together."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from fedlora_server.run.loss_over_devices import accuracy_over_devices, loss_over_devices
from fedlora_server.run.round_record import RoundRecord


@pytest.mark.parametrize("count", [1, 2, 9, 10, 11, 40])
def test_the_measures_are_those_of_a_sorted_list(count: int) -> None:
    generator = np.random.default_rng(count)
    loss = {f"device-{k}": float(value) for k, value in enumerate(generator.uniform(1, 4, count))}
    examples = {device: int(generator.integers(1, 90)) for device in loss}
    found, worst = loss_over_devices(loss, examples), sorted(loss.values())[-math.ceil(count / 10) :]
    assert found["worst_tenth"] == pytest.approx(sum(worst) / len(worst))
    assert found["mean"] == pytest.approx(sum(loss.values()) / count)
    weighted = sum(loss[device] * examples[device] for device in loss) / sum(examples.values())
    assert found["weighted_mean"] == pytest.approx(weighted)
    assert found["median"] == statistics.median(loss.values())
    assert found["measured"] == count
    assert (found["min"], found["max"]) == (min(loss.values()), max(loss.values()))
    assert found["std"] == pytest.approx(np.std(list(loss.values())))


@pytest.mark.parametrize("losses", [[1e200, 3.0], [1.7e308, 1.7e308, -1.7e308], [1e151] * 20])
def test_losses_that_no_device_has_leave_no_measure_out(losses: list[float]) -> None:
    loss = {str(number): value for number, value in enumerate(losses)}
    found = loss_over_devices(loss, dict.fromkeys(loss, 7))
    assert found.keys() == {"mean", "weighted_mean", "median", "worst_tenth", "std", "min", "max", "measured"}
    assert all(math.isfinite(value) for value in found.values())
    assert found["measured"] == len(losses)
    RoundRecord(1, loss=loss).summary(2)


def test_of_accuracies_the_worst_tenth_are_the_least() -> None:
    accuracy = {str(number): number / 20 for number in range(20)}
    found = accuracy_over_devices(accuracy, dict.fromkeys(accuracy, 3))
    assert found["worst_tenth"] == pytest.approx((0 + 1 / 20) / 2)
    assert [found[name] for name in ("mean", "weighted_mean", "median")] == pytest.approx([9.5 / 20] * 3)
    assert RoundRecord(1, accuracy=accuracy).line()["accuracy_over_devices"]["measured"] == 20


def test_without_losses_there_are_no_measures_and_without_all_weights_no_weighted_mean() -> None:
    assert loss_over_devices({}, {}) == {}
    assert "weighted_mean" not in loss_over_devices({"a": 1.0, "b": 2.0}, {"a": 3})


def test_a_round_tells_them_in_its_line_and_its_summary() -> None:
    record = RoundRecord(1, loss={"a": 1.0, "b": 3.0}, measured_of=2, late_answers=2)
    assert record.line()["loss_over_devices"]["std"] == 1.0
    assert "mean held-out loss 2.0000 (worst tenth 3.0000, spread 1.0000)" in record.summary(5)
    assert "2 late answers ignored" in record.summary(5)
