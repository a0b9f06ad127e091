"""A fleet on this machine: `fedlora server`, devices that are enrolled, TLS on loopback, and what they took."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedlora.fleet.flower_process import flower_environment
from fedlora_client.service.config import read_device
from fedlora_client.supervision.supernode import flower_home, supernode_command, warm_app_of
from fedlora_server.run.run_directory import read_metrics

from deploy.counted import CountedPort
from harness.process import WorkerError

Kind = Literal["plain", "courier"]

_FEDLORA = [sys.executable, "-c", "from fedlora.cli import main; main()"]
_CLIENTAPP = "flwr-clientapp"
_END_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Some rounds of one kind of devices."""

    records: list[dict[str, Any]]  # of the rounds that trained
    launches: dict[str, list[dict[str, float]]]  # by device, in the order of the rounds
    wire_bytes: int  # between all devices and the server


class Fleet:
    """Made once; each block of rounds has a copy of its folders, so that no server remembers devices that have ended."""

    def __init__(self, folder: Path, pack: Path, data: Sequence[Path], settings: Sequence[str]) -> None:
        self._folder, self._listen = folder, _free_port()
        self._counted = CountedPort(self._listen)
        self._settings, self._block = tuple(settings), 0
        self._devices = {f"device-{k}": path for k, path in enumerate(data)}
        self._pack, self._bin = pack, folder / "bin"
        self._bin.mkdir()
        self._made = folder / "made"
        self._made.mkdir()
        program = self._bin / _CLIENTAPP
        launched = shlex.quote(str(Path(__file__).with_name("launched.py")))
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -IS {launched} "$0" "$@"\n')
        program.chmod(0o755)
        ports = ("--port", str(self._counted.port), "--listen-port", str(self._listen))
        self._fedlora("server", "init", "fleet", "--host", "localhost", *ports, "--set", f"base={pack}")
        for name, path in self._devices.items():
            self._fedlora("server", "enrol", name)
            self._fedlora("device", "join", f"{name}.json", "--base", str(pack), "--data", str(path), "--dir", name)

    def rounds(self, kind: Kind, count: int, settings: Sequence[str], timeout_s: float) -> Block:
        """What `count` rounds took, with devices of this kind and these settings beside the fleet's own.

        Raises WorkerError where they come to nothing.
        """
        self._block += 1
        here = self._folder / str(self._block)
        shutil.copytree(self._made, here)
        launches = {name: here / f"{name}.jsonl" for name in self._devices}
        before = self._counted.total
        with self._running() as running:
            pids = self._start_services(here, running) if kind == "courier" else {}
            changes = (*self._settings, *settings, f"server.rounds={count}", f"server.min_devices={len(self._devices)}")
            server = self._start(
                here / "server",
                [*_FEDLORA, "server", "run", "fleet", *(f"--set={change}" for change in changes)],
                dict(os.environ), running,
            )  # fmt: skip
            _wait_until(self._answers, f"SuperLink at port {self._listen}")  # a SuperNode ends where it is cut off
            for name in self._devices:
                self._start_link(kind, here / name, launches[name], pids.get(name, []), running)
            try:
                code = server.wait(timeout_s)
            except subprocess.TimeoutExpired:
                code = -1
        if code:
            said = (here / "server.log").read_text(errors="replace").strip().splitlines()
            raise WorkerError(f"{kind}: fedlora server run ended with {code}: {' / '.join(said[-3:])}")
        (run,) = (here / "fleet" / "runs").iterdir()
        return Block(
            records=[record for record in read_metrics(run) if record["round"]],
            launches={
                name: sorted(map(json.loads, path.read_text().splitlines()), key=lambda line: float(line["began"]))
                for name, path in launches.items()
            },
            wire_bytes=self._counted.total - before,
        )

    def close(self) -> None:
        self._counted.close()

    def _start_services(self, here: Path, running: list[subprocess.Popen[bytes]]) -> dict[str, list[int]]:
        """{device: its trainer and its warm app}, at work."""
        pids: dict[str, list[int]] = {}
        for name in self._devices:
            config = read_device(here / name / "device.toml")
            # The trainer itself, as `fedlora device run` starts it: what it takes is counted.
            trainer = [sys.executable, "-m", "fedlora_client.supervision.trainer", str(config.path)]
            pids[name] = [self._start(here / name / "trainer", trainer, dict(os.environ), running).pid]
            warm, _ = warm_app_of(config)
            if warm:
                pids[name].append(
                    self._start(here / name / "app", warm, flower_environment(flower_home(config)), running).pid
                )
        for name in self._devices:
            config = read_device(here / name / "device.toml")
            _wait_until(Path(config.device.socket).exists, f"the trainer of {name}")
            _wait_until((config.state / "app.sock").exists, f"the warm app of {name}")
        return pids

    def _start_link(
        self, kind: Kind, home: Path, launches: Path, pids: Sequence[int], running: list[subprocess.Popen[bytes]]
    ) -> None:
        config = read_device(home / "device.toml")
        command, environment = supernode_command(config), flower_environment(flower_home(config))
        if kind == "courier":
            _, environment = warm_app_of(config)
        else:
            command[-1] = f'base="{self._pack}" data-path="{self._devices[home.name]}" name="{home.name}"'
        environment |= {
            "PATH": os.pathsep.join((str(self._bin), environment["PATH"])), "LAUNCHES": str(launches),
            "WORKS_FOR": " ".join(map(str, pids)),
        }  # fmt: skip
        self._start(home / kind, command, environment, running)

    def _fedlora(self, *arguments: str) -> None:
        done = subprocess.run([*_FEDLORA, *arguments], cwd=self._made, capture_output=True, text=True, check=False)
        if done.returncode:
            raise WorkerError(f"fedlora {' '.join(arguments[:2])}: {(done.stdout + done.stderr)[-300:]}")

    def _start(
        self, place: Path, command: Sequence[str], environment: dict[str, str], running: list[subprocess.Popen[bytes]]
    ) -> subprocess.Popen[bytes]:
        with place.with_suffix(".log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=place.parent, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        running.append(process)
        return process

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._listen)) == 0

    @contextmanager
    def _running(self) -> Iterator[list[subprocess.Popen[bytes]]]:
        """Processes, each the first of its group: all of them end at the end."""
        running: list[subprocess.Popen[bytes]] = []
        try:
            yield running
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                for process in running:
                    try:
                        os.killpg(process.pid, number)
                    except ProcessLookupError:
                        continue
                until = time.monotonic() + _END_S
                while any(process.poll() is None for process in running) and time.monotonic() < until:
                    time.sleep(0.1)


def _wait_until(holds: Callable[[], bool], what: str, longest_s: float = 180.0) -> None:
    """Raises WorkerError where it does not hold in time."""
    until = time.monotonic() + longest_s
    while not holds():
        if time.monotonic() > until:
            raise WorkerError(f"{what} is not there after {longest_s:g} s")
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
