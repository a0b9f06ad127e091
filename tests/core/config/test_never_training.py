"""Devices that never train: which ones, by what is asked for and by the partition's seed."""

from __future__ import annotations

import pytest
from fedlora.config.partition import PartitionConfig
from fedlora.config.run import RunConfig, changed
from fedlora.errors import ConfigError


def never(held_out: float, devices: int, seed: int = 0) -> frozenset[int]:
    return PartitionConfig(rule="iid", held_out=held_out, seed=seed).never_training(devices)


@pytest.mark.parametrize(
    ("held_out", "devices", "count"), [(0.2, 10, 2), (0.2, 11, 3), (0.01, 5, 1), (3, 10, 3), (0, 9, 0)]
)
def test_they_are_as_many_as_were_asked_for(held_out: float, devices: int, count: int) -> None:
    found = never(held_out, devices)
    assert len(found) == count
    assert found <= set(range(devices))
    assert found == never(held_out, devices)


def test_another_seed_holds_out_others() -> None:
    assert len({never(3, 20, seed) for seed in range(5)}) > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data.partition.held_out=1.5"], "a share of the devices below 1, or a whole number of them, got 1.5"),
        (["data.partition.held_out=-1"], "a share of the devices below 1"),
        (["data.partition.rule=", "data.partition.held_out=2"], "means nothing to the rule .none."),
        (["data.partition.held_out=2", "server.evaluate=false"], "needs server.evaluate = true"),
    ],
)
def test_what_holds_out_nobody_is_refused(changes: list[str], message: str) -> None:
    config = changed(RunConfig(), ["data.path=x", "data.partition.rule=iid"])
    with pytest.raises(ConfigError, match=message):
        changed(config, changes)


def test_somebody_is_left_to_train() -> None:
    with pytest.raises(ConfigError, match=r"held_out is 4, of simulation\.devices = 4 none would train"):
        never(4, 4)
