"""Devices of a fleet as they run in the field: Flower's own processes, a server that dies, adapters in use."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fedlora_client.service.config import read_device
from fedlora_client.service.report import report
from fedlora_server.run.run_directory import read_metrics

from tests.client.supervision.test_children import lives

APP = Path(__file__).parents[3] / "simulations" / "flower-app"
BIN = Path(sys.executable).parent
DEVICE = [sys.executable, "-c", "from fedlora_client.commands.device import device; device()"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def process(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as lines:
        one = subprocess.Popen(command, stdout=lines, stderr=subprocess.STDOUT, env=environment)
        try:
            yield one
        finally:
            one.terminate()
            try:
                one.wait(20)
            except subprocess.TimeoutExpired:
                one.kill()
                one.wait()


def until(holds: Any, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def adapters_of(port: int) -> list[dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/adapters", timeout=10) as response:
            found: list[dict[str, Any]] = json.load(response)["data"]
            return found
    except OSError:
        return []


@pytest.mark.integration
def test_devices_train_by_their_policies_come_back_to_a_server_that_was_killed_and_use_what_was_committed(
    short_path: Path,
) -> None:
    port, serving = free_port(), free_port()
    environment = os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "FLWR_HOME": str(short_path / "flwr"),
        "FEDLORA_HOME": str(short_path / "fedlora"), "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
    }  # fmt: skip
    (short_path / "flwr").mkdir()
    (short_path / "flwr" / "config.toml").write_text(
        f'[superlink]\ndefault = "lab"\n[superlink.lab]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    model = short_path / "model"
    main = [sys.executable, "-c", "from fedlora.cli import main; main()"]
    subprocess.run([*main, "export", "nano", "-o", str(model), "--profile", "kernel"], env=environment, check=True)
    more = {
        "kitchen": f'[serve]\nmodel = "{model}"\nport = {serving}\n',
        "pantry": "[policy]\nrounds_a_day = 1\n",
    }
    configs = []
    for name, text in more.items():
        folder = short_path / name
        (folder / "data").mkdir(parents=True)
        lines = (f"{name} line {n}: the quick brown fox\n" for n in range(300))
        (folder / "data" / "notes.txt").write_text("".join(lines))
        server = f'[server]\nsuperlink = "127.0.0.1:{port}"\ninsecure = true\n'
        (folder / "device.toml").write_text(f'[device]\nname = "{name}"\n[data]\nsource = "data"\n{server}{text}')
        configs.append(read_device(folder / "device.toml"))
    superlink = [str(BIN / "flower-superlink"), "--insecure", "--host", "127.0.0.1", "--port", str(port)]
    with process(superlink, short_path / "first.log", environment) as first:
        until(lambda: b"startup complete" in (short_path / "first.log").read_bytes())
        kitchen, pantry = ([*DEVICE, "run", "--config", str(config.path)] for config in configs)
        with (
            process(kitchen, short_path / "kitchen.log", environment) as one,
            process(pantry, short_path / "pantry.log", environment),
        ):
            until(lambda: all(report(config, 1)["base_fingerprint"] for config in configs))
            first.kill()
            first.wait()
            with process(superlink, short_path / "second.log", environment):
                changes = (
                    "server.rounds=2 server.min_devices=1 train.steps=4 train.sequence_length=32 data.name='files'"
                )
                command = [str(BIN / "flwr"), "run", str(APP), "--stream", "--run-config", changes]
                time.sleep(15)  # for both to have come back: with fewer the run would begin as well
                subprocess.run(command, env=environment, check=False, timeout=300)
                (output,) = (short_path / "fedlora" / "runs").iterdir()
                metrics = read_metrics(output)
                assert [(line["round"], line["replies"], line["excluded"]) for line in metrics] == [
                    (0, 0, {}), (1, 2, {}), (2, 1, {"policy-rounds": 1}),
                ]  # fmt: skip
                assert set(metrics[1]["loss"]) == {"kitchen", "pantry"}
                assert set(metrics[2]["loss"]) == {"kitchen"}  # one more measurement a day than rounds, and no third
                until(lambda: [one["name"] for one in adapters_of(serving)] == ["federated"])
                told = report(configs[0], 9)
                assert (told["adapter"]["round"], told["running"]) == (2, True)
                until(lambda: report(configs[0], 9)["published"]["round"] == 2)
                assert report(configs[0], 9)["published"]["error"] == ""
                assert adapters_of(serving)[0]["version"] in (1, 2)
                assert report(configs[1], 9)["refused"]["policy-rounds"]["count"] == 2  # a round and a measurement
                pids = [pid for pid in told["processes"].values() if pid]
                assert len(pids) == 4
                one.terminate()
                one.wait(20)
                assert not any(map(lives, pids))
