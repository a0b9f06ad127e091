"""A process of Flower's, or of ours beside it, as a supervisor starts one: its environment, its end, what it prints."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from fedlora.fleet.with_parent import with_parent


def flower_environment(home: Path) -> dict[str, str]:
    """A home of its own, the commands beside this Python first, nothing installed, nothing told to anybody."""
    return os.environ | {
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }


def start_process(
    command: Sequence[str],
    environment: Mapping[str, str],
    on_line: Callable[[str], None],  # called with each line that it writes, from a thread of its own
    end: signal.Signals,  # what it gets when the thread that starts it ends
) -> tuple[subprocess.Popen[str], threading.Thread]:
    """The process, the first of a group that has its number, and the thread that reads it. Raises OSError."""
    process = subprocess.Popen(
        [*with_parent(end), *command], env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    reader = threading.Thread(target=_relay, args=(process.stdout, on_line), daemon=True)
    reader.start()
    return process, reader


def signal_group(pid: int, number: signal.Signals) -> None:
    """To all that is left of a group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _relay(lines: IO[str], on_line: Callable[[str], None]) -> None:
    with lines, suppress(OSError, ValueError):
        for line in lines:
            on_line(line.rstrip("\n"))
