"""What a device would do, told before it does it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from fedlora.config.run import DataConfig, LoraSection, RunConfig, Scalar, TrainConfig
from fedlora.counted import counted
from fedlora.errors import ConfigError, FedloraError, PolicyError
from fedlora.files.at_rest import current_key, use_key

from fedlora_client.data.account import account, by_file, notices
from fedlora_client.device import Device
from fedlora_client.opened import opened_model
from fedlora_client.ops.compute import choose_compute
from fedlora_client.policy.machine import HERE, Machine
from fedlora_client.records.folder import data_files
from fedlora_client.service.clock import clock_fault
from fedlora_client.service.config import DeviceConfig
from fedlora_client.service.reaching import hindrance
from fedlora_client.service.signing import Signing
from fedlora_client.training.planning import plan_training


def checked(config: DeviceConfig, length: int, rank: int, machine: Machine = HERE) -> Iterator[str]:
    """A line for each thing; raises FedloraError for what would refuse every round."""
    if not config.data.source:
        raise ConfigError(f"{config.path}: data.source is missing; name the file or folder to train on")
    run = RunConfig(
        base=config.device.base, data=DataConfig(name="files", fields=config.data.fields), lora=LoraSection(rank=rank),
        train=TrainConfig(sequence_length=length),
    )  # fmt: skip
    node: dict[str, Scalar] = {
        "name": config.device.name, "base": config.device.base, "data-path": config.data.source,
        "data-withdrawn": str(config.withdrawn), "memory-mb": config.policy.max_memory_mb,
    }  # fmt: skip
    device = Device(run, node | ({"data-query": config.data.query} if config.data.query else {}))
    base = device.model.base
    yield f"device {config.device.name}, base {base.directory} ({base.fingerprint:.16}), {device.model.compute}"
    config.policy.check_base(base.fingerprint)
    windows = device.train_windows()
    held_out = None
    try:
        held_out = device.held_out_windows()
    except FedloraError as error:
        yield f"nothing is measured: {error}"
    yield from map(str, by_file(device.data, windows, held_out))
    yield from notices(device.data)
    counts = account(device.data, windows, held_out)
    yield f"in all: {counts}; {counted(len(windows), 'window')} of {length} tokens"
    config.policy.check_examples(counts.train)
    plan = plan_training(device.model, [device.first_adapter()], device.config.train)
    yield f"memory of a training at rank {rank}: {plan}"
    for line in config.policy.words():
        yield f"policy: it {line}"
    try:
        config.policy.check_power(datetime.now(), machine)
        config.policy.check_idle(machine)
    except PolicyError as refusal:
        yield f"now it would refuse: {refusal.reason}: {refusal}"
    if (signing := Signing.of(config)) is not None:
        keys = signing.key.public.keyid, signing.server.keyid
        yield f"signatures: it signs with {keys[0]:.16}, and takes what {keys[1]:.16} has signed"
    use_key(config.device.at_rest_key)
    if (key := current_key()) is not None:
        yield f"at rest: adapters, kept factors and states of trainings are encrypted, under key {key.id.hex()}"
    server = config.server
    if config.paused.exists():
        yield "now it would refuse: policy-paused: its owner has paused it"
    if not server.superlink:
        yield "server: none; join a fleet: fedlora device join"
        return
    how, why = "without TLS" if server.insecure else "over TLS", hindrance(server)
    clock = "" if why else clock_fault(server)
    said = f"cannot be reached: {why}" if why else f"refuses this device: {clock}" if clock else "answers"
    yield f"server: {server.superlink}, {how}, {said}"


def opened_base(config: DeviceConfig) -> tuple[str, str]:
    """The fingerprint of the device's base, and why it cannot be opened: one of the two is empty."""
    try:
        return opened_model(config.device.base, choose_compute()).base.fingerprint, ""
    except FedloraError as error:
        return "", str(error)


def data_hindrance(config: DeviceConfig) -> str:
    """Why there is nothing to learn from, as far as the names of files tell; empty where there is something."""
    source = Path(config.data.source)
    try:
        if not config.data.source or not source.exists():
            raise ConfigError(f"{config.path}: data.source: there is no {source}; name the file or folder to train on")
        if source.is_dir():
            data_files(source)
    except FedloraError as error:
        return str(error)
    return ""
