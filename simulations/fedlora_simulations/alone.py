"""What each device reaches without the others: the baseline that a federation has to beat."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fedlora.config.run import RunConfig
from fedlora.lora.adapter import Adapter
from fedlora_client.device import Device

from fedlora_simulations.device_threads import DeviceThreads
from fedlora_simulations.nodes import node_configs


@dataclass(frozen=True, slots=True, kw_only=True)
class AloneResult:
    """One device's own training."""

    device: str
    train_bytes: int
    adapter: Adapter
    loss: float  # held-out, nats per token, of an encoder per text


def train_alone(config: RunConfig, workers: int, on_done: Callable[[], None]) -> Iterator[AloneResult]:
    """Each device trains from the run's initial adapter for as many steps as in all of the run's rounds together.

    Seed, batches and optimizer are those of the run, but for the state of AdamW, which a device alone need not give up
    between rounds.
    """
    steps = config.train.steps * config.server.rounds
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps))

    nodes, never = node_configs(config), config.data.partition.never_training(config.simulation.devices)

    def work(number: int) -> AloneResult:
        device = Device(longer, nodes[number])
        start = config.first_adapter(device.model.base)
        adapter = device.train(start, server_round=1).adapter
        loss, _ = device.evaluate(adapter)
        on_done()
        return AloneResult(device=device.name, train_bytes=device.data.train_bytes, adapter=adapter, loss=loss)

    with DeviceThreads(workers) as threads:
        yield from threads.map(work, (number for number in range(config.simulation.devices) if number not in never))
