"""Children are started again when they end, and none is left when the supervisor ends, however it does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fedlora.errors import ConfigError
from fedlora_client.service.state import StateFolder
from fedlora_client.supervision.children import Child, Children

SLEEPER = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
STUBBORN = "import os, signal, time; signal.signal(15, signal.SIG_IGN); print(os.getpid(), flush=True); time.sleep(600)"


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def child(program: str, lines: list[str], name: str = "sleeper") -> Child:
    command = [sys.executable, "-c", program]
    return Child(name=name, command=lambda: command, environment=dict(os.environ), on_line=lines.append)


def test_a_child_that_ends_is_started_again_and_all_end_with_their_supervisor(tmp_path: Path) -> None:
    state, lines = StateFolder(tmp_path), list[str]()
    state.make()
    children = Children([child(SLEEPER, lines), child("raise SystemExit(3)", [], "broken")], state)
    stopper: list[str] = []

    def kill_once_and_stop() -> None:
        until(lambda: lines)
        os.kill(int(lines[0]), signal.SIGKILL)
        until(lambda: len(lines) > 1)
        stopper.append(str(state.read("processes")["pids"]))
        children.stopping.set()

    thread = threading.Thread(target=kill_once_and_stop)
    thread.start()
    children.run()
    thread.join()
    assert lines[0] != lines[1]
    assert not any(lives(int(pid)) for pid in lines)
    assert children.children[0].starts == 2
    assert children.children[1].starts >= 1
    assert state.read("processes") == {}


def test_a_child_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    state, lines = StateFolder(tmp_path), list[str]()
    state.make()
    children = Children([child(STUBBORN, lines)], state)

    def stop() -> None:
        until(lambda: lines)
        children.stopping.set()

    threading.Thread(target=stop).start()
    children.run()
    assert not lives(int(lines[0]))


def test_the_kernel_ends_the_children_of_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    program = f"""
import os, sys
from pathlib import Path
from fedlora.errors import ConfigError
from fedlora_client.service.state import StateFolder
from fedlora_client.supervision.children import Child, Children
state = StateFolder(Path({str(tmp_path)!r}))
state.make()
one = Child(name="one", command=lambda: [sys.executable, "-c", {SLEEPER!r}], environment=dict(os.environ),
            on_line=lambda line: print(line, flush=True))
Children([one], state).run()
"""
    supervisor = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert supervisor.stdout
    pid = int(supervisor.stdout.readline())
    assert lives(pid)
    supervisor.kill()
    supervisor.wait()
    supervisor.stdout.close()
    until(lambda: not lives(pid))


def test_a_program_that_is_not_there_is_told_and_tried_again_later() -> None:
    lines: list[str] = []
    one = Child(name="none", command=lambda: ["/nowhere/at-all"], environment=dict(os.environ), on_line=lines.append)
    one.look()

    def has_ended() -> bool:
        one.look()
        return one.process is None

    until(has_ended)
    until(lambda: lines)
    assert lines == ["/nowhere/at-all: No such file or directory"]
    one.look()
    assert (one.process, one.starts) == (None, 1)

    def cannot() -> list[str]:
        raise ConfigError("the key is gone; give another")

    other = Child(name="none", command=cannot, environment={}, on_line=print)
    other.look()
    assert (other.process, other.starts) == (None, 0)


def test_a_child_that_had_begun_its_work_is_not_waited_for_long(tmp_path: Path) -> None:
    one = child("raise SystemExit(3)", [])
    pauses = []
    for worked in (False,) * 6 + (True, True):
        one._next = 0.0
        one.look()
        assert one.process is not None
        one.process.wait()
        if worked:
            one.worked()
        one.look()
        pauses.append(one._pause_s)
    assert pauses == [1, 2, 4, 8, 16, 32, 8, 8]
