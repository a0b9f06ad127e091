"""A run is the same, bit for bit, with any number of workers."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from fedlora_server.run.run_directory import read_metrics

from tests.simulations.conftest import Simulator


def left(run: Path) -> tuple[str, list[str]]:
    """The digest of all adapters, and the records without times, with the order of what they hold."""
    digest = hashlib.sha256()
    for adapter in sorted(run.glob("rounds/*/adapter/adapter_model.safetensors")):
        digest.update(adapter.read_bytes())
    records = [{k: v for k, v in r.items() if k not in ("seconds", "server_s", "costs")} for r in read_metrics(run)]
    return digest.hexdigest(), [repr(record) for record in records]


@pytest.mark.parametrize("method", ["svd", "fedavg", "fedex"])
def test_a_run_is_the_same_with_any_number_of_workers(simulator: Simulator, method: str) -> None:
    changes = (f"server.method={method}", "simulation.devices=4", "train.steps=1", "data.max_bytes=1000")
    runs = [simulator(f"{method}-by-{workers}", *changes, workers=workers)[0] for workers in (1, 2, 3)]
    assert left(runs[0]) == left(runs[1]) == left(runs[2])
