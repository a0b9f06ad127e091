"""What one training on the text of all devices together reaches: the centralised run that a federation is held against."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from fedlora.config.run import RunConfig
from fedlora.lora.adapter import Adapter
from fedlora_client.data.windows import Windows
from fedlora_client.device import Device
from fedlora_client.training.trainer import train
from fedlora_server.run.label_scores import scores_of

from fedlora_simulations.device_threads import DeviceThreads
from fedlora_simulations.nodes import node_configs
from fedlora_simulations.study.measures import measures_of


def pooled_measures(config: RunConfig, workers: int) -> dict[str, float]:
    """What the pooled training reaches on the held-out text of the devices, by the names of CHOOSE_BY.

    `loss` is in nats per token (of an encoder per text): the mean over the devices, each on its own text.

    It trains from the run's initial adapter for as many steps as a device in all rounds together, each on a batch as large
    as those of all devices together, drawn from all windows alike. It is one training: the state of AdamW lives on.
    """
    devices = [Device(config, node) for node in node_configs(config)]
    devices = [device for device in devices if not device.data.never_trains]
    with DeviceThreads(1, cores_each=workers) as threads:
        adapter = threads.submit(lambda: trained_on_all(config, devices)).result()
    with DeviceThreads(workers) as threads:
        measured = list(threads.map(lambda device: device.measure("held_out", adapter), devices))
    losses = {str(number): one.loss for number, one in enumerate(measured)}
    examples = {str(number): device.held_out_windows().examples for number, device in enumerate(devices)}
    counts = {str(number): found for number, one in enumerate(measured) if (found := one.labels or one.choices)}
    accuracy = {device: scores_of([one])["accuracy"] for device, one in counts.items()}
    scores = scores_of(counts.values())
    return measures_of(losses, examples, accuracy, scores)


def trained_on_all(config: RunConfig, devices: Sequence[Device]) -> Adapter:
    """The adapter of the pooled training, computed in the thread that calls."""
    steps, batch_size = config.train.steps * config.server.rounds, config.train.batch_size * len(devices)
    settings = dataclasses.replace(config.train, steps=steps, batch_size=batch_size)
    windows = _all([device.train_windows() for device in devices])
    model = devices[0].model
    generator = np.random.default_rng([config.seed, 1])
    return train(model, config.first_adapter(model.base), windows, settings, generator).adapter


def _all(parts: Sequence[Windows]) -> Windows:
    """The windows of all devices, one after another."""
    inputs, targets, starts = (
        torch.cat(tensors) for tensors in zip(*((p.inputs, p.targets, p.starts) for p in parts), strict=True)
    )
    return Windows(inputs, targets, starts, examples=sum(part.examples for part in parts))
