"""Processes are started again when they die, and end with the server, however it ends. No Flower here: shells."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fedlora.errors import RunError
from fedlora_server.fleet.children import MOST_DEATHS, Child, members

linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells of groups and parents on Linux")


def child(script: str, lines: list[str] | None = None) -> Child:
    return Child("test", ["sh", "-c", script], dict(os.environ), (lines if lines is not None else []).append)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def test_its_lines_are_heard() -> None:
    lines: list[str] = []
    process = child("echo one; echo two >&2", lines)
    process.start()
    until(lambda: lines == ["one", "two"])
    process.end()


@linux
def test_it_ends_with_all_that_it_started() -> None:
    process = child("trap '' TERM; sleep 600 & sleep 600 & wait")
    process.start()
    until(lambda: len(members(process.pid)) == 2)
    process.end()
    assert not process.is_alive
    assert members(process.pid) == []
    process.end()  # once more does nothing


def test_one_that_died_is_started_again_after_a_pause() -> None:
    process = child("exit 3")
    process.start()
    until(lambda: not process.is_alive)
    now = time.monotonic()
    assert not process.revive(now)
    assert not process.revive(now + 0.5)
    assert process.revive(now + 1.1)
    process.end()


def test_pauses_grow_and_one_that_dies_again_and_again_is_given_up() -> None:
    process, now, pauses = child("exit 3"), time.monotonic(), []
    process.start()
    with pytest.raises(RunError, match=r"test ended .* times in a row, at last with 3"):
        for _ in range(MOST_DEATHS + 1):
            until(lambda: not process.is_alive)
            assert not process.revive(now)
            began = now
            while not process.revive(now):
                now += 0.5
            pauses.append(now - began)
    assert pauses == sorted(pauses)
    assert pauses[-1] >= 16


@linux
def test_it_ends_when_the_server_is_killed(tmp_path: Path) -> None:
    server = (
        "import os, time; from fedlora_server.fleet.children import Child;"
        "c = Child('test', ['sleep', '600'], dict(os.environ), print); c.start(); print(c.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", server], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2])
