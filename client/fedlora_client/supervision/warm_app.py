"""The process that has Flower's app loaded already: for each message it forks, instead of a program that loads it all anew.

Flower starts `flwr-clientapp` for each message, and loading its modules takes more of a small board's time than all else
that a courier does. Here they are loaded once. The program that Flower finds on its path (`warm_program`) hands its
arguments, environment and output to this process, which forks: the child is Flower's own `flwr_clientapp`, a process for
each message as before, and ends with it. Where this process is not there, the program becomes `flwr-clientapp` itself.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import shlex
import signal
import socket
import struct
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from fedlora.errors import ConfigError

from fedlora_client.courier.courier import MAX_PATH_BYTES

PROGRAM = "flwr-clientapp"
_ASK = Path(__file__).with_name("ask_warm_app.py")
_LOADED = ("flwr.supernode.cli", "flwr.supernode.runtime.run_clientapp", "fedlora_client.app")
_BACKLOG, _REQUEST_S, _MOST_BYTES = 16, 2.0, 1 << 20
_CREDENTIALS = struct.Struct("3i")


def has_room(path: Path) -> bool:
    """Whether a socket can have this path."""
    return len(os.fsencode(path)) <= MAX_PATH_BYTES


def warm_program(folder: Path, socket_path: Path, program: str) -> Path:
    """Write the program that Flower finds instead of its own, `program`; returns the folder for its path."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [sys.executable, "-I", "-S", str(_ASK), str(socket_path), program]
    aside = folder / f".{PROGRAM}.{os.getpid()}"
    aside.write_text(f'#!/bin/sh\nexec {" ".join(map(shlex.quote, parts))} "$@"\n', encoding="utf-8")
    aside.chmod(0o700)
    aside.replace(folder / PROGRAM)
    return folder


def serve(path: Path) -> None:
    """Fork for each request of this user's, until SIGTERM or SIGINT. Raises ConfigError where it cannot listen there."""
    for name in _LOADED:
        importlib.import_module(name)
    listener = _listener(path)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGCHLD, lambda *_: _reap())
    gc.collect()
    gc.freeze()  # what is loaded stays shared with the children
    try:
        while True:
            connection, _ = listener.accept()
            with connection, suppress(OSError, ValueError, KeyError, TypeError):
                _take(connection, listener)
    finally:
        path.unlink(missing_ok=True)


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _listener(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"{path}: {error.strerror}; give the device a state folder that it can write") from None
    finally:
        os.umask(before)
    return listener


def _take(connection: socket.socket, listener: socket.socket) -> None:
    _, user, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if user != os.getuid():
        return
    connection.settimeout(_REQUEST_S)
    head, outputs, _, _ = socket.recv_fds(connection, 4, 2)
    try:
        size = int.from_bytes(head, "little")
        if len(head) < 4 or size > _MOST_BYTES or len(outputs) != 2:
            return
        text = b""
        while len(text) < size:
            piece = connection.recv(size - len(text))
            if not piece:
                return
            text += piece
        request = json.loads(text)
        if os.fork() == 0:
            listener.close()
            _become(connection, outputs, request)
    finally:
        for output in outputs:
            os.close(output)


def _become(connection: socket.socket, outputs: list[int], request: dict[str, object]) -> None:
    """Be `flwr-clientapp`, and end with it: nothing of this returns."""
    code = 1
    try:
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        for output, place in zip(outputs, (1, 2), strict=True):
            os.dup2(output, place)
        os.environ.clear()
        os.environ.update({str(name): str(value) for name, value in dict(request["environment"]).items()})  # type: ignore[call-overload]
        os.chdir(str(request["folder"]))
        sys.argv = [PROGRAM, *map(str, request["arguments"])]  # type: ignore[call-overload]
        connection.settimeout(None)
        connection.sendall(b"+")
        from flwr.supernode.cli import flwr_clientapp  # it is loaded

        flwr_clientapp()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # as the interpreter would
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        with suppress(OSError):
            connection.sendall(bytes([code & 0xFF]))
        os._exit(code & 0xFF)


if __name__ == "__main__":
    try:
        serve(Path(sys.argv[1]))
    except KeyboardInterrupt:
        sys.exit(0)
    except ConfigError as error:
        sys.exit(f"error: {error}")
