"""The app that is loaded once and forks for each message: what the program on Flower's path does with it, and without."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fedlora_client.supervision import warm_app
from fedlora_client.supervision.warm_app import has_room, warm_program

# The warm app with another program in the place of Flower's, which takes seconds to load.
SERVER = """
import os, sys, types
from pathlib import Path
from fedlora_client.supervision import warm_app
cli = types.ModuleType("flwr.supernode.cli")
def flwr_clientapp():
    print("forked", os.getppid(), *sys.argv, os.environ["SAID"], os.getcwd(), flush=True)
    print("wrong", file=sys.stderr)
    if "--raise" in sys.argv:
        raise RuntimeError("it broke")
    if "--kill" in sys.argv:
        os.kill(os.getpid(), 9)
    sys.exit(int(sys.argv[-1]))
cli.flwr_clientapp = flwr_clientapp
for name in ("flwr", "flwr.supernode"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["flwr.supernode.cli"] = cli
warm_app._LOADED = ()
warm_app.serve(Path(sys.argv[1]))
"""


@contextmanager
def served(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(path)])
    try:
        until = time.monotonic() + 60
        while not path.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        process.wait(30)


def program_of(folder: Path) -> Path:
    real = folder / "real"
    real.write_text('#!/bin/sh\necho "real $@"\nexit 9\n')
    real.chmod(0o700)
    return warm_program(folder / "bin", folder / "app.sock", str(real)) / "flwr-clientapp"


def run(program: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), *arguments], capture_output=True, text=True, cwd=folder, env=os.environ | {"SAID": "here"},
        timeout=60, check=False,
    )  # fmt: skip


def test_a_message_is_done_by_a_fork_with_the_arguments_the_folder_and_the_output_of_who_asked(
    short_path: Path,
) -> None:
    program = program_of(short_path)
    with served(short_path / "app.sock") as server:
        assert (short_path / "app.sock").stat().st_mode & 0o777 == 0o600
        done = run(program, short_path, "--token", "a b", "3")
        assert done.returncode == 3
        assert done.stdout == f"forked {server.pid} flwr-clientapp --token a b 3 here {short_path}\n"
        assert done.stderr == "wrong\n"
        broken = run(program, short_path, "--raise")
        assert (broken.returncode, "it broke" in broken.stderr) == (1, True)
        assert run(program, short_path, "--kill").returncode == 1
        assert run(program, short_path, "0").returncode == 0, "what became of one message is nothing to the next"


def test_many_messages_at_once_are_forks_of_their_own(short_path: Path) -> None:
    program, codes = program_of(short_path), dict[int, int]()

    def ask(code: int) -> None:
        codes[code] = run(program, short_path, str(code)).returncode

    with served(short_path / "app.sock"):
        threads = [threading.Thread(target=ask, args=(code,)) for code in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert codes == {code: code for code in range(8)}


def test_without_the_warm_app_the_program_is_flowers_own(short_path: Path) -> None:
    program = program_of(short_path)
    done = run(program, short_path, "--token", "a b")
    assert (done.returncode, done.stdout) == (9, "real --token a b\n")
    with served(short_path / "app.sock") as server:
        server.send_signal(signal.SIGKILL)
        server.wait()
    assert run(program, short_path).returncode == 9, "its socket is there, and nobody listens"


@pytest.mark.parametrize("said", [b"", b"\xff", b"\xff\xff\xff\xff", b"\x02\x00\x00\x00[]", b"\x02\x00\x00\x00{}"])
def test_a_request_that_is_none_ends_nothing(short_path: Path, said: bytes) -> None:
    import socket

    program = program_of(short_path)
    with served(short_path / "app.sock"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(str(short_path / "app.sock"))
            connection.sendall(said)
        assert run(program, short_path, "4").returncode == 4


def test_a_folder_whose_name_is_too_long_for_a_socket_has_no_warm_app() -> None:
    assert has_room(Path("/tmp/x/app.sock"))
    assert not has_room(Path("/tmp") / ("x" * 100) / "app.sock")
    assert warm_app.PROGRAM == "flwr-clientapp"
