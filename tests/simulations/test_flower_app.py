"""The thin Flower app: its configuration is ours, and Flower itself runs it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from fedlora import RunConfig, read_peft
from fedlora_server.run.run_directory import read_metrics

APP = Path(__file__).parents[2] / "simulations" / "flower-app"
BIN = Path(sys.executable).parent


def _flattened(content: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in content.items():
        flat |= _flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def test_the_flower_app_has_every_key_of_a_run_since_flower_overrides_no_other() -> None:
    config = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    keys = set(_flattened(config))
    assert keys == {key for key in RunConfig().flat() if not key.startswith("simulation.")}
    assert RunConfig.from_flat(_flattened(config), "flower-app").server.method == "svd"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def flower_environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Flower in a home and on ports of its own; the SuperLink that `flwr run` leaves behind ends with the test."""
    port = str(_free_port())
    yield os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FEDLORA_HOME": str(tmp_path / "fedlora"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": port,
        "FLWR_LOCAL_CONTROL_API_PORT": str(_free_port()),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = process.read_bytes().split(b"\0")
        except OSError:
            continue
        if port.encode() in arguments and any(b"flower-superlink" in argument for argument in arguments):
            os.kill(int(process.parent.name), signal.SIGTERM)


@pytest.mark.integration
@pytest.mark.parametrize("devices", [2, 1])  # each of two nodes, whose ids Flower draws; one of them a round
def test_flwr_run_completes_and_commits_every_round(
    flower_environment: dict[str, str], tmp_path: Path, devices: int
) -> None:
    changes = f"server.devices_per_round={devices} server.min_devices={devices} server.rounds=2 train.steps=2"
    changes += " train.sequence_length=32 data.max_bytes=4000"
    command = [str(BIN / "flwr"), "run", str(APP), "--stream", "--run-config", changes]
    run = subprocess.run(command, env=flower_environment, capture_output=True, text=True, timeout=300, check=False)
    listed = subprocess.run(
        [str(BIN / "flwr"), "list", "--format", "json"],
        env=flower_environment, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    # `flwr run` returns 0 for an app that failed: its status is what tells.
    assert json.loads(listed.stdout)["runs"][0]["status"] == "finished:completed", run.stdout[-3000:]
    (output,) = (tmp_path / "fedlora" / "runs").iterdir()
    metrics = read_metrics(output)
    assert [(r["round"], r["replies"], r["excluded"]) for r in metrics] == [
        (0, 0, {}),
        (1, devices, {}),
        (2, devices, {}),
    ]
    assert set(metrics[-1]["loss"]) == {"dbm", "curses"}
    read_peft(output / "rounds" / "0002" / "adapter").adapter.check_finite("round 2")
