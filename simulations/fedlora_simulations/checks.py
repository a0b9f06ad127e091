"""What is wrong with a simulation, told before it begins, and before torch is there: a typo costs no seconds."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from fedlora.base.pack import CONFIG, EMBEDDED, find_pack, open_pack, read_manifest
from fedlora.config.run import RunConfig
from fedlora.data.datasets import DeviceData, find_dataset
from fedlora.data.examples import text_of
from fedlora.errors import ConfigError, DataError, PackError
from fedlora.family import model_shape
from fedlora.files.documents import read_object
from fedlora.nearest import beside, check_there
from fedlora_server.aggregation.robust_rule import find_robust_rule
from fedlora_server.methods import find_method
from fedlora_server.run.run_directory import check_new


def check_simulation(config: RunConfig) -> None:
    """Raise FedloraError for what could not be run: its output, its parts, the data of its devices, their ranks."""
    if config.output and not config.server.resume:
        check_new(Path(config.output))
    check_parts(config)
    check_devices(config)
    check_ranks(config)


def check_parts(config: RunConfig) -> None:
    """Raise FedloraError for names of which there is nothing, and for a base without what is to be trained."""
    find_method(config.server.method)
    find_robust_rule(config.aggregation.robust)
    needed, devices = config.server.min_devices, config.simulation.devices
    never = len(config.data.partition.never_training(devices))
    if needed > devices - never:
        fewer = f", of which data.partition.held_out takes {never}" if never else ""
        raise ConfigError(
            f"server.min_devices is {needed}, simulation.devices only {devices}{fewer}; change one of them"
        )
    check_there(config.base, (EMBEDDED,))
    directory = find_pack(config.base)
    read_manifest(directory)
    content = read_object(directory / CONFIG, PackError, "a model's config.json")
    modules = model_shape(content, str(directory / CONFIG)).linear_modules()
    config.lora.lora(modules).targets(modules)


def check_devices(config: RunConfig) -> None:
    """Raise DataError for a device without text: in a simulation that is a mistake, and known before the start."""
    for partition in range(config.simulation.devices):
        data = data_of(config, partition)
        needed = ({} if data.never_trains else {"training": data.train}) | (
            {"held-out": data.held_out} if config.server.evaluate else {}
        )
        for part, examples in needed.items():
            if not any(text_of(example).strip() for example in examples):
                raise DataError(f"device {data.name} has no {part} text; leave it out of the scenario")


def check_ranks(config: RunConfig) -> None:
    """Raise ConfigError for devices that train less than the run takes: they would reply to every round with an error."""
    ranks = [rank for rank in map(config.simulation.rank_of, range(config.simulation.devices)) if rank]
    if not ranks:
        return
    first = config.first_adapter(open_pack(config.base))
    if not first.pairs:
        raise ConfigError(
            f"simulation.ranks is {','.join(config.simulation.ranks)}, and an adapter of lora.method = "
            f"{config.lora.method} has no ranks; leave it out"
        )
    largest = max(pair.rank for pair in first.pairs.values())
    least = min(config.aggregation.min_rank or largest, largest)
    if min(ranks) < least:
        raise ConfigError(
            f"simulation.ranks has {min(ranks)}, the run takes {least} and more; set aggregation.min_rank (0: lora.rank)"
        )


def with_output(config: RunConfig) -> RunConfig:
    """`config` with a directory of its own where it names none."""
    if config.output:
        return config
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return dataclasses.replace(config, output=str(Path("runs", f"{config.name}-{stamp}").absolute()))


def data_of(config: RunConfig, partition: int) -> DeviceData:
    """What one of a simulation's devices has. Raises DataError, with what lies beside a `data.path` that is not there."""
    node = {"partition-id": partition, "num-partitions": config.simulation.devices}
    try:
        return find_dataset(config.data.name)(config.data, node)
    except DataError as error:
        more = beside(config.data.path) if config.data.path else ""
        raise DataError(f"{error}; data.path is {config.data.path}: {more}" if more else str(error)) from None
