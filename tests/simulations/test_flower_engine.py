"""A scenario on Flower's own simulation runtime."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import Result
from fedlora import read_peft
from fedlora_server.run.run_directory import read_metrics

if TYPE_CHECKING:
    from tests.simulations.conftest import Simulator


def on_flower(scenario: Path, folder: Path, *options: str) -> Path:
    """The directory of a run on Flower's engine."""
    pytest.importorskip("ray")
    output = folder / "run"
    command = [str(Path(sys.executable).with_name("fedlora")), "simulate", str(scenario), *options]
    result = subprocess.run(
        [*command, "--engine", "flower", "--workers", "1", "-o", str(output)],
        env=os.environ | {"FLWR_HOME": str(folder / "flwr")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.splitlines()[-1] == str(output / "report.html")
    return output


@pytest.mark.integration
def test_flowers_engine_runs_the_same_rounds_with_every_device(
    simulator: Simulator, tiny_run: tuple[Path, Result], tmp_path: Path
) -> None:
    output = on_flower(simulator.scenario, tmp_path)
    ours, theirs = read_metrics(tiny_run[0]), read_metrics(output)
    assert [record["round"] for record in theirs] == [0, 1, 2]
    assert [(r["devices"], r["replies"], r["excluded"]) for r in theirs] == [(0, 0, {}), (2, 2, {}), (2, 2, {})]
    for our, their in zip(ours, theirs, strict=True):
        # Sums over devices in another order, and nothing else, lie between the two engines.
        assert their["loss"] == pytest.approx(our["loss"], rel=1e-3)
        assert (their["bytes_down"], their["bytes_up"]) == pytest.approx((our["bytes_down"], our["bytes_up"]), rel=1e-2)
    read_peft(output / "rounds" / "0002" / "adapter").adapter.check_finite("round 2")


@pytest.mark.integration
def test_flowers_engine_samples_among_the_nodes_whose_ids_flower_draws(simulator: Simulator, tmp_path: Path) -> None:
    options = ("--set", "simulation.devices=4", "--set", "server.devices_per_round=2")
    metrics = read_metrics(on_flower(simulator.scenario, tmp_path, *options))
    assert [(r["devices"], r["replies"], r["excluded"]) for r in metrics] == [(0, 0, {}), (2, 2, {}), (2, 2, {})]
    assert all(len(record["loss"]) == 4 for record in metrics)
