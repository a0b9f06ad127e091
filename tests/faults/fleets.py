"""A fleet of real processes on this machine, over TLS, whose parts a test kills and brings back.

Everything is made by the commands that an operator types; processes are ended by their numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from fedlora.base.pack import BasePack
from fedlora_client.service.config import DeviceConfig, read_device
from fedlora_client.service.report import report
from fedlora_server.fleet.settings import FleetSettings, read_settings
from fedlora_server.run.run_directory import last_round, read_metrics

FEDLORA = [sys.executable, "-m", "tests.faults.command"]
HERE = Path(__file__).resolve().parents[2]
LONGEST_S = 400.0  # that anything is waited for
NAMES = ("kitchen", "cellar", "attic", "pantry")
# A round is seconds of training: long enough to be hit, short enough to be waited for.
RUN: Mapping[str, object] = {
    "server.rounds": 2, "server.min_devices": 4, "server.round_timeout_s": 240, "server.evaluate": "false",
    "train.steps": 150, "train.sequence_length": 16, "train.batch_size": 2, "train.compute": "float32", "lora.rank": 2,
}  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(holds: Callable[[], object], what: str, seconds: float = LONGEST_S) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"after {seconds:g} s: {what}"
        time.sleep(0.1)


class Process:
    """One command with all that it starts, in a session of its own."""

    def __init__(self, name: str, command: list[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def wait(self, seconds: float = LONGEST_S) -> int:
        return self._process.wait(seconds)

    def children(self, pattern: str = "") -> list[psutil.Process]:
        """All that it started, and what these started, whose command matches."""
        found = []
        with suppress(psutil.Error):
            for child in psutil.Process(self.pid).children(recursive=True):
                with suppress(psutil.Error):
                    if re.search(pattern, " ".join(child.cmdline())):
                        found.append(child)
        return found

    def kill(self) -> None:
        """As a power cut does: it and all of its at once."""
        for one in [*self.children(), psutil.Process(self.pid)] if self.is_alive else []:
            with suppress(psutil.Error):
                one.kill()
        self._process.wait()

    def end(self) -> None:
        """As an operator does."""
        if self.is_alive:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()


class Fleet:
    """A server's folder and its devices, each with a base and data of its own. `names` join at once."""

    def __init__(
        self, base: BasePack, names: tuple[str, ...] = NAMES, *, port: int, listen_port: int, **changes: object
    ) -> None:
        """`changes` are of the run's configuration; devices reach the server at `port`, SuperLink is at `listen_port`."""
        self.folder = Path(tempfile.mkdtemp(prefix="ff-", dir="/tmp"))  # short enough for a socket's name
        self.base, self.names, self.devices = base, list[str](), dict[str, Process]()
        self.server: Process | None = None
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(HERE),
            "FEDLORA_HOME": str(self.folder / "home"), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        sets = [f"--set={key}={value}" for key, value in {"base": base.directory, **RUN, **changes}.items()]
        self.fedlora(
            "server", "init", "fleet", "--host", "localhost", "--port", str(port), "--listen-port",
            str(listen_port), *sets,
        )  # fmt: skip
        for name in names:
            self.join(name)

    # what an operator types

    def fedlora(self, *arguments: str) -> str:
        """What a command says. Its failure fails the test."""
        result = subprocess.run(
            [*FEDLORA, *arguments], cwd=self.folder, env=self.environment, capture_output=True, text=True,
            timeout=LONGEST_S, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def join(self, name: str) -> None:
        """Enrol a device, and let it join with a copy of the base."""
        home = self.folder / name
        (home / "data").mkdir(parents=True)
        lines = (json.dumps({"text": f"{name}, line {n}: the quick brown fox"}) for n in range(60))
        (home / "data" / "notes.jsonl").write_text("\n".join(lines))
        shutil.copytree(self.base.directory, home / "base")
        self.fedlora("server", "enrol", name, "--dir", "fleet")
        self.fedlora(
            "device", "join", f"{name}.json", "--base", f"{name}/base", "--data", f"{name}/data", "--dir", f"{name}/own"
        )
        self.names.append(name)

    def start_device(self, name: str, **environment: str) -> Process:
        command = [*FEDLORA, "device", "run", "--config", f"{name}/own/device.toml"]
        self.devices[name] = Process(name, command, self.folder, self.environment | environment)
        return self.devices[name]

    def start_server(self, *arguments: str) -> Process:
        assert self.server is None or not self.server.is_alive
        self.server = Process("server", [*FEDLORA, "server", "run", "fleet", *arguments], self.folder, self.environment)
        return self.server

    def begin(self, **changes: object) -> Process:
        """A new run, with all devices there; what is seen of a run is then of this one."""
        sets = [f"--set={key.replace('__', '.')}={value}" for key, value in changes.items()]
        self.all_there()
        before = self.run if self.has_run else None
        server = self.start_server("--new", *sets)
        until(lambda: not server.is_alive or (self.has_run and self.run != before), "the server begins no run")
        return server

    def finish(self) -> None:
        """Until the run is over, well."""
        assert self.server is not None
        assert self.server.wait() == 0, self.said()

    # what there is to see

    @property
    def settings(self) -> FleetSettings:
        return read_settings(self.folder / "fleet")

    @property
    def run(self) -> Path:
        """The directory of the newest run."""
        return Path(json.loads((self.folder / "fleet" / "run.json").read_text())["output"])

    @property
    def has_run(self) -> bool:
        return (self.folder / "fleet" / "run.json").exists()

    @property
    def committed(self) -> int:
        with suppress(OSError, ValueError):
            return last_round(self.run)
        return 0

    def rounds(self) -> list[dict[str, Any]]:
        """The lines of the run, but that of the base."""
        return [line for line in read_metrics(self.run) if line["round"]]

    def digest(self, server_round: int = 0) -> str:
        """Of the values of the adapter that a round committed; unless told, the newest one."""
        values = self.run / "rounds" / f"{server_round or self.committed:04d}" / "adapter" / "adapter_model.safetensors"
        return hashlib.sha256(values.read_bytes()).hexdigest()

    def said(self, name: str = "server") -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def config(self, name: str) -> DeviceConfig:
        return read_device(self.folder / name / "own" / "device.toml")

    def status(self, name: str) -> dict[str, Any]:
        return report(self.config(name), 50)

    def is_ready(self, name: str) -> bool:
        told = self.status(name)
        return bool(told["running"] and told["base_fingerprint"])

    def trains(self, name: str, server_round: int) -> bool:
        return f"train, round {server_round} of" in str(self.status(name)["doing"])

    def until_it_trains(self, name: str) -> int:
        """The round in whose middle the device is, once it is in one."""
        until(lambda: "train, round" in str(self.status(name)["doing"]), f"{name} does not train")
        found = re.search(r"train, round (\d+) of", str(self.status(name)["doing"]))
        assert found, f"{name} trained too shortly to be hit"
        return int(found[1])

    def until_training(self, server_round: int, *names: str) -> None:
        """Until all of these (or any device) are in the middle of that round."""
        assert self.server is not None
        server, ask = self.server, all if names else any
        until(
            lambda: ask(self.trains(name, server_round) for name in names or self.names) or not server.is_alive,
            f"nobody trains in round {server_round}",
        )
        assert server.is_alive, self.said()

    # what is done to them

    def server_part(self, pattern: str) -> list[psutil.Process]:
        """Flower's processes of the server whose command matches."""
        assert self.server is not None
        return [one for one in self.server.children(pattern) if "dies_with_parent" not in " ".join(one.cmdline())]

    def all_there(self) -> None:
        """Start what does not run, and wait for every trainer to be ready."""
        for name in self.names:
            if name not in self.devices or not self.devices[name].is_alive:
                self.start_device(name)
        for name in self.names:
            until(partial(self.is_ready, name), f"{name}: its trainer does not begin")

    def end(self) -> None:
        """End everything, and remove the folder unless FEDLORA_KEEP_FLEETS is set."""
        for process in (self.server, *self.devices.values()):
            if process is not None:
                for one in process.children():
                    with suppress(psutil.Error):
                        one.send_signal(signal.SIGCONT)
                process.end()
        if not os.environ.get("FEDLORA_KEEP_FLEETS"):
            shutil.rmtree(self.folder, ignore_errors=True)
