"""The devices of a simulation, as their node configurations tell them."""

from __future__ import annotations

from pathlib import Path

from fedlora.config.run import RunConfig, Scalar
from fedlora_server.methods import find_method

DEVICES = "devices"  # in the run's directory: what devices keep for themselves


def node_configs(config: RunConfig) -> list[dict[str, Scalar]]:
    """That of each device: its part of the data, its largest rank, and where it keeps what the method leaves with it."""
    count, is_personal = config.simulation.devices, find_method(config.server.method).personal
    nodes: list[dict[str, Scalar]] = [{"partition-id": number, "num-partitions": count} for number in range(count)]
    for number, node in enumerate(nodes):
        if config.simulation.rank_of(number):
            node["max-rank"] = config.simulation.rank_of(number)
        if is_personal:
            node["state-path"] = str(Path(config.output, DEVICES, str(number)).absolute())
    return nodes
