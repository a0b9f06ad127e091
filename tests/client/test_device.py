"""A device's own policy: how much memory training takes, and where a round in progress is kept."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedlora.base.pack import BasePack
from fedlora.config.run import AggregationConfig, DataConfig, RunConfig, ServerConfig, TrainConfig
from fedlora.errors import ConfigError
from fedlora.lora.config import LoraConfig
from fedlora.lora.ranks import first_components
from fedlora_client import device as device_module
from fedlora_client.device import Device
from fedlora_client.training.trainer import Saving
from fedlora_client.training.training import Training

from tests.client.train_cases import assert_equal_bits
from tests.tiny.adapters import ALL_RANKS, random_adapter

TEXT = "".join(f"line {number}: the quick brown fox jumps over the lazy dog\n" for number in range(20))
ADAPTER = LoraConfig(rank=2, alpha=8.0)


@pytest.fixture
def config(base: BasePack, tmp_path: Path) -> RunConfig:
    (tmp_path / "kitchen.txt").write_text(TEXT)
    return RunConfig(
        base=str(base.directory),
        data=DataConfig(name="files", path=str(tmp_path / "kitchen.txt")),
        train=TrainConfig(steps=6, batch_size=2, sequence_length=16, compute="float32", schedule="cosine", lr=0.01),
        server=ServerConfig(rounds=3),
    )


def device_of(config: RunConfig, **node: Any) -> Device:
    return Device(config, {"data-path": config.data.path, **node})


class PowerCutError(Exception):
    """The device dies."""


def dies_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Training.run_step

    def run_step(self: Training) -> Any:
        if self.step == steps:
            raise PowerCutError
        return step(self)

    monkeypatch.setattr(Training, "run_step", run_step)


def test_a_device_that_dies_in_a_round_goes_on_with_it_to_the_same_bits(
    base: BasePack, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = random_adapter(base, ADAPTER)
    whole = device_of(config).train(adapter, 2)
    monkeypatch.setattr(device_module, "Saving", partial(Saving, every=2))
    with monkeypatch.context() as patch, pytest.raises(PowerCutError):
        dies_after(5, patch)
        device_of(config, **{"state-path": str(tmp_path / "state")}).train(adapter, 2)
    (state,) = (tmp_path / "state").iterdir()
    assert state.name.endswith("-round-0002.safetensors")
    with monkeypatch.context() as patch:
        dies_after(3, patch)  # it does not begin again: the state was of step 4
        again = device_of(config, **{"state-path": str(tmp_path / "state")}).train(adapter, 2)
    assert again.losses == whole.losses
    for module, pair in whole.adapter.pairs.items():
        assert np.array_equal(again.adapter.pairs[module].lora_A, pair.lora_A)
        assert np.array_equal(again.adapter.pairs[module].lora_B, pair.lora_B)
    assert list((tmp_path / "state").iterdir()) == []


def test_the_state_of_a_round_that_is_over_is_removed_and_another_devices_stays(
    base: BasePack, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "state"
    monkeypatch.setattr(device_module, "Saving", partial(Saving, every=2))
    with monkeypatch.context() as patch, pytest.raises(PowerCutError):
        dies_after(3, patch)
        device_of(config, **{"state-path": str(folder)}).train(random_adapter(base, ADAPTER), 1)
    other = folder / "00000000-round-0001.safetensors"
    other.write_bytes(b"another device's")
    device_of(config, **{"state-path": str(folder)}).train(random_adapter(base, ADAPTER), 2)
    assert list(folder.iterdir()) == [other]


def test_a_learning_rate_schedule_runs_over_all_rounds(base: BasePack, config: RunConfig) -> None:
    adapter = random_adapter(base, ADAPTER)

    def moved(server_round: int) -> float:
        result = device_of(config).train(adapter, server_round)
        return float(
            np.mean([np.abs(result.adapter.pairs[m].lora_B - p.lora_B).mean() for m, p in adapter.pairs.items()])
        )

    first, second, third = map(moved, (1, 2, 3))
    assert first > 1.2 * second > 1.2 * 1.2 * third > 0


def test_the_devices_own_memory_bound_overrides_the_runs(base: BasePack, config: RunConfig) -> None:
    device_of(config, **{"memory-mb": 4000}).train(random_adapter(base, ADAPTER), 1)
    with pytest.raises(ConfigError, match=r"train\.memory_mb is 5 "):
        device_of(config, **{"memory-mb": 5}).train(random_adapter(base, ADAPTER), 1)
    with pytest.raises(ConfigError, match=r"memory-mb in the node's configuration must be an integer, got 'much'"):
        device_of(config, **{"memory-mb": "much"})


def test_a_state_path_that_is_no_folder_is_refused(config: RunConfig) -> None:
    with pytest.raises(
        ConfigError, match=r"state-path in the node's configuration must be a folder, got .*kitchen\.txt"
    ):
        device_of(config, **{"state-path": config.data.path})


@pytest.mark.parametrize("max_rank", [1, 3, 5, 12, 100, 0])
def test_a_device_trains_as_many_components_as_it_can(base: BasePack, config: RunConfig, max_rank: int) -> None:
    config = dataclasses.replace(config, aggregation=AggregationConfig(min_rank=1))
    adapter, frozen = random_adapter(base, ALL_RANKS), random_adapter(base, ADAPTER, seed=5)
    got = device_of(config, **{"max-rank": max_rank}).train(adapter, 1, frozen=frozen).adapter
    expected = device_of(config).train(first_components(adapter, max_rank or 4096), 1, frozen=frozen).adapter
    assert_equal_bits(got, expected)
    for module, pair in got.pairs.items():
        assert pair.rank == min(max_rank or 4096, adapter.pairs[module].rank)
        assert got.config.scaling_of(module) == pytest.approx(adapter.config.scaling_of(module))


def test_a_device_of_a_smaller_rank_than_the_run_takes_says_what_to_change(base: BasePack, config: RunConfig) -> None:
    adapter = random_adapter(base, LoraConfig(rank=8, alpha=8.0))
    for min_rank, max_rank, needed in ((0, 7, 8), (4, 3, 4), (100, 7, 8)):
        run = dataclasses.replace(config, aggregation=AggregationConfig(min_rank=min_rank))
        message = (
            rf"device kitchen: max-rank in the node's configuration is {max_rank}, this run takes {needed} and more; "
            r"raise max-rank, or lower aggregation\.min_rank in the run's configuration"
        )
        with pytest.raises(ConfigError, match=message):
            device_of(run, **{"max-rank": max_rank}).train(adapter, 1)
        assert device_of(run, **{"max-rank": max_rank}).evaluate(adapter) == device_of(run).evaluate(adapter)
        device_of(run, **{"max-rank": needed}).train(adapter, 1)
    for wrong, said in ((-1, "must be 0"), (True, "must be an integer"), (2.0, "must be an integer")):
        with pytest.raises(ConfigError, match=rf"max-rank in the node's configuration {said}"):
            device_of(config, **{"max-rank": wrong})


def test_a_state_that_another_run_left_does_not_cost_the_device_its_round(
    base: BasePack, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = {"state-path": str(tmp_path / "state")}
    monkeypatch.setattr(device_module, "Saving", partial(Saving, every=2))
    with monkeypatch.context() as patch, pytest.raises(PowerCutError):
        dies_after(3, patch)
        device_of(config, **folder).train(random_adapter(base, ADAPTER, seed=5), 1)
    adapter = random_adapter(base, ADAPTER)
    assert device_of(config, **folder).train(adapter, 1).losses == device_of(config).train(adapter, 1).losses
