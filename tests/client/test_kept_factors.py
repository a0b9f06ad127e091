"""A factor that stays on the device: from which round it is, whose it is, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedlora.base.pack import BasePack
from fedlora.config.run import AggregationConfig, DataConfig, RunConfig, ServerConfig, TrainConfig
from fedlora.errors import ConfigError
from fedlora.files.tensor_file import TensorFile, TensorPlan, write_tensor_file
from fedlora.lora.adapter import Adapter
from fedlora.lora.config import LoraConfig
from fedlora.wire.task import Task
from fedlora_client.device import Device
from fedlora_client.training.trainer import TrainResult
from numpy.typing import NDArray

from tests.client.train_cases import assert_equal_bits, factors_of
from tests.tiny.adapters import changed, random_adapter

TEXT = "".join(f"line {number}: the quick brown fox jumps over the lazy dog\n" for number in range(20))
LORA = LoraConfig(rank=2, alpha=8.0)
KEEPS_B, KEEPS_A = Task(trains="AB", sends="A"), Task(trains="AB", sends="B")
Tensors = dict[str, NDArray[np.float32]]
Content = tuple[Tensors, dict[str, str]]


@pytest.fixture
def config(base: BasePack, tmp_path: Path) -> RunConfig:
    (tmp_path / "kitchen.txt").write_text(TEXT)
    return RunConfig(
        base=str(base.directory),
        data=DataConfig(name="files", path=str(tmp_path / "kitchen.txt")),
        train=TrainConfig(steps=2, batch_size=2, sequence_length=16, compute="float32", lr=0.01),
        server=ServerConfig(rounds=9),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def device(config: RunConfig, folder: Path) -> Device:
    return device_of(config, folder)


def device_of(config: RunConfig, folder: Path | None, **node: Any) -> Device:
    place = {"state-path": str(folder)} if folder else {}
    return Device(config, {"data-path": config.data.path, **place, **node})


def came(base: BasePack, server_round: int) -> Adapter:
    """What comes down in a round: another adapter each time."""
    return random_adapter(base, LORA, seed=server_round)


def train(device: Device, server_round: int, run: str = "run-1", task: Task = KEEPS_B) -> TrainResult:
    return device.train(came(device.model.base, server_round), server_round, task=task, run=run)


def with_own(adapter: Adapter, own: Adapter, factor: str = "B") -> Adapter:
    """`adapter` with one factor of another."""
    return Adapter(
        adapter.config,
        {
            module: dataclasses.replace(pair, **{f"lora_{factor}": getattr(own.pairs[module], f"lora_{factor}")})
            for module, pair in adapter.pairs.items()
        },
    )


def rounds_in(folder: Path) -> list[str]:
    return sorted(path.stem.rpartition("-")[2] for path in folder.glob("kept-*"))


@pytest.mark.parametrize(("task", "factor"), [(KEEPS_B, "B"), (KEEPS_A, "A")])
def test_a_round_begins_with_the_factor_as_the_devices_last_round_left_it(
    device: Device, config: RunConfig, base: BasePack, task: Task, factor: str
) -> None:
    elsewhere = device_of(config, None)  # it keeps nothing
    first = train(device, 1, task=task)
    assert_equal_bits(first.adapter, elsewhere.train(came(base, 1), 1).adapter)
    second = train(device, 2, task=task)
    expected = elsewhere.train(with_own(came(base, 2), first.adapter, factor), 2)
    assert_equal_bits(second.adapter, expected.adapter)
    assert second.losses == expected.losses


def test_a_round_that_is_asked_again_gives_the_same_bits(device: Device, config: RunConfig, folder: Path) -> None:
    first = train(device, 1)
    assert_equal_bits(train(device, 1).adapter, first.adapter)
    second = train(device, 2)
    assert_equal_bits(train(device, 2).adapter, second.adapter)
    again = device_of(config, folder)  # the server was killed, and its run goes on
    assert_equal_bits(train(again, 2).adapter, second.adapter)
    assert_equal_bits(train(again, 3).adapter, train(again, 3).adapter)


def test_a_device_that_was_not_asked_for_some_rounds_goes_on_from_its_last_one(
    device: Device, config: RunConfig, base: BasePack, folder: Path
) -> None:
    third = train(device, 3)
    seventh = train(device, 7)
    expected = device_of(config, None).train(with_own(came(base, 7), third.adapter), 7)
    assert_equal_bits(seventh.adapter, expected.adapter)
    assert rounds_in(folder) == ["0003", "0007"]
    assert_equal_bits(train(device, 7).adapter, seventh.adapter)


def test_two_rounds_stay_and_none_that_was_undone(device: Device, folder: Path) -> None:
    for server_round in (1, 2, 3, 4):
        train(device, server_round)
    assert rounds_in(folder) == ["0003", "0004"]
    train(device, 3)
    assert rounds_in(folder) == ["0003"]


def test_a_measurement_is_of_the_factor_after_that_round(device: Device, config: RunConfig, base: BasePack) -> None:
    first, second = train(device, 1), train(device, 2)
    whole, plain = random_adapter(base, LORA, 30), device_of(config, None)

    def measured(server_round: int) -> float:
        return device.evaluate(whole, server_round, task=KEEPS_B, run="run-1")[0]

    assert measured(0) == plain.evaluate(whole)[0]
    assert measured(1) == plain.evaluate(with_own(whole, first.adapter))[0]
    assert measured(2) == measured(3) == plain.evaluate(with_own(whole, second.adapter))[0]
    assert len({measured(0), measured(1), measured(2)}) == 3


def test_a_new_run_begins_with_nothing_of_an_earlier_one(
    device: Device, config: RunConfig, base: BasePack, folder: Path
) -> None:
    train(device, 1)
    train(device, 2)
    # It is first asked in round 3 of another run of the same name and seed.
    new = train(device, 3, run="run-2")
    assert_equal_bits(new.adapter, device_of(config, None).train(came(base, 3), 3).adapter)
    assert rounds_in(folder) == ["0003"]


def test_runs_of_other_names_seeds_and_devices_share_a_folder(
    device: Device, config: RunConfig, tmp_path: Path, folder: Path
) -> None:
    train(device, 1)
    (tmp_path / "kitchen.jsonl").write_text('{"text": "another device of the same name, with other text"}\n' * 20)
    others = [
        device_of(dataclasses.replace(config, name="other"), folder),
        device_of(dataclasses.replace(config, seed=9), folder),
        device_of(config, folder, **{"data-path": str(tmp_path / "kitchen.jsonl")}),
    ]
    for number, other in enumerate(others, 2):
        train(other, 1)
        assert len(list(folder.iterdir())) == number


def test_the_factor_outlives_a_change_of_what_the_device_can(
    device: Device, config: RunConfig, base: BasePack, folder: Path
) -> None:
    first = train(device, 1)
    changed_node = device_of(config, folder, **{"memory-mb": 4000, "max-rank": 3})
    expected = device_of(config, None, **{"memory-mb": 4000}).train(with_own(came(base, 2), first.adapter), 2)
    assert_equal_bits(train(changed_node, 2).adapter, expected.adapter)


def test_a_device_that_trains_fewer_components_keeps_those_and_measures_them_among_all(
    config: RunConfig, base: BasePack, folder: Path
) -> None:
    config = dataclasses.replace(config, aggregation=AggregationConfig(min_rank=1))
    device = device_of(config, folder, **{"max-rank": 1})
    first, whole = train(device, 1).adapter, came(base, 30)
    second = train(device, 2).adapter
    assert first.config.rank == second.config.rank == 1
    own = changed(whole, lambda m, lora_A, lora_B: (lora_A, np.concatenate([first.pairs[m].lora_B, lora_B[:, 1:]], 1)))
    measured = device.evaluate(whole, 1, task=KEEPS_B, run="run-1")
    assert measured == device_of(config, None).evaluate(own)


@pytest.mark.parametrize("what", ["train", "evaluate"])
def test_a_device_without_a_state_path_is_told_to_set_one(config: RunConfig, base: BasePack, what: str) -> None:
    device = device_of(config, None)
    with pytest.raises(ConfigError, match=r"device kitchen: .* keeps the factor B of each device .*no state-path; set"):
        getattr(device, what)(came(base, 1), 1, task=KEEPS_B)


def test_a_factor_that_cannot_be_stored_costs_the_round_and_leaves_the_last_one(
    device: Device, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(device, 1)

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedlora_client.kept_factors.write_in_order", full)
    with pytest.raises(
        ConfigError, match=r"kept-.*: cannot be written: No space left on device; name another state-path"
    ):
        train(device, 2)
    assert rounds_in(folder) == ["0001"]


def only(module: str, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Callable[[Content], Content]:
    name = f"{module}.lora_B"
    return lambda content: ({**content[0], name: change(content[0][name])}, content[1])


UP = "model.layers.1.mlp.up_proj"
DAMAGES: dict[str, Callable[[Content], Content]] = {
    "a module missing": lambda content: ({n: t for n, t in content[0].items() if UP not in n}, content[1]),
    "a module more": lambda content: ({**content[0], "more.lora_B": np.zeros((2, 2), np.float32)}, content[1]),
    "more components than the run's": only(UP, lambda array: np.concatenate([array, array], 1)),
    "fewer rows": only(UP, lambda array: array[:-1]),
    "one dimension": only(UP, lambda array: array.ravel()),
    "a NaN": only(UP, lambda array: array * np.float32(np.nan)),
    "another format": lambda content: (content[0], {**content[1], "format": "fedlora-training-1"}),
    "another device's": lambda content: (content[0], {**content[1], "whose": "0" * 64}),
    "no circumstances": lambda content: (content[0], {}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_foreign_or_damaged_file_is_refused_by_its_name(device: Device, folder: Path, damage: str) -> None:
    train(device, 1)
    (file,) = folder.iterdir()
    known = TensorFile(file)
    tensors, metadata = DAMAGES[damage](({name: known.float32(name).copy() for name in known.entries}, known.metadata))
    plans = [TensorPlan(name=name, dtype="F32", shape=array.shape) for name, array in tensors.items()]

    def fill(plan: TensorPlan) -> Iterator[NDArray[Any]]:
        yield tensors[plan.name]

    file.unlink()
    write_tensor_file(file, plans, fill, metadata)
    with pytest.raises(
        ConfigError, match=r"kept-.*-round-0001\.safetensors: cannot be used as the factor B .*; remove it"
    ):
        train(device, 2)
    file.unlink()
    train(device, 2)


@pytest.mark.parametrize("size", [0, 9, 100, -1])
def test_a_truncated_file_is_refused_by_its_name(device: Device, base: BasePack, folder: Path, size: int) -> None:
    train(device, 1)
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:size])
    for asked in (
        lambda: train(device, 2),
        lambda: device.evaluate(came(base, 1), 1, task=KEEPS_B, run="run-1"),
    ):
        with pytest.raises(ConfigError, match=r"round-0001\.safetensors: cannot be used as the factor B .*; remove it"):
            asked()


def test_the_adapter_that_came_is_never_changed(device: Device, base: BasePack) -> None:
    train(device, 1)
    given = came(base, 2)
    before = {name: value.copy() for name, value in factors_of(given).items()}
    device.train(given, 2, task=KEEPS_B, run="run-1")
    assert all(np.array_equal(value, before[name]) for name, value in factors_of(given).items())
