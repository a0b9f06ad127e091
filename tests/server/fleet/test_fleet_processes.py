"""A fleet of real processes over TLS: enrolled, killed, revoked, and gone on with. Minutes on a busy machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fedlora import read_peft
from fedlora.fleet.bundle import Bundle, read_bundle
from fedlora.identity.audit import audited
from fedlora.identity.keys import PublicKey
from fedlora_server.run.run_directory import read_metrics

pytestmark = pytest.mark.integration

BIN = Path(sys.executable).parent
FEDLORA = [
    sys.executable, "-c",
    "from fedlora.cli import commands, main; from fedlora_server.commands.server import server;"
    "commands.add_command(server); main()",
]  # fmt: skip
LONGEST_S = 400.0
TEXTS = ("A fleet is a server and its devices. ", "Every device has words of its own. ")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + LONGEST_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.5)


class Processes:
    """What a test starts, and ends by its pid."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.running = folder, list[subprocess.Popen[bytes]]()
        self.environment = os.environ | {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
        }

    def start(self, name: str, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment | environment, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self.running.append(process)
        return process

    def fedlora(self, *arguments: str) -> str:
        result = subprocess.run(
            [*FEDLORA, "server", *arguments], cwd=self.folder, env=self.environment, capture_output=True, text=True,
            timeout=LONGEST_S, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def supernode(self, bundle: Bundle, text: str) -> subprocess.Popen[bytes]:
        """A device by Flower's own command, as docs/deployment.md gives it."""
        home = self.folder / bundle.name
        (home / "data").mkdir(parents=True)
        (home / "data" / "notes.txt").write_text(text * 100)
        (home / "key").write_text(bundle.private_key or "")
        (home / "fleet.crt").write_text(bundle.ca_certificate)
        (home / "server.pub").write_text(bundle.server_identity or "")
        (home / "identity.key").write_text(bundle.identity_key or "")
        (home / "identity.key").chmod(0o600)
        (home / "trusted.yaml").write_text("".join(f"{k}: '{v}'\n" for k, v in bundle.trusted_entities.items()))
        return self.start(
            bundle.name, str(BIN / "flower-supernode"), "--superlink", bundle.superlink,
            "--root-certificates", str(home / "fleet.crt"), "--auth-supernode-private-key", str(home / "key"),
            "--trusted-entities", str(home / "trusted.yaml"), "--port", str(free_port()),
            "--node-config",
            f'base="nano" data-path="{home / "data"}" name="somebody" state-path="{home / "state"}" '
            f'identity="{home / "identity.key"}" server-identity="{home / "server.pub"}"',
            FLWR_HOME=str(home),
        )  # fmt: skip


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path)
    yield made
    for process in made.running:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(20)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def test_a_fleet_trains_over_tls_is_killed_goes_on_and_hears_a_revoked_device_no_more(
    processes: Processes, tmp_path: Path
) -> None:
    changes = ("server.rounds=3", "server.min_devices=2", "train.steps=1", "train.sequence_length=16", "lora.rank=2")
    port = str(free_port())
    processes.fedlora("init", "fleet", "--host", "localhost", "--port", port, *(f"--set={each}" for each in changes))
    for name, text in zip(("kitchen", "cellar"), TEXTS, strict=True):
        processes.fedlora("enrol", name, "--dir", "fleet")
        processes.supernode(read_bundle(tmp_path / f"{name}.json"), text)

    def metrics() -> list[dict[str, object]]:
        found = list((tmp_path / "fleet" / "runs").glob("*/metrics.jsonl"))
        return read_metrics(found[0].parent) if found else []

    log = tmp_path / "server.log"
    server = processes.start("server", *FEDLORA, "server", "run", "fleet")
    until(lambda: len(metrics()) > 1 or server.poll() is not None, "no round was committed")
    assert server.poll() is None, log.read_text()
    status = json.loads(processes.fedlora("status", "fleet", "--json"))
    assert {device["name"]: device["state"] for device in status["devices"]} == {
        "kitchen": "online",
        "cellar": "online",
    }
    assert status["run_state"] == "running"

    server.send_signal(signal.SIGKILL)
    server.wait()
    assert "is revoked" in processes.fedlora("revoke", "cellar", "--dir", "fleet")
    again = processes.start("server", *FEDLORA, "server", "run", "fleet", "--set", "server.min_devices=1")
    assert again.wait(LONGEST_S) == 0, log.read_text()

    rounds = metrics()
    assert [record["round"] for record in rounds] == [0, 1, 2, 3]
    assert set(rounds[1]["train_loss"]) == {"kitchen", "cellar"}  # type: ignore[call-overload]
    assert set(rounds[3]["train_loss"]) == {"kitchen"}  # type: ignore[call-overload]
    status = json.loads(processes.fedlora("status", "fleet", "--json"))
    assert (status["run_state"], status["round"], status["revoked"]) == ("completed", 3, ["cellar"])
    read_peft(status["adapter"]).adapter.check_finite("round 3")
    assert "round 3 of 3, 1 of 1 device" in log.read_text()
    # The chain goes on over the kill, and each update is its device's.
    told = list(
        audited(Path(status["adapter"]).parents[2], PublicKey.read(tmp_path / "fleet" / "identity" / "server.pub"))
    )
    assert [line.split(" (key ")[0].strip() for line in told if " (key " in line] == ["cellar", "kitchen"] + [
        name
        for record in rounds[2:]
        for name in sorted(record["train_loss"])  # type: ignore[call-overload]
    ]
